"""Where no study can be written: each place is named, what is there stays whole, and can be read."""

import ctypes
import errno
import os
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused
from test_store import block, contents, study
from test_study import X, Y, study_of, trained

import kohort

__all__ = ["study"]  # a fixture

pytestmark = pytest.mark.usefixtures("annotations_unchecked")

# The rights by which root reads and writes what permissions forbid, as Linux numbers them.
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION = 0x20080522


@pytest.fixture
def permissions():
    """Lets permissions hold for this thread, also where root runs the tests."""
    if os.geteuid():
        yield
        return
    library, head = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    words = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and the same of further rights
    assert library.capget(head, words) == 0, os.strerror(ctypes.get_errno())
    effective = words[0]
    words[0] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    assert library.capset(head, words) == 0, os.strerror(ctypes.get_errno())
    yield
    words[0] = effective
    assert library.capset(head, words) == 0, os.strerror(ctypes.get_errno())


# --- folders that may not be written ----------------------------------------------------------------------------------

PLACE = r"`path` must be a place that can be read and written\. Received: path='.*a\.kohort' \(Permission denied\)"
BLOCKS = r"`path` must be a place that can be written\. Received: path='.*/blocks/.*' \(Permission denied\)"


def whole(folder):
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o500 if path.is_dir() else 0o400)


def copied(folder):
    """Without what only the writer needs."""
    for name in ("writer.lock", "writer.json"):
        (folder / name).unlink()
    folder.chmod(0o500)


READ_ONLY = {
    "folder": (lambda folder: folder.chmod(0o500), PLACE),
    "blocks": (lambda folder: (folder / "blocks").chmod(0o500), BLOCKS),
    "whole": (whole, PLACE),
    "copy": (copied, PLACE),
}


@pytest.mark.parametrize("name", READ_ONLY)
def test_a_study_that_may_not_be_written(name, tmp_path, permissions):
    """It is refused before anything is trained, but where the blocks alone are."""
    begun = trained(tmp_path, {"hidden": [2]}, 4, epochs=2)
    before, path = begun.table().rows, tmp_path / "a.kohort"
    forbid, message = READ_ONLY[name]
    forbid(path)
    tasks = []
    try:
        with refused(PermissionError, message):
            study_of(tmp_path, {"hidden": [2]}, 8).run(X, Y, epochs=2, verbose=0, executor=counting(tasks))
        assert kohort.open(path).table().rows == before
    finally:
        for each in [path, *path.rglob("*")]:
            each.chmod(0o700)
    assert len(tasks) == (name == "blocks")
    begun.extend(seeds=8, verbose=0)
    assert [len(trial) for trial in begun.trials] == [8]


def counting(tasks):
    def one_by_one(lanes, train, interrupt, workers):
        for task in (task for lane in lanes for task in lane):
            tasks.append(task)
            yield train(task)

    return one_by_one


def test_a_folder_in_which_no_study_may_be_made(tmp_path, permissions):
    tmp_path.chmod(0o500)
    try:
        with refused(PermissionError, PLACE):
            study_of(tmp_path, {"hidden": [2]}).run(X, Y, verbose=0)
    finally:
        tmp_path.chmod(0o700)
    assert list(tmp_path.iterdir()) == []


def test_a_study_in_a_folder_that_is_closed(tmp_path, permissions):
    trained(tmp_path, {"hidden": [2]}, 4, epochs=2)
    for folder in (tmp_path, tmp_path / "a.kohort"):
        folder.chmod(0o000)
        try:
            with refused(PermissionError, PLACE):
                kohort.open(tmp_path / "a.kohort")
            with refused(PermissionError, PLACE):
                study_of(tmp_path, {"hidden": [2]})
        finally:
            folder.chmod(0o700)
    assert len(kohort.open(tmp_path / "a.kohort").trials) == 1


def test_a_place_in_no_folder(tmp_path):
    (tmp_path / "a file").touch()
    with refused(FileNotFoundError, r"`path` must be in a folder that exists\. Received: path='.*/a\.kohort'\. Make"):
        study_of(tmp_path / "no folder", {"hidden": [2]})
    with refused(NotADirectoryError, r"`path` must be in a folder\. .* is a file\. Choose another place"):
        study_of(tmp_path / "a file", {"hidden": [2]})


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has such a folder, which root cannot write")
def test_a_folder_of_the_system():
    path = Path("/proc/a.kohort")
    with refused(FileNotFoundError, r"`path` must be a place that can be .*path='/proc/a\.kohort' \(No such file"):
        study_of(path.parent, {"hidden": [2]}).run(X, Y, verbose=0)


# --- disks that may not be written, or are full -----------------------------------------------------------------------


def test_a_read_only_index(study, monkeypatch):
    """As on a read-only disk: SQLite is asked to open it so, as permissions do not stop root."""
    connect = sqlite3.connect

    def read_only(path, *args, **options):
        return connect(str(path).replace("mode=rwc", "mode=ro"), *args, **options)

    with study.writer() as writer:
        monkeypatch.setattr(sqlite3, "connect", read_only)
        del writer
    with study.writer() as writer, pytest.raises(OSError, match=r"Received: path='.*' \(Read-only") as caught:
        writer.commit(block(seeds=(7,)), contents())

    assert caught.value.errno == errno.EROFS
    assert len(study.records().blocks) == 2


def test_a_full_disk_where_the_index_is(study):
    with study.writer() as writer:
        connection = writer._connection
        [(pages,)] = connection.execute("PRAGMA page_count")
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(
            OSError, match=r"\(No space left on device\)\. Choose .* all blocks that it holds"
        ) as caught:
            list(map(lambda seed: writer.commit(block(seeds=(seed,)), contents()), range(100, 400)))

        assert caught.value.errno == errno.ENOSPC
        there = len(writer.records.blocks)
        assert len(study.records().blocks) == there
        connection.execute("PRAGMA max_page_count = 100000")  # somebody makes room
        writer.commit(block(seeds=(99,)), contents())
    assert len(study.records().blocks) == there + 1


FULL = """
import resource, sys
import numpy as np
from test_store import block
from kohort.files import Contents
from kohort.store import Store
store = Store(sys.argv[1])
with store.writer() as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        writer.commit(block(seeds=(7,)), Contents({}, {"a": np.zeros(100_000)}))
    except OSError as error:
        print(error)
"""


def test_a_full_disk_where_the_arrays_are(study):
    """A limit of the system on the size of files stands in for a disk that is full."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(study.folder)], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        cwd=os.path.dirname(__file__),
    )  # fmt: skip

    assert done.stdout.startswith("`path` must be a place that can be written."), done.stdout + done.stderr
    assert len(study.records().blocks) == 2
    assert len(list((study.folder / "blocks").iterdir())) == 2
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
