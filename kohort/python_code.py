"""Whose Python code the steps of a fit run, and by what settings it goes.

In come a model and the callbacks of a fit; out goes the first thing that would run somebody else's code at a step, or
all settings of Keras's own code. The room exists because Keras trains some models operation by operation: there Python
runs at every step, so a step may be compiled only where all its code is Keras's, which computes and does nothing else,
and only as long as no setting changes.
"""

import functools
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import jax
import keras
import numpy as np

# What runs when a part is made, built or saved, and not at a step.
NOT_AT_STEPS = {
    "__init__", "__init_subclass__", "__new__", "__annotate__", "__annotate_func__", "build", "get_config",
    "from_config", "get_build_config", "build_from_config", "compute_output_shape",
}  # fmt: skip
# What runs steps, and is none: kohort itself may stand in its place.
AROUND_STEPS = {"fit", "evaluate", "predict"}
# What a fit itself changes of a model as it goes along, or what is no matter to a step.
NOT_SETTINGS = {
    "history", "stop_training", "train_function", "test_function", "predict_function", "_eval_epoch_iterator",
    "_jax_state", "_jax_state_synced", "_initial_epoch", "_losses", "_losses_override", "_loss_ids", "_lock",
    "_tracker", "parent_nodes", "_outbound_nodes", "_nodes", "_nodes_by_depth", "_operations_by_depth",
    "_auto_config", "_compile_config", "_value", "_path", "_model",
}  # fmt: skip
PLAIN = bool | int | float | complex | str | bytes | np.generic | np.dtype | type(None) | type(...) | slice
SLOTS = types.MemberDescriptorType | types.GetSetDescriptorType | type
ARRAYS = np.ndarray | jax.Array
IDLE = weakref.ref | inspect.Signature | types.ModuleType | keras.KerasTensor | threading.local | PurePath | type
# Whose classes hold data, or compute and do nothing else.
OF_OTHERS = {"builtins", "abc", "collections", "enum", "functools", "types", "typing"}
# These write methods into named tuples and enumerations.
WRITES_METHODS = {"collections", "enum"}
# Keras's own, but made to run on data beforehand, and not all of them by JAX.
PREPARES_DATA = keras.layers.Discretization.__module__.rpartition(".")[0]


def somebody_elses(*things: Any) -> str | None:
    """Names the first code, reachable from these things, that Keras would run at a step and did not write itself."""
    return Survey().foreign(*things)


def settings(*things: Any) -> list[Any]:
    """Returns all settings of parts that are reachable from these things, other than the values of variables."""
    survey = Survey()
    survey.foreign(*things)
    return [keras.config.floatx(), keras.config.epsilon(), *survey.settings]


def told(model: keras.Model) -> str | None:
    """Returns all that programs of a built model depend on, but its state and Keras's settings, in any process's words.

    None where there is more to it: code of somebody else, or a variable that is not part of the state. Other than at a
    step, code that builds counts, too, as how a model begins is a program.
    """
    survey = Survey()
    if survey.foreign(model) or not all(map(_is_of_keras, survey.known.values())):
        return None
    lists = (model.variables, model.metrics_variables, getattr(model.optimizer, "variables", []))
    of_state = {id(variable) for each in lists for variable in each}
    if any(isinstance(thing, keras.Variable) and id(thing) not in of_state for thing in survey.known.values()):
        return None
    # Numbers by which Python knows a variable are others in each process, and so is their order in a set.
    of_all = [None if type(each) is int and each in survey.known else each for each in survey.settings]
    try:  # the survey leaves out the values of variables, as a first learning rate, and how layers are connected
        described = (model.get_config(), model.optimizer.get_config(), model.get_compile_config())
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None
    return repr((of_all, described))


def _is_of_keras(thing: Any) -> bool:
    modules = [kind.__module__ for kind in type(thing).__mro__]
    return all(is_kerass(module) or module.split(".")[0] in OF_OTHERS for module in modules)


_datasets: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()


def runs_to_read(stream: Any) -> bool:
    """Says whether Python runs as batches of a stream are read: of all but a `tf.data.Dataset` that calls none.

    TensorFlow tells it by writing the dataset down, its data included, so each is asked once.
    """
    tensorflow: Any = sys.modules.get("tensorflow")
    if not type(stream).__module__.startswith("tensorflow.") or not isinstance(stream, tensorflow.data.Dataset):
        return True
    if stream not in _datasets:
        variant = tensorflow.data.experimental.to_variant(stream)
        try:
            graph = tensorflow.raw_ops.DatasetToGraphV2(input_dataset=variant, external_state_policy=1)
            _datasets[stream] = b"PyFunc" in graph.numpy()  # of any kind: EagerPyFunc, PyFuncStateless
        except tensorflow.errors.OpError:  # as where its data do not fit into one message
            _datasets[stream] = True
    return _datasets[stream]


class Survey:
    """A walk over all that is reachable from some things, the nearest first: there somebody else's code mostly is."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self.settings: list[Any] = []
        self.known: dict[int, Any] = {}
        self._patches: dict[type, str | None] = {}
        self._members: list[Any] = []

    def foreign(self, *things: Any) -> str | None:
        """Names what runs somebody else's code in these things, or returns None and notes the settings."""
        level = self._unknown(things)
        while level:
            found = next(filter(None, map(self._own, level)), None)
            if found:
                return found
            held = [list(parts(thing)) for thing in level]
            level = [thing for each in (*held, self._members) for thing in self._unknown(each)]
            self._members = []
        return None

    def _unknown(self, things: Sequence[Any]) -> list[Any]:
        """Returns the things that are still to be looked at, and notes what they are, or their values."""
        unknown = []
        self.settings.append(len(things))
        for thing in things:
            if isinstance(thing, PLAIN):
                self.settings.append(thing)
            elif isinstance(thing, ARRAYS):
                self.settings.append(np.asarray(thing).tobytes())
            elif not isinstance(thing, IDLE) and id(thing) not in self.known:
                self.known[id(thing)] = thing
                self.settings.append(f"{type(thing).__name__} {getattr(thing, '__qualname__', '')}")
                unknown.append(thing)
        return unknown

    def _own(self, thing: Any) -> str | None:
        """Names the code of the thing itself if somebody else wrote it."""
        if isinstance(thing, types.FunctionType):
            written_in = thing.__globals__.get("__name__", "")  # wrapped, a function may go under another module
            return None if is_kerass(written_in) else f"`{thing.__qualname__}`"
        for kind in type(thing).__mro__:
            if kind.__module__.startswith(PREPARES_DATA):
                return f"`{kind.__name__}`"
            if is_kerass(kind.__module__):
                found = self._patched(kind)
                if found:
                    return found
            elif kind.__module__.split(".")[0] not in OF_OTHERS:
                found = next(filter(None, (self._member(kind, *member) for member in vars(kind).items())), None)
                if found:
                    return found
        return None

    def _patched(self, kind: type) -> str | None:
        """Names what somebody else put in the place of a method of Keras's, of which decorators add special ones."""
        if kind not in self._patches:
            at_steps = (name for name in vars(kind) if name == "__call__" or not name.startswith("__"))
            members = {name: vars(kind)[name] for name in at_steps if name not in AROUND_STEPS}
            odd = (name for name, member in members.items() if callable(member) and _is_put(member))
            self._patches[kind] = next((f"`{kind.__name__}.{name}`" for name in odd), None)
        return self._patches[kind]

    def _member(self, kind: type, name: str, member: Any) -> str | None:
        if isinstance(member, classmethod | staticmethod):
            member = member.__func__
        if hasattr(type(member), "__get__") and not isinstance(member, types.FunctionType | SLOTS):
            return f"`{kind.__name__}.{name}`"
        if name in NOT_AT_STEPS or not callable(member) or isinstance(member, type):
            return None
        if not isinstance(member, types.FunctionType):
            return f"`{kind.__name__}.{name}`"
        self._members.append(member)
        return self._own(member)


def _is_put(member: Any) -> bool:
    """Says whether a method in a class of Keras's is not the one that Keras wrote."""
    if isinstance(member, types.FunctionType):
        written_in = member.__globals__.get("__name__", "")
        return not is_kerass(written_in) and written_in not in WRITES_METHODS
    return not isinstance(member, type) and type(member).__module__ not in ("builtins", "functools")


def is_kerass(module: str) -> bool:
    """Says whether a module is part of Keras, and not one of the tests that it carries."""
    return module.startswith("keras.") and not module.endswith("_test")


def parts(thing: Any) -> Iterator[Any]:
    """Yields what a thing holds."""
    if isinstance(thing, types.FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or () if is_filled(cell))
        yield from (thing.__defaults__, thing.__kwdefaults__)
    elif isinstance(thing, types.MethodType):
        yield from (thing.__self__,) if thing.__name__ in NOT_AT_STEPS else (thing.__func__, thing.__self__)
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, dict):
        yield from (part for item in thing.items() for part in item)
    elif isinstance(thing, set | frozenset):
        yield from sorted(thing, key=repr)
    elif isinstance(thing, list | tuple):
        yield from thing
    held = getattr(thing, "__dict__", {})
    yield from (part for name, part in held.items() if name not in NOT_SETTINGS)


def is_filled(cell: types.CellType) -> bool:
    """Says whether a variable of an enclosing function has a value."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
