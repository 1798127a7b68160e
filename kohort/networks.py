"""Networks by their words: dense ones of so many hidden units, and functions that stand in a file.

In come the sizes of the data, or `module:function`; out comes a function of parameters that returns a compiled model,
as `kohort.Study` takes it. The room exists so that a study of small networks needs no line of Python.
"""

import importlib
import importlib.machinery
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from kohort.checks import received
from kohort.choice import free_memory, shown
from kohort.tables import Task, suggestion

# What Keras names beside, or what takes more than a name, or gives fewer numbers than it takes.
OTHERS = {"get", "serialize", "deserialize", "glu", "threshold"}
OTHERS |= {"Optimizer", "LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"}
# A weight, its gradient, and two numbers that an optimizer such as Adam keeps of it.
BYTES_OF_WEIGHT = 16
LOSSES = {"regression": "mse", "classification": "sparse_categorical_crossentropy"}


def dense(features: int, outputs: int, task: Task) -> Callable[..., keras.Model]:
    """Returns the function that makes dense networks for such data.

    Args:
        features: Columns of x.
        outputs: Numbers to predict, or classes; 1 or 2 classes have one output, their probability.
        task: "regression" (linear output, squared error) or "classification" (cross entropy, accuracy).

    Returns:
        `network(hidden=8, depth=1, activation="relu", optimizer="adam", learning_rate=1e-3, dropout=0.0)`.
    """

    def network(
        hidden: int | list = 8,
        depth: int = 1,
        activation: str = "relu",
        optimizer: str = "adam",
        learning_rate: float = 1e-3,
        dropout: float = 0.0,
    ) -> keras.Model:
        check_known("activation", activation, keras.activations)
        rule = check_known("optimizer", optimizer, keras.optimizers)
        rate = _checked("learning_rate", learning_rate, lambda number: 0 < number < math.inf, "above 0", 1e-3)
        dropped = _checked("dropout", dropout, lambda number: 0 <= number < 1, "from 0 to below 1", 0.2)
        model = keras.Sequential([keras.Input((features,))])
        for units in _widths(hidden, depth, features):
            model.add(keras.layers.Dense(units, activation))
            if dropped:
                model.add(keras.layers.Dropout(dropped))
        is_binary = task == "classification" and outputs <= 2
        ends = "sigmoid" if is_binary else "softmax" if task == "classification" else None
        model.add(keras.layers.Dense(1 if is_binary else outputs, ends))
        model.compile(
            rule(learning_rate=rate),
            "binary_crossentropy" if is_binary else LOSSES[task],
            metrics=["accuracy"] if task == "classification" else None,
        )
        return model

    return network


def _widths(hidden: Any, depth: Any, features: int) -> list[int]:
    widths = list(hidden) if isinstance(hidden, list | tuple) else [hidden] * (depth if _is_count(depth) else 1)
    if not all(map(_is_count, widths)) or not _is_count(depth) or (isinstance(hidden, list | tuple) and depth != 1):
        raise ValueError(
            "`hidden` must be the units of each layer, and `depth` the number of layers, or `hidden` the list of units "
            f"layer by layer, with `depth` left out. Received: hidden={hidden!r}, depth={depth!r}. "
            "Write for example hidden = 8 and depth = 2, or hidden = [16, 8]."
        )
    weights = sum((before + 1) * units for before, units in itertools.pairwise([features, *widths]))
    room = free_memory()
    if weights * BYTES_OF_WEIGHT > room:
        raise ValueError(
            "`hidden` must be such that a network has room in the memory that is free, which is "
            f"{shown(room)}. Received: hidden={hidden!r}, depth={depth!r}, which is {weights:,} weights of "
            f"{BYTES_OF_WEIGHT} bytes with what trains them. Take fewer units."
        )
    return widths


def _checked(name: str, value: Any, fits: Callable[[float], bool], accepted: str, example: float) -> float:
    """Returns a number as Keras wants it, which takes no whole one for a rate."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise ValueError(
            f"`{name}` must be a number {accepted}. Received: {received(name, value)}. Write for example {example:g}."
        )
    return float(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_known(argument: str, name: Any, module: Any) -> Any:
    """Returns the function or class that Keras knows by this name, in capitals or not; raises if it knows none."""
    public = [each for each in dir(module) if not each.startswith("_") and callable(getattr(module, each))]
    found = {each.lower(): getattr(module, each) for each in public if each not in OTHERS}
    known = sorted(found)
    if not isinstance(name, str) or name.lower() not in known:
        raise ValueError(
            f"`{argument}` must be one of Keras's: {', '.join(known)}. Received: {argument}={name!r}. "
            f"{suggestion(name, known)}"
        )
    return found[name.lower()]


def function_in(folder: Path, name: Any) -> Callable:
    """Imports `module:function` from a folder; a module from elsewhere is not imported.

    Args:
        folder: Where the module must lie: what a file names must not run just anything that is installed.
        name: Such as "networks:small"; a module in a package is "package.module:function".

    Raises:
        ValueError: If it is not of this form, there is no such module in the folder, or no such function in it.
    """
    module_name, _, function_name = name.partition(":") if isinstance(name, str) else ("", "", "")
    top = module_name.partition(".")[0]
    spec = importlib.machinery.PathFinder.find_spec(top, [str(folder)]) if top and function_name else None
    if spec is None or not _is_in(folder, spec):
        raise _no_function(folder, name, "which is not there")
    if top in sys.modules and not _is_in(folder, getattr(sys.modules[top], "__spec__", None)):
        raise _no_function(folder, name, f"but another module {top!r} is imported already")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # something that the module itself wants
        raise _no_function(folder, name, "which is not there") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        own = [each for each, thing in vars(module).items() if callable(thing) and not each.startswith("_")]
        raise ValueError(
            f"`function` must be a function of the module {module_name!r}: {', '.join(own) or '(it has none)'}. "
            f"Received: {name!r}. {suggestion(function_name, own)}"
        )
    return function


def _is_in(folder: Path, spec: Any) -> bool:
    places = [getattr(spec, "origin", None), *(getattr(spec, "submodule_search_locations", None) or ())]
    return any(Path(place).resolve().is_relative_to(folder.resolve()) for place in places if place)


def _no_function(folder: Path, name: Any, came: str) -> ValueError:
    return ValueError(
        f"`function` must be module:function, of a module in the folder {str(folder)!r}. Received: {name!r}, {came}. "
        "Write such a module beside the file; it may import the function from elsewhere."
    )
