"""Which trials of a study share a program: those that differ in numbers alone, also in one that Keras does not tell."""

from collections import Counter
from contextlib import contextmanager

import jax
import keras
import numpy as np
from test_study import X, Y, network, study_of, tasks

import kohort

__all__ = ["tasks"]  # a fixture


def test_trials_may_differ_in_what_keras_leaves_out_of_a_configuration(tmp_path, tasks):
    """The delta of Huber's loss: its trials share a program, and differ."""

    def with_delta(delta):
        model = network()
        model.compile("sgd", keras.losses.Huber(delta))
        return model

    study = kohort.Study(tmp_path / "a.kohort", with_delta, {"delta": [0.01, 5.0]}, seeds=3)
    study.run(X, Y, epochs=3, verbose=0)
    assert len(tasks) == 1
    for delta in (0.01, 5.0):
        cohort = kohort.Cohort(with_delta(delta), 3)
        expected = cohort.fit(X, Y, epochs=3, verbose=0)["loss"]
        own = study.trial(delta=delta)
        np.testing.assert_allclose(own.history["loss"], expected, rtol=1e-5)
        np.testing.assert_allclose(own.cohort().evaluate(X, Y)["loss"], cohort.evaluate(X, Y)["loss"], rtol=1e-5)


def test_each_block_describes_its_own_trial_whichever_was_trained_first(tmp_path):
    """The program is made with the numbers of the first trial that is trained, which need not be the first of all."""
    grid = {"dropout": [0.2, 0.6, 0.4]}
    study_of(tmp_path, grid, 2).run(X, Y, epochs=1, trials=[{"dropout": 0.2}], verbose=0)
    study = study_of(tmp_path, grid, 2)
    study.run(X, Y, epochs=1, verbose=0)
    study.extend(seeds=4)
    study.run(X, Y, epochs=1, verbose=0)

    found = []
    for block in study.store.records().blocks:
        described = study.store.contents(block).about["model"]["config"]["layers"]
        found.append((block.trial, next(of["config"]["rate"] for of in described if of["class_name"] == "Dropout")))
    assert Counter(found) == {(1, 0.2): 2, (2, 0.6): 2, (3, 0.4): 2}


@contextmanager
def programs():
    """Gives the names of all programs that XLA compiles inside the block (or loads from the cache on disk)."""
    names = []

    def listen(event, *_, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def compiled_by(folder, **grid):
    """Returns how many of a study's compiled programs train its 32 members, or make what they begin with."""
    trials = int(np.prod([len(values) for values in grid.values()]))
    study = kohort.Study(folder / f"{len(list(folder.iterdir()))}.kohort", network, grid, seeds=32 // trials)
    with programs() as names:
        study.run(X, Y, epochs=2, batch_size=3, verbose=0)
    assert [len(trial) for trial in study.trials] == [32 // trials] * trials
    return sum(name.strip("()").endswith("run") for name in names)


def test_other_numbers_compile_nothing_and_other_shapes_two_programs_each(tmp_path):
    rates, dropped = [1e-3, 1e-2, 3e-2, 1e-1], [0.1, 0.5]
    one = compiled_by(tmp_path, learning_rate=rates[:1], dropout=dropped[:1])
    assert one == 2
    assert compiled_by(tmp_path, learning_rate=rates, dropout=dropped[:1]) == one
    assert compiled_by(tmp_path, learning_rate=rates[:2], dropout=dropped) == one
    assert compiled_by(tmp_path, hidden=[3, 4, 5]) == 3 * one
