"""What a study is to train: which trials and seeds, with which arguments, cut into tasks.

In come what a person wrote and what the store holds already; out come checked parameters, a specification that can be
compared with an earlier one, and tasks for those members that are missing. The room exists so that `Study` reads as
what it does.
"""

import hashlib
import inspect
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from kohort.checks import Recipe, received
from kohort.cohort_callbacks import MEMBER_KINDS
from kohort.fit import check_callbacks
from kohort.history import CohortHistory
from kohort.keras_callbacks import listed
from kohort.store import Records, canonical
from kohort.variants import Difference, Group, differences

# A block is to take about so many operations of training, and to hold so much at most, but at least a few members.
BLOCK_OPERATIONS, BLOCK_BYTES, MOST_BLOCK_MEMBERS, BLOCK_STEP = 3e11, 2**26, 1024, 16
MOST_TRIALS = 100_000
GRID = '{"hidden": [2, 4, 8]}'


# --- parameters -------------------------------------------------------------------------------------------------------


def check_network(network: Any) -> Callable:
    """Returns the network function, or raises that it is none."""
    if isinstance(network, keras.Model) or not callable(network):
        raise TypeError(
            "`network` must be a function that returns a compiled Keras model. "
            f"Received: {received('network', network)} of type {type(network).__name__}. "
            "Write `def network(hidden=2): ...`, which builds, compiles and returns the model."
        )
    return network


def check_grid(network: Callable, grid: Any) -> list[dict[str, Any]]:
    """Returns the parameters of each trial: every combination of a mapping's values, or those of a list as they are."""
    trials: list[Any]
    if isinstance(grid, Mapping):
        columns = [_values(name, values) for name, values in grid.items()]
        if math.prod(map(len, columns)) > MOST_TRIALS:
            sizes = " x ".join(str(len(column)) for column in columns)
            raise ValueError(f"`grid` must be of at most {MOST_TRIALS} trials. Received: {sizes}. Draw some of them.")
        trials = [dict(zip(grid, row, strict=True)) for row in itertools.product(*columns)]
    elif isinstance(grid, Iterable) and not isinstance(grid, str | bytes):
        trials = list(itertools.islice(grid, MOST_TRIALS + 1))
        if len(trials) > MOST_TRIALS:
            raise ValueError(f"`grid` must be of at most {MOST_TRIALS} trials. Received: more. Draw some of them.")
    else:
        trials = [grid]
    if not trials or not all(isinstance(trial, Mapping) for trial in trials):
        error = ValueError if trials == [] else TypeError
        raise error(
            "`grid` must map each parameter of `network` to its values, or list the parameters of each trial. "
            f"Received: {received('grid', grid)}. Pass for example {GRID}."
        )
    return list({canonical(trial): trial for trial in (_checked(network, trial) for trial in trials)}.values())


def _values(name: Any, values: Any) -> list:
    is_listed = isinstance(values, list | tuple | range | set) or (
        hasattr(values, "__array__") and np.ndim(values) == 1
    )
    if not is_listed or not len(values):
        error = ValueError if is_listed else TypeError
        raise error(
            f"`grid` must hold at least one value for each parameter, in a list. "
            f"Received: grid with {name!r}: {received('values', values)}. Pass for example {GRID}."
        )
    return list(values)


def _checked(network: Callable, parameters: Mapping) -> dict[str, Any]:
    """Returns the parameters of one trial as values of JSON, once the network function is known to take them."""
    signature = inspect.signature(network)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    takes = [name for name, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in parameters:
        if not isinstance(name, str) or (name not in takes and inspect.Parameter.VAR_KEYWORD not in kinds):
            raise ValueError(
                f"`grid` must name parameters that `network` takes: {', '.join(map(repr, takes)) or '(none)'}. "
                f"Received: grid with {name!r}. Give `{getattr(network, '__name__', 'network')}` such a parameter."
            )
    missing = [n for n in takes if signature.parameters[n].default is inspect.Parameter.empty and n not in parameters]
    if missing:
        raise ValueError(
            f"`grid` must hold each parameter of `network` that has no default. Received: a grid without "
            f"{', '.join(map(repr, missing))}. Add values, or give the parameter a default."
        )
    return {name: _plain(name, value) for name, value in parameters.items()}


def _plain(name: str, value: Any) -> Any:
    """Returns a value as it comes out of JSON, but for lists and tuples."""
    plain = value.item() if isinstance(value, np.generic) else value
    try:
        back = json.loads(json.dumps(plain, allow_nan=False))
    except (TypeError, ValueError):
        back = ...
    if back != (list(plain) if isinstance(plain, tuple) else plain):
        raise TypeError(
            "`grid` must hold numbers, texts, True, False, None, or lists of them, because a study keeps them. "
            f"Received: grid with {name!r}: {received('value', value)}. Pass a name, and let `network` look it up."
        )
    return plain


# --- the arguments of the fit -----------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """The arguments with which all members are trained."""

    x: Any
    y: Any
    sample_weight: Any
    validation_data: Any
    callbacks: Any
    bootstrap: bool
    recipe: Recipe
    last: int | None = None  # the epoch that members reach in the end, where it is not that of the recipe

    def described(self) -> dict:
        """Returns what is kept of the arguments, as values of JSON: of data a fingerprint; not how many epochs."""
        told = {k: v for k, v in self.recipe._asdict().items() if k not in ("epochs", "initial_epoch")}
        told |= {"bootstrap": self.bootstrap, "callbacks": [_described(each) for each in listed(self.callbacks)]}
        if self.recipe.class_weight is not None:
            told["class_weight"] = {str(key): float(value) for key, value in self.recipe.class_weight.items()}
        data = {name: fingerprint(getattr(self, name)) for name in ("x", "y", "sample_weight", "validation_data")}
        return json.loads(json.dumps({"fit": told, "data": data}, default=_python_number))


def _python_number(value: Any) -> Any:
    return value.item()


def check_member_callbacks(callbacks: Any) -> None:
    """Raises unless the callbacks act on each member by itself."""
    check_callbacks(callbacks)
    for callback in listed(callbacks):
        if type(callback) not in MEMBER_KINDS:
            kinds = ", ".join(kind.__name__ for kind in MEMBER_KINDS)
            raise ValueError(
                f"`callbacks` of a study must be Keras's {kinds}, which act on each member by itself: what others see "
                f"would depend on how members are cut into blocks. Received: callbacks with {type(callback).__name__}. "
                "Pass it to the fit of a `kohort.Cohort`."
            )


def _described(callback: Any) -> dict:
    """Returns what a callback is, and how it is set."""
    schedule = getattr(callback, "schedule", None)
    told: dict[str, Any] = {"name": type(callback).__name__}
    if schedule is not None:
        told["schedule"] = f"{getattr(schedule, '__module__', '')}.{getattr(schedule, '__qualname__', type(schedule))}"
    settings = ("monitor", "mode", "patience", "min_delta", "baseline", "start_from_epoch", "restore_best_weights")
    for name in (*settings, "factor", "cooldown", "min_lr"):
        if hasattr(callback, name):
            value = getattr(callback, name)
            told[name] = value if value is None or isinstance(value, str | bool) else float(value)
    return told


def fingerprint(structure: Any) -> str | None:
    """Returns the hash of all numbers of arrays, their shapes, types and places."""
    if structure is None:
        return None
    digest = hashlib.sha256()
    for path, leaf in keras.tree.flatten_with_path(structure):
        if leaf is None:
            continue
        array = np.ascontiguousarray(
            keras.ops.convert_to_numpy(leaf) if keras.ops.is_tensor(leaf) else np.asarray(leaf)
        )
        digest.update(json.dumps([list(map(str, path)), str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def check_same_fit(path: str, before: dict, after: dict) -> None:
    """Raises if a study was trained with other arguments, or other data."""
    found = next(differences(before, after), None)
    if found is None:
        return
    kind, name = (*found.path, *found.path)[:2]
    if kind == "data":
        said, came = "the data with which the study was begun", "other numbers, shapes or types"
    else:
        said, came = f"{found.before!r}, with which the study was begun", f"{name}={found.after!r}"
    raise ValueError(
        f"`{name}` must be {said}, because all trials of a study are trained alike. "
        f"Received: {came}, for the study {path!r}. Begin another study for it, under another path."
    )


def check_reached(fit: Fit, wanted: Sequence[tuple[dict, Sequence[int]]], records: Records) -> None:
    """Raises if members that are to be trained would end before an epoch that others have reached."""
    epochs, reached = fit.last or fit.recipe.epochs, max((block.epochs for block in records.blocks), default=0)
    if epochs >= reached:
        return
    numbers = {canonical(row.parameters): number for number, row in records.trials.items()}
    there = {(b.trial, seed) for b in records.blocks if b.epochs >= fit.recipe.epochs for seed in b.seeds}
    if any((numbers.get(canonical(parameters)), seed) not in there for parameters, seeds in wanted for seed in seeds):
        raise ValueError(
            f"`epochs` must be at least {reached}, which members have reached, because all trials of a study are "
            f"trained alike. Received: epochs={epochs}, where members are to be trained. Pass epochs={reached}, or "
            "begin another study for it, under another path."
        )


def check_same_network(path: str, parameters: dict, found: Difference | None) -> None:
    """Raises if the network function makes another model than it made when the trial was begun."""
    if found is not None:
        named = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
        raise ValueError(
            "`network` must return the model that it returned when the study was begun. "
            f"Received: for {named or 'no parameters'} in {path!r} one that differs in {found}. "
            "Begin another study for it, under another path, or make it a parameter of `network`."
        )


# --- tasks ------------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """Members of one group of trials that one cohort trains; each trial's are a block."""

    group: Group
    members: tuple[tuple[int, int], ...]  # (place of the trial in the group, seed), those of a trial together
    first_epoch: int


def block_members(model: keras.Model, rows: int, epochs: int, cores: int) -> int:
    """Returns how many members a block is to have: fewer where each takes long, or much room."""
    weights = max(1, model.count_params())
    operations = 6.0 * weights * rows * epochs
    room = 4.0 * (4 * weights + 8 * epochs) + 2500
    members = min(BLOCK_OPERATIONS * cores / operations, BLOCK_BYTES / room, MOST_BLOCK_MEMBERS)
    return max(int(members) // BLOCK_STEP, 1) * BLOCK_STEP


def tasks_of(group: Group, missing: Mapping[int, Sequence[int]], first_epoch: int, most: int) -> list[Task]:
    """Cuts the missing seeds of the trials of a group, by their places in it, into tasks of equal size."""
    blocks = [(place, tuple(part)) for place, seeds in missing.items() for part in _parts(seeds, most)]
    tasks: list[list[tuple[int, int]]] = []
    for place, seeds in blocks:
        if not tasks or len(tasks[-1]) + len(seeds) > most:
            tasks.append([])
        tasks[-1] += [(place, seed) for seed in seeds]
    return [Task(group, tuple(members), first_epoch) for members in tasks]


def _parts(seeds: Sequence[int], most: int) -> list[Sequence[int]]:
    """Cuts seeds into parts that are as equal as can be, so that one compiled program serves all."""
    count = -(-len(seeds) // most)
    size = -(-len(seeds) // max(count, 1))
    return [seeds[start : start + size] for start in range(0, len(seeds), size)] if seeds else []


# --- successive halving -----------------------------------------------------------------------------------------------


def rung_epochs(epochs: int, factor: int, rungs: int) -> list[int]:
    """Returns the epochs that members have reached at each rung, the last of which is `epochs`."""
    return sorted({math.ceil(epochs / factor**rung) for rung in range(rungs)})


def survivors(
    histories: Sequence[CohortHistory],
    seeds: Sequence[Sequence[int]],
    by: str,
    direction: str,
    epochs: int,
    share: float,
) -> list[list[int]]:
    """Returns the seeds of each trial that are among the best members of all trials after so many epochs."""
    ranked = []
    for place, (history, own) in enumerate(zip(histories, seeds, strict=True)):
        until = CohortHistory({by: history[by][:, :epochs]}, history.seeds, history.epoch[:epochs])
        values = dict(zip(history.seeds, until.last(by).tolist(), strict=True))
        ranked += [(values[seed] if direction == "down" else -values[seed], place, seed) for seed in own]
    finite = sorted(each for each in ranked if math.isfinite(each[0]))
    best = finite[: max(1, math.ceil(len(ranked) * share))]
    return [[seed for _, at, seed in best if at == place] for place in range(len(seeds))]
