"""The processor's cores: how many there are, the threads that give them work, and that all of them have some.

In comes how many blocks may train at a time; out come the threads for them. The room exists because a fit of a tiny
network lasts some ten milliseconds, in which a core that waits for work, or memory that comes page by page, is seen.
"""

import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

# glibc's largest threshold, and a little less, of what it takes from the system and gives back piece by piece.
KEPT_BY_GLIBC = 2**25 - 2**16
# Where the kernel tells of the threads of this process, and where it tells of each on which core it runs.
TASKS, STATE, CORE = Path("/proc/self/task"), 0, 36


def cores() -> int:
    """Returns how many blocks can be trained at once: one per CPU core of this process, one on another device.

    As XLA does, it takes the number in the environment variable `NPROC` instead, where there is one.
    """
    if jax.default_backend() != "cpu":
        return 1
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return told_cores() or there


def told_cores() -> int:
    """Returns how many cores this process is to do with, of those that there are; 0 if that is not said."""
    told = os.environ.get("NPROC", "")
    return int(told) if told.isdigit() else 0


@functools.cache
def threads(count: int) -> concurrent.futures.ThreadPoolExecutor:
    """Returns the threads in which blocks train.

    All fits have the same ones: a new thread takes its memory from the system page by page, and each time the others
    are held up; that costs a twentieth of a short fit. So does memory for the logs: where glibc has once been given
    back a piece as large as this, it keeps those that are not larger, and gives them out again.
    """
    np.empty(KEPT_BY_GLIBC, np.uint8)
    return concurrent.futures.ThreadPoolExecutor(count, "kohort-block")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=threads.cache_clear)  # a child has none of its parent's threads


def spread_out() -> None:
    """Moves threads of XLA that share a core to cores where none of them runs.

    The kernel does that, too, but on a small virtual machine it was seen to leave two of them on one core for 30
    milliseconds while the other idled, half of a short fit. A thread that may run on one core alone is moved there at
    once; then it may again run where it might before. One fit at a time does it: another would take what is so for a
    moment for what is so.
    """
    if not _moving.acquire(blocking=False):
        return
    try:
        running, allowed = _running(), {}
        for thread in running:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                allowed[thread] = os.sched_getaffinity(thread)
        for thread, core in _moves(running, allowed).items():
            with contextlib.suppress(ProcessLookupError):
                _move(thread, core, allowed[thread])
    except (OSError, AttributeError):  # another system, or one that does not allow it
        pass
    finally:
        _moving.release()


_moving = threading.Lock()


def _move(thread: int, core: int, allowed: set[int]) -> None:
    try:
        os.sched_setaffinity(thread, {core})
    finally:
        os.sched_setaffinity(thread, allowed)


def _moves(running: Mapping[int, int], allowed: Mapping[int, set[int]]) -> dict[int, int]:
    """Returns which threads are to go to which core, given on which each runs and on which it may."""
    free, at_home, moves = set().union(*allowed.values()) - set(running.values()), set(), {}
    for thread in sorted(allowed, key=lambda thread: len(allowed[thread])):  # who cannot go has the core
        core = running[thread]
        if core in at_home and (possible := free & allowed[thread]):
            moves[thread] = min(possible)
            free.remove(moves[thread])
        at_home.add(core)
    return moves


def _running() -> dict[int, int]:
    """Returns the core of each thread of this process that runs or waits for a core; Python's own threads aside."""
    found, own = {}, {thread.native_id for thread in threading.enumerate()}
    for task in TASKS.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            fields = (task / "stat").read_bytes().rpartition(b")")[2].split()
            if fields[STATE] == b"R" and int(task.name) not in own:
                found[int(task.name)] = int(fields[CORE])
    return found
