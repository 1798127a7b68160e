"""Each rule decides as the callback of Keras that it stands for, epoch by epoch."""

import types

import jax
import numpy as np
import pytest
from keras.callbacks import EarlyStopping, ReduceLROnPlateau

from kohort import rules
from kohort.cohort_callbacks import rule_of
from kohort.engine import State


class Model:
    """As much of a Keras model as a callback touches."""

    def __init__(self, rate):
        self.optimizer = types.SimpleNamespace(learning_rate=np.float32(rate))
        self.weights, self.stop_training, self.metrics = [np.zeros(2, "float32")], False, []

    def get_weights(self):
        return [w.copy() for w in self.weights]

    def set_weights(self, weights):
        self.weights = weights


def by_keras(callback, values, rate, weights, first):
    """Returns, epoch by epoch, the rate and whether training stops, and the weights that are left at the end."""
    model, decisions = Model(rate), []
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values, first):
        model.weights = [weights[epoch - first]]
        callback.on_epoch_end(epoch, {"loss": float(value)})
        model.optimizer.learning_rate = np.float32(model.optimizer.learning_rate)
        decisions.append((float(model.optimizer.learning_rate), model.stop_training))
        if model.stop_training:
            break
    callback.on_train_end()
    return decisions, model.weights[0]


def by_rule(rule, numbers, values, rate, weights, first):
    """Likewise, all epochs in one program."""

    def step(carry, x):
        state, course = carry
        epoch, value, its_weights = x
        state = state._replace(trainable_variables=[its_weights])
        seen = rules.Seen(epoch, {"loss": value}, False, state)
        state, _, course = rules.end_epoch((rule,), (numbers,), course, seen)
        return (state, course), (state.optimizer_variables[0], ~course.goes_on, state, course)

    def run(state, course, xs):
        return jax.lax.scan(step, (state, course), xs)[1]

    state = State([weights[0]], [], [np.float32(rate)], [])
    course = rules.Course.begin((rule,), (), state)
    epochs = np.arange(first, first + len(values))
    rates, stops, states, courses = jax.jit(run)(state, course, (epochs, values, weights))
    last = int(np.argmax(stops)) if stops.any() else len(values) - 1
    state, course = jax.tree.map(lambda a: a[last], (states, courses))
    left = rules.end_training((rule,), course, state).trainable_variables[0]
    return list(zip(np.float64(rates).tolist(), stops.tolist(), strict=True))[: last + 1], np.asarray(left)


STOPS = [
    {},
    {"patience": 2},
    {"patience": 2, "restore_best_weights": True},
    {"patience": 3, "min_delta": 0.05},
    {"patience": 2, "baseline": 0.6},
    {"patience": 1.5, "baseline": 0.6, "restore_best_weights": True, "min_delta": -0.01},
    {"patience": 3, "start_from_epoch": 4, "restore_best_weights": True},
    {"patience": 2, "mode": "max"},
    {"patience": float("inf"), "restore_best_weights": True},
]
REDUCTIONS = [
    {"patience": 1},
    {"patience": 2, "factor": 0.3, "cooldown": 2},
    {"patience": 1, "cooldown": 3},
    {"patience": 1, "factor": 0.7, "min_lr": 1e-3},
    {"patience": 0, "min_delta": 0.0, "cooldown": 1, "factor": 0.9},
    {"patience": 2, "mode": "max", "min_delta": 0.03},
    {"patience": 1, "monitor": "learning_rate", "mode": "min"},
]


def curves():
    """Falling, wavering, tied and broken curves of a metric."""
    generator = np.random.default_rng(3)
    for k in range(12):
        values = np.cumprod(generator.choice([0.9, 1.0, 1.05, 0.9999], 25)).astype("float32")
        if k % 4 == 3:
            values[generator.integers(0, 25)] = [np.nan, np.inf, -np.inf][k % 3]
        yield values, generator.normal(size=(25, 2)).astype("float32"), k % 3


@pytest.mark.many
@pytest.mark.parametrize("options", STOPS, ids=str)
def test_early_stopping_decides_as_keras(options):
    compare(lambda: EarlyStopping(**{"monitor": "loss"} | options))


@pytest.mark.many
@pytest.mark.parametrize("options", REDUCTIONS, ids=str)
def test_reduced_rates_are_keras_own(options):
    compare(lambda: ReduceLROnPlateau(**{"monitor": "loss"} | options))


def compare(make):
    for values, weights, first in curves():
        rule, numbers = rule_of(make(), Model(0.01), rules.Places(0, ()))
        theirs = by_keras(make(), values, 0.01, weights, first)
        ours = by_rule(rule, numbers, values, 0.01, weights, first)
        assert theirs[0] == ours[0]
        np.testing.assert_array_equal(theirs[1], ours[1])


@pytest.mark.parametrize("delta", [1e-4, 0.1, 1e-9, 3.7])
def test_numbers_of_python_are_computed_as_python_does(delta):
    values = np.random.default_rng(0).normal(size=2000).astype("float32")
    ours = jax.jit(lambda v, n: rules.in_double(jax.lax.add, v, n))(values, rules.numbers(delta))
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, np.float32(values.astype("float64") + delta))


def test_numbers_do_not_change_the_form_of_a_rule():
    callbacks = [EarlyStopping("loss", patience=p, min_delta=d) for p in (1, 7) for d in (0, 0.1)]
    assert len({rule_of(callback, Model(1), rules.Places(0, ()))[0] for callback in callbacks}) == 1
