"""Files: whole, or refused by name; the old one or the new one, whenever the process dies."""

import errno
import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from kohort import files
from kohort.files import Contents

RNG = np.random.default_rng(0)
ARRAYS = {
    "weights": RNG.normal(size=(3, 4)).astype("float32"),
    "half": RNG.normal(size=5).astype(ml_dtypes.bfloat16),
    "nothing": np.zeros((0, 2), "uint32"),
    "one": np.asarray(7, "int32"),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "flags": np.array([True, False]),
}
CONTENTS = Contents({"word": "Ünïcode", "list": [1, None, {"a": 0.5}]}, ARRAYS)


pytestmark = pytest.mark.usefixtures("annotations_unchecked")


@pytest.fixture
def path(tmp_path):
    written = tmp_path / "a.kohort"
    files.write(written, "cohort", 1, CONTENTS)
    return written


def changed(path, change):
    """Changes the bytes of a file and returns its path."""
    path.write_bytes(change(bytearray(path.read_bytes())))
    return path


def test_what_is_written_is_read(path):
    about, arrays = files.read(path, "cohort", 1)

    assert about == CONTENTS.about
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(arrays[name], array)


def test_the_file_is_one_of_safetensors(path):
    with safetensors.safe_open(path, "numpy") as file:
        assert set(file.keys()) == set(ARRAYS)
        np.testing.assert_array_equal(file.get_tensor("weights"), ARRAYS["weights"])


def test_the_same_contents_make_the_same_bytes(path, tmp_path):
    files.write(tmp_path / "b.kohort", "cohort", 1, CONTENTS)

    assert (tmp_path / "b.kohort").read_bytes() == path.read_bytes()


def test_any_flipped_bit_is_noticed(path):
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << RNG.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"`path` must be a whole file that kohort saved\. Received: path='.*a\.k"):
            files.read(path, "cohort", 1)


def test_any_cut_is_noticed(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"`path` must be a whole file that kohort saved"):
            files.read(path, "cohort", 1)


def flip(place, bit=0):
    def change(data):
        data[place] ^= 1 << bit
        return data

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip(-1), r"which is damaged: its bytes are not those that were written\. Take another copy"),
        (flip(files.SEAL), r"which is damaged: its bytes"),
        (flip(files.HEAD + 5), r"which is damaged: its bytes"),
        (flip(files.HEAD - 2, 6), r"which is damaged at its beginning\. Take another copy"),
        (lambda data: data[:-3], r"which is cut off: \d+ bytes, of \d+ that were written\. Take another copy"),
        (lambda data: data + b"x", r"which is longer than it was: \d+ bytes, of \d+ that were written"),
        (lambda data: data[:50], r"which is damaged at its beginning"),
        (lambda data: b"", r"an empty file\. Pass one that `save` wrote; if it was one, it is damaged"),
        (lambda data: b"epoch,loss\n1,0.5\n" * 20, r"a file of another kind\. Pass one"),
        (lambda data: b"\x89HDF\r\n\x1a\n" * 20, r"an HDF5 file\."),
        (lambda data: safetensors.numpy.save({"a": np.zeros(3)}), r"a safetensors file that kohort did not write\."),
        (lambda data: safetensors.numpy.save({"a": np.zeros(30)}, {"format": "pt"}), r"a safetensors file that kohort"),
    ],
)
def test_a_damaged_or_foreign_file_is_told_apart(path, change, message):
    changed(path, change)
    with pytest.raises(ValueError, match=rf"kohort saved\. Received: path='{path}', {message}"):
        files.read(path, "cohort", 1)


def test_a_keras_file_is_no_file_of_kohort(path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("config.json", "{}" * 100)
    path.write_bytes(archive.getvalue())
    with pytest.raises(ValueError, match=r"a zip archive, as `\.keras` files are\."):
        files.read(path, "cohort", 1)


def test_a_newer_version_and_another_kind(path):
    message = (
        r"`path` must be a file of a version up to 1, which this kohort reads\. .*, of version 2, written by kohort"
    )
    files.write(path, "cohort", 2, CONTENTS)
    with pytest.raises(ValueError, match=message):
        files.read(path, "cohort", 1)
    assert files.read(path, "cohort", 2).about == CONTENTS.about
    with pytest.raises(ValueError, match=r"a file of kohort that holds a cohort\. Pass one that holds a study\."):
        files.read(path, "study", 2)


@pytest.mark.parametrize(
    "note", [3, {}, {"kind": "cohort"}, {name: kind() for name, kind in files.NOTE.items()} | {"types": {"a": "x"}}]
)
def test_a_forged_note_is_refused_though_its_checksum_is_right(path, note, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda _: json.JSONEncoder().encode(note))
    files.write(path, "cohort", 1, Contents({}, {"a": np.zeros(2)}))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"whose checksum is right and whose form is not\. Save the cohort anew\."):
        files.read(path, "cohort", 1)


def test_nothing_is_read_of_a_file_that_states_another_size(path, monkeypatch):
    """A file of terabytes (most of it a hole) is refused before a byte of memory is taken for it."""
    with open(path, "r+b") as file:
        file.truncate(2**42)
    with pytest.raises(ValueError, match=rf"which is longer than it was: {2**42} bytes"):
        files.read(path, "cohort", 1)


# Paths.


@pytest.mark.parametrize("act", [lambda p: files.write(p, "cohort", 1, CONTENTS), lambda p: files.read(p, "cohort", 1)])
@pytest.mark.parametrize("wrong", [None, 3, b"a", ["a"]])
def test_what_is_no_path(act, wrong):
    with pytest.raises(TypeError, match=r"`path` must be a path\. Received: path=.* of type .*\. Pass for example"):
        act(wrong)


def test_places_that_cannot_be_written(tmp_path, path):
    with pytest.raises(
        FileNotFoundError, match=r"`path` must be in a folder that exists\. Received: .*Make it first: "
    ):
        files.write(tmp_path / "none" / "a.kohort", "cohort", 1, CONTENTS)
    for below in ("a.kohort", "folder/a.kohort"):
        with pytest.raises(
            NotADirectoryError, match=r"`path` must be in a folder\. .* is a file\. Choose another place"
        ):
            files.write(path / below, "cohort", 1, CONTENTS)
    with pytest.raises(IsADirectoryError, match=r"`path` must be a file\. Received: .*, which is a folder\. Add"):
        files.write(tmp_path, "cohort", 1, CONTENTS)


def test_places_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` must be a file that can be read\. .*\(No such file or dire"):
        files.read(tmp_path / "none", "cohort", 1)
    with pytest.raises(IsADirectoryError, match=r"`path` must be a file that can be read\. .*\(a folder; .*\)\. Check"):
        files.read(tmp_path, "cohort", 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("where", ["open", "os.fsync", "os.replace"])
def test_what_stood_there_is_as_it_was_when_writing_fails(path, monkeypatch, where, number):
    before = path.read_bytes()

    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"kohort.files.{where}", fail, raising=False)
    said = (
        rf"`path` must be a place that can be written\. .*a\.kohort' \({os.strerror(number)}\)\. Choose another place"
    )
    with pytest.raises(OSError, match=said) as caught:
        files.write(path, "cohort", 1, Contents({}, {}))
    assert type(caught.value) is type(OSError(number, ""))
    assert caught.value.errno == number
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_an_interrupt_leaves_nothing_aside(path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, "cohort", 1, Contents({}, {}))
    assert os.listdir(path.parent) == [path.name]
    assert files.read(path, "cohort", 1).about == CONTENTS.about


def test_a_link_and_permissions_stay(path):
    link = path.with_name("link.kohort")
    link.symlink_to(path)
    path.chmod(0o640)

    files.write(link, "cohort", 1, Contents({"new": 1}, {}))

    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert files.read(path, "cohort", 1).about == {"new": 1}


def test_what_was_left_behind_long_ago_is_removed(path):
    old, new, other = (path.with_name(f".{name}.part") for name in ("a.kohort.1", "a.kohort.2", "b.kohort.3"))
    for left in (old, new, other):
        left.write_bytes(b"half")
    for left in (old, other):
        os.utime(left, (1e9, 1e9))

    files.write(path, "cohort", 1, CONTENTS)

    assert {each.name for each in path.parent.iterdir()} == {path.name, new.name, other.name}


# Kills.

SAVES = """
import importlib.util, itertools, os, random, signal, sys, time
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
paths, version, random = sys.argv[2:4], int(sys.argv[4]), random.Random(0)
contents = [files.read(path, "cohort", version) for path in paths]
start = time.perf_counter()
files.write(paths[0], "cohort", version, contents[0])
seconds = time.perf_counter() - start
for line in sys.stdin:
    delay = random.uniform(0.1, 4) * seconds
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process at once, wherever it is
        signal.setitimer(signal.ITIMER_REAL, delay)
        for each in itertools.cycle(contents):
            files.write(paths[0], "cohort", version, each)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Killed:
    """A process whose children save what two files hold to the first, by turns, and are killed while they do."""

    def __init__(self, path, other, version=1):
        command = [sys.executable, "-c", SAVES, files.__file__, str(path), str(other), str(version)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def once(self):
        """Has one killed; returns how it ended."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def test_kills_during_saves_leave_a_whole_file(tmp_path):
    path, other = tmp_path / "a.kohort", tmp_path / "b.kohort"
    numbers = [RNG.normal(size=size) for size in (200_000, 150_000)]
    for each, array in zip((path, other), numbers, strict=True):
        files.write(each, "cohort", 1, Contents({}, {"numbers": array}))
    found = []
    with Killed(path, other) as saves:
        for _ in range(40):
            assert saves.once() == -14  # SIGALRM
            kept = files.read(path, "cohort", 1).arrays["numbers"]
            found.append([np.array_equal(kept, array) for array in numbers])

    assert {tuple(each) for each in found} == {(True, False), (False, True)}
    assert len(list(Path(tmp_path).glob(".a.kohort.*.part"))) >= 5  # so many were in the middle of it
