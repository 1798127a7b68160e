"""Files that are whole or refused: a description and arrays, in one file.

In come plain values and arrays of NumPy; out comes a safetensors file with a checksum over every byte of it, and back
again. A file is written aside, flushed to the disk and put in its place in one step, so that whoever is killed while
saving leaves the old file or the new one. The room exists so that nothing half-written or changed is ever read.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

# How safetensors begins a header that carries a note: behind it come our checksum, the size of the file, and JSON.
# These three stay as they are in every version, so that a file of a later one is known to be whole, and later.
BEGIN = b'{"__metadata__":{"kohort":"'
SEAL = len(BEGIN) + 8  # where the checksum begins; the eight bytes are the length of the header
NO_CHECKSUM = b"0" * 64
SIZE_DIGITS = 16
HEAD = SEAL + len(NO_CHECKSUM) + 1 + SIZE_DIGITS + 1
# What a killed save leaves aside is removed by a later one, after so long.
LEFT_BEHIND_SECONDS = 3600


class Contents(NamedTuple):
    """What a file holds."""

    about: dict  # values of JSON
    arrays: dict[str, np.ndarray]


# --- writing ----------------------------------------------------------------------------------------------------------


def write(path: Any, kind: str, version: int, contents: Contents) -> None:
    """Writes a file; where one stood under that name, there is at any time the old one or the new one.

    Args:
        path: Where to; its folder must exist.
        kind: What it holds, as `read` asks for it.
        version: Of the form of the contents, from 1 on.
        contents: Values and arrays.

    Raises:
        TypeError: If `path` is no path.
        OSError: If the place cannot be written. What stood there is as it was.
    """
    put(checked_target(path), sealed(kind, version, contents))


def sealed(kind: str, version: int, contents: Contents) -> list[Any]:
    """Returns the bytes of the file in pieces."""
    arrays = {name: np.asarray(array, order="C") for name, array in contents.arrays.items()}
    types = {name: array.dtype.name for name, array in arrays.items() if hasattr(ml_dtypes, array.dtype.name)}
    plain = {name: array.view(f"u{array.itemsize}") if name in types else array for name, array in arrays.items()}
    note = {"kind": kind, "version": version, "with": versions(), "types": types, "about": contents.about}
    room = f"{NO_CHECKSUM.decode()} {0:0{SIZE_DIGITS}} "
    data = safetensors.numpy.save(plain, {"kohort": room + json.dumps(note)})
    size = b" %0*d " % (SIZE_DIGITS, len(data))
    rest = memoryview(data)[HEAD:]
    digest = _digest(data[:SEAL], size, rest)
    return [data[:SEAL], digest, size, rest]


def _digest(begin: bytes, size: bytes, rest: Any) -> bytes:
    """Returns the checksum of a file, in which nothing stands in its own place."""
    digest = hashlib.sha256(begin + NO_CHECKSUM + size)
    digest.update(rest)
    return digest.hexdigest().encode()


@functools.cache  # a look-up takes as long as it takes to write a small file
def versions() -> dict[str, str]:
    """Returns the versions of what files are written with."""
    found = {"python": platform.python_version()}
    for package in ("kohort", "keras", "jax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # kohort need not be installed to run
            found[package] = importlib.metadata.version(package)
    return found


def checked_target(path: Any) -> Path:
    """Returns where to write, with links followed; raises unless that is a file, or may become one."""
    target = Path(os.path.realpath(checked_path(path)))
    if os.path.isdir(target):  # which does not raise where folders may not be looked into
        raise IsADirectoryError(
            f"`path` must be a file. Received: path={os.fspath(path)!r}, which is a folder. Add the name of a file."
        )
    above = next(folder for folder in target.parents if os.path.exists(folder))
    if not os.path.isdir(above):
        raise NotADirectoryError(
            f"`path` must be in a folder. Received: path={os.fspath(path)!r}, where {os.fspath(above)!r} is a file. "
            "Choose another place."
        )
    if not os.path.isdir(target.parent):
        raise FileNotFoundError(
            f"`path` must be in a folder that exists. Received: path={os.fspath(path)!r}. "
            f"Make it first: `os.makedirs({os.fspath(target.parent)!r})`."
        )
    return target


def checked_path(path: Any) -> Any:
    """Returns a path, or raises that it is none."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"`path` must be a path. Received: path={path!r} of type {type(path).__name__}. "
            'Pass for example "cohort.kohort".'
        )
    return path


def checked_room(path: Any) -> Path:
    """Returns where to write, once a file has been made there, and removed: after hours of work it would be late.

    Raises:
        TypeError: If `path` is no path.
        OSError: If nothing can be written there.
    """
    target = checked_target(path)
    with _aside(target):
        return target


def put(target: Path, pieces: list[Any]) -> None:
    """Puts a file in its place in one step."""
    with replacing(target) as aside, open(aside, "wb") as file:
        for piece in pieces:
            file.write(piece)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Lets the block write a file aside, and then puts it in its place in one step."""
    with _aside(target) as aside:
        yield aside
        with open(aside, "ab") as file:
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, aside)
        os.replace(aside, target)
        _flush_folder(target.parent)


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """Gives an empty file beside the target, for as long as the block lasts."""
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        _remove_left_behind(target)
        open(aside, "xb").close()
        yield aside
    except OSError as error:
        why = error.strerror or error
        raised = type(error)(
            f"`path` must be a place that can be written. Received: path={os.fspath(target)!r} ({why}). "
            "Choose another place, or make room there; what stood there is as it was."
        )
        raised.errno = error.errno
        raise raised from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _remove_left_behind(target: Path) -> None:
    """Removes what saves of this file, killed long ago, have left aside."""
    for other in _left_behind(target):
        with contextlib.suppress(OSError):  # another process may be faster
            if time.time() - other.stat().st_mtime > LEFT_BEHIND_SECONDS:
                other.unlink()


def _left_behind(target: Path) -> Iterator[Path]:
    name = f".{target.name}."
    return (each for each in target.parent.iterdir() if each.name.startswith(name) and each.name.endswith(".part"))


def _flush_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Any, kind: str, newest: int, most_bytes: int | None = None) -> Contents:
    """Reads a file that `write` wrote, after its size and its checksum have been found right.

    Args:
        path: The file.
        kind: What it must hold.
        newest: The newest version that the caller knows.
        most_bytes: The largest file that is read, as a stranger's may fill the memory.

    Returns:
        What was written; arrays are read-only.

    Raises:
        TypeError: If `path` is no path.
        OSError: If it cannot be read.
        ValueError: If the file is not kohort's, is damaged, holds something else, or is of a newer version.
    """
    data = _whole(checked_path(path), most_bytes)
    try:
        note, arrays = _opened(data)
    except (safetensors.SafetensorError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise _refused(path, "whose checksum is right and whose form is not", "Save the cohort anew") from error
    if note["kind"] != kind:
        raise _refused(path, f"a file of kohort that holds a {note['kind']}", f"Pass one that holds a {kind}")
    if note["version"] > newest:
        by = note["with"].get("kohort", "a newer one")
        raise ValueError(
            f"`path` must be a file of a version up to {newest}, which this kohort reads. "
            f"Received: path={os.fspath(path)!r}, of version {note['version']}, written by kohort {by}. "
            "Upgrade kohort to read it."
        )
    return Contents(note["about"], arrays)


def _refused(path: Any, received: str, step: str) -> ValueError:
    return ValueError(
        f"`path` must be a whole file that kohort saved. Received: path={os.fspath(path)!r}, {received}. {step}."
    )


def _whole(path: Any, most_bytes: int | None) -> bytes:
    """Returns all bytes of a file of kohort's, once its size is known to be the one that was written."""
    with _opened_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEAD)
        if head[8:SEAL] != BEGIN:
            raise _refused(path, _looks_like(head), "Pass one that `save` wrote; if it was one, it is damaged")
        stated = head[-SIZE_DIGITS - 1 : -1] if len(head) == HEAD else b""
        if not stated.isdigit():
            raise _refused(path, "which is damaged at its beginning", "Take another copy of it")
        if most_bytes is not None and size > most_bytes:
            raise _refused(path, f"which has {size} bytes; at most {most_bytes} are read", "Take another copy of it")
        if int(stated) != size:
            more = "is longer than it was" if size > int(stated) else "is cut off"
            received = f"which {more}: {size} bytes, of {int(stated)} that were written"
            raise _refused(path, received, "Take another copy of it")
        data = head + file.read(size - HEAD)
    checksum = data[SEAL : SEAL + len(NO_CHECKSUM)]
    rest = memoryview(data)[HEAD:]
    if len(data) != size or _digest(data[:SEAL], data[SEAL + len(NO_CHECKSUM) : HEAD], rest) != checksum:
        raise _refused(path, "which is damaged: its bytes are not those that were written", "Take another copy of it")
    return data


@contextlib.contextmanager
def _opened_file(path: Any) -> Iterator[Any]:
    try:
        if os.path.isdir(path):
            raise IsADirectoryError("a folder; that of a study is read by `kohort.open`")
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise IsADirectoryError("no file")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raised = type(error)(
            f"`path` must be a file that can be read. Received: path={os.fspath(path)!r} ({error.strerror or error}). "
            "Check the name and the folder."
        )
        raised.errno = error.errno
        raise raised from error


def _looks_like(head: bytes) -> str:
    """Says what a foreign file may be."""
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        return "a zip archive, as `.keras` files are"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file"
    if head[8:10] == b'{"' and struct.unpack("<Q", head[:8])[0] < 2**32:
        return "a safetensors file that kohort did not write"
    return "a file of another kind"


def _opened(data: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns the note and the arrays; safetensors holds their shapes against the bytes there are."""
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    note = json.loads(header["__metadata__"]["kohort"][len(NO_CHECKSUM) + SIZE_DIGITS + 2 :])
    if {name: type(note[name]) for name in ("kind", "version", "with", "types", "about")} != NOTE:
        raise ValueError("The note of the file has another form.")
    arrays = safetensors.numpy.load(data)
    arrays |= {name: arrays[name].view(getattr(ml_dtypes, str(kind))) for name, kind in note["types"].items()}
    return note, arrays


NOTE = {"kind": str, "version": int, "with": dict, "types": dict, "about": dict}
