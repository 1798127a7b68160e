"""`study.toml`: a study in words.

In comes a file of TOML; out come what `kohort.Study` and its `run` take, or an error that names the key and the nearest
one that there is. The room exists so that which network learns this, how often and how fast, is asked in one command,
and that the question is kept in a file beside the answer.

    path = "xor.kohort"         # where the study is kept, from this file on; default: the name of this file
    seeds = 500                 # how many, or a list of them
    epochs = 3000
    # and, if need be: batch_size, validation_split, shuffle, exact, as in Python

    [data]
    problem = "xor"             # or one of kohort.data with its arguments, such as n_samples = 200
    # file = "cells.csv"        # or a table, .csv or .parquet: words become columns, gaps are filled, numbers scaled
    # target = "diagnosis"
    # task = "classification"   # or "regression"; default: by the target

    [network]                   # what is the same in all trials
    learning_rate = 0.01
    # function = "networks:small"   # of networks.py beside this file; default: a dense network, with the parameters
    #                                 hidden, depth, activation, optimizer, learning_rate, dropout

    [grid]                      # every combination is a trial
    hidden = [2, 4, 8]

    [solved]                    # the last values that a member must reach to count as solved
    loss = 0.01
"""

import inspect
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from kohort import data, keras_internals, keras_parts, networks, tables
from kohort.checks import received
from kohort.keras_parts import fresh_names
from kohort.tables import suggestion
from kohort.template import preserved_generators

FIT = ("epochs", "batch_size", "validation_split", "shuffle")
KEYS = ("path", "seeds", "exact", *FIT, "data", "network", "grid", "solved")
TABLE_KEYS = ("file", "target", "task")


class StudyFile(NamedTuple):
    """What a file asks for."""

    store: str
    network: Callable[..., Any]
    grid: dict[str, list]
    seeds: Any
    exact: Any
    x: np.ndarray
    y: np.ndarray
    fit: dict[str, Any]  # arguments of `Study.run` beside the data
    solved: dict[str, float]

    def check_solved(self) -> None:
        """Raises unless the first trial's networks log the metrics that are asked for: hours later would be late."""
        with preserved_generators(), fresh_names():
            model = self.network(**{name: values[0] for name, values in self.grid.items()})
            if not self.solved or not isinstance(model, keras.Model) or not model.compiled or not model.built:
                return  # `Study.run` says what is wrong with it
            keras_internals.build_like(model, (self.x[:1], self.y[:1]))
        logged = ["loss", *keras_parts.metric_names(model)]
        known = [*logged, *(f"val_{name}" for name in logged if self.fit.get("validation_split"))]
        for metric in self.solved:
            if metric not in known or keras_internals.metric_direction(model, metric) is None:
                raise ValueError(
                    f"`[solved]` must name metrics that the networks log, and of which Keras knows whether more is "
                    f"better: {', '.join(known)}. Received: {metric!r}. {suggestion(metric, known)}"
                )


def read(path: Any, store: str | None = None) -> StudyFile:
    """Reads a file, and the data that it names.

    Args:
        path: The file.
        store: Where the study is kept instead of where the file says.

    Raises:
        OSError: If the file, or one that it names, cannot be read.
        TypeError, ValueError: If something in it is not what it must be.
    """
    file = Path(path)
    told = _parsed(file)
    _check_keys("the file", told, KEYS)
    for name in ("data", "network", "grid", "solved"):
        if not isinstance(told.get(name, {}), dict):
            raise TypeError(
                f"`{name}` must be a table of TOML. Received: {received(name, told[name])}. "
                f"Write it after a line [{name}]."
            )
    fit = {name: told[name] for name in FIT if name in told}
    x, y, outputs, task = _data(file, told.get("data", {}), fit.get("validation_split", 0.0))
    network, grid = _network(file, told, x.shape[-1], outputs, task)
    kept = store or str(file.parent / _text("path", told.get("path", f"{file.stem}.kohort")))
    seeds, exact = told.get("seeds", 100), told.get("exact", False)
    return StudyFile(kept, network, grid, seeds, exact, x, y, fit, _solved(told.get("solved", {})))


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`file` must be a study in TOML. Received: {str(file)!r}, which does not exist. "
            "Write one; `kohort study --help` shows how."
        ) from error
    except IsADirectoryError as error:
        raise IsADirectoryError(
            f"`file` must be a study in TOML. Received: {str(file)!r}, which is a folder. "
            "Name the file; what a study has found out, `kohort table` tells."
        ) from error
    except OSError as error:
        raise type(error)(
            f"`file` must be a study in TOML. Received: {str(file)!r}, which cannot be read ({error.strerror}). "
            "Look at its name, and at who may read it."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`file` must be a study in TOML. Received: {str(file)!r}, which says: {str(error).rstrip('.')}. "
            "Mend that place; texts stand between quotes, tables begin with [name]."
        ) from error


def _check_keys(where: str, told: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in told:
        if key not in known:
            raise ValueError(
                f"`{key}` must be a key that {where} may have: {', '.join(known)}. Received: {key}. "
                f"{suggestion(key, known)}"
            )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"`{name}` must be a text. Received: {received(name, value)}. Write it between quotes.")
    return value


# --- data -------------------------------------------------------------------------------------------------------------


def _data(file: Path, told: dict[str, Any], share: Any) -> tuple[np.ndarray, np.ndarray, int, tables.Task]:
    """Returns x, y, how many outputs they ask for, and the task."""
    if ("problem" in told) == ("file" in told):
        raise ValueError(
            f"`[data]` must hold a problem ({', '.join(data.__all__)}) or a file. "
            f'Received: {", ".join(told) or "nothing"}. Write for example problem = "xor".'
        )
    if "file" in told:
        return _of_table(file, told, share)
    name = _text("problem", told["problem"])
    if name not in data.__all__:
        raise ValueError(
            f"`problem` must be one of {', '.join(data.__all__)}. Received: problem={name!r}. "
            f"{suggestion(name, data.__all__)}"
        )
    make = getattr(data, name)
    _check_keys(f"the problem {name}", told, ("problem", "task", *inspect.signature(make).parameters))
    arguments = {key: value for key, value in told.items() if key not in ("problem", "task")}
    try:
        x, y = make(**arguments)
    except (TypeError, ValueError) as error:  # of scikit-learn, which says it in words of its own
        if str(error).startswith("`"):
            raise
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(
            f"`[data]` must hold arguments that the problem {name} can be made with. Received: {shown}, of which it "
            f"says: {str(error).rstrip('.')}. Mend that one."
        ) from error
    classes = np.unique(y)
    task = told.get("task", "classification" if (classes == np.round(classes)).all() else "regression")
    if task not in tables.TASKS:
        raise ValueError(f"`task` must be {' or '.join(map(repr, tables.TASKS))}. Received: task={task!r}. Pass one.")
    return x, y, len(classes) if task == "classification" else 1, task


def _of_table(file: Path, told: dict[str, Any], share: Any) -> tuple[np.ndarray, np.ndarray, int, tables.Task]:
    _check_keys("[data] with a file", told, TABLE_KEYS)
    whole = tables.read(file.parent / _text("file", told["file"]))
    table, target = tables.with_target(whole, told.get("target"), told.get("task"))
    # As Keras splits: the last rows validate, and what scales them is learned from the others.
    rows = math.floor(table.rows * (1 - share)) if isinstance(share, float) and 0 < share < 1 else table.rows
    x = tables.learned(tables.layout_of(table), table.taken(np.arange(max(1, rows))))(table)
    return x, target.values.astype("int32" if target.classes else "float32"), max(1, len(target.classes)), target.task


# --- network, grid, criterion -----------------------------------------------------------------------------------------


def _network(
    file: Path, told: dict[str, Any], features: int, outputs: int, task: tables.Task
) -> tuple[Callable, dict[str, list]]:
    """Returns the network function, and the values of each parameter: of those that are the same for all, one."""
    fixed, grid = dict(told.get("network", {})), told.get("grid", {})
    name = fixed.pop("function", None)
    folder = file.resolve().parent
    network = networks.dense(features, outputs, task) if name is None else networks.function_in(folder, name)
    parameters = inspect.signature(network).parameters
    takes = [each.name for each in parameters.values() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for where, own in (("network", fixed), ("grid", grid)):
        for key in own:
            if key not in takes and not takes_any:
                raise ValueError(
                    f"`[{where}]` must name parameters that the network function takes: {', '.join(takes) or 'none'}. "
                    f"Received: {key!r}. {suggestion(key, takes)}"
                )
    both = [key for key in fixed if key in grid]
    if both:
        raise ValueError(
            f"`[network]` must hold what all trials share, and `[grid]` what differs. Received: {both[0]!r} in both. "
            "Take it out of one of them."
        )
    return network, {**{key: [value] for key, value in fixed.items()}, **grid}


def _solved(told: dict[str, Any]) -> dict[str, float]:
    if "confidence" in told:
        raise ValueError(
            "`[solved]` must name metrics, and confidence is the level of the intervals. "
            f"Received: {received('confidence', told['confidence'])}. Call a metric of yours otherwise."
        )
    for metric, bound in told.items():
        if isinstance(bound, bool) or not isinstance(bound, int | float) or math.isnan(bound):
            raise TypeError(
                f"`[solved]` must give each metric a number that its last value must reach. "
                f"Received: {received(metric, bound)}. Write for example loss = 0.01."
            )
    return told
