"""`evaluate` and `predict` of a model, a whole pass over arrays in one program, where that gains.

In comes what a call asks; out goes what Keras would return, or nothing where Keras shall do it. The room exists because
a loop that asks for thousands of batches waits for their dispatch, while a script that asks for a few would wait longer
for a compilation.
"""

from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np

from kohort import engine, keras_internals, remote
from kohort.checks import Recipe, check_arrays, check_data, check_features
from kohort.data import pass_cut, samples
from kohort.programs import local_programs_of
from kohort.progress import held_interrupt
from kohort.shapes import are_samples, shapes_of

# What a call comes to that Keras shall do.
TO_KERAS: Any = object()


def evaluated(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    verbose: Any = "auto",
    sample_weight: Any = None,
    steps: Any = None,
    callbacks: Any = None,
    return_dict: bool = False,
    **others: Any,
) -> Any:
    """Returns what `model.evaluate` returns, and leaves what it leaves, or `TO_KERAS`."""
    if others or steps is not None or callbacks or verbose != 0 or model.test_function is None or y is None:
        return TO_KERAS
    if not _gains(model, "evaluate", batch_size, x, y, sample_weight):
        return TO_KERAS
    data = samples(x, y, sample_weight)
    program = local_programs_of(model).validation(pass_cut(data.rows, batch_size))
    state, logs = _waited(lambda: program(keras_internals.read_state(model), data.batch, 1))
    keras_internals.write_state(model, state)
    return keras_internals.evaluation(model, logs, return_dict)


def predicted(
    model: keras.Model,
    x: Any = None,
    batch_size: int | None = None,
    verbose: Any = "auto",
    steps: Any = None,
    callbacks: Any = None,
) -> Any:
    """Returns what `model.predict` returns, or `TO_KERAS`."""
    if steps is not None or callbacks or verbose != 0 or model.predict_function is None:
        return TO_KERAS
    # A layer may change what is not trained, as one that counts its calls does: the program of a prediction drops it.
    if not model.compiled or model.non_trainable_variables or keras_internals.overrides(model, "make_predict_function"):
        return TO_KERAS
    if not _gains(model, "predict", batch_size, x):
        return TO_KERAS
    data = samples(x)
    program = local_programs_of(model).predict(pass_cut(data.rows, batch_size))
    return jax.tree.map(np.array, _waited(lambda: program(keras_internals.read_state(model), data.batch)))


def _gains(model: keras.Model, method: str, batch_size: Any, x: Any, y: Any = None, sample_weight: Any = None) -> bool:
    """Says whether a call can run compiled, and so many steps were asked on such data that compiling will have paid."""
    if remote.is_needed() or keras_internals.runs_op_by_op(model) or keras_internals.are_not_dense(x, y, sample_weight):
        return False
    if keras_internals.why_keras_must_run(model) is not None:
        return False
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        return False
    leaves = [leaf for leaf in keras.tree.flatten((x, y, sample_weight)) if leaf is not None]
    if not are_samples(leaves):
        return False
    steps = -(-leaves[0].shape[0] // (batch_size or 32))
    if not shapes_of(model).pays((method, batch_size, *(tuple(leaf.shape) for leaf in leaves)), steps):
        return False  # before the data are looked through, which takes its time
    try:
        if method == "evaluate":
            check_data(model, x, y, sample_weight, None, Recipe(batch_size))
        else:
            check_arrays(x)
            check_features(model, x)
    except (TypeError, ValueError):
        return False  # Keras takes more, or says what is wrong
    return True


def _waited(compute: Callable[[], Any]) -> Any:
    """Returns what a program computes; Ctrl-C ends the waiting."""
    with held_interrupt() as interrupt:
        results = compute()
        engine.wait(results, interrupt)
    return results
