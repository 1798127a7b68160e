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
from kohort.cohort_callbacks import Guide, Listeners, guide_of
from kohort.data import BatchOrder, Inputs, Recipe
from kohort.engine import Pace, Schedule, State
from kohort.epochs import validation_epochs
from kohort.generators import MemberGenerators
from kohort.history import CohortHistory
from kohort.lanes import BLOCK_STEP, Block, Lanes, Packing, widths
from kohort.programs import shapes_of
from kohort.progress import Interrupt, Progress, held_interrupt
from kohort.rules import Course, Guidance, end_training
from kohort.template import Template, preserved_generators

# The most members that one call trains together.
WIDEST_BLOCK = 256
# All blocks advance together by about this long, so that an interrupt leaves every member at the same epoch; where
# members may stop, by less.
ROUND_SECONDS, STOPPING_ROUND_SECONDS, MOST_STOPPING_ROUNDS = 0.4, 0.1, 25
# To move members costs a copy of their states, so it has to save at least this share of what is left.
LEAST_SAVING = 0.1


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

    def __init__(
        self, members: Members, data: Inputs, recipe: Recipe, verbose: Any, listeners: Listeners, callbacks: list
    ) -> None:
        """Builds what the data need built; nothing is trained yet."""
        self.members, self.data, self.recipe, self.listeners = members, data, recipe, listeners
        if members.trained is None:
            members.template = members.template.built_for(data)
        self.programs, network = members.template.programs, members.template.network
        self.guide = self._guided_by(callbacks, network)
        steps = network.steps_per_execution
        # A plain order is drawn anew each epoch; Keras's own iterator also remembers where in the data it is.
        first = BatchOrder(data.training.rows, recipe, steps)
        others = members.seeds[1:] if not first.is_plain else ()
        self.orders = [first, *(BatchOrder(data.training.rows, recipe, steps) for _ in others)]
        # To rounding, the order within a batch does not count: what it draws from the generators stays owed.
        blind = not members.exact and keras_parts.is_blind_to_row_order(network)
        self.is_order_seen = not (blind and first.is_one_batch)
        self.capacity = engine.capacity(first.row_bytes * len(members.blocks[0]) if self.is_order_seen else 0)
        cuts, is_block = (data.cut, data.validation_cut, self.capacity), not members.exact
        rules = self.guide.rules
        self.program = self.programs.guided(*cuts, rules, is_block) if rules else self.programs.epochs(*cuts, is_block)
        # Programs of another form are traced anew.
        form = (first.carries_rows and self.is_order_seen, recipe.validation_freq == 1, bool(self.guide.schedulers))
        self.form = (self.program, form, shapes_of(data))
        self.pace = self._pace(len(members.blocks), len(members.blocks[0]))
        self.progress = Progress(recipe.epochs, verbose)

    def _guided_by(self, callbacks: list, network: Any) -> Guide:
        if not callbacks:
            return Guide()
        logged = self.programs.logged(self.data, keras_internals.read_state(network))
        scalars = [name for name, log in logged.items() if log.shape == ()]
        return guide_of(callbacks, network, keras_parts.places_of_rules(network), scalars)

    def _pace(self, blocks: int, width: int) -> Pace:
        """Returns the measured pace of rounds of so many blocks."""
        return self.programs.pace(*self.form, blocks, width)

    def _first_call(self, width: int) -> Pace:
        """Returns what the first round with blocks of this width took, most of it to compile, if there was one."""
        return self.programs.pace(*self.form, "first", width)

    def train(self) -> CohortHistory:
        """Runs all epochs; every finished round is kept, whatever happens in a later one."""
        members, epoch, tell = self.members, self.recipe.initial_epoch, self.listeners.tell
        trained = members.trained._replace(history=members.no_history()) if members.trained else self._begin()
        if self.is_order_seen:
            _ = trained.generators.states  # what is owed is drawn now, where Ctrl-C is heard
        self.lanes = Lanes(members.blocks, trained.states, len(members.seeds), self.guide.rules)
        workers = min(cores(), len(members.blocks))
        with concurrent.futures.ThreadPoolExecutor(workers) as executor, held_interrupt() as interrupt:
            tell(interrupt, "on_train_begin")
            while epoch < self.recipe.epochs and self.lanes.goes_on.any() and not interrupt:
                count = self._round_epochs(epoch)
                tell(interrupt, "on_epoch_begin", epoch)
                further = self._round(trained, range(epoch, epoch + count), executor, interrupt)
                if further is None:
                    break
                trained = members.trained = further
                epoch += count
                self.progress.update(epoch - count, count, medians(trained.history))
                tell(interrupt, "on_epoch_end", epoch - 1, self._last_logs(trained.history))
                if self.listeners.stop:
                    trained = trained._replace(history=stopped(trained.history, self.lanes.goes_on))
                    break
            self.progress.finish()
            if not interrupt:
                trained = trained._replace(states=[self._ended(*carry) for carry in self.lanes.carries()])
            members.trained = trained
            if not interrupt:
                tell(interrupt, "on_train_end", self._last_logs(trained.history))
        return trained.history

    def _ended(self, state: State, course: Course) -> State:
        """Returns the state of a block as a fit leaves it: with averages, or the weights of the best epoch."""
        return end_training(self.guide.rules, course, self.members.template.finalized(state, not self.members.exact))

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
        # Where members may stop, a round is shorter, as they keep their lanes to its end, but not so short that a fit
        # has too many; and Keras's own iterator cannot go back to where a member has stopped.
        may_stop = self.guide.may_stop
        is_single = self.progress.is_per_epoch or self.guide.is_per_epoch or bool(self.listeners)
        is_single |= may_stop and not self.orders[0].is_plain
        remaining = 1 if is_single else self.recipe.epochs - epoch
        count = self.pace.epochs(remaining, self.capacity, ROUND_SECONDS)
        if may_stop:
            share = (self.recipe.epochs - self.recipe.initial_epoch) // MOST_STOPPING_ROUNDS
            count = min(count, max(share, self.pace.epochs(remaining, self.capacity, STOPPING_ROUND_SECONDS)))
        # Many blocks cost time by themselves: a second epoch tells it apart, unless an epoch is long in any case.
        share = self.pace.seconds_per_epoch
        return min(2, remaining, self.capacity) if count == 1 and share and share < 5 * ROUND_SECONDS else count

    def _round(
        self, trained: Trained, epochs: range, executor: concurrent.futures.Executor, interrupt: Interrupt
    ) -> Trained | None:
        """Advances every block by the same epochs; returns None if a round of one epoch was interrupted."""
        start, lanes = time.perf_counter(), self.lanes
        generators = trained.generators.like() if self.is_order_seen else trained.generators
        validates = validation_epochs(self.data, self.recipe, epochs, self.capacity)
        rates = self._rates(epochs, interrupt)

        def advance(block: Block, rates: Any) -> tuple | None:
            schedule = self._schedule(trained.generators, block, len(epochs), generators)
            return self._call(block, schedule._replace(validates=validates), epochs, rates, interrupt)

        # Blocks take turns where Keras's iterator draws from the one global generator, and in the first round, which
        # traces the network: tracing leaves notes on it.
        first_call = self._first_call(len(lanes.blocks[0].members))
        is_traced = first_call.seconds_per_epoch is not None
        each = executor.map if is_traced and self.orders[0].is_plain else map
        results = list(each(advance, lanes.blocks, rates))
        if any(result is None for result in results):
            return None
        seconds = time.perf_counter() - start
        self.pace.record(len(epochs), seconds)
        if not is_traced:
            first_call.record(1, seconds)
        carries, logs = zip(*results, strict=True)
        columns = lanes.scatter(list(logs), len(epochs))
        ran = lanes.advance(list(carries))
        history = extended(trained.history, epochs[: ran.max()], columns, validates, ran, lanes.goes_on)
        generators = self._generators_after(trained.generators, generators, len(epochs), ran)
        further = Trained([state for state, _ in lanes.carries()], generators, history)
        self._make_room(self.recipe.epochs - epochs.stop)
        return further

    def _schedule(self, generators: MemberGenerators, block: Block, count: int, after: MemberGenerators) -> Schedule:
        """Draws the batch orders of a block; the padding repeats the last member, who has stopped draws nothing."""
        if not self.is_order_seen:
            return Schedule()
        schedules, own = [], block.members[: block.own].tolist()
        rows = self.orders[0].room(len(block.members), self.capacity)
        for member, its_rows in zip(own, rows, strict=False):
            if self.lanes.goes_on[member]:
                with self._generator(generators, member, after.states) as generator:
                    schedules.append(self._order(member).draw(count, self.capacity, generator, its_rows))
        rows[len(own) :, :count] = rows[len(own) - 1, :count]
        first = schedules[0]
        return first if first.rows is None or self.members.exact else first._replace(rows=rows)

    def _generators_after(
        self, before: MemberGenerators, drawn: MemberGenerators, count: int, ran: np.ndarray
    ) -> MemberGenerators:
        """Returns the generators after a round, in which each member `ran` of `count` epochs and drew no more."""
        is_short = ran < count
        if not self.is_order_seen:
            return drawn.owing(self.data.cut.rows, ran if is_short.any() else count)
        room = self.orders[0].room(self.capacity) if self.orders[0].carries_rows else None
        for member in np.flatnonzero(is_short).tolist():
            with self._generator(before, member, drawn.states) as generator:
                if ran[member]:  # entering alone has put back what the round drew
                    self._order(member).draw(int(ran[member]), self.capacity, generator, room)
        return drawn

    def _rates(self, epochs: range, interrupt: Interrupt) -> list:
        """Returns the learning rates (lane, epoch) that schedules set in each block; None where there are none."""
        blocks, goes_on = self.lanes.blocks, self.lanes.goes_on
        place = self.guide.places.rate
        if not self.guide.schedulers or place is None:
            return [None] * len(blocks)
        rates = [np.atleast_1d(block.carry[0].optimizer_variables[place]) for block in blocks]
        now, is_on = np.concatenate(rates), np.concatenate([goes_on[block.members] for block in blocks])
        told = np.zeros((len(now), self.capacity), now.dtype)
        with interrupt.opened():
            told[is_on, : len(epochs)] = self.guide.rates(epochs, now[is_on])
        return [each[0] if self.members.exact else each for each in np.split(told, len(blocks))]

    def _call(self, block: Block, schedule: Schedule, epochs: range, rates: Any, interrupt: Interrupt) -> tuple | None:
        count, (state, course) = len(epochs), block.carry
        data = self.data.training.batch, self.data.validation.batch if self.data.validation else None
        if self.guide.rules:
            guidance = Guidance(epochs.start, self.guide.numbers, rates)
            carry, logs = self.program((state, course), *data, schedule, count, guidance)
        else:
            state, logs = self.program(state, *data, schedule, count)
            carry = state, course._replace(epochs=course.epochs + count)
        finished = engine.wait(logs, interrupt) if count == 1 else jax.block_until_ready(logs)
        return (carry, logs) if finished else None

    def _make_room(self, remaining: int) -> None:
        """Lets members that have stopped leave their lanes, and moves the others together where that pays."""
        lanes, going = self.lanes, int(self.lanes.goes_on.sum())
        if not all(lanes.goes_on[block.members].any() for block in lanes.blocks):
            lanes.drop()
        if self.members.exact or not remaining or not lanes.blocks:
            return
        stay = Packing(len(lanes.blocks), len(lanes.blocks[0].members))
        costs = {Packing(-(-going // width), width): 0.0 for width in widths(stay.width)} | {stay: 0.0}
        for packing in costs:
            costs[packing] = remaining * self._seconds(packing, stay)
            if self._first_call(packing.width).seconds_per_epoch is None:
                costs[packing] += self._first_call(stay.width).seconds_per_epoch or 0.0
        best = min(costs, key=costs.__getitem__)
        if costs[best] < (1 - LEAST_SAVING) * costs[stay]:
            seconds = self._seconds(best, stay)
            lanes.move(best.width)
            self.pace = self._pace(*best)
            if self.pace.seconds_per_epoch is None and self._first_call(best.width).seconds_per_epoch is not None:
                self.pace.seconds_per_epoch = seconds

    def _seconds(self, packing: Packing, now: Packing) -> float:
        """Returns what an epoch takes in blocks packed so: as it was measured once, or by what it takes now."""
        known = self._pace(*packing).seconds_per_epoch
        if known is not None:
            return known
        # Half of a call's time is taken to depend on its width: the smaller a network, the less does.
        share = packing.turns(cores()) / now.turns(cores()) * (1 + packing.width / now.width) / 2
        return share * (self.pace.seconds_per_epoch or 0.0)

    def _last_logs(self, history: CohortHistory) -> dict[str, np.ndarray]:
        """Returns what the last epoch logged of all members: name to array (member,)."""
        if not history.epoch:
            return {}
        validated = self.data.validation and keras_internals.validates_at(
            history.epoch[-1], self.recipe.validation_freq
        )
        return {name: history[name][:, -1] for name in history if validated or not name.startswith("val_")}


def extended(
    history: CohortHistory,
    epochs: range,
    logs: tuple,
    validates: np.ndarray | None,
    ran: np.ndarray,
    goes_on: np.ndarray,
) -> CohortHistory:
    """Returns the history with the logs `(training, validation)` of more epochs; NaN where there was no validation.

    Each member `ran` so many of them; it was stopped if it does not go on, and has NaN from there on.
    """
    count = len(epochs)
    is_over = np.arange(count) >= ran[:, None]
    training, validation = ({name: values[:, :count] for name, values in part.items()} for part in logs)
    new = training | {f"val_{name}": values for name, values in validation.items()}
    for name, values in new.items():
        values[is_over] = np.nan
        if name not in training and validates is not None:
            values[:, ~validates[:count]] = np.nan
    metrics = {
        name: np.concatenate([history[name], values], axis=1) if name in history else values
        for name, values in sorted(new.items())
    }
    stopped_epoch = np.where(~goes_on & (ran > 0), epochs.start + ran - 1, history.stopped_epoch)
    return CohortHistory(metrics, history.seeds, [*history.epoch, *epochs], stopped_epoch)


def stopped(history: CohortHistory, goes_on: np.ndarray) -> CohortHistory:
    """Returns the history of members that are all stopped after its last epoch."""
    stopped_epoch = np.where(goes_on, history.epoch[-1], history.stopped_epoch)
    return CohortHistory(history.history, history.seeds, history.epoch, stopped_epoch)


def medians(history: CohortHistory) -> dict[str, float]:
    """Returns the median over members of each metric's last recorded value; members that diverged do not count."""
    last = {name: history.last(name) for name in history}
    finite = {name: values[np.isfinite(values)] for name, values in last.items() if values.ndim == 1}
    return {name: float(np.median(values)) for name, values in finite.items() if values.size}
