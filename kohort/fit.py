"""`kohort.fit`: a Keras model in, the same model trained out, in one compiled program.

In come a compiled Keras model and the arguments of `model.fit`; out go the trained model and its `History`, bit for bit
what `model.fit` gives on CPU. The room exists because it is the one-word door: replace `model.fit(` by
`kohort.fit(model, `.
"""

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from kohort import keras_callbacks, keras_internals, keras_parts, python_code, remote
from kohort.checks import Recipe, check_data, check_recipe, received
from kohort.report import COMPILED, KERAS, recorded
from kohort.stream import epochs_of
from kohort.training import Training


class FallBackWarning(UserWarning):
    """Says in one line why a fit was run by plain Keras instead of a compiled program.

    Where warnings are errors, as by `python -W error`, a fall back is one too, and nothing was trained.

    Example:
        >>> import warnings, kohort
        >>> warnings.simplefilter("error", kohort.FallBackWarning)  # makes every fall back an error
        >>> warnings.simplefilter("default", kohort.FallBackWarning)
    """


class Request(NamedTuple):
    """What one fit is asked to do: the arguments of `model.fit`, those about the way through the data in `recipe`."""

    x: Any = None
    y: Any = None
    sample_weight: Any = None
    validation_data: Any = None
    callbacks: Any = None
    verbose: Any = "auto"
    recipe: Recipe = Recipe()

    def arguments(self) -> dict[str, Any]:
        """Returns them for `model.fit`, which refuses some beside a generator even where they say nothing."""
        given = self.recipe._asdict().items()
        given = {name: value for name, value in given if value is not Recipe._field_defaults[name]}
        return {name: value for name, value in self._asdict().items() if name != "recipe"} | given


def fit(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: str | int = "auto",
    callbacks: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool | str = True,
    class_weight: dict[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int | list[int] = 1,
) -> keras.callbacks.History:
    """Trains the model as `model.fit` does, with all epochs in one compiled program.

    Weights, optimizer state, metrics, history and the random generators end exactly as `model.fit` leaves them (on CPU
    bit for bit). What cannot be compiled, such as a callback that acts inside an epoch, runs through `model.fit`
    itself, and a `FallBackWarning` says why. The program is compiled at the first fit of a model and kept: other epochs
    and other data of the same shape need no compilation. A stream of batches is read as Keras reads it, and several
    batches go into one call.

    Args:
        model: A compiled Keras model. One of another backend than JAX trains in a worker, and comes back trained.
        x: Samples: an array (sample, ...) of NumPy, JAX or pandas, or a list, tuple or dict of them; or a stream of
            batches: a `keras.utils.PyDataset`, `tf.data.Dataset`, torch `DataLoader`, grain dataset or generator.
        y: Targets, likewise; none beside a stream, whose batches are tuples (x, y) or (x, y, sample_weight).
        batch_size: Samples per step; 32 if not given.
        epochs: The epoch to stop after, as in Keras.
        verbose: 0 silent, 1 or "auto" one progress bar over all epochs (in a file, a line now and then), 2 one line per
                epoch.
        callbacks: Keras callbacks. Those that act at epochs are called as by Keras, one epoch per program call.
        validation_split: Share of the last rows that validate, in [0, 1).
        validation_data: Tuple (x, y) or (x, y, sample_weight), or a stream.
        shuffle: Whether rows are shuffled before each epoch (True), not at all (False), or within batches ("batch").
        class_weight: Class number to weight.
        sample_weight: Weights (sample,) or as in Keras.
        initial_epoch: Number of the first epoch.
        steps_per_epoch: Steps of one epoch; by default one pass over the data.
        validation_steps: Steps of one validation; by default one pass.
        validation_batch_size: Samples per validation step; `batch_size` if not given.
        validation_freq: Validate every so many epochs, or after the epochs of a list (counted from 1).

    Returns:
        `model.history`, a `keras.callbacks.History`.

    Raises:
        TypeError: If the model is not Keras's, or an argument or array is of the wrong type.
        ValueError: If the model is not compiled or an argument or array does not fit. The model is left as it was.
        WorkerError: If the worker fails.

    Example:
        >>> import kohort, keras
        >>> keras.utils.set_random_seed(7)
        >>> x, y = kohort.data.xor()
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
        >>> model.compile(optimizer=keras.optimizers.RMSprop(1e-3), loss="mse")
        >>> history = kohort.fit(model, x, y, epochs=2000, verbose=0)
        >>> len(history.history["loss"]), history.history["loss"][-1] < 0.01
        (2000, True)

    Source:
        `keras.Model.fit` (Keras 3.15), whose behaviour is followed in all but the form of the progress bar.
    """
    recipe = Recipe(
        batch_size, epochs, validation_split, shuffle, class_weight, initial_epoch, steps_per_epoch,
        validation_steps, validation_batch_size, validation_freq,
    )  # fmt: skip
    request = Request(x, y, sample_weight, validation_data, callbacks, verbose, recipe)
    check_arguments(model, request)
    if not _has_own_fit(model):  # one that reads data its own way may take any
        check_data(model, *request[:4], recipe)
    reason = why_fall_back(model, request)
    if reason is None:
        remote.check(model)
        return train(model, request)
    warnings.warn(f"kohort: Keras runs this fit itself, because {reason}.", FallBackWarning, stacklevel=2)
    with recorded(model, KERAS, reason):
        return keras_fit(model)(**request.arguments())


def check_arguments(model: Any, request: Request) -> None:
    """Raises a TypeError or ValueError for whatever is wrong with the model or an argument; data are not looked at."""
    check_model(model)
    check_recipe(request.recipe, request.verbose)
    check_callbacks(request.callbacks)


def train(model: keras.Model, request: Request) -> keras.callbacks.History:
    """Runs a fit compiled; it has been checked, and there is no reason to fall back."""
    with recorded(model, COMPILED):
        return training(model, request).train()


def training(model: keras.Model, request: Request) -> Training:
    """Prepares a compiled fit: the model is built, nothing is trained yet."""
    source = epochs_of(model, *request[:4], request.recipe)
    return Training(model, source, request.recipe, request.callbacks, request.verbose)


# What `kohort.install` puts in the place of Keras's `fit`, with what it replaced.
replaced: dict[Callable, Callable] = {}


def keras_fit(model: keras.Model) -> Callable:
    """Returns `model.fit`, but Keras's own where kohort is installed."""
    original = replaced.get(type(model).fit)
    return model.fit if original is None else functools.partial(original, model)


def _has_own_fit(model: keras.Model) -> bool:
    return type(model).fit is not keras.Model.fit


def check_model(model: Any) -> None:
    """Raises unless `model` is a compiled Keras model that can be trained."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a keras.Model. Received: {received('model', model)} of type {type(model).__name__}. "
            "Build it with `keras.Sequential([...])` or `keras.Model(inputs, outputs)`."
        )
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            f"`model` must be compiled. Received: model={model.name!r}, which is not. "
            'Call `model.compile(optimizer="rmsprop", loss="mse")` first.'
        )
    if isinstance(model, keras.Sequential) and not model.layers:
        raise ValueError(
            f"`model` must have at least one layer. Received: model={model.name!r}, which has none. "
            "Add one with `model.add(...)`."
        )
    if type(model).call is keras.Model.call:
        raise ValueError(
            f"`model` must say how outputs come from inputs. Received: model={model.name!r} of class "
            f"{type(model).__name__}, which has no `call`. Define `call(self, inputs)` in the class."
        )
    rate = keras_internals.learning_rate(model)
    if rate is not None and not 0 <= rate < np.inf:
        raise ValueError(
            "`model` must have a learning rate that is finite and not negative. "
            f"Received: learning_rate={rate}. Set `model.optimizer.learning_rate = 1e-3`."
        )


def check_callbacks(callbacks: Any) -> None:
    """Raises unless these are callbacks of Keras."""
    if callbacks is None or isinstance(callbacks, keras.callbacks.CallbackList):
        return
    for callback in callbacks if isinstance(callbacks, list | tuple) else [callbacks]:
        if not isinstance(callback, keras.callbacks.Callback):
            raise TypeError(
                "`callbacks` must hold instances of keras.callbacks.Callback. "
                f"Received: callbacks with {received('an element', callback)}. "
                "Pass for example [keras.callbacks.EarlyStopping()]."
            )


def why_fall_back(model: keras.Model, request: Request, inside_fit: bool = False) -> str | None:
    """Returns why Keras itself must run this fit, decided from what is asked, or None when it can be compiled.

    Args:
        model: What shall be trained.
        request: What is asked.
        inside_fit: Whether this is asked inside `keras.Model.fit`: a `fit` of the model's own class has then done its
            work already, and what it gives is Keras's.
    """
    if _has_own_fit(model) and not inside_fit:
        return f"{type(model).__name__} overrides `fit`"
    for name, data in (("x", request.x), ("validation_data", request.validation_data)):
        if remote.is_needed() and keras_internals.stream_kind(data):
            return f"`{name}` is {keras_internals.stream_kind(data)}, and the worker takes arrays"
    leaves = keras.tree.flatten(request[:4])
    if any(keras_internals.is_sparse(leaf) for leaf in leaves):
        return "an array is sparse"
    layer = keras_parts.layer_with_metrics(model)
    if layer is not None:
        return f"the layer {layer.name!r} updates a metric of its own, which Keras does not train on JAX"
    return (
        keras_internals.why_keras_must_run(model) or _callback_reason(model, request) or _python_reason(model, request)
    )


def _callback_reason(model: keras.Model, request: Request) -> str | None:
    callbacks = request.callbacks
    if isinstance(callbacks, keras.callbacks.CallbackList) and type(callbacks) is not keras.callbacks.CallbackList:
        return "`callbacks` is a CallbackList of another class"
    listed = keras_callbacks.listed(callbacks)
    # An epoch on arrays can be cut where a callback acts; but not while the first loss that is not finite is sought.
    is_cuttable = keras_internals.on_jax() and not keras_internals.stream_kind(request.x)
    is_cuttable = is_cuttable and not keras_internals.stream_kind(request.validation_data)
    is_cuttable = is_cuttable and not any(map(keras_callbacks.watches_loss, listed))
    for callback in listed:
        hook = keras_callbacks.inner_hook(callback, model)
        if hook and not (is_cuttable and keras_callbacks.acts_at_batches(callback)):
            return f"the callback {type(callback).__name__} acts inside an epoch (`{hook}`)"
    return None


def _python_reason(model: keras.Model, request: Request) -> str | None:
    """Returns why steps that Keras runs as Python cannot be compiled: what else that Python does would be lost."""
    if not keras_internals.runs_op_by_op(model):
        return None
    code = python_code.somebody_elses(*keras_callbacks.listed(request.callbacks)) or _code_of(model)
    option = "run_eagerly=True" if model.run_eagerly else "jit_compile=False"
    if code:
        why = f"{code} is not Keras's own: each step may run it, or see what it changed"
        return f"the model was compiled with `{option}`, and {why}"
    for data in (request.x, request.validation_data):
        kind = keras_internals.stream_kind(data)
        if kind and python_code.runs_to_read(data):
            return f"the model was compiled with `{option}`, and its data are {kind}"
    return None


_codes: "weakref.WeakKeyDictionary[keras.Model, tuple[Any, str]]" = weakref.WeakKeyDictionary()


def _code_of(model: keras.Model) -> str | None:
    """Names code at the steps of a model that is not Keras's own. Once found it is remembered: to fall back is safe."""
    marker, (known, code) = keras_internals.compile_marker(model), _codes.get(model, (None, None))
    if code is None or known is not marker:
        code = python_code.somebody_elses(model)
        if code is not None:
            _codes[model] = (marker, code)
    return code
