"""Data that come batch by batch: a `PyDataset`, a `tf.data.Dataset`, a torch `DataLoader`, a generator.

In come batches as Keras's own adapters read them, one after the other and never more than Keras reads; they are stacked
on the way, and out come trained states and logs as from arrays. The room exists because such data need not fit into
memory, and one compiled call per batch is slow: while one stack is at work, the next is read.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from kohort import engine, keras_internals
from kohort.checks import NUMBERS, Recipe, check_step_features, received
from kohort.data import Samples, inputs, validation_inputs
from kohort.engine import CALL_SECONDS, Cut, Pace, State
from kohort.epochs import Advanced, ArrayEpochs, Epochs, log_columns
from kohort.programs import local_programs_of
from kohort.progress import Interrupt

# The most batches and bytes of one stack: they fix its shape, so that one program serves any number of batches.
STACK_BATCHES = 256
STACK_BYTES = 8 * 2**20
# A program that has nothing to do waits no longer than this for its stack to fill: ten times what a call costs.
IDLE_SECONDS = 1e-3


def epochs_of(model: keras.Model, x: Any, y: Any, sample_weight: Any, validation_data: Any, recipe: Recipe) -> Epochs:
    """Returns the epochs of a fit, of which training data, validation data or both may be a stream."""
    is_stream, validates_by_stream = (keras_internals.stream_kind(data) for data in (x, validation_data))
    if not is_stream and not validates_by_stream:
        return ArrayEpochs(model, inputs(model, x, y, sample_weight, validation_data, recipe), recipe)
    validation: Any = None
    if validates_by_stream:
        validation = Stream(model, "validation_data", validation_data, steps_per_epoch=recipe.validation_steps)
    elif validation_data is not None:
        validation = ArrayValidation(model, *validation_inputs(validation_data, recipe, model.steps_per_execution))
    training: Any = None
    if is_stream:
        options = {"shuffle": recipe.shuffle, "class_weight": recipe.class_weight}
        training = Stream(model, "x", x, steps_per_epoch=recipe.steps_per_epoch, **options)
        training.build()
    else:
        unsplit = recipe._replace(validation_split=0.0)
        training = ArrayEpochs(model, inputs(model, x, y, sample_weight, None, unsplit), unsplit)
    return StreamEpochs(training, validation, recipe.validation_freq)


class StreamEpochs:
    """The epochs of a fit that reads a stream: one by one, for the data of the next are not there yet.

    What was read cannot be given back: an epoch that is given up is gone from the stream, though not from the model.
    """

    def __init__(self, training: Any, validation: Any, validation_freq: Any) -> None:
        """Takes what trains and what validates, each a stream or of arrays; no validation if it is None."""
        self.training, self.validation, self.validation_freq = training, validation, validation_freq
        self.steps: int | None = training.steps

    def most(self, remaining: int) -> int:
        """Returns 1."""
        return 1

    def advance(self, state: State, epochs: range, interrupt: Interrupt) -> Advanced | None:
        """Runs one epoch and the validation that follows it."""
        trained = self.train(state, epochs[0], interrupt)
        if trained is None or not self.validates_at(epochs[0]):
            return trained
        validated = self.validate(trained.state, epochs[0], interrupt)
        return validated and joined(trained, validated)

    def train(
        self, state: State, epoch: int, interrupt: Interrupt, *, batches: int | None = None, watched: bool = False
    ) -> Advanced | None:
        """Runs the training of one epoch, or its first batches."""
        return self.training.train(state, epoch, interrupt, batches=batches, watched=watched)

    def validates_at(self, epoch: int) -> bool:
        """Says whether there are validation data, and whether it is their turn."""
        return self.validation is not None and keras_internals.validates_at(epoch, self.validation_freq)

    def validate(self, state: State, epoch: int, interrupt: Interrupt) -> Advanced | None:
        """Runs the validation alone."""
        return self.validation.validate(state, epoch, interrupt)


def joined(trained: Advanced, validated: Advanced) -> Advanced:
    """Returns training and validation of an epoch as one."""

    def both(ours: dict, theirs: dict) -> dict:
        return dict(sorted((ours | {f"val_{name}": value for name, value in theirs.items()}).items()))

    return Advanced(validated.state, both(trained.columns, validated.columns), both(trained.logs, validated.logs))


class ArrayValidation:
    """Validation by arrays beside a stream: one pass in one call."""

    def __init__(self, model: keras.Model, samples: Samples, cut: Cut) -> None:
        """Takes converted arrays and how one pass is cut into batches."""
        self.samples, self.program = samples, local_programs_of(model).validation(cut)

    def validate(self, state: State, epoch: int, interrupt: Interrupt) -> Advanced | None:
        """Runs one pass."""
        state, logs = self.program(state, self.samples.batch, 1)
        return advanced(state, logs) if engine.wait(logs, interrupt) else None


def advanced(state: State, logs: dict, stopped_at: int | None = None) -> Advanced:
    """Returns the outcome of one pass."""
    of_one_epoch = jax.tree.map(lambda log: log[None], jax.device_get(logs))
    return Advanced(state, *log_columns((of_one_epoch, {}), None, 1), stopped_at)


# --- a stream ---------------------------------------------------------------------------------------------------------


class Stream:
    """One stream of a fit: Keras's iterator over it, and the programs that its stacks go through."""

    def __init__(self, model: keras.Model, name: str, data: Any, **options: Any) -> None:
        """Reads nothing yet, of a generator not even the first batches.

        Args:
            model: The model that is trained or validated.
            name: The argument of the fit: "x", which trains, or "validation_data".
            data: The stream.
            options: Arguments of Keras's iterator.
        """
        check_stream(name, data)
        self.model, self.name, self._data, self._options = model, name, data, options
        self.step: Literal["train_step", "test_step"] = "train_step" if name == "x" else "test_step"
        self.programs = local_programs_of(model)
        self._iterator: Any = None
        self._moulds: dict[Form, Mould] = {}
        self._last: Advanced | None = None

    @property
    def iterator(self) -> Any:
        """Keras's iterator; it reads the first batches of a generator when it is made."""
        if self._iterator is None:
            steps = self.model.steps_per_execution
            self._iterator = keras_internals.epoch_iterator(self._data, steps_per_execution=steps, **self._options)
        return self._iterator

    @property
    def steps(self) -> int | None:
        """Batches of one pass, where that is known."""
        return self.iterator.num_batches

    def build(self) -> None:
        """Builds what is not built of the model by a first batch, and begins anew."""
        is_built = False
        try:
            keras_internals.symbolic_build(self.model, lambda: self.iterator)
            self.iterator.reset()
            is_built = True
        except StopIteration:
            raise no_batches(self.name) from None
        finally:
            if not is_built and self._iterator is not None:
                keras_internals.stop_reading(self._iterator)

    def train(
        self, state: State, epoch: int, interrupt: Interrupt, *, batches: int | None = None, watched: bool = False
    ) -> Advanced | None:
        """Runs one epoch, or its first batches."""
        executions = None if batches is None else -(-batches // self.model.steps_per_execution)
        trained = self._pass(state, interrupt, executions, watched)
        if trained is None and self._last is None:
            raise no_batches(self.name)
        self._last = trained or self._last  # where an epoch has no batch, Keras shows the one before again
        return self._last

    def validate(self, state: State, epoch: int, interrupt: Interrupt) -> Advanced | None:
        """Runs one pass, from the beginning."""
        self.iterator.reset()
        return self._pass(state, interrupt) or Advanced(state, {}, {})

    def mould(self, form: "Form", batch: Any) -> "Mould":
        """Returns the mould of stacks of this form; the first batch of a form is looked at."""
        if form not in self._moulds:
            check_batch(self.model, batch, self.name)
            dtypes = [jnp.asarray(np.empty(0, dtype)).dtype for _, dtype in form.arrays]  # in 32 bits, as for Keras
            sizes = [math.prod(shape) * dtype.itemsize for (shape, _), dtype in zip(form.arrays, dtypes, strict=True)]
            capacity = max(1, min(STACK_BATCHES, STACK_BYTES // max(1, sum(sizes))))
            shapes = [(capacity, *shape) for shape, _ in form.arrays]
            program, pace = self.programs.batches(self.step, capacity), self.programs.pace(self.step, form)
            self._moulds[form] = Mould(form, shapes, dtypes, capacity, program, pace)
        return self._moulds[form]

    def _pass(
        self, state: State, interrupt: Interrupt, executions: int | None = None, watched: bool = False
    ) -> Advanced | None:
        """Runs one pass; returns None if it had no batch.

        Ctrl-C ends it at once: only copies of the state are at work.
        """
        with interrupt.opened():
            is_whole, stopped_at = False, None
            try:
                work = Work(self, self.programs.begin()(state))
                for nth, batches in enumerate(islice(self._executions(), executions)):
                    for batch in batches:
                        work.add(batch)
                    if watched and not work.is_finite():
                        stopped_at = (nth + 1) * self.model.steps_per_execution - 1
                        break
                    if self.model.stop_training and self.step == "train_step":
                        break
                else:
                    is_whole = executions is None
                work.finish()
                return None if work.results is None else advanced(work.state, work.results, stopped_at)
            finally:
                if not is_whole:
                    keras_internals.stop_reading(self.iterator)

    def _executions(self) -> Iterator[list]:
        return keras_internals.executions(self.iterator, self.model.steps_per_execution)


def check_streams(x: Any, validation_data: Any) -> None:
    """Raises a ValueError when one of them is a stream that is known to be empty."""
    for name, data in (("x", x), ("validation_data", validation_data)):
        if keras_internals.stream_kind(data):
            check_stream(name, data)


def check_stream(name: str, stream: Any) -> None:
    """Raises a ValueError when a stream is known to be empty; none of its batches is read."""
    if keras_internals.is_empty_stream(stream):
        raise no_batches(name)


def no_batches(name: str) -> ValueError:
    """Returns the error of a stream without a batch."""
    return ValueError(
        f"`{name}` must give at least one batch. Received: {name} that ends before its first batch. "
        "Check its length and how its data were selected."
    )


def check_batch(model: keras.Model, batch: Any, name: str) -> None:
    """Raises when a batch of the stream `name` is not of numbers, or not of a shape that the built model takes.

    Raises:
        TypeError: If something is no array of numbers.
        ValueError: If a shape does not fit.
    """
    for leaf in keras.tree.flatten(batch):
        # Complex numbers, which arrays must not hold: in a stream they are seen too late to leave the fit to Keras.
        if leaf is not None and not NUMBERS.fullmatch(str(leaf.dtype).replace("complex", "float")):
            raise TypeError(
                f"`{name}` must give batches of numbers. Received: {received('an array', leaf)} in a batch. "
                "Encode text and categories as numbers."
            )
    step = "train_step" if name == "x" else "test_step"
    check_step_features(model, keras.utils.unpack_x_y_sample_weight(batch)[0], name, step)


# --- stacks of batches ------------------------------------------------------------------------------------------------


class Form(NamedTuple):
    """What the batches of one stack have in common."""

    structure: Any
    arrays: tuple  # (shape, type) of each


class Mould(NamedTuple):
    """All that stacks of one form need."""

    form: Form
    shapes: list[tuple[int, ...]]
    dtypes: list[np.dtype]
    capacity: int
    program: Callable
    pace: Pace


class Stack:
    """Batches of one form, copied one after the other into arrays with a leading axis `batch`."""

    def __init__(self, mould: Mould) -> None:
        """Makes room; nothing is in it yet."""
        self.mould = mould
        self.arrays = list(map(aligned, mould.shapes, mould.dtypes))
        self.count, self.most = 0, mould.pace.epochs(mould.capacity, mould.capacity)
        self.begun = time.perf_counter()

    def add(self, leaves: list) -> None:
        """Copies one batch: the caller's arrays are free again."""
        for array, leaf in zip(self.arrays, leaves, strict=True):
            array[self.count] = leaf
        self.count += 1

    def run(self, state: State) -> tuple[State, dict, dict]:
        """Starts the program on what is in the stack, which is not to be written to any more."""
        return self.mould.program(state, jax.tree.unflatten(self.mould.form.structure, self.arrays), self.count)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an empty array that XLA on CPU reads where it stands: it copies what does not begin at 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


class Call(NamedTuple):
    """A stack at work."""

    stack: Stack
    results: Any
    started: float

    def is_ready(self) -> bool:
        """Says whether it is done."""
        return all(leaf.is_ready() for leaf in jax.tree.leaves(self.results))


class Work:
    """One pass at work: a stack that fills, and at most two that run."""

    def __init__(self, stream: Stream, state: State) -> None:
        """Takes a state that may be used up."""
        self.state, self.logs, self.results = state, None, None
        self._stream = stream
        self._stack: Stack | None = None
        self._calls: deque[Call] = deque()
        self._last_end = 0.0

    def add(self, batch: Any) -> None:
        """Puts a batch on the stack; runs the stack when it is full or there is nothing else to do."""
        leaves, structure = jax.tree.flatten(batch)
        form = Form(structure, tuple([(leaf.shape, leaf.dtype) for leaf in leaves]))
        if self._stack is not None and self._stack.mould.form != form:
            self._run_stack()
        if self._stack is None:
            self._stack = Stack(self._stream.mould(form, batch))
        self._stack.add(leaves)
        is_late = time.perf_counter() - self._stack.begun > IDLE_SECONDS
        if self._stack.count == self._stack.most or (is_late and self._is_idle()):
            self._run_stack()

    def finish(self) -> None:
        """Runs what is left and waits for it."""
        self._run_stack()
        while self._calls:
            self._wait()

    def is_finite(self) -> bool:
        """Says whether the loss is finite after all batches so far."""
        self.finish()
        return self.logs is None or bool(np.isfinite(self.logs.get("loss", 0.0)).all())

    def _run_stack(self) -> None:
        """Starts the stack, if there is one, and waits until no more than one is at work."""
        if self._stack is None:
            return
        self.state, self.logs, self.results = self._stack.run(self.state)
        self._calls.append(Call(self._stack, self.results, time.perf_counter()))
        self._stack = None
        while len(self._calls) > 1:
            self._wait()

    def _is_idle(self) -> bool:
        while self._calls and self._calls[0].is_ready():
            self._wait()
        return not self._calls

    def _wait(self) -> None:
        """Waits for the oldest call, without deafness to Ctrl-C where it may be long."""
        stack, results, started = self._calls.popleft()
        seconds = stack.mould.pace.seconds_per_epoch
        if seconds is None or seconds * stack.count > CALL_SECONDS:
            engine.wait(results, False)
        jax.block_until_ready(results)
        end = time.perf_counter()
        stack.mould.pace.record(stack.count, end - max(started, self._last_end))
        self._last_end = end
