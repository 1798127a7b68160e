"""The members of a cohort as arrays, and one fit of them.

In come a template, seeds and checked data; out go the members' trained states, generators and history. The room exists
so that `Cohort` can speak to people while this one cuts members into blocks and advances all blocks together.
"""

import concurrent.futures
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from kohort import engine, keras_internals, keras_parts
from kohort.data import BatchOrder, Inputs, Recipe
from kohort.engine import Pace, Schedule, State
from kohort.epochs import validation_epochs
from kohort.generators import MemberGenerators
from kohort.history import CohortHistory
from kohort.programs import shapes_of
from kohort.progress import Interrupt, Progress, held_interrupt
from kohort.template import Template, preserved_generators

# Members that one call trains together. Results are the same bits for all widths that are multiples of 8.
BLOCK_STEP, WIDEST_BLOCK = 8, 256
# All blocks advance together by about this long, so that an interrupt leaves every member at the same epoch.
ROUND_SECONDS = 0.4


class Trained(NamedTuple):
    """What training leaves: the state of each block, the members' generators and the history of the last fit."""

    states: list[State]
    generators: MemberGenerators
    history: CohortHistory


class Members:
    """The members of one cohort: who they are, how they are cut into blocks, and how far they are trained."""

    def __init__(self, template: Template, seeds: tuple[int, ...], exact: bool) -> None:
        """Cuts the members into blocks; nothing is computed yet."""
        self.template, self.seeds, self.exact = template, seeds, exact
        self.blocks = [range(i, i + 1) for i in range(len(seeds))] if exact else cut_into_blocks(len(seeds))
        self.trained: Trained | None = None

    def need_training(self, asked: str) -> Trained:
        """Returns the trained members, or raises that they are asked too early."""
        if self.trained is None:
            raise RuntimeError(
                f"`cohort.{asked}` must come after `cohort.fit`. Received: a cohort that is not trained. "
                "Call `cohort.fit(x, y, epochs=...)` first."
            )
        return self.trained

    def join(self, results: list) -> Any:
        """Joins the results of all blocks along the member axis and drops the padding."""

        def joined(*parts: Any) -> np.ndarray:
            arrays = [np.asarray(part) for part in parts]
            return np.stack(arrays) if self.exact else np.concatenate(arrays)[: len(self.seeds)]

        return jax.tree.map(joined, *results)

    def cut(self, state: State) -> list[State]:
        """Cuts the states of all members, leading axis member, into those of the blocks: the inverse of `join`."""
        if self.exact:
            return unstacked(state)
        width = len(self.blocks[0])
        padding = self.blocks[-1].stop - len(self.seeds)

        def padded(array: Any) -> np.ndarray:
            return np.concatenate([array, np.repeat(array[-1:], padding, axis=0)])

        def block_of(start: int) -> State:
            return jax.tree.map(lambda a: a[start : start + width], whole)

        whole = jax.tree.map(padded, state)
        return [block_of(block.start) for block in self.blocks]

    def state(self, trained: Trained, member: int) -> State:
        """Returns the state of one trained member."""
        width = len(self.blocks[0])
        block = trained.states[member // width]
        return block if self.exact else jax.tree.map(lambda a: a[member % width], block)

    def begin(self) -> Trained:
        """Returns the state that the members' seeds begin with, and an empty history."""
        # Also with `exact`, initial states are computed for several members at once: they are bit for bit Keras's.
        blocks = cut_into_blocks(len(self.seeds))
        seeds = [*self.seeds, *[self.seeds[-1]] * (blocks[-1].stop - len(self.seeds))]
        states = [self.template.initial(tuple(seeds[block.start : block.stop])) for block in blocks]
        if self.exact:
            states = [lane for state in states for lane in unstacked(state)][: len(self.seeds)]
        return Trained(states, MemberGenerators(self.seeds), self.no_history())

    def no_history(self) -> CohortHistory:
        """Returns the history of no epochs."""
        return CohortHistory({}, list(self.seeds), [])


def unstacked(state: State) -> list[State]:
    """Returns the states of the members of a block, one by one."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, state))
    return [jax.tree.unflatten(structure, lane) for lane in zip(*leaves, strict=True)]


def cores() -> int:
    """Returns how many blocks can be trained at once: one per CPU core of this process, one on another device."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cut_into_blocks(members: int) -> list[range]:
    """Cuts members into blocks of one width, enough of them to occupy all cores; the last may reach beyond the end."""
    fewest = -(-members // WIDEST_BLOCK)
    blocks = min(-(-fewest // cores()) * cores(), -(-members // BLOCK_STEP))
    width = -(-members // (blocks * BLOCK_STEP)) * BLOCK_STEP
    return [range(start, start + width) for start in range(0, members, width)]


class Rounds:
    """One fit of the members: all blocks advance together, round by round."""

    def __init__(self, members: Members, data: Inputs, recipe: Recipe, verbose: Any) -> None:
        """Builds what the data need built; nothing is trained yet."""
        self.members, self.data, self.recipe = members, data, recipe
        if members.trained is None:
            members.template = members.template.built_for(data)
        template = members.template
        steps = template.network.steps_per_execution
        # A plain order is drawn anew each epoch; Keras's own iterator also remembers where in the data it is.
        first = BatchOrder(data.training.rows, recipe, steps)
        others = members.seeds[1:] if not first.is_plain else ()
        self.orders = [first, *(BatchOrder(data.training.rows, recipe, steps) for _ in others)]
        # To rounding, the order within a batch does not count: what it draws from the generators stays owed.
        blind = not members.exact and keras_parts.is_blind_to_row_order(template.network)
        self.is_order_seen = not (blind and first.is_one_batch)
        self.capacity = engine.capacity(first.row_bytes * len(members.blocks[0]) if self.is_order_seen else 0)
        self.program = template.programs.epochs(data.cut, data.validation_cut, self.capacity, members=not members.exact)
        form = (
            first.carries_rows and self.is_order_seen,
            recipe.validation_freq == 1,
        )  # programs of another form are traced anew
        self.pace: Pace = template.programs.pace(self.program, form, shapes_of(data), len(members.seeds))
        self.progress = Progress(recipe.epochs, verbose)

    def train(self) -> CohortHistory:
        """Runs all epochs; every finished round is kept, whatever happens in a later one."""
        members, epoch = self.members, self.recipe.initial_epoch
        trained = members.trained._replace(history=members.no_history()) if members.trained else self._begin()
        if self.is_order_seen:
            _ = trained.generators.states  # what is owed is drawn now, where Ctrl-C is heard
        workers = min(cores(), len(members.blocks))
        with concurrent.futures.ThreadPoolExecutor(workers) as executor, held_interrupt() as interrupt:
            while epoch < self.recipe.epochs and not interrupt:
                count = self._round_epochs(epoch)
                further = self._round(trained, range(epoch, epoch + count), executor, interrupt)
                if further is None:
                    break
                trained = members.trained = further
                epoch += count
                self.progress.update(epoch - count, count, medians(trained.history))
            self.progress.finish()
            if not interrupt:
                finalized = members.template.finalized
                trained = trained._replace(states=[finalized(state, not members.exact) for state in trained.states])
        members.trained = trained
        return trained.history

    def _begin(self) -> Trained:
        """Returns the members as they begin, with the batch read that Keras reads to build losses and metrics."""
        trained = self.members.begin()
        if keras_internals.fresh_fit_reads_a_batch(self.members.template.network):
            if not self.is_order_seen:
                return trained._replace(generators=trained.generators.owing(self.data.cut.rows, 1))
            for member in range(len(self.members.seeds)):
                with self._generator(trained.generators, member, trained.generators.states) as generator:
                    self._order(member).read_a_batch(generator)
        return trained

    def _order(self, member: int) -> BatchOrder:
        return self.orders[member if len(self.orders) > 1 else 0]

    @contextmanager
    def _generator(self, generators: MemberGenerators, member: int, states: np.ndarray) -> Iterator[Any]:
        """Gives the member's generator; where Keras's iterator draws the order, it stands in for `np.random`."""
        with generators.of(member, states) as generator:
            if self.orders[0].is_plain:
                yield generator
                return
            with preserved_generators():
                np.random.set_state(generator.get_state())
                yield np.random
                generator.set_state(np.random.get_state())

    def _round_epochs(self, epoch: int) -> int:
        remaining = 1 if self.progress.is_per_epoch else self.recipe.epochs - epoch
        count = self.pace.epochs(remaining, self.capacity, ROUND_SECONDS)
        # Many blocks cost time by themselves: a second epoch tells it apart, unless an epoch is long in any case.
        share = self.pace.seconds_per_epoch
        return min(2, remaining, self.capacity) if count == 1 and share and share < 5 * ROUND_SECONDS else count

    def _round(
        self, trained: Trained, epochs: range, executor: concurrent.futures.Executor, interrupt: Interrupt
    ) -> Trained | None:
        """Advances every block by the same epochs; returns None if a round of one epoch was interrupted."""
        start = time.perf_counter()
        owing = trained.generators.owing
        generators = trained.generators.like() if self.is_order_seen else owing(self.data.cut.rows, len(epochs))
        validates = validation_epochs(self.data, self.recipe, epochs, self.capacity)

        def advance(block: range, state: State) -> tuple | None:
            schedule = self._schedule(trained.generators, block, len(epochs), generators)
            return self._call(state, schedule._replace(validates=validates), len(epochs), interrupt)

        # Blocks take turns where Keras's iterator draws from the one global generator, and in the first round, which
        # traces the network: tracing leaves notes on it.
        is_traced = self.pace.seconds_per_epoch is not None
        each = executor.map if is_traced and self.orders[0].is_plain else map
        results = list(each(advance, self.members.blocks, trained.states))
        if any(result is None for result in results):
            return None
        self.pace.record(len(epochs), time.perf_counter() - start)
        states, logs = zip(*results, strict=True)
        history = extended(trained.history, epochs, self.members.join(list(logs)), validates)
        return Trained(list(states), generators, history)

    def _schedule(self, generators: MemberGenerators, block: range, count: int, after: MemberGenerators) -> Schedule:
        """Draws the batch orders of a block; the padding repeats the last member."""
        if not self.is_order_seen:
            return Schedule()
        schedules, own = [], block[: len(self.members.seeds) - block.start]
        rows = self.orders[0].room(len(block), self.capacity)
        for member, its_rows in zip(own, rows, strict=False):
            with self._generator(generators, member, after.states) as generator:
                schedules.append(self._order(member).draw(count, self.capacity, generator, its_rows))
        rows[len(own) :, :count] = rows[len(own) - 1, :count]
        first = schedules[0]
        return first if first.rows is None or self.members.exact else first._replace(rows=rows)

    def _call(self, state: State, schedule: Schedule, count: int, interrupt: Interrupt) -> tuple | None:
        validation = self.data.validation.batch if self.data.validation else None
        state, logs = self.program(state, self.data.training.batch, validation, schedule, count)
        finished = engine.wait(logs, interrupt) if count == 1 else jax.block_until_ready(logs)
        return (state, logs) if finished else None


def extended(history: CohortHistory, epochs: range, logs: tuple, validates: np.ndarray | None) -> CohortHistory:
    """Returns the history with the logs `(training, validation)` of more epochs; NaN where there was no validation."""
    training, validation = logs
    new = {name: values[:, : len(epochs)] for name, values in training.items()}
    for name, values in validation.items():
        new[f"val_{name}"] = values[:, : len(epochs)].copy()
        if validates is not None:
            new[f"val_{name}"][:, ~validates[: len(epochs)]] = np.nan
    metrics = {
        name: np.concatenate([history[name], values], axis=1) if name in history else values
        for name, values in sorted(new.items())
    }
    return CohortHistory(metrics, history.seeds, [*history.epoch, *epochs])


def medians(history: CohortHistory) -> dict[str, float]:
    """Returns the median over members of each metric's last recorded value; members that diverged do not count."""
    last = {name: history.last(name) for name in history}
    finite = {name: values[np.isfinite(values)] for name, values in last.items() if values.ndim == 1}
    return {name: float(np.median(values)) for name, values in finite.items() if values.size}
