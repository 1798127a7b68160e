"""The layers of a model: which one is meant, and what it answers.

In come a Keras model and what a user calls a layer; out come the layer, its answers, and the rest of the network after
it as a function. The room exists so that pictures of units look into a model through its public parts alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kohort.plot.sources import check_single
from kohort.plot.style import require


def check_model(model: Any) -> None:
    """Raises unless this is a built sequential or functional model of one input."""
    check_single(model)
    step = "Draw what a model answers with `decision_boundary`."
    require(isinstance(model, keras.Model), "model", "a `keras.Model`", model, step, TypeError)
    is_built = model.built and len(getattr(model, "inputs", None) or ()) == 1
    require(is_built, "model", "a built sequential or functional model of one input", model, step)


def layer_of(model: Any, layer: Any) -> keras.Layer:
    """Returns the layer that is named, numbered as in `model.layers`, or given itself."""
    names = [each.name for each in model.layers]
    is_number = isinstance(layer, int | np.integer) and not isinstance(layer, bool)
    if is_number and -len(names) <= layer < len(names):
        return model.layers[layer]
    is_name = isinstance(layer, str)
    found = next((each for each in model.layers if each is layer or (is_name and each.name == layer)), None)
    shown = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
    accepted = f"the name or number of a layer of the model, one of {shown}"
    require(found is not None, "layer", accepted, layer, "See `model.summary()`.")
    return found  # type: ignore[return-value]


def answers_of(model: Any, layers: Sequence[Any], points: np.ndarray) -> list[np.ndarray]:
    """Returns what each layer answers at the points (sample, feature), as `model(points)` computes it on its way."""
    whole = keras.Model(model.inputs[0], [layer.output for layer in layers], name="layers")
    outputs = whole(_floats(points), training=False)
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


def check_units(layer: Any, answer: np.ndarray) -> None:
    """Raises unless the layer answers with one number for each unit."""
    step = "Take a layer such as `Dense`, or one after `Flatten`."
    accepted = "a layer that answers (sample, unit)"
    require(answer.ndim == 2, "layer", accepted, layer.name, step + f" This one answers {answer.shape}.")


def rest_of(model: Any, layer: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the network from a layer on: a function from the layer's answers to the model's."""
    named = ", ".join(repr(each.name) for each in model.layers[:-1])
    accepted, step = f"a layer that all later ones follow from, one of {named}", "Take the last hidden layer."
    require(layer is not model.layers[-1], "layer", accepted, layer.name, step)
    if isinstance(model, keras.Sequential):
        later = model.layers[model.layers.index(layer) + 1 :]
        return lambda answers: np.asarray(functools.reduce(lambda flow, each: each(flow), later, _floats(answers)))
    try:
        rest = keras.Model(layer.output, model.outputs[0], name="rest")
    except ValueError as error:  # Keras's word for a graph that something else flows into
        message = f"`layer` must be {accepted}. Received: layer={layer.name!r}, which others bypass. {step}"
        raise ValueError(message) from error
    return lambda answers: np.asarray(rest(_floats(answers), training=False))


def _floats(answers: np.ndarray) -> np.ndarray:
    return np.asarray(answers, "float32")
