"""Where no study can be written: each place is named, what is there stays whole, and can be read."""

import ctypes
import errno
import os
import re
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import TEMPLATE, refused
from test_store import block, contents, study
from test_study import X, Y, study_of, trained

import kohort
from kohort import cli, files

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


# --- what the command is given ----------------------------------------------------------------------------------------

UNREADABLE = [
    (["fit", "a.csv", "--target", "y"], r"`file` must be a file that can be read. Received: 'a.csv' (Permission den"),
    (
        ["fit", "a.parquet", "--target", "y"],
        "`file` must be a file that can be read. Received: 'a.parquet' (Permission",
    ),
    (["fit", "closed/a.csv", "--target", "y"], "`file` must be a file. Received: 'closed/a.csv', which does not exist"),
    (["study", "a.toml"], "`file` must be a study in TOML. Received: 'a.toml', which cannot be read (Permission den"),
    (
        ["study", "a.csv/a.toml"],
        "`file` must be a study in TOML. Received: 'a.csv/a.toml', which cannot be read (Not a",
    ),
    (["table", "closed"], "`path` must be a place that can be read and written. Received: path='closed' (Permission"),
    (["table", "closed/a"], "`path` must be a place that can be read and written. Received: path='closed/a' (Perm"),
]


def complaint(capsys, words):
    """Returns what the command complains of, once it is found to be one message of the template."""
    capsys.readouterr()
    assert cli.main(words) in (1, 2)
    out, error = capsys.readouterr()
    assert out == ""
    assert TEMPLATE.fullmatch(error.removeprefix("kohort: ").strip()), error
    return error.removeprefix("kohort: ")


@pytest.fixture
def closed(tmp_path, permissions, monkeypatch):
    """A folder with files that may not be read, and folders that may not be looked into, or written."""
    monkeypatch.chdir(tmp_path)
    for name in ("closed", "written"):
        (tmp_path / name).mkdir()
    for name in ("a.csv", "a.parquet", "a.toml"):
        (tmp_path / name).touch(mode=0)
    (tmp_path / "b.csv").write_text("x,y\n" + "1,0\n2,1\n" * 10)
    (tmp_path / "written" / "there.csv").touch()
    (tmp_path / "closed").chmod(0)
    (tmp_path / "written").chmod(0o500)
    yield tmp_path
    for name in ("closed", "written"):
        (tmp_path / name).chmod(0o700)


@pytest.mark.parametrize(("words", "message"), UNREADABLE)
def test_what_may_not_be_read_is_named(words, message, closed, capsys):
    assert complaint(capsys, words).startswith(message)


WHERE = {
    "written/a.{}": "`path` must be a place that can be written. Received: path='.*' \\(Permission denied\\)",
    "closed/a.{}": "`path` must be a place that can be written. Received: path='.*' \\(Permission denied\\)",
    "none/a.{}": "`path` must be in a folder that exists",
    "b.csv/a.{}": "`path` must be in a folder. ",
    "/proc/a.{}": "`path` must be a place that can be written. Received: path='/proc/.*' \\(No such file or directory",
}


@pytest.mark.parametrize("where", WHERE)
def test_where_nothing_can_be_written_is_named_before_anything_is_read_or_trained(where, closed, capsys):
    """No study, table of networks or data is looked for: what would take long comes after."""
    for words in (
        *(["export", "no study", "--to", where.format(kind)] for kind in ("csv", "parquet", "nc")),
        ["fit", "no table.csv", "--target", "y", "--save", where.format("kohort")],
        ["predict", "no networks", "no table.csv", "--to", where.format("csv")],
    ):
        assert re.match(WHERE[where], complaint(capsys, words)), words


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("b.csv", "`folder` must be a folder, or a place for one. Received: 'b.csv' (File exists). Name another."),
        ("b.csv/a", "`folder` must be a folder, or a place for one. Received: 'b.csv/a' (Not a directory)."),
        ("written/a", "`folder` must be a folder, or a place for one. Received: 'written/a' (Permission denied)."),
        ("written", "`path` must be a place that can be written. "),
    ],
)
def test_where_the_demo_cannot_put_its_pictures_nothing_is_trained(folder, message, closed, capsys, monkeypatch):
    monkeypatch.setattr("kohort.demo.train_xor", lambda: pytest.fail("something is trained"))
    assert complaint(capsys, ["demo", folder]).startswith(message)


# --- disks that may not be written, or are full -----------------------------------------------------------------------


def test_a_disk_that_is_full_in_a_run_keeps_what_is_finished(tmp_path, monkeypatch):
    """The third file has no room; once there is some, the run goes on."""
    real, written = files.put, []

    def put(target, pieces):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(target, pieces)
        written.append(target)

    study = study_of(tmp_path, {"hidden": [2]}, 8)
    with monkeypatch.context() as patch:
        patch.setattr(files, "put", put)
        with pytest.raises(OSError, match="No space left") as caught:
            study.run(X, Y, epochs=3, block_size=2, verbose=0)
    assert caught.value.errno == errno.ENOSPC
    assert [len(trial) for trial in kohort.open(study.path).trials] == [4]
    study.run(X, Y, epochs=3, block_size=2, verbose=0)
    assert [len(trial) for trial in kohort.open(study.path).trials] == [8]
    assert len(list((tmp_path / "a.kohort" / "blocks").iterdir())) == 4


def test_a_read_only_index(study, monkeypatch):
    """As on a read-only disk: SQLite is asked to open it so, as permissions do not stop root."""
    connect = sqlite3.connect

    def read_only(path, *args, **options):
        return connect(str(path).replace("mode=rwc", "mode=ro"), *args, **options)

    with study.writer() as writer:
        monkeypatch.setattr(sqlite3, "connect", read_only)
        del writer
    with study.writer() as writer, pytest.raises(OSError, match=r"Received: path='.*' \(Read-only") as caught:
        writer.commit((block(seeds=(7,)), contents()))

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
            list(map(lambda seed: writer.commit((block(seeds=(seed,)), contents())), range(100, 400)))

        assert caught.value.errno == errno.ENOSPC
        there = len(writer.records.blocks)
        assert len(study.records().blocks) == there
        connection.execute("PRAGMA max_page_count = 100000")  # somebody makes room
        writer.commit((block(seeds=(99,)), contents()))
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
        writer.commit((block(seeds=(7,)), Contents({}, {"a": np.zeros(100_000)})))
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
