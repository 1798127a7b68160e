"""What it means to be refused: an error of the template, and everything left as it was."""

import random
import re
from contextlib import contextmanager

import keras
import numpy as np
import pytest
from keras import layers
from oracle import differences

import kohort
from kohort.checks import NotFiniteError

RNG = np.random.default_rng(3)
X = RNG.normal(size=(12, 2)).astype("float32")
Y = (X[:, 0] > 0).astype("float32")
CLASSES = np.arange(12) % 3
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]


# `argument` must be <accepted>. Received: <what came>. <one next step>.
TEMPLATE = re.compile(r"`[^`]+` must .+[^.]\. Received: .+[^.]\. [A-Z].+[^.]\.", re.DOTALL)


def left(thing):
    """All that a refused call could have changed."""
    if isinstance(thing, kohort.Cohort):
        trained = thing._members.trained
        return [trained and id(trained), left(thing._template.network)]
    if isinstance(thing, keras.Model):
        parts = [getattr(thing, name, None) for name in ("_compile_metrics", "_compile_loss", "optimizer")]
        parts = [part for part in [*thing._flatten_layers(), *parts] if part is not None]
        variables = [variable for part in parts for variable in part.variables]
        return [[np.asarray(v.value) for v in variables], [bool(part.built) for part in parts]]
    return id(thing)


@contextmanager
def untouched(*things):
    generators = [np.random.get_state(), random.getstate()]
    before = [*map(left, things), generators]
    yield
    assert differences(before, [*map(left, things), [np.random.get_state(), random.getstate()]]) == []


@contextmanager
def refused(error, match, *things):
    """Expects an error of the template that matches, and that nothing is changed."""
    with untouched(*things), pytest.raises(error, match=match) as caught:
        yield
    # One ValueError has a name of its own, by which an installed kohort knows what Keras would take.
    assert type(caught.value) in ((error, NotFiniteError) if error is ValueError else (error,))
    assert TEMPLATE.fullmatch(str(caught.value)), str(caught.value)


def classifier(*middle, units=1, activation="sigmoid", loss="binary_crossentropy", **options):
    middle = middle or (layers.Dense(4, "relu"),)
    model = keras.Sequential([keras.Input((2,), name="points"), *middle, layers.Dense(units, activation)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, **options)
    return model


def compiled(model, **options):
    model.compile(**{"optimizer": "sgd", "loss": "mse"} | options)
    return model


def functional(units=1):
    inputs = keras.Input((2,))
    return keras.Model(inputs, layers.Dense(units)(inputs))


def mean_prediction(y, p):
    return keras.ops.mean(p)


def trained_model():
    """Returns a model after a fit."""
    keras.utils.set_random_seed(0)
    model = classifier()
    kohort.fit(model, X, Y, epochs=2, verbose=0)
    return model


def trained_cohort():
    """Returns a cohort after a fit."""
    keras.utils.set_random_seed(0)
    model = classifier(metrics=["accuracy", mean_prediction, keras.metrics.F1Score(threshold=0.5)])
    cohort = kohort.Cohort(model, [3, 17, 5])
    cohort.fit(X, Y[:, None], epochs=2, verbose=0)
    return cohort


def spoiled(array, value, place):
    array = np.array(array)
    array[place] = value
    return array


NAN_X = spoiled(X, np.nan, (3, 1))
