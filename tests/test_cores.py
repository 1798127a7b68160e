"""All cores of the machine have work, also where its kernel leaves threads together on one of them."""

import hashlib
import os
import threading
from pathlib import Path

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
def test_threads_on_one_core_are_moved_apart_and_may_then_run_where_they_might():
    """Two threads begin on one core, which one of them may not leave."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    begun, over = threading.Barrier(3), threading.Event()
    numbers = {}

    def work(name, allowed):
        os.sched_setaffinity(0, {first})
        os.sched_setaffinity(0, allowed)
        numbers[name] = threading.get_native_id()
        begun.wait()
        while not over.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 50_000)  # for a while, in which others run Python

    def both_run():
        while not set(running := cores._running()) >= set(numbers.values()):
            pass  # one has not begun yet, or waits for Python
        return running

    allowed = {"one": {first, second}, "bound": {first}}
    workers = [threading.Thread(target=work, args=pair) for pair in allowed.items()]
    for worker in workers:
        worker.start()
    begun.wait()
    try:
        both_run()
        cores.spread_out()
        running = both_run()
        assert [running[numbers[name]] for name in ("one", "bound")] == [second, first]
        assert {name: os.sched_getaffinity(number) for name, number in numbers.items()} == allowed
    finally:
        over.set()
        for worker in workers:
            worker.join()


@TWO_CORES
def test_who_waits_is_not_running():
    """Neither counts the thread that asks."""
    over = threading.Event()
    waiting = threading.Thread(target=over.wait)
    waiting.start()
    try:
        assert any(waiting.native_id not in cores._running() for _ in range(1000))  # once it has begun to wait
        assert threading.get_native_id() not in cores._running()
    finally:
        over.set()
        waiting.join()


def test_where_threads_cannot_be_moved_nothing_happens(monkeypatch):
    """A container may forbid it, and other systems have no such files."""

    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(cores, "_running", lambda: {1: 0, 2: 0})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", forbidden, raising=False)
    cores.spread_out()
    monkeypatch.undo()
    monkeypatch.setattr(cores, "TASKS", Path("/there/is/no/such/folder"))
    cores.spread_out()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    cores.spread_out()
