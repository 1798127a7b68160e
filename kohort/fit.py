"""`kohort.fit`: a Keras model in, the same model trained out, in one compiled program.

In come a compiled Keras model and the arguments of `model.fit`; out go the trained model and its `History`, bit for bit
what `model.fit` gives on CPU. The room exists because it is the one-word door: replace `model.fit(` by
`kohort.fit(model, `.
"""

import warnings
from typing import Any

import keras
import numpy as np

from kohort import keras_internals, remote
from kohort.checks import Recipe, check_data, check_recipe, received
from kohort.data import inputs
from kohort.epochs import ArrayEpochs
from kohort.training import Training


class FallBackWarning(UserWarning):
    """Says in one line why a fit was run by plain Keras instead of a compiled program.

    Example:
        >>> import warnings, kohort
        >>> warnings.simplefilter("error", kohort.FallBackWarning)  # makes every fall back an error
        >>> warnings.simplefilter("default", kohort.FallBackWarning)
    """


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
    bit for bit). What cannot be compiled, such as a generator as `x` or a callback that acts inside an epoch, runs
    through `model.fit` itself, and a `FallBackWarning` says why. The program is compiled at the first fit of a model
    and kept: other epochs and other data of the same shape need no compilation.

    Args:
        model: A compiled Keras model on the JAX backend.
        x: Samples: an array (sample, ...) of NumPy, JAX or pandas, or a list, tuple or dict of them.
        y: Targets, likewise.
        batch_size: Samples per step; 32 if not given.
        epochs: The epoch to stop after, as in Keras.
        verbose: 0 silent, 1 or "auto" one progress bar over all epochs, 2 one line per epoch.
        callbacks: Keras callbacks. Those that act at epochs are called as by Keras, one epoch per program call.
        validation_split: Share of the last rows that validate, in [0, 1).
        validation_data: Tuple (x, y) or (x, y, sample_weight).
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

    Example:
        >>> import keras, kohort
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
    check_model(model)
    check_recipe(recipe, verbose)
    check_callbacks(callbacks)
    check_data(model, x, y, sample_weight, validation_data, recipe)
    reason = why_fall_back(model, x, y, sample_weight, validation_data, callbacks)
    if reason:
        warnings.warn(f"kohort: Keras runs this fit itself, because {reason}.", FallBackWarning, stacklevel=2)
        arguments = {"x": x, "y": y, "verbose": verbose, "callbacks": callbacks, "sample_weight": sample_weight}
        return model.fit(**arguments, validation_data=validation_data, **_given(recipe))
    remote.check(model)
    data = inputs(model, x, y, sample_weight, validation_data, recipe)
    return Training(model, ArrayEpochs(model, data, recipe), recipe, callbacks, verbose).train()


def _given(recipe: Recipe) -> dict:
    """Returns the arguments that differ from Keras's defaults: Keras refuses some of them beside a generator."""
    return {name: value for name, value in recipe._asdict().items() if value is not Recipe._field_defaults[name]}


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


def why_fall_back(
    model: keras.Model, x: Any, y: Any, sample_weight: Any, validation_data: Any, callbacks: Any
) -> str | None:
    """Returns why Keras itself must run this fit, decided from what is asked, or None when it can be compiled."""
    for name, stream in (("x", x), ("validation_data", validation_data)):
        kind = keras_internals.stream_kind(stream)
        if kind:
            return f"`{name}` is {kind}"
    leaves = keras.tree.flatten((x, y, sample_weight, validation_data))
    if any(keras_internals.is_sparse(leaf) for leaf in leaves):
        return "an array is sparse"
    return keras_internals.why_keras_must_run(model) or _callback_reason(callbacks)


EPOCH_HOOKS = {"on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end"}


def _callback_reason(callbacks: Any) -> str | None:
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return "`callbacks` is a CallbackList"
    inner_hooks = [h for h in dir(keras.callbacks.Callback) if h.startswith("on_") and h not in EPOCH_HOOKS]
    for callback in keras.tree.flatten(callbacks) if callbacks else []:
        for hook in inner_hooks:
            if getattr(getattr(callback, hook), "__func__", None) is not getattr(keras.callbacks.Callback, hook):
                return f"the callback {type(callback).__name__} acts inside an epoch (`{hook}`)"
    return None
