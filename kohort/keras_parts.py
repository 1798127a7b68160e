"""What a Keras model is made of, as far as only its private parts tell.

In comes a model, or a configuration; out go names, flags and functions, which one process tells another. The room
exists for the same reason as `keras_internals`, which it was part of: a new Keras release can break nothing outside.
"""

import types
from collections.abc import Callable
from typing import Any

import keras
from keras import tree


def trainability(model: keras.Model) -> list[bool]:
    """Returns which of the layers, the model among them, are trainable."""
    return [layer.trainable for layer in model._flatten_layers()]


def set_trainability(model: keras.Model, flags: list[bool]) -> None:
    """Makes the layers of a model of the same form trainable or not."""
    for layer, flag in zip(model._flatten_layers(), flags, strict=False):
        if layer.trainable != flag:
            layer.trainable = flag


def on_any_backend(config: Any) -> Any:
    """Returns a configuration with the names that optimizers of one backend have on all: PyTorch has its own."""
    if isinstance(config, list):
        return [on_any_backend(part) for part in config]
    if not isinstance(config, dict):
        return config
    own = str(config.get("module")).startswith("keras.src.backend.") and {"module": "keras.optimizers"}
    return {name: on_any_backend(part) for name, part in {**config, **(own or {})}.items()}


def kept_options(model: keras.Model) -> dict[str, Any]:
    """Returns loss and metrics of an earlier `compile` that stayed because the last one was given none."""
    given, kept = model._compile_config.config, {}
    if given["loss"] is None and model._compile_loss is not None:
        kept |= {"loss": model._compile_loss._user_loss, "loss_weights": model._compile_loss._user_loss_weights}
    if given["metrics"] is None and given["weighted_metrics"] is None and model._compile_metrics is not None:
        kept["metrics"] = model._compile_metrics._user_metrics
        kept["weighted_metrics"] = model._compile_metrics._user_weighted_metrics
    return kept


def functions_of(model: keras.Model) -> dict[str, Callable]:
    """Returns the user's functions that layers, losses and metrics hold, by name: configurations lack their module."""
    options = {**model._compile_config.config, **kept_options(model)}
    compiled = [part for option in options.values() for part in tree.flatten(option)]
    parts = [*compiled, *model._flatten_layers()]
    held = [thing for part in parts for thing in (part, *getattr(part, "__dict__", {}).values())]
    functions = [thing for thing in held if isinstance(thing, types.FunctionType)]
    return {function.__name__: function for function in functions if not function.__module__.startswith("keras.")}


def metric_names(model: keras.Model) -> list[str]:
    """Returns the names of the metrics, some of which Keras numbers through as it builds them (auc, auc_1)."""
    return [metric.name for metric in model._compile_metrics.metrics] if model._compile_metrics else []


def set_metric_names(model: keras.Model, names: list[str]) -> None:
    """Names the metrics of a model that was built from the same configuration."""
    for metric, name in zip(model._compile_metrics.metrics if model._compile_metrics else [], names, strict=True):
        metric.name = name
