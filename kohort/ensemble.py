"""Many trained networks as one: a plain Keras model that answers what its members answer on average.

In come member networks; out comes a functional model made of them, of Keras's own layers and operations alone, which
saves, loads and exports where nobody has heard of kohort; or the average of answers, and how far they differ. The room
exists because the average of a few networks is better than the best of them, and it must be easy to take it away.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import ops, tree

from kohort import keras_parts
from kohort.checks import received

Aggregate = Literal["mean", "std"]


def check_aggregate(aggregate: Any) -> None:
    """Raises unless this is what `Cohort.predict` takes as `aggregate`."""
    if aggregate is not None and aggregate not in get_args(Aggregate):
        choices = ", ".join(map(repr, get_args(Aggregate)))
        raise ValueError(
            f"`aggregate` must be None or one of {choices}. Received: {received('aggregate', aggregate)}. "
            "Leave it out for the outputs of each member."
        )


def aggregated(outputs: Any, aggregate: Aggregate, network: keras.Model) -> Any:
    """Returns the mean or the standard deviation over members of outputs (member, sample, ...).

    Args:
        outputs: Array, or structure of arrays; of logits, the probabilities are taken.
        aggregate: "mean" or "std".
        network: The model whose outputs these are; its loss is built.

    Raises:
        ValueError: If no member has finite outputs.
    """
    flat = [np.asarray(output) for output in tree.flatten(outputs)]
    counts = np.logical_and.reduce([np.isfinite(each.reshape(len(each), -1)).all(axis=1) for each in flat])
    if not counts.any():
        raise ValueError(
            "`cohort` must have at least one member whose outputs are finite. "
            f"Received: {len(counts)} members, all of which diverged. Train with a smaller learning rate."
        )
    pairs = zip(flat, keras_parts.logits_of(network), strict=True)
    said = [_probabilities(each[counts], kind) for each, kind in pairs]
    return tree.pack_sequence_as(outputs, [getattr(each, aggregate)(axis=0) for each in said])


def _probabilities(outputs: np.ndarray, kind: str | None) -> np.ndarray:
    import scipy.special

    if kind is None:
        return outputs
    return scipy.special.expit(outputs) if kind == "sigmoid" else scipy.special.softmax(outputs, axis=-1)


def averaged(members: Sequence[keras.Model], names: Sequence[str], name: str) -> keras.Model:
    """Returns one model whose outputs are the averages of those of the members.

    Where the loss takes an output as logits, the probabilities are averaged, and the output is the logits of that
    average: it means what a member's output means, so that loss, metrics and thresholds stay as they are.

    Args:
        members: Compiled networks of one form.
        names: A name for each of them within the model.
        name: The name of the model.

    Returns:
        A compiled functional `keras.Model`; its weights are those of the members.
    """
    first = members[0]
    inputs = tree.map_structure(_input_like, keras_parts.ends(first)[0])
    answers = [
        keras.Model(*keras_parts.ends(member), name=each)(inputs) for member, each in zip(members, names, strict=True)
    ]
    flat = zip(*map(tree.flatten, answers), strict=True)
    kinds = keras_parts.logits_of(first)
    labels = [first.layers[-1].name] if isinstance(first, keras.Sequential) else first.output_names
    outputs = [_average(*each) for each in zip(flat, kinds, labels, strict=True)]
    model = keras.Model(inputs, tree.pack_sequence_as(answers[0], outputs), name=name)
    model.compile(**keras_parts.own_options(first))
    return model


def _input_like(tensor: Any) -> Any:
    return keras.Input(tensor.shape[1:], tensor.shape[0], tensor.dtype, name=tensor.name)


def _average(outputs: Sequence[Any], kind: str | None, name: str) -> Any:
    if len(outputs) == 1:
        return keras.layers.Identity(name=name)(outputs[0])
    if kind is None:
        return keras.layers.Average(name=name)(list(outputs))
    stacked = ops.stack(list(outputs))
    if kind == "softmax":
        logits = ops.subtract(ops.logsumexp(ops.log_softmax(stacked, axis=-1), axis=0), math.log(len(outputs)))
    else:  # the logarithm of the odds, from both probabilities: one minus the other would lose what is close to 1
        one, other = (ops.logsumexp(ops.log_sigmoid(side), axis=0) for side in (stacked, ops.negative(stacked)))
        logits = ops.subtract(one, other)
    return keras.layers.Identity(name=name)(logits)
