"""The metrics of a fit while it runs: an array (member, epoch) for each, filled block by block.

In come the logs of one block after the other; out goes the history. The room exists because of many members the
history is larger than all else: it is never held twice, and where it is large, it is in a file and not in memory. Of
tiny networks it takes a part of the time: what its memory was is lent again, and a file gets the rows of all members at
once.
"""

import collections
import concurrent.futures
import math
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from kohort.cores import cores
from kohort.history import CohortHistory

# Metrics beyond so many bytes are kept in files of the system's folder for temporary files, which go with the arrays.
MOST_BYTES_IN_MEMORY = 2**28
# Where a limit is said for a cohort's memory, they take at most this share of it.
SHARE_OF_LIMIT = 0.25
# What is put into files without waiting takes memory that the system is let to take back after so many bytes.
BYTES_BETWEEN_RELEASES = 2**26
# So much of the memory of histories that are gone is kept for the next; small pieces Python's own allocator keeps.
LEAST_BYTES_KEPT, MOST_BYTES_KEPT = 2**20, 2**26


class Curves:
    """The metrics of all members in the epochs of a fit."""

    def __init__(
        self,
        seeds: tuple[int, ...],
        epochs: range,
        differences: Mapping[str, np.ndarray] | None = None,
        memory: int | None = None,
    ) -> None:
        """Takes no room yet.

        Args:
            seeds: The seed of each member.
            epochs: The numbers of all epochs that the fit may run.
            differences: What else tells the members apart, each (member,).
            memory: The most bytes that the cohort may take, if that was said.
        """
        self._seeds, self._epochs, self._differences = seeds, epochs, differences
        self._left = most_bytes(memory)  # of memory; what has no room there goes into files
        self._arrays: dict[str, np.ndarray] = {}  # (epoch, member, ...): what a call writes lies close together
        self._files: dict[str, mmap.mmap] = {}
        self._round = epochs[:0]
        self._buffers: dict[str, np.ndarray] = {}  # memory for what goes into files: flat, of the longest round
        self._waiting: dict[str, np.ndarray] = {}  # what is there now, (epoch of the round, member, ...)
        self._unwaited = 0  # bytes that were put into files at once since memory was last released
        self._lock = threading.Lock()

    def begin(self, epochs: range) -> None:
        """Notes which epochs all members run next, or a part of them."""
        self._write()
        self._round = epochs

    def put(
        self,
        members: Int[np.ndarray, " member"],
        epochs: range,
        logs: tuple[dict, dict],
        ran: Int[np.ndarray, " member"],
        validates: np.ndarray | None,
    ) -> None:
        """Takes the logs of some members, each an array (epoch, member, ...).

        Args:
            members: Their numbers.
            epochs: The numbers of the epochs.
            logs: Those of the training and of the validation; they may hold more epochs and members.
            ran: How many of these epochs each has run: there is NaN from there on.
            validates: Which epochs validated, (epoch,); None: all.
        """
        count = len(epochs)
        rows: Any = members if (np.diff(members) != 1).any() else slice(members[0], members[-1] + 1)
        for part, prefix in zip(logs, ("", "val_"), strict=True):
            for name, values in part.items():
                own = np.asarray(values)[:count, : len(members)]
                kept = self._rows(prefix + name, own, epochs)
                kept[:, rows] = own
                for number, its_epochs in zip(members[ran < count], ran[ran < count], strict=True):
                    kept[its_epochs:, number] = np.nan
                if prefix and validates is not None:
                    kept[np.flatnonzero(~validates[:count])[:, None], members] = np.nan
        if self._unwaited > BYTES_BETWEEN_RELEASES:
            self._release()

    def skip(self, members: Int[np.ndarray, " member"], epochs: range) -> None:
        """Notes that some members ran none of these epochs."""
        for name, array in self._arrays.items():
            self._rows(name, array, epochs)[:, members] = np.nan

    def history(self, stop: int, stopped_epoch: Int[np.ndarray, " member"] | None = None) -> CohortHistory:
        """Returns what was recorded before the epoch with this number."""
        self._write()
        count = stop - self._epochs.start
        metrics = {name: array[:count].swapaxes(0, 1) for name, array in sorted(self._arrays.items())} if count else {}
        return CohortHistory(metrics, list(self._seeds), list(self._epochs[:count]), stopped_epoch, self._differences)

    def _places(self, epochs: range) -> slice:
        return slice(epochs.start - self._epochs.start, epochs.stop - self._epochs.start)

    def _rows(self, name: str, like: np.ndarray, epochs: range) -> np.ndarray:
        """Returns the rows of these epochs, as (epoch, member, ...), where they are or wait to be written."""
        with self._lock:
            if name not in self._arrays:
                shape = (len(self._epochs), len(self._seeds), *like.shape[2:])
                self._arrays[name] = self._room(name, shape, np.result_type(like.dtype, np.float16))
            if name in self._files and name not in self._waiting and self._has_buffer(name):
                like = self._arrays[name][: len(self._round)]
                self._waiting[name] = self._buffers[name][: like.size].reshape(like.shape)
            if name in self._waiting:
                return self._waiting[name][epochs.start - self._round.start :][: len(epochs)]
            self._unwaited += like.nbytes * (name in self._files)
            return self._arrays[name][self._places(epochs)]

    def _has_buffer(self, name: str) -> bool:
        """Tells whether memory has room for all rows of the round, and keeps it for the next ones."""
        rows, kept = self._arrays[name][: len(self._round)], self._buffers.get(name, np.empty(0))
        if kept.nbytes < rows.nbytes <= self._left + kept.nbytes:
            self._left -= rows.nbytes - kept.nbytes
            self._buffers[name] = np.empty(rows.size, rows.dtype)
        return name in self._buffers and rows.nbytes <= self._buffers[name].nbytes

    def _room(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        if size <= self._left:
            self._left -= size
            return lent(size).view(dtype).reshape(shape)
        with tempfile.TemporaryFile(prefix="kohort-") as file:
            _reserve(file.fileno(), size)
            self._files[name] = mmap.mmap(file.fileno(), size)
        return np.frombuffer(self._files[name], dtype).reshape(shape)

    def _write(self) -> None:
        """Writes what waits into the files: all members of an epoch at once, which lie close together there."""
        for name, rows in self._waiting.items():
            kept = self._arrays[name][self._places(self._round)]
            with concurrent.futures.ThreadPoolExecutor(cores()) as writers:
                list(writers.map(np.copyto, *(np.array_split(each, cores()) for each in (kept, rows))))
        self._waiting.clear()
        self._release()

    def _release(self) -> None:
        """Lets the system put what was written to files, and use the memory for something else."""
        self._unwaited = 0
        for file in self._files.values():
            if hasattr(mmap, "MADV_DONTNEED"):
                file.madvise(mmap.MADV_DONTNEED)


class Lent:
    """Memory as NumPy takes it: once no array is left that looks into it, the next fit may have it."""

    def __init__(self, memory: np.ndarray) -> None:
        """Lends an array of bytes to what NumPy makes of this object."""
        self.__array_interface__ = memory.__array_interface__
        weakref.finalize(self, _given_back.append, memory).atexit = False


_given_back: collections.deque[np.ndarray] = collections.deque()
_lending = threading.Lock()  # not taken to give back: that happens at any place, also here


def lent(size: int) -> np.ndarray:
    """Returns so many bytes of any content: those of an earlier fit whose history is gone, if it was of this size.

    To touch memory for the first time takes a tenth of the training of a tiny network.
    """
    if not LEAST_BYTES_KEPT <= size <= MOST_BYTES_KEPT:
        return np.empty(size, np.uint8)
    with _lending:
        kept = [_given_back.popleft() for _ in range(len(_given_back))]
        fitting = next((place for place, memory in enumerate(kept) if memory.nbytes == size), None)
        memory = np.empty(size, np.uint8) if fitting is None else kept.pop(fitting)
        while sum(each.nbytes for each in kept) > MOST_BYTES_KEPT:
            kept.pop(0)
        _given_back.extendleft(reversed(kept))
    return np.asarray(Lent(memory))


def most_bytes(memory: int | None) -> int:
    """Returns how many bytes the metrics of a fit take in memory at most, given the limit of the cohort."""
    return MOST_BYTES_IN_MEMORY if memory is None else min(MOST_BYTES_IN_MEMORY, int(SHARE_OF_LIMIT * memory))


def _reserve(file: int, size: int) -> None:
    """Takes the room on the disk now: without, the first write into a page that finds none ends the process."""
    try:
        os.posix_fallocate(file, 0, size) if hasattr(os, "posix_fallocate") else os.truncate(file, size)
    except OSError as error:
        raise OSError(
            error.errno,
            f"`epochs` must be so few, or the members, that the history has room. Received: a metric of {size} bytes, "
            f"for which {tempfile.gettempdir()!r} has none ({error.strerror}). "
            "Set the environment variable TMPDIR to a folder on a larger disk.",
        ) from error
