"""Who trains the blocks of a study: lanes side by side, and the tasks of a lane once its first has compiled."""

import collections
import threading
import time

import keras
import pytest
from jax._src.compiler import compile_or_get_cached
from oracle import differences
from test_study import as_lists, left, trained

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


def test_the_first_task_of_a_lane_is_done_alone():
    """It compiles: while another thread has nothing to do, no task of its lane begins before it has ended."""
    begun = {task: threading.Event() for task in range(3)}

    def train(task):
        begun[task].set()
        assert task != 0 or not begun[1].wait(0.2)
        return task

    assert sorted(in_threads([list(begun)], train, Interrupt(), workers=3)) == [0, 1, 2]


def test_where_no_lane_waits_the_tasks_of_one_are_done_side_by_side():
    """Each of two tasks waits until the other is begun; the cores have what one of them prepares meanwhile."""
    barrier = threading.Barrier(2, timeout=60)

    def train(task):
        if task:
            barrier.wait()
        return task

    assert sorted(in_threads([range(5)], train, Interrupt(), workers=2)) == [0, 1, 2, 3, 4]


def test_a_lane_where_nobody_is_goes_before_one_where_somebody_is():
    """So one compiles while another trains, as long as there is something to compile; who has a program stays at it."""
    begun, is_begun = [], collections.defaultdict(threading.Event)

    def train(task):
        begun.append(task)
        is_begun[task].set()
        if awaited := {"b1": "a2", "a2": "c1"}.get(task):
            assert is_begun[awaited].wait(60)
        return task

    list(in_threads([["a1", "a2", "a3", "a4"], ["b1"], ["c1"]], train, Interrupt(), workers=2))
    assert set(begun[:2]) == {"a1", "b1"}
    assert begun[2:4] == ["a2", "c1"]
    assert sorted(begun[4:]) == ["a3", "a4"]


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

    for number, _ in enumerate(in_threads([range(3)], lambda task: begun[task].set(), Interrupt(), workers=2)):
        assert number == 2 or begun[number + 1].wait(60)


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


FITS = {
    "members": {},
    "exact": {"exact": True},
    "validated": {"validation_split": 0.25, "bootstrap": True},
    "stopped": {
        "callbacks": [
            keras.callbacks.EarlyStopping("loss", patience=1, min_delta=1e-3, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau("loss", patience=1),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        ]
    },
}


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("options", FITS.values(), ids=FITS)
def test_what_is_trained_side_by_side_is_what_is_trained_one_after_the_other(tmp_path, options):
    """Fits of one model share its template and its programs."""
    most = []

    def study(workers):
        def by(lanes, train, interrupt, _):
            running = [0, 0]

            def counting(task):
                running[0] += 1
                running[1] = max(running)
                try:
                    return train(task)
                finally:
                    running[0] -= 1

            yield from in_threads(lanes, counting, interrupt, workers)
            most.append(running[1])

        grid = {"dropout": [0.2, 0.5], "learning_rate": [1e-3, 1e-2]}
        folder = tmp_path / str(workers)
        folder.mkdir()
        return trained(folder, grid, 24, epochs=12, batch_size=3, block_size=6, executor=by, **options)

    alone, together = study(1), study(4)
    assert most[0] == 1
    assert most[1] > 1
    for ours, theirs in zip(together.trials, alone.trials, strict=True):
        assert differences(as_lists(left(ours.cohort())), as_lists(left(theirs.cohort()))) == []


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
