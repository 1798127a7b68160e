"""The oracle: plain Keras. Runs the same fit through `keras.Model.fit` and through kohort and compares every bit."""

import random
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

import kohort


class Outcome(NamedTuple):
    """All that a fit leaves behind."""

    weights: list
    non_trainable: list
    optimizer: list
    metrics: list
    history: dict
    epoch: list
    numpy_state: tuple
    python_state: tuple


def outcome(model: keras.Model, history: keras.callbacks.History) -> Outcome:
    def values(variables: list) -> list:
        return [np.asarray(v.value) for v in variables]

    return Outcome(
        values(model.trainable_variables),
        values(model.non_trainable_variables),
        values(model.optimizer.variables),
        values(model.metrics_variables),
        history.history,
        history.epoch,
        np.random.get_state(),
        random.getstate(),
    )


def run(train: Callable, build: Callable, seed: int, fits: list[dict]) -> Outcome:
    """Builds a model from the seed and trains it by one fit after the other."""
    keras.utils.clear_session()  # so that automatic names (auc, auc_1) are the same in both runs
    keras.utils.set_random_seed(seed)
    model = build()
    for arguments in fits:
        history = train(model, verbose=0, **arguments)
    return outcome(model, history)


def by_keras(model: keras.Model, **arguments: Any) -> keras.callbacks.History:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ran out of data")
        return model.fit(**arguments)


def by_kohort(model: keras.Model, **arguments: Any) -> keras.callbacks.History:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ran out of data")
        return kohort.fit(model, **arguments)


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Names the places where two structures of arrays and numbers differ in any bit."""
    if isinstance(a, dict):
        if list(a) != list(b):
            return [f"{path}: keys {list(a)} and {list(b)}"]
        return [d for k in a for d in differences(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, list | tuple) and not isinstance(a, str):
        if len(a) != len(b):
            return [f"{path}: lengths {len(a)} and {len(b)}"]
        fields = getattr(a, "_fields", range(len(a)))
        return [d for f, u, v in zip(fields, a, b, strict=True) for d in differences(u, v, f"{path}.{f}")]
    if type(a) is not type(b):
        return [f"{path}: types {type(a).__name__} and {type(b).__name__}"]
    same = np.array_equal(np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind == "f")
    return [] if same else [f"{path}: {a} and {b}"]


def assert_same_fit(build: Callable, *fits: dict, seed: int = 1) -> Outcome:
    """Asserts that kohort leaves exactly what Keras leaves."""
    theirs = run(by_keras, build, seed, list(fits))
    ours = run(by_kohort, build, seed, list(fits))
    assert differences(theirs, ours) == []
    return ours
