"""What of a model crosses into another process: its configuration, by Keras's own serialisation, as JSON.

In comes a compiled, built model; out go plain values from which another process, on another backend, builds the same
model. Custom classes go by the name of their module, which that process imports. The room exists so that what cannot
cross is found before anything is touched, and so that both ends read the same values.
"""

import copy
import functools
import importlib
import json
import operator
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from kohort import keras_internals, keras_parts

ELSEWHERE = (
    'or train on JAX: import kohort before keras, or set the environment variable KERAS_BACKEND to "jax" before '
    "Python starts"
)
# Where Keras looks for a function, of which its configurations tell the name alone.
WITH_FUNCTIONS = (keras.activations, keras.losses, keras.metrics)

# What configurations may raise, which are the user's own code.
OF_ONES_OWN_CODE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Custom(NamedTuple):
    """A class or function that is not Keras's, and how another process finds it."""

    registered_name: str
    module: str
    qualified_name: str


def blueprint(model: keras.Model, refusal: Callable[[keras.Model, str, str], ValueError] | None = None) -> dict:
    """Returns all from which `build` makes the same model again, but for the values of its variables.

    Args:
        model: A compiled model.
        refusal: As for `described`.

    Raises:
        ValueError: If a part of the model has no configuration, or none that another process can read.
    """
    description = described(model, refusal or _refusal)
    customs = sorted(set(_customs(model, [description["model"], description["compiled"]], refusal or _refusal)))
    return {**description, "customs": customs, "path": sys.path}


def described(model: keras.Model, refusal: Callable[[keras.Model, str, str], ValueError]) -> dict:
    """Returns all from which `rebuilt` makes the same model again, with the settings of Keras that it needs.

    Args:
        model: A compiled, built model.
        refusal: Makes an error of a model, what of it has no configuration, and a next step.

    Raises:
        ValueError: As `refusal` makes it.
    """
    serialised = _serialised(model, refusal)
    compiled = serialised.pop("compile_config")
    for option, kept in keras_parts.kept_options(model).items():
        compiled[option] = keras.saving.serialize_keras_object(kept)
    if model.dtype_policy.name == "mixed_float16" and not keras_parts.scales_loss(model):
        compiled["auto_scale_loss"] = False  # no configuration tells it
    # What another backend made of "auto" is not what JAX makes of it.
    compiled["jit_compile"] = "auto" if model.jit_compile or not keras_internals.on_jax() else False
    return {
        "model": serialised,
        "compiled": compiled,
        "loss_arguments": keras_parts.loss_arguments(model),
        "trainable": keras_parts.trainability(model),
        "metric_names": keras_parts.metric_names(model),
        "floatx": keras.config.floatx(),
        "epsilon": keras.config.epsilon(),
        "image_data_format": keras.config.image_data_format(),
    }


def rebuilt(description: dict) -> keras.Model:
    """Returns the model that was described, compiled; its metrics are still to be built, and then to be named."""
    description = copy.deepcopy(description)  # Keras empties configurations as it goes through them
    model = keras.saving.deserialize_keras_object(description["model"])
    keras_parts.set_trainability(model, description["trainable"])
    model.compile_from_config(description["compiled"])
    if "loss_arguments" in description:  # earlier files hold none
        keras_parts.set_loss_arguments(model, description["loss_arguments"])
    return model


def build(blueprint: dict, batch: Any) -> keras.Model:
    """Builds the model of a blueprint, compiled, for batches of this form."""
    sys.path[:] = blueprint["path"]
    model = made(blueprint)
    keras_internals.build_like(model, batch)
    keras_parts.set_metric_names(model, blueprint["metric_names"])
    return model


def made(blueprint: dict) -> keras.Model:
    """Makes the model of a blueprint, compiled, with the settings of Keras that it needs; nothing of it is built."""
    configure(blueprint)
    with keras.saving.custom_object_scope(_imported([Custom(*fields) for fields in blueprint["customs"]])):
        return rebuilt(blueprint)


def configure(blueprint: dict) -> None:
    """Sets what Keras takes from everywhere: models are built with it, and traced with it later."""
    keras.config.set_floatx(blueprint["floatx"])
    keras.config.set_epsilon(blueprint["epsilon"])
    keras.config.set_image_data_format(blueprint["image_data_format"])


def check_crossing(model: keras.Model) -> None:
    """Raises a ValueError unless the model can be built again in another process, and computes there as here."""
    if keras.config.floatx() == "float64" or any(str(variable.dtype) == "float64" for variable in model.variables):
        raise _refusal(model, "numbers of the type float64", "Take float32, the widest that the worker computes in")
    marker = keras_internals.compile_marker(model)
    known, refusal = _checked.get(model, (None, None))
    if known is marker and refusal is None:
        return
    if known is marker:
        raise ValueError(refusal)
    try:
        serialised = _serialised(model, _refusal)
        _rebuild(model, serialised, _customs(model, serialised, _refusal))
    except ValueError as error:
        _checked[model] = marker, str(error)
        raise
    _checked[model] = marker, None


# How a model was compiled when it was looked at, and why it does not cross: to look takes milliseconds.
_checked: "weakref.WeakKeyDictionary[keras.Model, tuple[Any, str | None]]" = weakref.WeakKeyDictionary()


def _rebuild(model: keras.Model, serialised: dict, customs: list[Custom]) -> None:
    """Tries here, at the price of building the model twice, what would otherwise fail over there."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        keras.saving.deserialize_keras_object(serialised, custom_objects=_imported(customs))
    except OF_ONES_OWN_CODE as error:
        received = f"a configuration from which Keras does not build it again ({_first_line(error)})"
        step = "Let the `get_config` of its parts tell what `__init__` takes, `**kwargs` included"
        raise _refusal(model, received, step) from error
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _imported(customs: list[Custom]) -> dict[str, Any]:
    """Returns classes and functions by the names under which Keras asks for them."""

    def found(custom: Custom) -> Any:
        return operator.attrgetter(custom.qualified_name)(importlib.import_module(custom.module))

    return {custom.registered_name: found(custom) for custom in customs}


def first_error(error: BaseException) -> str:
    """Returns what went wrong at first, its kind and one line."""
    first = _first(error)
    return f"{type(first).__name__}: {_first_line(first)}".removesuffix(".")


def _first(error: BaseException) -> BaseException:
    while error.__context__ is not None:  # Keras wraps what went wrong, at each level of the model
        error = error.__context__
    return error


def _first_line(error: BaseException) -> str:
    line = " ".join(str(_first(error)).split())
    return line[:119] + "…" if len(line) > 120 else line


def _serialised(model: keras.Model, refusal: Callable) -> dict:
    if type(model).compile is not keras.Model.compile:
        raise refusal(model, f"{type(model).__name__}, which overrides `compile`", "Compile with Keras's own `compile`")
    if "<lambda>" in keras_parts.functions_of(model):
        raise refusal(model, "a lambda", "Make it a function with a name, in a module of its own")
    try:
        serialised = keras.saving.serialize_keras_object(model)
        return keras_parts.on_any_backend(json.loads(json.dumps(serialised)))
    except OF_ONES_OWN_CODE as error:
        received = f"a part that does not tell its configuration ({_first_line(error)})"
        raise refusal(model, received, "Give that class a `get_config` of plain values") from error


def _foreign(config: Any) -> Iterator[tuple[str | None, str, str]]:
    """Yields module, name and registered name of each class and function in a configuration that is not Keras's."""
    if isinstance(config, list):
        for part in config:
            yield from _foreign(part)
    if not isinstance(config, dict):
        return
    kind, module = config.get("class_name"), config.get("module")
    if {"module", "registered_name"} <= config.keys():
        is_function = kind == "function"  # whose configuration is its registered name
        name, registered_name = (config["config"],) * 2 if is_function else (kind, config["registered_name"] or kind)
        if module is None or module.partition(".")[0] != "keras":
            yield module, str(name), str(registered_name)
    for part in config.values():
        yield from _foreign(part)


def _customs(model: keras.Model, config: Any, refusal: Callable) -> list[Custom]:
    return [custom for found in _foreign(config) if (custom := _custom(model, refusal, *found))]


def _custom(
    model: keras.Model, refusal: Callable, module: str | None, name: str, registered_name: str
) -> Custom | None:
    """Finds a class or function, and raises unless another process can import it. Returns None of one of Keras's."""
    thing = keras.saving.get_registered_object(registered_name)
    if thing is None:
        thing = keras_parts.functions_of(model).get(name) or _at(module or "__main__", name)
    if thing is None and module == "builtins" and any(hasattr(part, name) for part in WITH_FUNCTIONS):
        return None
    home, path = getattr(thing, "__module__", module) or "__main__", getattr(thing, "__qualname__", name)
    is_importable = getattr(sys.modules.get(home), "__spec__", None) is not None and home != "__main__"
    if thing is None or not is_importable or "<locals>" in path or _at(home, path) is not thing:
        raise refusal(model, f"{path!r}, defined in {home}", "Move it to the top level of a module and import it")
    return Custom(registered_name, home, path)


def _at(module: str, path: str) -> Any:
    """Returns what a module has under a dotted name, or None."""
    return functools.reduce(lambda thing, name: getattr(thing, name, None), path.split("."), sys.modules.get(module))


def _refusal(model: keras.Model, received: str, step: str) -> ValueError:
    return ValueError(
        "`model` must be made of parts that another process can import, because kohort trains a model of the backend "
        f"{keras.backend.backend()!r} in a worker. Received: model={model.name!r} with {received}. {step}, {ELSEWHERE}."
    )
