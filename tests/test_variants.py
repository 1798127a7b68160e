"""Which trials of a study share a program: those that differ in numbers alone, also in one that Keras does not tell."""

import keras
import numpy as np
from test_study import X, Y, network, tasks

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
