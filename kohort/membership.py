"""Who can be a member: the refusals that a cohort makes before anything is cloned or trained.

In come what the user passed to a `Cohort` and to its `fit`; out come the seeds as a tuple, or an error that says what
to do. The room exists so that `Cohort` reads as what it does, not as what it refuses.
"""

import itertools
import math
import numbers
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from kohort import keras_internals
from kohort.checks import received
from kohort.fit import Request, why_fall_back

LARGEST_SEED = 2**32 - 1
# The generator state of each member is 2.5 kB; what does not fit into one cohort fits into several.
MOST_MEMBERS = 1_000_000


def check_seeds(seeds: Any) -> tuple[int, ...]:
    """Returns the seeds as a tuple of ints, or raises."""
    if isinstance(seeds, numbers.Integral) and not isinstance(seeds, bool):
        if not 1 <= int(seeds) <= MOST_MEMBERS:
            raise ValueError(
                f"`seeds` must be a number of members from 1 to {MOST_MEMBERS}, or the seeds themselves. "
                f"Received: seeds={seeds!r}. Pass for example seeds=1000 for the seeds 0 to 999, or seeds=[3, 17]."
            )
        return tuple(range(int(seeds)))
    if isinstance(seeds, str | bytes | bool) or not isinstance(seeds, Iterable):
        raise TypeError(
            f"`seeds` must be an integer or an iterable of integers. Received: {received('seeds', seeds)}. "
            "Pass for example seeds=1000 or seeds=[3, 17]."
        )
    listed = list(itertools.islice(seeds, MOST_MEMBERS + 1))
    if not 1 <= len(listed) <= MOST_MEMBERS:
        came = "more" if listed else "none"
        raise ValueError(
            f"`seeds` must hold at least one seed and at most {MOST_MEMBERS}. Received: {came}. "
            "Pass for example range(1000)."
        )
    return _check_each_seed(listed)


def _check_each_seed(seeds: list) -> tuple[int, ...]:
    wrong = [s for s in seeds if not isinstance(s, numbers.Integral) or isinstance(s, bool)]
    if wrong:
        raise TypeError(
            f"`seeds` must hold integers. Received: seeds with {received('an element', wrong[0])}. "
            "Convert them with `int`."
        )
    outside = [s for s in seeds if not 0 <= s <= LARGEST_SEED]
    if outside:
        raise ValueError(
            f"`seeds` must hold integers from 0 to {LARGEST_SEED} (as `keras.utils.set_random_seed`). "
            f"Received: seeds with {outside[0]}. Pass for example range(1000)."
        )
    if len(set(seeds)) < len(seeds):
        repeated, count = Counter(map(int, seeds)).most_common(1)[0]
        raise ValueError(
            f"`seeds` must differ, because a seed names a member. Received: seeds with {repeated} {count} times. "
            "Remove the repeated ones, for example with `set`."
        )
    return tuple(int(s) for s in seeds)


def check_members(seeds: int, varied: Mapping[str, np.ndarray]) -> None:
    """Raises if a grid has more members than one cohort holds."""
    sizes = [seeds, *(len(values) for values in varied.values())]
    if math.prod(sizes) > MOST_MEMBERS:
        raise ValueError(
            f"`grid` must be of at most {MOST_MEMBERS} members. Received: {' x '.join(map(str, sizes))} "
            f"= {math.prod(sizes)} members. Make several cohorts of it."
        )


def check_exact(exact: Any) -> bool:
    """Returns whether the members are to be exact, or raises."""
    if not isinstance(exact, bool | np.bool):
        raise TypeError(f"`exact` must be True or False. Received: {received('exact', exact)}. Pass one of the two.")
    return bool(exact)


def check_cloneable(model: keras.Model) -> None:
    """Raises unless Keras can clone the model, and its weights have shapes."""
    if not keras_internals.is_cloneable(model):
        raise ValueError(
            "`model` must be a sequential or functional model, because each member is a clone with fresh weights. "
            f"Received: model={model.name!r} of class {type(model).__name__}. "
            "Write it as `keras.Model(inputs, outputs)`, or train single models with `kohort.fit`."
        )
    if not model.built:
        raise ValueError(
            f"`model` must be built, so that its weights have shapes. Received: model={model.name!r}, which is not. "
            "Begin it with `keras.Input(shape=...)` or call `model.build(input_shape)`."
        )


def warn_of_fixed_seeds(model: keras.Model) -> None:
    """Warns of layers in which all members are equal; raises if a part of the model cannot be copied."""
    for part in keras_internals.without_configuration(model):
        raise ValueError(
            "`model` must be compiled with parts that can be copied: each member has its own. "
            f"Received: {type(part).__name__}, which has an `__init__` of its own but no `get_config`. "
            "Add a `get_config` that returns all arguments of `__init__`."
        )
    fixed = keras_internals.fixed_seed_layers(model)
    if fixed:
        warnings.warn(
            f"kohort: these layers hold a fixed seed, so all members are equal there: {', '.join(fixed)}. "
            "Leave `seed` out of the layer or its initializer to let each member have its own.",
            UserWarning,
            stacklevel=3,
        )


def check_compilable(network: keras.Model, x: Any, y: Any, sample_weight: Any, validation_data: Any) -> None:
    """Raises unless a fit of the network on these data can be compiled for all members."""
    for name, value in {"x": x, "y": y, "sample_weight": sample_weight, "validation_data": validation_data}.items():
        kind = keras_internals.stream_kind(value)
        if kind or any(map(keras_internals.is_sparse, keras.tree.flatten(value))):
            raise TypeError(
                f"`{name}` must be dense arrays in memory, which all members share. "
                f"Received: {received(name, value)}, {kind or 'a sparse array'}. "
                "Collect it into arrays first, or train members one by one with `kohort.fit`."
            )
    reason = why_fall_back(network, Request(x, y, sample_weight, validation_data))
    if reason:
        raise TypeError(
            f"`model` must be one whose training can be compiled. Received: model={network.name!r}, where {reason}. "
            "Compile it with the default options, or train members one by one with `kohort.fit`."
        )
