"""Who trains the blocks of a study: lanes side by side, the tasks of a lane one after the other."""

import threading
import time

import pytest
from jax._src.compiler import compile_or_get_cached
from test_study import trained

from kohort.executors import in_threads
from kohort.progress import Interrupt
from kohort.store import Writer


def test_lanes_are_done_side_by_side():
    """Each of two tasks waits until the other is begun."""
    barrier = threading.Barrier(2, timeout=60)

    def train(task):
        barrier.wait()
        return task

    assert sorted(in_threads([["a"], [], ["b"]], train, Interrupt(), workers=2)) == ["a", "b"]


def test_the_tasks_of_a_lane_are_done_one_after_the_other():
    """While another thread has nothing to do, no task begins before the one before it in its lane has ended."""
    begun = {task: threading.Event() for task in range(4)}

    def train(task):
        begun[task].set()
        assert task == 3 or not begun[task + 1].wait(0.2)
        return task

    assert list(in_threads([list(begun)], train, Interrupt(), workers=4)) == [0, 1, 2, 3]


def test_no_more_is_begun_beyond_what_is_written_than_there_are_workers():
    """So a kill costs no more than that many tasks: the caller writes what it is given before it asks for more."""
    begun, written = [], 0
    for _ in in_threads([[f"{lane}{i}" for i in range(3)] for lane in "abcd"], begun.append, Interrupt(), workers=2):
        time.sleep(0.02)  # in which what is begun begins
        assert len(begun) - written <= 2
        written += 1
    assert written == len(begun) == 12


def test_the_next_of_a_lane_is_trained_while_the_last_is_written():
    """Else no core would have anything to do meanwhile, where all tasks share one program."""
    begun = [threading.Event() for _ in range(3)]

    for task in in_threads([range(3)], lambda task: begun[task].set() or task, Interrupt(), workers=2):
        assert task == 2 or begun[task + 1].wait(60)


@pytest.mark.usefixtures("annotations_unchecked")
def test_while_one_group_compiles_another_is_trained_and_kept(tmp_path, monkeypatch):
    """JAX's compiler holds one group up until a block of the other has been committed."""
    compiler, committed, first, waited = compile_or_get_cached, threading.Event(), [], []
    commit = Writer.commit

    def slow(backend, computation, *args, **options):
        thread = threading.current_thread()
        if thread is not threading.main_thread() and not first:
            first.append(thread)
            waited.append(committed.wait(60))
        return compiler(backend, computation, *args, **options)

    def told(self, *finished):
        blocks = commit(self, *finished)
        committed.set()
        return blocks

    monkeypatch.setattr("jax._src.compiler.compile_or_get_cached", slow)
    monkeypatch.setattr(Writer, "commit", told)
    study = trained(tmp_path, {"hidden": [2, 3]}, 4, epochs=2)

    assert waited == [True]
    assert [len(trial) for trial in study.trials] == [4, 4]


def test_a_lane_that_was_begun_goes_before_one_that_was_not():
    lanes = [["a1", "a2"], ["b1"]]

    assert list(in_threads(lanes, lambda task: task, Interrupt(), workers=1)) == ["a1", "a2", "b1"]


def test_who_is_interrupted_begins_nothing_new():
    interrupt, begun = Interrupt(), []

    def train(task):
        begun.append(task)
        interrupt.press()
        return task

    assert list(in_threads([["a1", "a2"], ["b1"]], train, interrupt, workers=1)) == ["a1"]
    assert begun == ["a1"]


def test_an_error_of_a_task_is_raised_here():
    def train(task):
        raise MemoryError(task)

    with pytest.raises(MemoryError, match="a1"):
        list(in_threads([["a1", "a2"]], train, Interrupt(), workers=1))


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(("shuffle", "workers"), [(True, {2, 3, 4}), ("batch", {1})])
def test_a_run_asks_for_lanes_side_by_side_unless_keras_draws_the_order(shuffle, workers, tmp_path):
    """Keras's own iterator draws from the one generator that all threads share."""
    asked = []

    def noting(lanes, train, interrupt, workers):
        asked.append(workers)
        return in_threads(lanes, train, interrupt, workers)

    study = trained(tmp_path, {"hidden": [2, 3]}, 2, epochs=1, shuffle=shuffle, executor=noting)
    assert len(asked) == 1
    assert asked[0] in workers
    assert [len(trial) for trial in study.trials] == [2, 2]
