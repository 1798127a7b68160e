"""Keras's private parts, all of them, in one room.

In come a Keras model or the arguments of a fit; out go pure functions, row numbers and arrays. The room exists so that
a new Keras release can break kohort in one file only. Written against Keras 3.15.1 (`tests/test_keras_internals.py`
names it).
"""

import functools
import itertools
import random
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.src import backend as keras_backend
from keras.src.backend.config import is_nnx_enabled
from keras.src.backend.jax.trainer import JAXEpochIterator
from keras.src.models.functional import Functional
from keras.src.random import seed_generator
from keras.src.trainers.data_adapters import (
    array_data_adapter,
    array_slicing,
    data_adapter_utils,
    get_data_adapter,
    is_grain_dataset,
    is_tf_dataset,
    is_torch_dataloader,
)
from keras.src.utils import io_utils, python_utils

from kohort.engine import Functions, State
from kohort.rounding import op_by_op
from kohort.structures import holds_number

SEEN_WITH = "3.15.1"

print_message = io_utils.print_msg  # to the log, where `keras.config.disable_interactive_logging()` has been called


# --- data -------------------------------------------------------------------------------------------------------------


def is_array_like(structure: Any) -> bool:
    """Says whether Keras would read `structure` with its array adapter."""
    return array_data_adapter.can_convert_arrays((structure,))


def is_sparse(leaf: Any) -> bool:
    """Says whether `leaf` is a sparse or ragged array, which cannot be gathered by row number."""
    return (
        data_adapter_utils.is_scipy_sparse(leaf)
        or data_adapter_utils.is_jax_sparse(leaf)
        or data_adapter_utils.is_tensorflow_sparse(leaf)
        or data_adapter_utils.is_tensorflow_ragged(leaf)
    )


def are_not_dense(x: Any, *others: Any) -> bool:
    """Says whether data come other than as dense arrays: as a stream, or sparse."""
    return any(map(stream_kind, (x, *others))) or any(map(is_sparse, tree.flatten((x, others))))


def stream_kind(x: Any) -> str | None:
    """Names the kind of batch stream that `x` is, or None when it is none that Keras knows."""
    if x is None or isinstance(x, np.ndarray):
        return None
    kinds = {
        "a generator": lambda: isinstance(x, types.GeneratorType),
        "a PyDataset": lambda: isinstance(x, keras.utils.PyDataset),
        "a tf.data.Dataset": lambda: is_tf_dataset(x),
        "a torch DataLoader": lambda: is_torch_dataloader(x),
        "a grain dataset": lambda: is_grain_dataset(x),
    }
    return next((kind for kind, holds in kinds.items() if holds()), None)


def validation_split(arrays: Any, fraction: float) -> tuple[Any, Any]:
    """Splits `(x, y, sample_weight)` as `model.fit(validation_split=...)` does: the last rows validate."""
    return array_slicing.train_validation_split(arrays, validation_split=fraction)


def on_jax() -> bool:
    """Says whether Keras runs on JAX in this process."""
    return keras.backend.backend() == "jax"


class _HostIterator(JAXEpochIterator):
    """Keras's iterator, without its look-ahead to an accelerator: batches stay in memory until kohort sends them.

    Under another backend JAX's devices are not for this process to open.
    """

    def _get_iterator(self) -> Any:
        return self.data_adapter.get_jax_iterator()


def epoch_iterator(x: Any, y: Any = None, sample_weight: Any = None, **arguments: Any) -> Any:
    """Returns the iterator over batches that `model.fit` would make on JAX."""
    return _HostIterator(x=x, y=y, sample_weight=sample_weight, **arguments)


def whole_batch(x: Any, y: Any, sample_weight: Any, class_weight: Any, rows: int) -> Any:
    """Returns all rows as one batch, converted to arrays and packed exactly as Keras's adapter packs a batch."""
    iterator = epoch_iterator(x, y, sample_weight, batch_size=rows, class_weight=class_weight)
    return next(iterator.data_adapter.get_jax_iterator())


def executions(iterator: Any, steps_per_execution: int) -> Iterator[list[Any]]:
    """Yields the batches of one epoch, read the way `JAXTrainer.fit` reads them: those of each execution together."""
    with iterator.catch_stop_iteration():
        for _, _, source in iterator:
            # One execution takes up to `steps_per_execution` batches; the data may end inside it, but not before.
            yield [next(source), *itertools.islice(source, steps_per_execution - 1)]


def epoch_batches(iterator: Any, steps_per_execution: int) -> list[Any]:
    """Returns the batches of one epoch."""
    return [batch for batches in executions(iterator, steps_per_execution) for batch in batches]


def is_empty_stream(stream: Any) -> bool:
    """Says whether a stream is known to hold no batch; of one that would have to be read to know it, False."""
    tells_its_length = stream_kind(stream) in ("a PyDataset", "a tf.data.Dataset", "a torch DataLoader")
    return tells_its_length and get_data_adapter(stream).num_batches == 0


def stop_reading(iterator: Any) -> None:
    """Ends the threads or processes of a `PyDataset` whose epoch is given up: Keras would leave them waiting."""
    enqueuer = getattr(iterator.data_adapter, "enqueuer", None)
    if enqueuer is not None:
        with suppress(Exception):  # of batches that nobody asked for any more
            enqueuer.stop()


# --- the model as pure functions --------------------------------------------------------------------------------------


def symbolic_build(model: keras.Model, make_iterator: Callable[[], Any]) -> bool:
    """Builds what is not built of the model, its metrics and its optimizer. Returns whether a batch was read for it."""
    reads_a_batch = (
        not all(layer.built for layer in model._flatten_layers())
        or (model._compile_metrics is not None and not model._compile_metrics.built)
        or (model._compile_loss is not None and not model._compile_loss.built)
    )
    if not reads_a_batch and (model.optimizer is None or model.optimizer.built):
        return False
    iterator = make_iterator()
    with unbuilt_again_on_failure(model):
        if hasattr(keras.Model, "train_step"):
            model._symbolic_build(iterator=iterator)
        else:  # of NumPy's models, which Keras itself does not train
            build_like(model, next(next(source for _, _, source in iterator)) if reads_a_batch else None)
    return reads_a_batch


@contextmanager
def unbuilt_again_on_failure(model: keras.Model) -> Iterator[None]:
    """Leaves loss, metrics and NumPy's generator as they were if the block fails.

    Keras keeps a metric that data with another shape of target had chosen ("accuracy" stands for several), and counts
    later data wrongly with it.
    """
    parts = (model._compile_metrics, model._compile_loss)
    unbuilt = [part for part in parts if part is not None and not part.built]
    generator = np.random.get_state()
    is_done = False
    try:
        yield
        is_done = True
    finally:
        if not is_done:
            np.random.set_state(generator)
            for part in unbuilt:
                part.built = False
            if model._compile_loss in unbuilt:
                model._compile_loss.metrics.clear()


def fresh_fit_reads_a_batch(model: keras.Model) -> bool:
    """Says whether the first fit after `model.compile` reads one batch more, to build losses and metrics."""
    return model._compile_metrics is not None or model._compile_loss is not None


def build_like(model: keras.Model, batch: Any) -> None:
    """Builds metrics, loss and optimizer of the model for batches of this form."""
    model._symbolic_build(data_batch=batch if isinstance(batch, tuple) else (batch,))
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def read_state(model: keras.Model) -> State:
    """Returns the arrays that training changes, in Keras's order: JAX's, or under another backend NumPy's."""
    return values_of(variables_of(model))


def values_of(variables: State) -> State:
    """Returns the arrays that these variables hold."""
    if not on_jax():
        return State(*([np.array(keras.ops.convert_to_numpy(v.value)) for v in part] for part in variables))
    # `value` looks for scopes first, none of which is open here; a variable without a value makes one there.
    return State(*([v.value if v._value is None else v._value for v in part] for part in variables))


def attach(variables: State, state: State) -> None:
    """Puts the arrays that a program made of the values of these variables into them."""
    for part, values in zip(variables, state, strict=True):
        attach_to(part, values)


def attach_to(variables: list, values: list) -> None:
    """Puts arrays into variables whose shapes and types they have: `assign` would check and convert each."""
    is_jax = on_jax()
    for variable, value in zip(variables, values, strict=True):
        if is_jax:
            variable._direct_assign(value)
        else:
            variable.assign(keras.ops.convert_to_tensor(value, dtype=variable.dtype))


def like_variables(model: keras.Model, state: State) -> State:
    """Returns arrays that another backend may have given other types in the types of the model's own variables.

    Raises:
        ValueError: If these are not the arrays of this model.
    """
    own = variables_of(model)
    shapes = [[tuple(array.shape) for array in arrays] for arrays in (*own, *state)]
    if shapes[:4] != shapes[4:]:
        raise ValueError(
            "`model` must be the same when it is built from its configuration. Received: a model whose variables have "
            f"the shapes {shapes[4:]}, and {shapes[:4]} once it is rebuilt. "
            "Let `get_config` tell all that `__init__` takes."
        )

    def typed(variable: Any, array: Any) -> Any:
        return keras.ops.convert_to_tensor(array, dtype=variable.dtype)

    return State(*(list(map(typed, *pair)) for pair in zip(own, state, strict=True)))


def write_state(model: keras.Model, state: State) -> None:
    """Puts any arrays into the model's variables."""
    for variables, values in zip(variables_of(model), state, strict=True):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def evaluation(model: keras.Model, logs: dict, as_dict: bool) -> Any:
    """Returns what `model.evaluate` makes of the logs of a pass: numbers by name, a list of them, or the only one."""
    numbers = python_utils.pythonify_logs(logs)
    return numbers if as_dict else model._flatten_metrics_in_order(numbers)


def variables_of(model: keras.Model) -> State:
    """Returns the variables whose values are the state."""
    optimizer = model.optimizer
    return State(
        model.trainable_variables,
        model.non_trainable_variables,
        optimizer.variables if optimizer is not None else [],
        model.metrics_variables,
    )


def functions(model: keras.Model) -> Functions:
    """Returns Keras's own steps of `model` as pure functions of a `State`.

    The functions hold the model weakly, so a program that was compiled from them does not keep it alive.
    """
    ref = weakref.ref(model)

    def alive() -> keras.Model:
        model = ref()
        if model is None:
            raise ReferenceError("The model of this program is gone: it is kept alive by its user, not by the program.")
        return model

    def with_metrics_of(state: State) -> keras.StatelessScope:
        return keras.StatelessScope(zip(alive().metrics_variables, state.metrics_variables, strict=True))

    def train_step(state: State, batch: Any) -> tuple[dict, State]:
        logs, new = alive().train_step(tuple(state), batch)
        return logs, State(*map(list, new))  # a step of one's own may return tuples

    def test_step(state: State, batch: Any) -> tuple[dict, State]:
        logs, (trainable, non_trainable, metrics) = alive().test_step((state[0], state[1], state[3]), batch)
        return logs, State(list(trainable), list(non_trainable), state.optimizer_variables, list(metrics))

    def predict_step(state: State, batch: Any) -> Any:
        return alive().predict_step((state.trainable_variables, state.non_trainable_variables), batch)[0]

    def reset_metrics(state: State) -> State:
        with with_metrics_of(state) as scope:
            alive().reset_metrics()
        return state._replace(metrics_variables=[scope.get_current_value(v) for v in alive().metrics_variables])

    def results(state: State, logs: dict) -> dict:
        with with_metrics_of(state):
            return dict(alive()._get_metrics_result_or_logs(logs))

    if runs_op_by_op(model):
        train_step, test_step, predict_step = map(op_by_op, (train_step, test_step, predict_step))
    return Functions(train_step, test_step, predict_step, reset_metrics, results)


def finalize(model: keras.Model, state: State) -> State:
    """Returns the state of a network as `fit` leaves it at its end: an optimizer may put averages in place of weights.

    The arrays are those of `model`'s variables, or of another network that is like it.
    """
    weights, optimizer = model.trainable_variables, model.optimizer
    values = [*state.trainable_variables, *state.optimizer_variables]
    with keras.StatelessScope(zip([*weights, *optimizer.variables], values, strict=True)) as scope:
        optimizer.finalize_variable_values(weights)
    return state._replace(trainable_variables=[scope.get_current_value(v) for v in weights])


def ends_with_averages(model: keras.Model) -> bool:
    """Says whether the optimizer puts averages in place of the weights when a fit ends."""
    return bool(getattr(model.optimizer, "inner_optimizer", model.optimizer).use_ema)


def compile_marker(model: keras.Model) -> Any:
    """Returns an object that is a new one after each `model.compile`."""
    return model._loss_tracker


def validates_at(epoch: int, validation_freq: int | list[int]) -> bool:
    """Says whether `model.fit` validates after `epoch` (counted from 0)."""
    no_model: Any = None  # the method looks at its arguments only
    frequency = [int(n) for n in validation_freq] if isinstance(validation_freq, list) else int(validation_freq)
    return keras.Model._should_eval(no_model, epoch, frequency)


def first_epoch(model: keras.Model, initial_epoch: int) -> int:
    """Returns the epoch to start from; `BackupAndRestore` sets its own on the model."""
    return model._initial_epoch or initial_epoch


def why_keras_must_run(model: keras.Model) -> str | None:
    """Returns why this model cannot be trained by a compiled program, or None when it can."""
    if model.run_eagerly and not on_jax():
        return "the model was compiled with `run_eagerly=True`"
    if (runs_op_by_op(model) or not on_jax()) and not all(layer.supports_jit for layer in model._flatten_layers()):
        return "a layer of the model does not support `jit_compile`"
    if keras.distribution.distribution() is not None:
        return "a `keras.distribution` is set"
    if is_nnx_enabled():
        return "Keras runs in NNX mode"
    if keras.config.max_epochs() or keras.config.max_steps_per_epoch():
        return "`keras.config` limits the epochs or the steps per epoch"
    if getattr(model, "_distribute_strategy", None) is not None:
        return "a `tf.distribute` strategy is set"
    names = ["evaluate", "make_train_function", "make_test_function"]
    if not on_jax():
        if hasattr(model.optimizer, "_exclude_from_weight_decay_pattern"):
            return "the optimizer excludes variables from weight decay, which its configuration does not tell"
        names += ["train_step", "test_step"]  # the worker's have another form
    overridden = [name for name in names if overrides(model, name)]
    if overridden:
        return f"{type(model).__name__} overrides `{overridden[0]}`"
    return None


def runs_op_by_op(model: keras.Model) -> bool:
    """Says whether Keras runs the steps as Python, each operation a program of its own."""
    return on_jax() and (model.run_eagerly or not model.jit_compile)


def overrides(model: keras.Model, method: str) -> bool:
    """Says whether the model's class has a method of its own in the place of Keras's."""
    return getattr(type(model), method, None) is not getattr(keras.Model, method, None)


def learning_rate(model: keras.Model) -> float | None:
    """Returns the learning rate of a compiled model, or None when a schedule gives it."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    rate = getattr(optimizer, "_learning_rate", None)
    return float(rate.value) if isinstance(rate, keras.Variable) else None


def metric_direction(model: keras.Model, name: str) -> str | None:
    """Returns "up" or "down", the way in which the metric of that name gets better, or None when Keras does not say."""
    name, loss, metrics = name.removeprefix("val_"), model._compile_loss, model._compile_metrics
    if name in {"loss", *(m.name for m in (loss.metrics if loss else []))}:
        return "down"
    return next((getattr(m, "_direction", None) for m in (metrics.metrics if metrics else []) if m.name == name), None)


# --- clones and seeds -------------------------------------------------------------------------------------------------


@contextmanager
def default_seeds(draw: Callable[[], int]) -> Iterator[None]:
    """Makes every default seed that this thread's Keras draws inside the block come from `draw`."""
    modules: tuple[Any, ...] = (seed_generator, keras_backend.random)
    thread = threading.get_ident()
    with _seeds_are_replaced:  # one at a time, or the last to leave would restore what another had put there
        originals = [module.make_default_seed for module in modules]

        def make_default_seed() -> int:
            return draw() if threading.get_ident() == thread else originals[0]()

        for module in modules:
            module.make_default_seed = make_default_seed
        try:
            yield
        finally:
            for module, original in zip(modules, originals, strict=True):
                module.make_default_seed = original


_seeds_are_replaced = threading.RLock()


class TracedSeed(int):
    """A default seed that is a plain integer to Keras's checks and a traced array to JAX."""

    _traced: Any

    def __new__(cls, traced: Any) -> "TracedSeed":
        """Wraps the traced integer; as an `int` it is 1 and of no meaning."""
        self = super().__new__(cls, 1)
        self._traced = traced
        return self

    def __jax_array__(self) -> Any:
        """Gives JAX the traced integer."""
        return self._traced


def default_seed(generator: random.Random) -> int:
    """Draws a seed as `make_default_seed` draws it from Python's global generator."""
    return generator.randint(1, int(1e9))


def is_cloneable(model: keras.Model) -> bool:
    """Says whether `keras.models.clone_model` gives the model with fresh weights: sequential and functional ones."""
    return isinstance(model, keras.Sequential | Functional)


def clone(model: keras.Model) -> keras.Model:
    """Returns `keras.models.clone_model(model)`, not compiled."""
    # A compiled Sequential would be compiled from its serialised form, which loses functions and lambdas.
    compiled, model.compiled = model.compiled, False
    try:
        return keras.models.clone_model(model)
    finally:
        model.compiled = compiled


def fixed_seed_layers(model: keras.Model) -> list[str]:
    """Returns the names of the layers that hold a seed of their own, which a clone keeps."""
    return [
        layer.name for layer in model._flatten_layers(include_self=False) if holds_number(layer.get_config(), "seed")
    ]


def without_configuration(model: keras.Model) -> list[Any]:
    """Returns the optimizers, schedules and metrics of the user's own classes that no copy can be made of.

    A class that takes arguments of its own must tell them in its `get_config`.
    """
    parts = [part for value in model._compile_config.config.values() for part in tree.flatten(value)]
    kinds = keras.optimizers.Optimizer | keras.metrics.Metric
    copied = [part for part in parts if isinstance(part, kinds)]
    rates = [getattr(part, "_learning_rate", None) for part in copied]
    schedules = [rate for rate in rates if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)]
    return [part for part in [*copied, *schedules] if _hides_arguments(type(part))]


def _hides_arguments(kind: type) -> bool:
    def place(method: str) -> int:
        return next(i for i, base in enumerate(kind.__mro__) if method in vars(base))

    return not kind.__module__.startswith("keras.") and place("__init__") < place("get_config")


@functools.cache
def shuffles_like_numpy() -> bool:
    """Says whether this Keras draws one `np.random.permutation` per epoch, by watching its adapter do it."""
    rows, epochs = 5, 3
    before: Any = np.random.get_state()
    try:
        np.random.seed(0)
        iterator = epoch_iterator(np.arange(rows), batch_size=2, shuffle=True)
        theirs = [np.concatenate(epoch_batches(iterator, 1)) for _ in range(epochs)]
        after = np.random.get_state()
        np.random.seed(0)
        ours = [np.random.permutation(rows) for _ in range(epochs)]
        same_state = all(np.array_equal(a, b) for a, b in zip(after, np.random.get_state(), strict=True))
        return same_state and np.array_equal(theirs, ours)
    finally:
        np.random.set_state(before)
