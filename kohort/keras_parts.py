"""What a Keras model is made of, as far as only its private parts tell.

In comes a model, or a configuration; out go names, flags and functions, which one process tells another. The room
exists for the same reason as `keras_internals`, which it was part of: a new Keras release can break nothing outside.
"""

import re
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import tree
from keras.src.backend.common import global_state
from keras.src.models.functional import Functional
from keras.src.saving.serialization_lib import SafeModeScope

from kohort.rules import Places


def safely() -> Any:
    """Returns a context in which Keras builds nothing of lambdas and pickles, even where `keras.config` allows it."""
    return SafeModeScope(True)


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


def compile_options(model: keras.Model) -> dict[str, Any]:
    """Returns the arguments of `compile` that hold for the model, also those of an earlier one."""
    return {**model._compile_config.config, **kept_options(model)}


def compile_like(clone: keras.Model, model: keras.Model) -> None:
    """Compiles `clone`, a model of the same form, as `model` was, with an optimizer, losses and metrics of its own."""
    clone.compile(**own_options(model))
    set_decay_exclusions(clone, decay_exclusions(model))  # no configuration tells it


def own_options(model: keras.Model) -> dict[str, Any]:
    """Returns the arguments with which the model was compiled, with an optimizer, losses and metrics of one's own."""

    def own(part: Any) -> Any:
        has_own = isinstance(part, keras.optimizers.Optimizer | keras.losses.Loss | keras.metrics.Metric)
        return own_part(part) if has_own else part

    options = {name: tree.map_structure(own, value) for name, value in compile_options(model).items()}
    return {**options, "auto_scale_loss": scales_loss(model)}  # no configuration tells it


def scales_loss(model: keras.Model) -> bool:
    """Says whether the loss is scaled, as Keras does with half precision unless `compile` is told not to."""
    return isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def own_part(part: Any) -> Any:
    """Returns an optimizer, loss, metric or layer like this one, in the state in which it begins."""
    if isinstance(part, keras.losses.Loss):
        own = _twin(part)
        if _arguments(own):
            own._fn_kwargs = dict(own._fn_kwargs)
        return own
    config = part.get_config()
    rate = getattr(part, "_learning_rate", None)
    if rate is not None and not isinstance(rate, keras.Variable):
        # A schedule or a function: it has no state, and may have no configuration.
        is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
        config["learning_rate"] = _twin(rate) if is_schedule else rate
    return type(part).from_config(config)


def _twin(part: Any) -> Any:
    """Returns a shallow copy. `copy.copy` would ask for the configuration, of which some parts do not tell all."""
    twin = object.__new__(type(part))
    twin.__dict__.update(part.__dict__)
    return twin


def decay_exclusions(model: keras.Model) -> dict:
    """Returns what the optimizer's `exclude_from_weight_decay` excluded, as values of JSON."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    excluded = getattr(optimizer, "_exclude_from_weight_decay", set())
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    flags = [optimizer._var_key(weight) in excluded for weight in model.weights]
    return {"weights": flags, "pattern": None if pattern is None else pattern.pattern}


def set_decay_exclusions(model: keras.Model, exclusions: dict) -> None:
    """Excludes from weight decay what `decay_exclusions` told of a model of the same form."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    pairs = zip(model.weights, exclusions["weights"], strict=True)
    optimizer._exclude_from_weight_decay = {optimizer._var_key(weight) for weight, flag in pairs if flag}
    pattern = exclusions["pattern"]
    optimizer._exclude_from_weight_decay_pattern = None if pattern is None else re.compile(pattern)


def functions_of(model: keras.Model) -> dict[str, Callable]:
    """Returns the user's functions that layers, losses and metrics hold, by name: configurations lack their module."""
    compiled = [part for option in compile_options(model).values() for part in tree.flatten(option)]
    parts = [*compiled, *model._flatten_layers()]
    held = [thing for part in parts for thing in (part, *getattr(part, "__dict__", {}).values())]
    functions = [thing for thing in held if isinstance(thing, types.FunctionType)]
    return {function.__name__: function for function in functions if not function.__module__.startswith("keras.")}


def loss_arguments(model: keras.Model) -> list[dict[str, Any]]:
    """Returns the plain values with which each loss was made: Keras's configuration of `Huber` lacks its delta."""
    plain = str | bool | int | float | None
    return [{k: v for k, v in _arguments(loss).items() if isinstance(v, plain)} for loss in _losses(model)]


def set_loss_arguments(model: keras.Model, arguments: list[dict[str, Any]]) -> None:
    """Sets what `loss_arguments` told of a model in one that was made from its configuration."""
    for loss, own in zip(_losses(model), arguments, strict=True):
        _arguments(loss).update(own)


def _losses(model: keras.Model) -> list[keras.losses.Loss]:
    return [part for part in tree.flatten(compile_options(model).get("loss")) if isinstance(part, keras.losses.Loss)]


def layer_with_metrics(model: keras.Model) -> keras.layers.Layer | None:
    """Returns the first layer, and no model, that holds metrics, which it updates itself when it is called."""
    layers = (layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model))
    return next((layer for layer in layers if layer.metrics_variables), None)


@contextmanager
def fresh_names() -> Iterator[None]:
    """Lets Keras number names from the beginning inside the block, so that what is built twice is named alike."""
    before = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", before)


def metric_names(model: keras.Model) -> list[str]:
    """Returns the names of the metrics, some of which Keras numbers through as it builds them (auc, auc_1)."""
    return [metric.name for metric in model._compile_metrics.metrics] if model._compile_metrics else []


def set_metric_names(model: keras.Model, names: list[str]) -> None:
    """Names the metrics of a model that was built from the same configuration."""
    for metric, name in zip(model._compile_metrics.metrics if model._compile_metrics else [], names, strict=True):
        metric.name = name


def flows(model: keras.Model) -> tuple[list[Any], list[tuple[int, int]]]:
    """Returns the layers and other operations of a built model in order, and which of them takes what which one gives.

    The pairs count positions in the list; a subclassed model tells its layers, and nothing of what flows.
    """
    if isinstance(model, keras.Sequential) or not isinstance(model, Functional):
        steps = list(model.layers)
        return steps, [(i, i + 1) for i in range(len(steps) - 1)] if isinstance(model, keras.Sequential) else []
    steps = list(model.operations)
    nodes = [node for level in model._nodes_by_depth.values() for node in level]
    pairs = {
        (steps.index(parent.operation), steps.index(node.operation)) for node in nodes for parent in node.parent_nodes
    }
    return steps, sorted(pairs)


def ends(model: keras.Model) -> tuple[Any, Any]:
    """Returns the symbolic inputs and outputs of a sequential or functional model, as they are nested."""
    return (model.inputs[0], model.outputs[0]) if isinstance(model, keras.Sequential) else (model.input, model.output)


def logits_of(model: keras.Model) -> list[str | None]:
    """Says of each output of a model whose loss is built which function makes probabilities of it: sigmoid or softmax.

    None where its loss does not take logits, or is not known to.
    """
    count = len(model.outputs)
    places = tree.pack_sequence_as(ends(model)[1], list(range(count)))
    kinds: list[str | None] = [None] * count
    for path, loss, *_ in (model._compile_loss and model._compile_loss._flat_losses) or []:
        place = places
        for key in path:
            place = place[key] if tree.is_nested(place) else place
        for i in tree.flatten(place):
            kinds[i] = kinds[i] or _logits_in(loss)
    return kinds


def answers_logit(model: Any) -> bool:
    """Says whether the loss of a model of one output takes it as a logit: above 0 it means the second class.

    It looks at what the model was compiled with, as a model that was loaded has no loss that is built.
    """
    return "sigmoid" in map(_logits_in, tree.flatten(getattr(model, "loss", None)))


def _logits_in(loss: Any) -> str | None:
    function: Any = getattr(loss, "fn", loss)
    options = {**getattr(function, "keywords", {}), **getattr(loss, "_fn_kwargs", {})}
    function = getattr(function, "func", function)  # of a `functools.partial`
    if not options.get("from_logits") or not str(getattr(function, "__module__", "")).startswith("keras."):
        return None
    return "sigmoid" if function.__name__.startswith("binary") else "softmax"


def places_of_rules(model: keras.Model) -> Places:
    """Returns where the state of a network like this one holds its learning rate, and the weights beside the trained.

    The learning rate has no place where a schedule or function gives it.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    rate = getattr(optimizer, "_learning_rate", None)
    weights = {id(weight) for weight in model.weights}
    return Places(
        next((place for place, variable in enumerate(model.optimizer.variables) if variable is rate), None),
        tuple(place for place, v in enumerate(model.non_trainable_variables) if id(v) in weights),
    )


# Where Keras keeps the layers that treat each row by itself, or (normalisation) take sums over the rows.
ROW_BY_ROW = (
    "keras.src.layers.activations.",
    "keras.src.layers.convolutional.",
    "keras.src.layers.core.dense",
    "keras.src.layers.core.embedding",
    "keras.src.layers.core.input_layer",
    "keras.src.layers.normalization.batch_normalization",
    "keras.src.layers.pooling.",
    "keras.src.layers.reshaping.flatten",
)


def is_blind_to_row_order(model: keras.Model) -> bool:
    """Says whether training on a batch gives the same, to rounding, whatever the order of its rows.

    Known of parts of Keras's own that look at rows one by one and draw nothing at random; of all others it is not.
    """
    options = compile_options(model)
    judges = tree.flatten([options[name] for name in ("loss", "metrics", "weighted_metrics")])
    return _goes_row_by_row(model) and all(map(_is_keras_own, judges))


def _goes_row_by_row(operation: Any) -> bool:
    if isinstance(operation, keras.Model):
        is_plain = type(operation) in (keras.Sequential, Functional)
        network: Any = operation._functional if isinstance(operation, keras.Sequential) else operation
        return is_plain and all(map(_goes_row_by_row, network.operations))
    functions = [getattr(operation, name, None) for name in ("activation", "activity_regularizer")]
    layers = [part for part in functions if isinstance(part, keras.layers.Layer)]
    return (
        type(operation).__module__.startswith(ROW_BY_ROW)
        and all(map(_goes_row_by_row, layers))
        and all(map(_is_keras_own, functions))
    )


def _is_keras_own(part: Any) -> bool:
    """Says whether an object, with the function that it may wrap, is Keras's and not somebody else's under its name."""
    if part is None or isinstance(part, str):
        return True
    named = part if isinstance(part, types.FunctionType) else type(part)
    found = getattr(sys.modules.get(named.__module__), named.__name__, None)
    wrapped = [getattr(part, name, None) for name in ("fn", "_fn")]
    return named.__module__.startswith("keras.") and found is named and all(map(_is_keras_own, wrapped))


# --- the numbers that parts hold --------------------------------------------------------------------------------------

MISSING = object()


def root(model: keras.Model, name: str) -> Any:
    """Returns the optimizer, the loss or a layer of a compiled model by its name, or `MISSING`."""
    if name == "optimizer":
        return model.optimizer
    if name == "loss":
        return compile_options(model)["loss"]
    return next((layer for layer in model.layers if layer.name == name), MISSING)


def held(part: Any, name: str) -> Any:
    """Returns what a part holds under a name that its maker would use, or `MISSING`."""
    if isinstance(part, keras.Model) and any(layer.name == name for layer in part.layers):
        return part.get_layer(name)
    if isinstance(part, keras.optimizers.Optimizer) and name == "learning_rate":
        inner: Any = getattr(part, "inner_optimizer", part)
        return inner._learning_rate
    if isinstance(part, dict):
        return part.get(name, MISSING)
    if isinstance(part, list | tuple):
        return part[int(name)] if name.isdecimal() and int(name) < len(part) else MISSING
    return _arguments(part).get(name, MISSING if name.startswith("_") else getattr(part, name, MISSING))


def hold(part: Any, name: str, value: Any) -> None:
    """Lets a part hold another number under a name."""
    if name in _arguments(part):
        part._fn_kwargs[name] = value
        if name not in vars(part):
            return
    setattr(part, name, value)


def can_hold(part: Any, name: str) -> bool:
    """Says whether a number can be put there: what a part only computes from others cannot."""
    computed = getattr(type(part), name, None)
    return name in _arguments(part) or not isinstance(computed, property) or computed.fset is not None


def floats_of(part: Any) -> list[str]:
    """Returns the names under which a part holds numbers that are not whole."""
    candidates = {**getattr(part, "__dict__", {}), **_arguments(part)}
    return sorted(name for name, value in candidates.items() if not name.startswith("_") and isinstance(value, float))


def _arguments(part: Any) -> dict:
    """Returns the arguments that a loss of Keras keeps for the function that it wraps."""
    return getattr(part, "_fn_kwargs", {}) if isinstance(part, keras.losses.Loss) else {}
