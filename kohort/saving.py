"""What of a trained cohort is kept in a file, and how it comes back.

In come the members; out come values and arrays for `files`, and from these the same members again. The model goes as
its configuration, and is built from it only after every class in it is known to be Keras's or the caller's, and every
array to be of the size that the model has. The room exists so that a fit can go on in another process, to the bit.
"""

import contextlib
import copy
import os
import re
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import keras
import numpy as np

from kohort import blueprint, files, keras_internals, keras_parts
from kohort.engine import State
from kohort.files import Contents
from kohort.folds import HeldOut, Shares, checked_split, shares_of_folds
from kohort.generators import MemberGenerators, Owed
from kohort.history import CohortHistory
from kohort.mapping import MAPPINGS
from kohort.members import Block, Members, Settings, Trained, in_one_run, members_of, unstacked
from kohort.membership import check_seeds
from kohort.structures import filled, skeleton
from kohort.template import preserved_generators
from kohort.vary import check_vary

KIND, VERSION = "cohort", 2  # 1 held members that differ by their seeds only
# What a configuration may hold that is no class: plain values of Keras's serialisation. Lambdas are not among them.
VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}
# What a part of a model may be. Keras's own safe mode names what it refuses; this names what is accepted.
KINDS = (
    keras.Operation,
    keras.DTypePolicy,
    keras.Initializer,
    keras.Loss,
    keras.Metric,
    keras.Optimizer,
    keras.Regularizer,
    keras.constraints.Constraint,
    keras.optimizers.schedules.LearningRateSchedule,
)
# The modules whose functions a configuration may name.
WITH_FUNCTIONS = (keras.activations, keras.losses, keras.metrics, keras.ops)
PARTS = ("training", "validation")  # of a fold
KERAS_ENDINGS = (".keras", ".h5", ".hdf5")
GENERATOR = (2,), np.dtype("uint32")  # the state of a generator of Keras's


# --- to a file --------------------------------------------------------------------------------------------------------


def save(path: Any, members: Members, trained: Trained, held_out: HeldOut) -> None:
    """Writes trained members to a file, in one step."""
    files.checked_target(path)  # before anything is computed
    if (ending := os.path.splitext(path)[1].lower()) in KERAS_ENDINGS:
        raise ValueError(
            f"`path` must not end in {ending}, by which Keras knows its own files. Received: path={os.fspath(path)!r}. "
            "Pass another name, or save one member: `cohort.member(index=0).save(path)`."
        )
    about, arrays = contents_of(members, trained)
    own = _own_of(members, held_out)
    files.write(path, KIND, VERSION, Contents(about | own.about, arrays | own.arrays))


def _own_of(members: Members, held_out: HeldOut) -> Contents:
    """Returns what is each member's own beside its seed: values and rows."""
    varied, (splits, shares) = members.roster.varied, held_out
    about = {"varied": list(varied), "fold_sizes": members.fold_sizes, "splits": len(splits or ()), "rows": shares.rows}
    arrays = {f"varied/{i}": column for i, column in enumerate(varied.values())}
    for fold, split in enumerate(splits or ()):
        arrays |= {f"fold/{fold}/{part}": rows for part, rows in zip(PARTS, split, strict=True)}
    if shares.training is not None and splits is None:
        arrays["bootstrap"] = np.asarray(shares.training).astype(np.min_scalar_type(shares.rows))
    return Contents(about, arrays)


def contents_of(
    members: Members, trained: Trained, which: Sequence[int] | None = None, changes: Mapping[tuple, Any] | None = None
) -> Contents:
    """Returns all that the members are, as values and arrays.

    Args:
        members: Members of a cohort.
        trained: How far they are.
        which: The numbers of some of them, made from one template; all if not given.
        changes: What stands in the description of their model, whatever that of the template says: path to value.
    """
    own = np.arange(len(members.seeds)) if which is None else np.asarray(which)
    lanes = in_one_run(own)  # curves are most of a study, and a copy of them takes as long as their checksum
    kinds = range(len(members.templates)) if which is None else (0,)
    template, history = members.templates[members.roster.kinds[own[0]]], trained.history
    rows: list[np.ndarray] = []

    def placed(array: Any) -> int:
        rows.append(np.asarray(array))
        return len(rows) - 1

    states, owed = trained.generators.kept()
    arrays = {"seeds": np.asarray(members.seeds, np.uint32)[own], "epoch": np.asarray(history.epoch, np.int64)}
    arrays["stopped_epoch"] = np.asarray(history.stopped_epoch, np.int64)[lanes]
    arrays |= {f"history/{name}": np.asarray(values)[lanes] for name, values in history.items()}
    for kind in kinds:
        state = members.states(trained, own if which is not None else members.of_kind(kind))
        for part, values in state._asdict().items():
            arrays |= {f"{_place(kind, part)}/{i}": array for i, array in enumerate(values)}
    arrays |= {} if states is None else {"generators": states[lanes]}
    description = _described(template.network)
    for path, value in (changes or {}).items():
        description = changed(description, path, value)
    about = {
        **description,
        "decay_exclusions": keras_parts.decay_exclusions(template.network),
        "exact": members.exact,
        "mapping": members.settings.mapping,
        "batch": skeleton(template.batch, placed),
        "metrics": list(history),
        "owed": [[rows, np.asarray(times)[own].tolist() if np.ndim(times) else int(times)] for rows, times in owed],
    }
    # Of the data themselves nothing is kept: rows of zeros have the same form.
    return Contents(about, arrays | {f"batch/{i}": np.zeros_like(row) for i, row in enumerate(rows)})


_descriptions: "weakref.WeakKeyDictionary[keras.Model, dict]" = weakref.WeakKeyDictionary()


def _described(network: keras.Model) -> dict:
    """Returns the description of a template's network, which is not trained itself: each block of a study needs it."""
    if network not in _descriptions:
        _descriptions[network] = blueprint.described(network, _unkept)
    return _descriptions[network]


def changed(description: Any, path: Sequence[Any], value: Any) -> Any:
    """Returns nested values of JSON with another one at a path of keys and indices; the given ones stay as they are."""
    if not path:
        return value
    copied = copy.copy(description)
    copied[path[0]] = changed(copied[path[0]], path[1:], value)
    return copied


def _unkept(model: keras.Model, received: str, step: str) -> ValueError:
    return ValueError(
        "`cohort.save` must be called on a cohort whose model Keras can write down as a configuration. "
        f"Received: model={model.name!r} with {received}. {step}; single members can be saved as `.keras` files."
    )


# --- from a file ------------------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What a file held: the members as they were left, and what their last fit held out."""

    members: Members
    held_out: HeldOut


def begin_from(members: Members, sources: Sequence[tuple[Contents, int]]) -> None:
    """Puts each member where some contents say that it is: for each member those, and its row in them."""
    about = sources[0][0].about
    batch, names = _batch(sources[0][0]), about["metric_names"]
    members.templates = [t if t.batch is not None else t.built_like(batch, names) for t in members.templates]
    states = {id(contents): _state(contents.arrays) for contents, _ in sources}

    def begun(block: Block) -> State:
        lanes = [
            jax.tree.map(lambda a, row=row: a[row], states[id(c)]) for c, row in map(sources.__getitem__, block.lanes)
        ]
        values = {path: column[list(block.lanes)] for path, column in members.roster.varied.items()}
        state = members.template(block).with_values(jax.tree.map(lambda *parts: np.stack(parts), *lanes), values)
        return unstacked(state)[0] if members.exact else state

    drawn = [contents.arrays["generators"][row] for contents, row in sources if "generators" in contents.arrays]
    owed = []
    for place, (rows, _) in enumerate(about["owed"]):
        pairs = [(contents.about["owed"][place][1], row) for contents, row in sources]
        owed.append(Owed(rows, np.array([times[row] if isinstance(times, list) else times for times, row in pairs])))
    generators = MemberGenerators.restored(members.seeds, np.stack(drawn) if drawn else None, tuple(owed))
    members.trained = Trained([begun(block) for block in members.blocks], generators, members.no_history())


def load(path: Any, custom_objects: Mapping[str, Any] | None) -> Kept:
    """Reads and checks a file, and builds its model.

    Raises:
        TypeError: If `path` is no path.
        OSError: If the file cannot be read.
        ValueError: If it is damaged, foreign, or newer, or asks for a class that nobody named.
    """
    contents = files.read(path, KIND, VERSION)
    return checked(os.fspath(path), contents, custom_objects)


def checked(place: str, contents: Contents, custom_objects: Mapping[str, Any] | None) -> Kept:
    """Checks what was read from a place, and builds its model. Raises a ValueError as `load`."""
    about, customs = contents.about, dict(custom_objects or {})
    with _refusals(place), preserved_generators(), keras_parts.safely(), keras.saving.custom_object_scope(customs):
        _check_settings(place, about)
        _check_parts(place, [about["model"], about["compiled"]], customs)
        _check_sizes(place, contents)
        held_out = _held_out(contents)
        members = _members(contents)
        _check_shapes(place, contents, members)
        members.trained = _trained(contents, members)
        return Kept(members, held_out)


class _Refusal(ValueError):
    """One that is raised here, to be told apart from those of Keras."""


@contextlib.contextmanager
def _refusals(path: str) -> Iterator[None]:
    """Raises what building a model raises, which may be much, as one error."""
    try:
        yield
    except _Refusal as error:
        raise ValueError(str(error)) from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, re.error) as error:
        received = f"from which no model can be built ({' '.join(str(error).split())[:120]})"
        raise ValueError(str(_refused(path, received, "Load it under the versions that saved it"))) from error


def _refused(path: Any, received: str, step: str) -> _Refusal:
    return _Refusal(
        "`path` must be a file of which this process can make the cohort again. "
        f"Received: path={path!r}, {received}. {step}."
    )


def _built(about: dict) -> keras.Model:
    model = blueprint.rebuilt(about)
    keras_parts.set_decay_exclusions(model, about["decay_exclusions"])
    return model


def _check_settings(path: Any, about: dict) -> None:
    """Raises unless Keras computes here with the numbers with which the members were trained."""
    for name in ("floatx", "epsilon", "image_data_format"):
        here = getattr(keras.config, name)()
        if about[name] != here:
            received = f"trained with keras.config.{name}() {about[name]!r}, which here is {here!r}"
            raise _refused(path, received, f"Call `keras.config.set_{name}({about[name]!r})` first")


def _check_parts(path: Any, config: Any, custom_objects: Mapping[str, Any]) -> None:
    """Raises unless each class and function of a configuration is a part for models: Keras's own, or one named."""
    for module, name, registered_name in _parts(config):
        if keras.saving.get_registered_object(registered_name, custom_objects=dict(custom_objects)) is not None:
            continue
        if not _is_part_of_keras(module, name):
            received = f"which holds {name!r} of the module {module!r}"
            step = f"Import its module where it is registered, or pass `custom_objects={{{registered_name!r}: ...}}`"
            raise _refused(path, received, f"{step}, if you trust the file")


def _parts(config: Any) -> Iterator[tuple[Any, str, str]]:
    """Yields module, name and registered name of all classes and functions in a configuration."""
    if isinstance(config, dict) and "class_name" in config:
        name, registered_name = str(config["class_name"]), str(config.get("registered_name") or config["class_name"])
        if name == "function":
            name = registered_name = str(config.get("config"))
        if name not in VALUES:
            yield config.get("module"), name, registered_name
    if isinstance(config, dict | list):
        for part in config.values() if isinstance(config, dict) else config:
            yield from _parts(part)


def _is_part_of_keras(module: Any, name: str) -> bool:
    if module == "builtins":  # so Keras writes functions of its own, by name alone
        return any(callable(getattr(place, name, None)) for place in WITH_FUNCTIONS)
    is_keras = module == "keras" or str(module).startswith("keras.")
    part = getattr(sys.modules.get(str(module)), name, None) if is_keras else None
    if isinstance(part, type):
        return issubclass(part, KINDS)
    return part is not None and any(getattr(place, name, None) is part for place in WITH_FUNCTIONS)


def _check_sizes(path: Any, contents: Contents) -> None:
    """Raises unless the model is of the size of the arrays: it is traced for that, and no array of it is made."""

    def state() -> State:
        model = _built(contents.about)
        keras_internals.build_like(model, _batch(contents))
        return keras_internals.read_state(model)

    def sizes(of_state: State, skipped: int) -> list:
        # How many states of generators there are depends on numbers that members may have for themselves.
        forms = [[(v.shape[skipped:], v.dtype) for v in part] for part in of_state]
        return [[form for form in part if form != GENERATOR] for part in forms]

    if sizes(jax.eval_shape(state), 0) != sizes(_state(contents.arrays), 1):
        raise _other_arrays(path)


def _other_arrays(path: Any) -> _Refusal:
    here = "keras {keras} and jax {jax}".format_map(files.versions())
    received = f"whose arrays are not those that its model has under {here}"
    return _refused(path, received, "Load it under the versions that saved it")


def _members(contents: Contents) -> Members:
    """Makes the members of the file, as they begin."""
    about, arrays = contents
    mapping = about.get("mapping")  # earlier files hold none
    mapping = mapping if mapping in MAPPINGS and not about["exact"] else "auto"
    fold_sizes = [(int(training), int(validation)) for training, validation in about.get("fold_sizes", ())]
    once = slice(None, None, len(fold_sizes) or 1)  # those that stand once for each fold, once
    seeds, model = tuple(arrays["seeds"][once].tolist()), _built(about)
    check_seeds(dict.fromkeys(seeds) if about.get("varied") else seeds)
    varied = {str(name): arrays[f"varied/{i}"][once] for i, name in enumerate(about.get("varied", ()))}
    varied = check_vary(model, varied or None, len(seeds), grid=False)
    members = members_of(model, seeds, varied, Settings(bool(about["exact"]), mapping))
    members = members.crossed_with(fold_sizes) if fold_sizes else members
    members.templates = [t.built_like(_batch(contents), about["metric_names"]) for t in members.templates]
    return members


def _check_shapes(path: Any, contents: Contents, members: Members) -> None:
    """Raises unless all arrays are those of these members."""
    about, arrays = contents
    count, epochs, roster = len(arrays["seeds"]), len(arrays["epoch"]), members.roster
    for kind, template in enumerate(members.templates):
        of_kind, own = len(members.of_kind(kind)), keras_internals.read_state(template.network)
        expected = [[((of_kind, *v.shape), v.dtype) for v in part] for part in own]
        if expected != [[(v.shape, v.dtype) for v in part] for part in _state(arrays, kind)]:
            raise _other_arrays(path)
    varied = [np.array_equal(arrays[f"varied/{i}"], of) for i, of in enumerate(roster.varied.values())]
    logs = [arrays[f"history/{name}"].shape[:2] == (count, epochs) for name in about["metrics"]]
    generators = arrays.get("generators", np.empty((count, 625)))
    lengths = generators.shape == (count, 625) and arrays["stopped_epoch"].shape == (count,)
    lengths = lengths and all(np.shape(times) in ((), (count,)) for _, times in about["owed"])
    if not all([*varied, *logs, lengths, roster.seeds == tuple(arrays["seeds"].tolist())]):
        raise _other_arrays(path)


def _trained(contents: Contents, members: Members) -> Trained:
    """Returns how far the members are."""
    about, arrays = contents
    history = {name: arrays[f"history/{name}"].copy() for name in about["metrics"]}
    owed = tuple(Owed(rows, np.asarray(times) if isinstance(times, list) else times) for rows, times in about["owed"])
    generators = MemberGenerators.restored(members.seeds, arrays.get("generators"), owed)
    epoch, stopped_epoch = arrays["epoch"].tolist(), arrays["stopped_epoch"].copy()
    log = CohortHistory(history, list(members.seeds), epoch, stopped_epoch, members.roster.differences)
    states = [_state(arrays, kind) for kind in range(len(members.templates))]
    return Trained(members.cut(states), generators, log)


def _held_out(contents: Contents) -> HeldOut:
    """Returns which rows the members have not trained on."""
    about, arrays = contents
    members, rows = len(arrays["seeds"]), int(about.get("rows", 0))
    if about.get("splits"):
        folds = range(int(about["splits"]))  # as somebody says: there may be no arrays for them
        splits = [checked_split([arrays[f"fold/{fold}/{part}"] for part in PARTS], rows) for fold in folds]
        if len(splits) != len(about["fold_sizes"]):
            raise ValueError("There are other folds than members.")
        return HeldOut(splits, shares_of_folds(splits, members, rows))
    if "bootstrap" not in arrays:
        return HeldOut(None, Shares(rows=rows))
    drawn = [checked_split((own, own), rows)[0] for own in arrays["bootstrap"]]
    if len(drawn) != members:
        raise ValueError("There are other rows than members.")
    return HeldOut(None, Shares(drawn, rows=rows))


def _batch(contents: Contents) -> Any:
    """Returns a batch of the form for which losses, metrics and optimizer are built."""
    return filled(contents.about["batch"], lambda place: contents.arrays[f"batch/{int(place)}"])


def _state(arrays: Mapping[str, np.ndarray], kind: int = 0) -> State:
    """Returns the states of all members of a kind, leading axis member."""

    def part(name: str) -> list[np.ndarray]:
        count = sum(each.startswith(f"{name}/") for each in arrays)
        return [arrays[f"{name}/{i}"] for i in range(count)]

    return State(*(part(_place(kind, field)) for field in State._fields))


def _place(kind: int, part: str) -> str:
    """Returns where the arrays of a part of the states are, by number behind it."""
    return f"state/{kind}/{part}" if kind else f"state/{part}"
