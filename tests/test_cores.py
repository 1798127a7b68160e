"""All cores of the machine have work, also where its kernel leaves threads together on one of them."""

import hashlib
import os
import threading
from pathlib import Path

import jax
import pytest

from kohort import cores

TWO_CORES = pytest.mark.skipif(
    not cores.TASKS.exists() or len(os.sched_getaffinity(0)) < 2, reason="needs Linux, and two cores"
)


@pytest.mark.parametrize(
    ("running", "allowed", "moves"),
    [
        ([], [], {}),
        ([0, 1], ["01", "01"], {}),  # each has a core
        ([0, 0], ["01", "01"], {1: 1}),
        ([1, 1], ["1", "1"], {}),  # there is no other core
        ([1, 1], ["12", "12"], {1: 2}),
        ([0, 0], ["01", "0"], {0: 1}),  # who cannot go stays, and the other goes
        ([0, 0, 0, 1], ["012"] * 4, {1: 2}),  # more threads than cores
        ([0, 0, 0], ["0123"] * 3, {1: 1, 2: 2}),
    ],
)
def test_threads_that_share_a_core_go_where_none_runs(running, allowed, moves):
    allowed = {thread: set(map(int, own)) for thread, own in enumerate(allowed)}
    assert cores._moves(dict(enumerate(running)), allowed) == moves


@TWO_CORES
def test_a_thread_is_moved_and_may_then_run_where_it_might(monkeypatch):
    """Of two threads that are said to run on one core."""
    over, first, second = threading.Event(), *sorted(os.sched_getaffinity(0))[:2]
    workers = [threading.Thread(target=over.wait) for _ in range(2)]
    for worker in workers:
        worker.start()
    stays, goes = (worker.native_id for worker in workers)
    before, asked = os.sched_getaffinity(goes), []
    set_affinity = os.sched_setaffinity
    monkeypatch.setattr(cores, "_running", lambda: {stays: first, goes: first})
    monkeypatch.setattr(os, "sched_setaffinity", lambda *of: asked.append(of) or set_affinity(*of))
    try:
        cores.spread_out()
        assert asked == [(goes, {second}), (goes, before)]
        assert os.sched_getaffinity(goes) == before
    finally:
        over.set()
        for worker in workers:
            worker.join()


@TWO_CORES
def test_threads_of_xla_that_run_are_found_and_no_thread_of_python():
    """A program runs in one of XLA's threads, until the loop ends that a thread of Python waits for."""
    over = threading.Event()

    def count():
        while not over.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 1000)

    counting = threading.Thread(target=count)
    counting.start()
    steps = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, x: x @ x, x))(jax.numpy.eye(300))
    found = set()
    while not steps.is_ready():
        found |= cores._running().keys()
    over.set()
    counting.join()
    assert found
    assert found.isdisjoint({counting.native_id, threading.get_native_id()})


def test_one_at_a_time_moves_threads(monkeypatch):
    """Another would take the core that a thread is bound to for a moment for all that it may run on."""
    looked = []
    monkeypatch.setattr(cores, "_running", lambda: looked.append(cores.spread_out()) or {})
    cores.spread_out()
    assert len(looked) == 1


def test_where_threads_cannot_be_moved_nothing_happens(monkeypatch):
    """A container may forbid it, and other systems have no such files."""

    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(cores, "_running", lambda: {1: 0, 2: 0})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", forbidden, raising=False)
    cores.spread_out()
    with monkeypatch.context() as elsewhere:
        elsewhere.delattr(os, "sched_getaffinity")
        cores.spread_out()
    monkeypatch.undo()
    monkeypatch.setattr(cores, "TASKS", Path("/there/is/no/such/folder"))
    cores.spread_out()
