"""The epochs of one fit: arrays in memory in, trained states and logs out.

In come a network's state and the numbers of the epochs to run; out come the state after them and what each logged. The
room exists so that the loop of a fit need not know where its batches come from: a source of epochs is anything with the
methods of `Epochs`. Of callbacks and progress a source knows nothing.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import keras
import numpy as np

from kohort import engine, keras_internals
from kohort.checks import Recipe
from kohort.data import BatchOrder, Inputs
from kohort.engine import Pace, Schedule, State
from kohort.programs import programs_of, shapes_of
from kohort.progress import Interrupt
from kohort.remote import RemotePrograms


class Advanced(NamedTuple):
    """What a source gives back: the state after some epochs, and what they logged."""

    state: State
    columns: dict[str, list]  # metric -> its values, one per epoch that recorded it
    logs: dict  # the logs of the last epoch
    stopped_at: int | None = None  # the batch after which the epoch was left because its loss is not finite
    step_logs: dict | None = None  # what the last step of a piece logged, which a metric may round otherwise


@runtime_checkable
class Epochs(Protocol):
    """Where a fit gets its epochs from.

    Every method returns None when `interrupt` became true before the end; the source is then as it was before the call.
    """

    steps: int | None  # batches of an epoch, where that is known beforehand

    def most(self, remaining: int) -> int:
        """Returns how many of the remaining epochs the next `advance` may run, at least 1."""
        ...

    def advance(self, state: State, epochs: range, interrupt: Interrupt) -> Advanced | None:
        """Runs whole epochs, each with the validation that follows it."""
        ...

    def train(
        self, state: State, epoch: int, interrupt: Interrupt, *, batches: int | None = None, watched: bool = False
    ) -> Advanced | None:
        """Runs the training of one epoch alone: at most so many batches; `watched`, only until a loss is not finite."""
        ...

    def validates_at(self, epoch: int) -> bool:
        """Says whether validation follows after this epoch."""
        ...

    def validate(self, state: State, epoch: int, interrupt: Interrupt) -> Advanced | None:
        """Runs the validation alone; its logs have the names of the metrics, without "val_"."""
        ...


class ArrayEpochs:
    """The epochs of a fit whose data are arrays in memory: many of them in one call of a compiled program."""

    def __init__(self, model: keras.Model, data: Inputs, recipe: Recipe) -> None:
        """Builds what is not built of the model."""
        self.data, self.recipe, self.steps_per_execution = data, recipe, model.steps_per_execution
        keras_internals.symbolic_build(model, data.build_iterator)
        self.order = BatchOrder(data.training.rows, recipe, model.steps_per_execution)
        self.capacity = engine.capacity(self.order.row_bytes)
        self.steps: int | None = recipe.steps_per_epoch or data.cut.full + bool(data.cut.partial)
        self.programs = programs_of(model)
        self.program = self.programs.epochs(data.cut, data.validation_cut, self.capacity)
        self.pace = self.programs.pace(self.capacity, data.cut, data.validation_cut, shapes_of(data))

    def rehearse(self, state: State) -> str:
        """Has the worker compile what the fit will run, by a call of no epoch; returns why it cannot, or nothing."""
        if not isinstance(self.programs, RemotePrograms):
            return ""
        validation = self.data.validation.batch if self.data.validation else None
        with restored_generator():
            schedule = self._draw(1)
        validates = validation_epochs(self.data, self.recipe, range(1), self.capacity)
        schedule = schedule._replace(validates=validates)
        return self.programs.rehearse(self.program(state, self.data.training.batch, validation, schedule, 0))

    def most(self, remaining: int) -> int:
        """Returns how many epochs take about a moment."""
        return self.pace.epochs(remaining, self.capacity)

    def advance(self, state: State, epochs: range, interrupt: Interrupt) -> Advanced | None:
        """Runs whole epochs in one call."""
        validates = validation_epochs(self.data, self.recipe, epochs, self.capacity)
        validation = self.data.validation.batch if self.data.validation else None
        with restored_generator(self._is_short(self.pace, len(epochs))) as kept:
            schedule = self._draw(len(epochs))._replace(validates=validates)
            done = self._run(self.program, self.pace, state, validation, schedule, len(epochs), interrupt)
            kept.append(done)
        return Advanced(done[0], *log_columns(done[1], validates, len(epochs))) if done else None

    def train(
        self, state: State, epoch: int, interrupt: Interrupt, *, batches: int | None = None, watched: bool = False
    ) -> Advanced | None:
        """Runs the training of one epoch, or its first batches."""
        with restored_generator() as kept:
            schedule = self._draw(1)
            if batches is not None:
                schedule = self._first(schedule, batches)
            done = self._train(state, schedule, interrupt, watched)
            kept.append(done)
        if done is None:
            return None
        trained = Advanced(done[0], *log_columns(done[1], None, 1))
        if watched and not np.isfinite(trained.logs.get("loss", 0.0)):
            return self._until_not_finite(state, schedule, interrupt)
        return trained

    def begin_pieces(self) -> int:
        """Draws the order of an epoch that is then trained piece by piece, and returns how many batches it has."""
        self._whole = self._draw(1)
        return self._batches(self._whole)

    def train_piece(self, state: State, piece: range, interrupt: Interrupt) -> Advanced | None:
        """Runs the next batches of that epoch; the logs are those of all its batches so far, and of the last alone."""
        size, cut, whole = self.data.cut.batch_size, self.data.cut, self._whole
        rows = self.order.room(1)
        rows[0] = np.arange(cut.rows) if whole.rows is None else whole.rows[0]
        every = range(cut.full if whole.full is None else int(whole.full[0]))
        full = every[piece.start : piece.stop]
        # The program begins with the first rows, and the last batch, where it is smaller, stands at the end.
        rows[0, : len(full) * size] = rows[0, piece.start * size : (piece.start + len(full)) * size].copy()
        zeros = np.zeros(1, np.int32)
        counts = (zeros + len(full), zeros + (piece.stop > len(every)))
        schedule = Schedule(rows, *counts, resets=np.full(1, piece.start == 0))
        done = self._train(state, schedule, interrupt, keeps=True, capacity=1)
        if done is None:
            return None
        (results, of_last), none = done[1]
        _, step_logs = log_columns((of_last, none), None, 1)
        return Advanced(done[0], *log_columns((results, none), None, 1), step_logs=step_logs)

    def _draw(self, count: int) -> Schedule:
        """Draws into the rows of the last call: it has ended, or it was given up and nobody looks at its results."""
        room, shape = self.programs.room, (self.capacity, self.order.cut.rows)
        schedule = self.order.draw(count, self.capacity, room=room if np.shape(room) == shape else None)
        self.programs.room = schedule.rows
        return schedule

    def _train(
        self, state: State, schedule: Schedule, interrupt: Interrupt, keeps: bool, capacity: int = 0
    ) -> tuple | None:
        capacity = capacity or self.capacity
        program = self.programs.epochs(self.data.cut, None, capacity)
        pace = self.programs.pace("train", capacity, self.data.cut, shapes_of(self.data))
        return self._run(program, pace, state, None, schedule, 1, interrupt, keeps)

    def _until_not_finite(self, state: State, schedule: Schedule, interrupt: Interrupt) -> Advanced | None:
        """Finds the first execution with a loss that is not finite, by halves: such a mean stays so to the end."""
        finite, last = 0, -(-self._batches(schedule) // self.steps_per_execution)
        while True:
            middle = (finite + last) // 2 if finite + 1 < last else last
            cut = self._first(schedule, middle * self.steps_per_execution)
            done = self._train(state, cut, interrupt, keeps=True)
            if done is None:
                return None
            trained = Advanced(done[0], *log_columns(done[1], None, 1), middle * self.steps_per_execution - 1)
            if finite + 1 >= last:
                return trained
            finite, last = (middle, last) if np.isfinite(trained.logs["loss"]) else (finite, middle)

    def _batches(self, schedule: Schedule) -> int:
        if schedule.full is None or schedule.partial is None:
            return self.data.cut.full + bool(self.data.cut.partial)
        return int(schedule.full[0] + schedule.partial[0])

    def _is_short(self, pace: Pace, count: int) -> bool:
        """Says whether the call is of one epoch that is known to be over in less than a moment."""
        seconds = pace.seconds_per_epoch
        return count == 1 and seconds is not None and seconds < engine.CALL_SECONDS / 2

    def _run(
        self,
        program: Any,
        pace: Pace,
        state: State,
        validation: Any,
        schedule: Schedule,
        count: int,
        interrupt: Interrupt,
        keeps: bool = False,
    ) -> tuple | None:
        """Runs a call and returns state and logs, or None if it was given up."""
        # A call of one epoch may be longer than a moment; given up, it costs that unfinished epoch. Where it is known
        # to be short it is waited for, and may use up the state that it is given.
        is_short = self._is_short(pace, count)
        spends = is_short and not keeps and self.programs.spends and are_distinct(state)
        start = time.perf_counter()
        call = program(state, self.data.training.batch, validation, schedule, count, spends=spends)
        results = None
        try:
            results = self.programs.wait(call, interrupt if count == 1 and not is_short else None)
        finally:
            if spends and results is None:  # a signal handler of somebody else's raised: what was given is gone
                for old, left in zip(state, call[0], strict=True):
                    old[:] = left
                self.programs.room = None  # the call may still read it
        if results is not None:
            pace.record(count, time.perf_counter() - start)
        return results

    def validates_at(self, epoch: int) -> bool:
        """Says whether there are validation data, and whether it is their turn."""
        return self.data.validation is not None and keras_internals.validates_at(epoch, self.recipe.validation_freq)

    def validate(self, state: State, epoch: int, interrupt: Interrupt) -> Advanced | None:
        """Runs one pass over the validation data."""
        if self.data.validation is None or self.data.validation_cut is None:
            raise RuntimeError("There are no validation data: ask `validates_at` first.")
        program = self.programs.validation(self.data.validation_cut)
        results = self.programs.wait(program(state, self.data.validation.batch, 1), interrupt)
        if results is None:
            return None
        logs = jax.tree.map(lambda log: np.asarray(log)[None], results[1])
        return Advanced(results[0], *log_columns((logs, {}), None, 1))

    def _first(self, schedule: Schedule, batches: int) -> Schedule:
        """Returns the first batches of the epoch only."""
        cut = self.data.cut
        full = np.full(self.capacity, cut.full, np.int32) if schedule.full is None else schedule.full
        partial = np.full(self.capacity, bool(cut.partial)) if schedule.partial is None else schedule.partial
        partial = np.where(full < batches, partial, 0).astype(np.int32)
        return schedule._replace(full=np.minimum(full, batches), partial=partial)


def are_distinct(state: State) -> bool:
    """Says whether no array stands in two places: after EMA, or by a callback, one may, and is not used up twice."""
    arrays = [id(array) for part in state for array in part]
    return len(set(arrays)) == len(arrays)


@contextmanager
def restored_generator(is_short: bool = False) -> Iterator[list]:
    """Leaves NumPy's generator as it was unless the block puts a result into the list that it gets.

    A short call is never given up, and to ask the generator for its state would be a tenth of it.
    """
    kept: list = []
    if is_short:
        yield kept
        return
    before = np.random.get_state()
    try:
        yield kept
    finally:
        if not any(part is not None for part in kept):
            np.random.set_state(before)


def validation_epochs(data: Inputs, recipe: Recipe, epochs: range, capacity: int) -> np.ndarray | None:
    """Returns which epochs validate, padded to `capacity`, or None when all do or there is nothing to validate on."""
    if data.validation is None or recipe.validation_freq == 1:
        return None
    validates = np.zeros(capacity, bool)
    validates[: len(epochs)] = [keras_internals.validates_at(epoch, recipe.validation_freq) for epoch in epochs]
    return validates


def log_columns(logs: Any, validates: np.ndarray | None, count: int) -> tuple[dict[str, list], dict]:
    """Turns the logs of a call into Python numbers: a list per name, and the logs of the last epoch.

    Names are sorted as Keras sorts them. The lists of validation metrics hold the epochs that validated only.
    """
    training, validation = logs
    if count == 1 and validates is None:  # between callbacks: an epoch takes little longer than this function
        named = training | {f"val_{name}": log for name, log in validation.items()}
        values = {name: np.asarray(named[name])[0] for name in sorted(named)}
        last = {name: value if value.ndim else value.item() for name, value in values.items()}
        return {name: [value] for name, value in last.items()}, last
    every = np.ones(count, bool)
    validates = every if validates is None else validates[:count]
    columns, last = {}, {}
    parts = [("", training, every), ("val_", validation, validates)]
    named = {prefix + name: (log, ran) for prefix, part, ran in parts for name, log in part.items()}
    for name, (log, ran) in sorted(named.items()):
        values = np.asarray(log)[:count][ran]
        columns[name] = values.tolist() if values.ndim == 1 else list(values)
        if ran[-1]:
            last[name] = columns[name][-1]
    return {name: values for name, values in columns.items() if values}, last
