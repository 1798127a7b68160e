"""A fit both ways: compiled and by Keras, from the same beginning, compared bit for bit.

In come a model and what is asked of its fit; out come Keras's result, left in the model, and the places where the
compiled result differs from it. The room exists so that a person can see for themselves that both are the same.
"""

import copy
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from kohort import keras_internals
from kohort.engine import State
from kohort.fit import Request, training

# Callbacks that act on the model alone, and begin anew with each fit: a copy of one can be called in the first run.
REPEATABLE = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.TerminateOnNaN,
)


class Outcome(NamedTuple):
    """All that a fit leaves behind."""

    values: dict[str, np.ndarray]  # path of each variable -> its value
    history: dict[str, list]
    epochs: list[int]
    generators: tuple[Any, Any]


def why_not_twice(request: Request) -> str | None:
    """Returns why a fit cannot be run two times from the same beginning, or None when it can."""
    if keras_internals.are_not_dense(request.x, request.validation_data):
        return "`verify` compares fits on arrays, which can be read two times"
    for callback in keras.tree.flatten(request.callbacks) if request.callbacks else []:
        if type(callback) not in REPEATABLE:
            return f"`verify` runs each fit two times, and the callback {type(callback).__name__} may act elsewhere"
    return None


def both_ways(
    model: keras.Model, request: Request, by_keras: Callable[[], keras.callbacks.History]
) -> tuple[keras.callbacks.History, str | None]:
    """Runs a fit compiled, takes the model back to where it began, and lets Keras run it.

    Functions of the user that a fit calls, such as that of a `LearningRateScheduler`, are called in both runs. What is
    not built yet of the model is built once, before both.

    Args:
        model: The model, which holds Keras's result afterwards.
        request: What is asked.
        by_keras: Runs the same fit by Keras.

    Returns:
        Keras's history, and what parts the compiled result from Keras's, or None when nothing does.
    """
    callbacks = keras.tree.map_structure(copy.copy, request.callbacks) if request.callbacks else None
    compiled = training(model, request._replace(callbacks=callbacks, verbose=0))
    # As NumPy arrays, because Keras gives the memory of JAX's to its step.
    begin = State(*([np.array(value) for value in part] for part in keras_internals.read_state(model)))
    generators = _generators()
    try:
        ours = _outcome(model, compiled.train())
    finally:  # also where it raises: the model belongs to Keras's run
        keras_internals.write_state(model, begin)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
    history = by_keras()
    return history, parting(ours, _outcome(model, history))


def _generators() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()


def _outcome(model: keras.Model, history: keras.callbacks.History) -> Outcome:
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    values = {v.path: np.array(v.value) for v in variables}
    return Outcome(values, copy.deepcopy(history.history), list(history.epoch), _generators())


def parting(ours: Outcome, theirs: Outcome) -> str | None:
    """Tells where two outcomes part: in which epoch first, in which variables, and by how much."""
    told = [_parting_of_histories(ours, theirs), _parting_of_values(ours.values, theirs.values)]
    if not _same_generators(ours.generators, theirs.generators):
        told.append("the random generators end in other states")
    return "; ".join(filter(None, told)) or None


def _parting_of_histories(ours: Outcome, theirs: Outcome) -> str | None:
    if list(ours.history) != list(theirs.history) or ours.epochs != theirs.epochs:
        return (
            f"{len(ours.epochs)} epochs of {', '.join(ours.history)} "
            f"instead of {len(theirs.epochs)} of {', '.join(theirs.history)}"
        )
    firsts = [
        (first, name)
        for name, values in theirs.history.items()
        if (first := _first_difference(ours.history[name], values)) is not None
    ]
    if not firsts:
        return None
    place, name = min(firsts)
    # Metrics of validation have fewer values where not every epoch validates.
    values = theirs.history[name]
    where = f"epoch {theirs.epochs[place] + 1}" if len(values) == len(theirs.epochs) else f"value {place + 1}"
    return f"first in {where}, where `{name}` is {ours.history[name][place]} instead of {values[place]}"


def _first_difference(ours: list, theirs: list) -> int | None:
    if len(ours) != len(theirs):
        return min(len(ours), len(theirs)) - 1
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if not _same(a, b)), None)


def _parting_of_values(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> str | None:
    if list(ours) != list(theirs):
        return "other variables"
    parted = {name: _distance(ours[name], value) for name, value in theirs.items() if not _same(ours[name], value)}
    if not parted:
        return None
    most = max(parted, key=lambda name: np.nan_to_num(parted[name], nan=np.inf))
    return f"at the end in {len(parted)} of {len(theirs)} variables, most in `{most}`, by up to {parted[most]:.2g}"


def _same(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.tobytes() == b.tobytes() or bool(np.isnan(a.astype(float)).any() and _distance(a, b) == 0)


def _distance(a: Any, b: Any) -> float:
    """Returns the largest difference; where only one is a NaN, a NaN."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        return np.nan
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(apart.max(initial=0.0))


def _same_generators(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> bool:
    return ours[0] == theirs[0] and all(map(np.array_equal, ours[1], theirs[1]))
