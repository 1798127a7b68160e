"""`kohort.fit`: a Keras model in, the same model trained out, in one compiled program.

In come a compiled Keras model and the arguments of `model.fit`; out go the trained model and its `History`, bit for bit
what `model.fit` gives on CPU. The room exists because it is the one-word door: replace `model.fit(` by
`kohort.fit(model, `.
"""

import functools
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import keras
import numpy as np

from kohort import engine, keras_internals
from kohort.checks import Recipe, check_data, check_recipe, received
from kohort.data import BatchOrder, Inputs, inputs
from kohort.engine import Cut, Pace, Schedule
from kohort.report import COMPILED, KERAS, recorded


class FallBackWarning(UserWarning):
    """Says in one line why a fit was run by plain Keras instead of a compiled program.

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
    request = Request(x, y, sample_weight, validation_data, callbacks, verbose, recipe)
    check_arguments(model, request)
    if not _has_own_fit(model):  # one that reads data its own way may take any
        check_data(model, *request[:4], recipe)
    reason = why_fall_back(model, request)
    if reason is None:
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
        _, _, _, _, callbacks, verbose, recipe = request
        data = inputs(model, *request[:4], recipe)
        return _Run(model, data, recipe, callbacks, verbose).train()


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
    for name, stream in (("x", request.x), ("validation_data", request.validation_data)):
        kind = keras_internals.stream_kind(stream)
        if kind:
            return f"`{name}` is {kind}"
    leaves = keras.tree.flatten(request[:4])
    if any(keras_internals.is_sparse(leaf) for leaf in leaves):
        return "an array is sparse"
    return keras_internals.why_keras_must_run(model) or _callback_reason(request.callbacks)


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


# --- compiled programs of a model -------------------------------------------------------------------------------------


class Programs:
    """The compiled programs of one model: traced once for each way of cutting data, compiled once for each shape."""

    def __init__(self, model: keras.Model) -> None:
        """Holds the model weakly; nothing is traced yet."""
        self._functions = keras_internals.functions(model)
        self._marker = keras_internals.compile_marker(model)
        self._made: dict[tuple, Any] = {}

    def is_of(self, model: keras.Model) -> bool:
        """Says whether the model has not been compiled anew since."""
        return self._marker is keras_internals.compile_marker(model)

    def epochs(self, cut: Cut, validation_cut: Cut | None, capacity: int, members: bool = False) -> Callable:
        """Returns the training program for one member, or for a block of them."""

        def make() -> Callable:
            run = engine.epochs_program(self._functions, cut, validation_cut, capacity)
            return engine.training_call(engine.over_members(run) if members else run)

        return self._once((cut, validation_cut, capacity, members), make)

    def evaluate(self, cut: Cut, members: bool = False) -> Callable:
        """Returns the evaluation program."""
        run = engine.evaluate_program(self._functions, cut)
        return self._once(("evaluate", cut, members), lambda: jax.jit(jax.vmap(run, (0, None)) if members else run))

    def predict(self, cut: Cut, members: bool = False) -> Callable:
        """Returns the prediction program."""
        run = engine.predict_program(self._functions, cut)
        return self._once(("predict", cut, members), lambda: jax.jit(jax.vmap(run, (0, None)) if members else run))

    def pace(self, *key: Any) -> Pace:
        """Returns the measured pace of a program at some shape."""
        return self._once(("pace", *key), Pace)

    def _once(self, key: tuple, make: Callable) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


_programs: "weakref.WeakKeyDictionary[keras.Model, Programs]" = weakref.WeakKeyDictionary()


def programs_of(model: keras.Model) -> Programs:
    """Returns the programs of the model, new ones after each `model.compile`."""
    known = _programs.get(model)
    if known is None or not known.is_of(model):
        known = _programs[model] = Programs(model)
    return known


# --- the loop over calls ----------------------------------------------------------------------------------------------


class Interrupt:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        """Starts as not pressed."""
        self.pressed = False

    def __bool__(self) -> bool:
        """Says whether it was pressed."""
        return self.pressed


@contextmanager
def held_interrupt() -> Iterator[Interrupt]:
    """Holds Ctrl-C back inside the block, so that nothing is left half done, and raises KeyboardInterrupt after it."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        # Somebody else's handler (a server, a notebook that ignores Ctrl-C) decides; it is not ours to replace.
        yield interrupt
        return

    def press(*_: Any) -> None:
        interrupt.pressed = True

    signal.signal(signal.SIGINT, press)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupt:
        raise KeyboardInterrupt


class _Run:
    """One compiled fit of one model."""

    def __init__(self, model: keras.Model, data: Inputs, recipe: Recipe, callbacks: Any, verbose: Any) -> None:
        self.model, self.data, self.recipe = model, data, recipe
        keras_internals.symbolic_build(model, data.build_iterator)
        self.order = BatchOrder(data.training.rows, recipe, model.steps_per_execution)
        self.capacity = engine.capacity(self.order.row_bytes)
        programs = programs_of(model)
        self.program = programs.epochs(data.cut, data.validation_cut, self.capacity)
        self.pace = programs.pace(self.capacity, data.cut, data.validation_cut, shapes_of(data))
        steps = recipe.steps_per_epoch or data.cut.full + bool(data.cut.partial)
        self.callbacks = keras.callbacks.CallbackList(
            callbacks, add_history=True, verbose=verbose, epochs=recipe.epochs, steps=steps, model=model
        )
        self.has_callbacks = bool(callbacks)
        self.progress = Progress(recipe.epochs, verbose)

    def train(self) -> keras.callbacks.History:
        """Runs all epochs and leaves the model at the end of the last one that finished."""
        model = self.model
        model.stop_training = False
        self.callbacks.on_train_begin()
        epoch = keras_internals.first_epoch(model, self.recipe.initial_epoch)
        self.logs: dict = {}
        self.state = keras_internals.read_state(model)
        with held_interrupt() as interrupt:
            try:
                while epoch < self.recipe.epochs and not interrupt:
                    epoch += self._call(epoch, interrupt)
                    if model.stop_training:
                        break
            finally:
                # With callbacks the model is up to date, also where one of them failed half-way.
                if not self.has_callbacks:
                    keras_internals.write_state(model, self.state)
                model.optimizer.finalize_variable_values(model.trainable_weights)
                self.progress.finish()
        self.callbacks.on_train_end(self.logs)
        return model.history

    def _call(self, epoch: int, interrupt: Interrupt) -> int:
        """Runs one program call from `epoch` on and returns the number of epochs that were finished."""
        if self.has_callbacks:
            return self._call_with_callbacks(epoch, interrupt)
        remaining = 1 if self.progress.is_per_epoch else self.recipe.epochs - epoch
        count = self.pace.epochs(remaining, self.capacity)
        columns = self._advance(epoch, count, interrupt)
        if columns is None:
            return 0
        self.model.history.epoch.extend(range(epoch, epoch + count))
        for name, values in columns.items():
            self.model.history.history.setdefault(name, []).extend(values)
        self.progress.update(epoch, count, self.logs)
        return count

    def _call_with_callbacks(self, epoch: int, interrupt: Interrupt) -> int:
        """Runs one epoch between the callbacks, which see the model as it then is and may change it."""
        self.model.reset_metrics()
        self.callbacks.on_epoch_begin(epoch)
        self.state = keras_internals.read_state(self.model)
        if self._advance(epoch, 1, interrupt) is None:
            return 0
        keras_internals.write_state(self.model, self.state)
        self.callbacks.on_epoch_end(epoch, self.logs)
        self.state = keras_internals.read_state(self.model)
        self.progress.update(epoch, 1, self.logs)
        return 1

    def _advance(self, epoch: int, count: int, interrupt: Interrupt) -> dict[str, list] | None:
        """Trains `count` epochs; returns their logs by name, or None if it was interrupted before their end."""
        generator = np.random.get_state()
        validates = validation_epochs(self.data, self.recipe, range(epoch, epoch + count), self.capacity)
        schedule = self.order.draw(count, self.capacity)._replace(validates=validates)
        if self.model.stop_training:
            schedule = self._first_execution(schedule)
        start = time.perf_counter()
        finished = False
        try:
            validation = self.data.validation.batch if self.data.validation else None
            state, logs = self.program(self.state, self.data.training.batch, validation, schedule, count)
            # Only a call of one epoch may be longer than a moment; given up, it costs that unfinished epoch.
            finished = engine.wait(logs, interrupt) if count == 1 else bool(jax.block_until_ready(logs))
        finally:
            if not finished:
                np.random.set_state(generator)
        if not finished:
            return None
        self.pace.record(count, time.perf_counter() - start)
        self.state = state
        columns, self.logs = log_columns(logs, validates, count)
        return columns

    def _first_execution(self, schedule: Schedule) -> Schedule:
        """Returns the first batch of the epoch only: as far as Keras goes when it is stopped before an epoch begins."""
        cut, batches = self.data.cut, self.model.steps_per_execution
        full = np.full(self.capacity, cut.full, np.int32) if schedule.full is None else schedule.full
        partial = np.full(self.capacity, bool(cut.partial)) if schedule.partial is None else schedule.partial
        partial = np.where(full < batches, partial, 0).astype(np.int32)
        return schedule._replace(full=np.minimum(full, batches), partial=partial)


def validation_epochs(data: Inputs, recipe: Recipe, epochs: range, capacity: int) -> np.ndarray | None:
    """Returns which epochs validate, padded to `capacity`, or None when all do or there is nothing to validate on."""
    if data.validation is None or recipe.validation_freq == 1:
        return None
    validates = np.zeros(capacity, bool)
    validates[: len(epochs)] = [keras_internals.validates_at(epoch, recipe.validation_freq) for epoch in epochs]
    return validates


def shapes_of(data: Inputs) -> tuple:
    """Returns shapes and types of all arrays of a fit: programs for others have another pace."""
    batches = [samples.batch for samples in (data.training, data.validation) if samples is not None]
    return tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batches))


def log_columns(logs: Any, validates: np.ndarray | None, count: int) -> tuple[dict[str, list], dict]:
    """Turns the logs of a call into Python numbers: a list per name, and the logs of the last epoch.

    Names are sorted as Keras sorts them. The lists of validation metrics hold the epochs that validated only.
    """
    every = np.ones(count, bool)
    validates = every if validates is None else validates[:count]
    columns, last = {}, {}
    training, validation = logs
    parts = [("", training, every), ("val_", validation, validates)]
    named = {prefix + name: (log, ran) for prefix, part, ran in parts for name, log in part.items()}
    for name, (log, ran) in sorted(named.items()):
        values = np.asarray(log)[:count][ran]
        columns[name] = values.tolist() if values.ndim == 1 else list(values)
        if ran[-1]:
            last[name] = columns[name][-1]
    return {name: values for name, values in columns.items() if values}, last


class Progress:
    """Shows how far a fit is: one bar over all epochs, or one line per epoch."""

    def __init__(self, epochs: int, verbose: str | int) -> None:
        """Shows nothing before the first update."""
        self.epochs = epochs
        self.verbose = 1 if verbose == "auto" else int(verbose)
        self.bar: Any = None
        self.last: tuple[int, list] | None = None

    @property
    def is_per_epoch(self) -> bool:
        """Whether each epoch is shown by itself."""
        return self.verbose == 2

    def update(self, epoch: int, count: int, logs: dict) -> None:
        """Takes in the last logs of the `count` epochs from `epoch` on."""
        values = [(name, value) for name, value in logs.items() if np.ndim(value) == 0]
        if self.verbose == 1:
            # Keras's bar averages what it is not told to show as it is.
            self.bar = self.bar or keras.utils.Progbar(self.epochs, unit_name="epoch", stateful_metrics=list(logs))
            self.bar.update(epoch + count, values, finalize=False)
            self.last = (epoch + count, values)
        elif self.verbose == 2:
            shown = "".join(f" - {name}: {value:.4g}" for name, value in values)
            print(f"Epoch {epoch + count}/{self.epochs}{shown}")

    def finish(self) -> None:
        """Ends the bar's line."""
        if self.bar is not None and self.last:
            self.bar.update(*self.last, finalize=True)
