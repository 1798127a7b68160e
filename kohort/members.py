"""The members of a cohort as arrays, and one fit of them.

In come a template, seeds and checked data; out go the members' trained states, generators and history. The room exists
so that `Cohort` can speak to people while this one cuts members into blocks and advances all blocks together.
"""

import concurrent.futures
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import keras
import numpy as np

from kohort import engine, keras_internals, keras_parts
from kohort.checks import received
from kohort.data import BatchOrder, Inputs, Recipe, Samples, inputs_of_share
from kohort.engine import Pace, Schedule, State
from kohort.epochs import validation_epochs
from kohort.folds import Shares, Split
from kohort.generators import MemberGenerators
from kohort.history import CohortHistory
from kohort.programs import shapes_of
from kohort.progress import Interrupt, Progress, held_interrupt
from kohort.roster import Roster
from kohort.template import Template, preserved_generators, template_of
from kohort.vary import kinds_of

# Members that one call trains together. Results are the same bits for all widths that are multiples of 8.
BLOCK_STEP, WIDEST_BLOCK = 8, 256
# All blocks advance together by about this long, so that an interrupt leaves every member at the same epoch.
ROUND_SECONDS = 0.4


class Trained(NamedTuple):
    """What training leaves: the state of each block, the members' generators and the history of the last fit."""

    states: list[State]
    generators: MemberGenerators
    history: CohortHistory


class Block(NamedTuple):
    """Members that one call trains together, by their numbers in the cohort."""

    members: tuple[int, ...]
    width: int  # its lanes; those beyond the members repeat the last of them
    kind: int = 0  # which of the cohort's templates its members are made from

    @property
    def lanes(self) -> tuple[int, ...]:
        """The member of each lane."""
        return (*self.members, *self.members[-1:] * (self.width - len(self.members)))


class Members:
    """The members of one cohort: who they are, how they are cut into blocks, and how far they are trained."""

    def __init__(self, templates: list[Template], roster: Roster, exact: bool, lots: Sequence | None = None) -> None:
        """Cuts the members into blocks; nothing is computed yet.

        Args:
            templates: What members are made from, one for each of the roster's kinds.
            roster: Who the members are.
            exact: Whether each is trained by itself.
            lots: For each member what it must have in common with those of its block, beside the kind.
        """
        self.templates, self.roster, self.exact = templates, roster, exact
        together: dict[Any, list[int]] = {}
        for member, common in enumerate(zip(roster.kinds, lots or roster.kinds, strict=True)):
            together.setdefault(common, []).append(member)
        self.wide_blocks = [block for (kind, _), lot in together.items() for block in cut_into_blocks(lot, kind)]
        singles = {m: Block((m,), 1, block.kind) for block in self.wide_blocks for m in block.members}
        self.blocks = [singles[member] for member in sorted(singles)] if exact else self.wide_blocks
        self._places = {m: (b, lane) for b, block in enumerate(self.blocks) for lane, m in enumerate(block.members)}
        self.trained: Trained | None = None
        self.single: Members | None = None  # of members that stand once for each fold: each of them once

    def crossed_with(self, splits: list[Split]) -> "Members":
        """Returns members of which each stands once for each fold."""
        roster = self.roster.crossed_with_folds(len(splits))
        sizes = [tuple(map(len, split)) for split in splits]
        crossed = Members(self.templates, roster, self.exact, sizes * len(self.seeds))
        crossed.single = self
        return crossed

    def check_folds(self, splits: list[Split] | None, folds: Any) -> None:
        """Raises unless there is a member for each fold, and those of a block have folds of one size."""
        own = self.roster.folds
        if splits is None:
            return
        is_one_each = own is not None and int(own.max()) + 1 == len(splits)
        sizes = [tuple(map(len, splits[fold])) for fold in own] if own is not None and is_one_each else []
        if not sizes or any(len({sizes[member] for member in block.members}) > 1 for block in self.blocks):
            raise ValueError(
                "`folds` must be those of the first fit of a cohort, which made a member for each, of the same sizes. "
                f"Received: {received('folds', folds)}. Make a new cohort for other folds."
            )

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each member."""
        return self.roster.seeds

    def template(self, block: Block) -> Template:
        """Returns what the members of a block are made from."""
        return self.templates[block.kind]

    def join(self, results: list) -> Any:
        """Puts the results of all blocks into arrays with a leading axis member, and drops the padding."""
        order = np.argsort([member for block in self.blocks for member in block.members])

        def joined(*parts: Any) -> np.ndarray:
            arrays = [np.asarray(part) for part in parts]
            if self.exact:
                return np.stack(arrays)
            own = [array[: len(block.members)] for array, block in zip(arrays, self.blocks, strict=True)]
            return np.concatenate(own)[order]

        return jax.tree.map(joined, *results)

    def state(self, trained: Trained, member: int) -> State:
        """Returns the state of one trained member."""
        block, lane = self._places[member]
        return trained.states[block] if self.exact else jax.tree.map(lambda a: a[lane], trained.states[block])

    def network(self, trained: Trained, member: int) -> keras.Model:
        """Returns a compiled model of one trained member."""
        block = self.blocks[self._places[member][0]]
        values = {path: float(column[member]) for path, column in self.roster.varied.items()}
        return self.template(block).member(self.state(trained, member), values)

    def begin(self) -> Trained:
        """Returns the state that the members' seeds begin with, and an empty history."""
        # Also with `exact`, initial states are computed for several members at once: they are bit for bit Keras's.
        states = list(map(self._initial, self.wide_blocks)) if self.single is None else self._initial_of(self.single)
        if self.exact:
            pairs = zip(self.wide_blocks, states, strict=True)
            of_member = {m: lane for b, s in pairs for m, lane in zip(b.lanes, unstacked(s), strict=True)}
            states = [of_member[member] for member in range(len(self.seeds))]
        return Trained(states, MemberGenerators(self.seeds), self.no_history())

    def _initial_of(self, single: "Members") -> list[State]:
        """Returns the states that the blocks begin with: those of one seed begin alike in all folds."""
        folds, places, states = len(self.seeds) // len(single.seeds), {}, {}
        for kind in range(len(self.templates)):
            blocks = [block for block in single.wide_blocks if block.kind == kind]
            states[kind] = jax.tree.map(lambda *parts: np.concatenate(parts), *map(single._initial, blocks))
            places |= {member: place for place, member in enumerate(m for block in blocks for m in block.lanes)}
        lanes = [[places[member // folds] for member in block.lanes] for block in self.wide_blocks]
        pairs = zip(self.wide_blocks, lanes, strict=True)
        return [jax.tree.map(lambda a, own=own: a[own], states[block.kind]) for block, own in pairs]

    def _initial(self, block: Block) -> State:
        lanes = list(block.lanes)
        values = {path: column[lanes] for path, column in self.roster.varied.items()}
        return self.template(block).initial(tuple(self.seeds[member] for member in lanes), values)

    def no_history(self) -> CohortHistory:
        """Returns the history of no epochs."""
        return CohortHistory({}, list(self.seeds), [])


def members_of(model: keras.Model, seeds: tuple[int, ...], varied: dict[str, np.ndarray], exact: bool) -> Members:
    """Returns the members of a model with these seeds and values, each (member,)."""
    kinds, kind_of = kinds_of(model, varied, len(seeds), exact)

    def of_kind(kind: int) -> dict[str, np.ndarray]:
        return {path: values[np.array(kind_of) == kind] for path, values in varied.items()}

    templates = [template_of(model, kind, of_kind(i)) for i, kind in enumerate(kinds)]
    return Members(templates, Roster(seeds, varied, kind_of), exact)


def unstacked(state: State) -> list[State]:
    """Returns the states of the members of a block, one by one."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, state))
    return [jax.tree.unflatten(structure, lane) for lane in zip(*leaves, strict=True)]


def cores() -> int:
    """Returns how many blocks can be trained at once: one per CPU core of this process, one on another device."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cut_into_blocks(members: Sequence[int], kind: int) -> list[Block]:
    """Cuts members into blocks of one width, enough of them to occupy all cores; the last may be wider than it need."""
    fewest = -(-len(members) // WIDEST_BLOCK)
    blocks = min(-(-fewest // cores()) * cores(), -(-len(members) // BLOCK_STEP))
    width = -(-len(members) // (blocks * BLOCK_STEP)) * BLOCK_STEP
    return [Block(tuple(members[i : i + width]), width, kind) for i in range(0, len(members), width)]


class Plan(NamedTuple):
    """How the members of a block go through the data."""

    data: Inputs
    program: Callable
    orders: list[BatchOrder]  # one for all where a plain order is drawn anew each epoch, else one for each member
    rows: int  # that each of its members trains on


class Rounds:
    """One fit of the members: all blocks advance together, round by round."""

    def __init__(
        self, members: Members, data: Inputs, recipe: Recipe, verbose: Any, shares: Shares | None = None
    ) -> None:
        """Builds what the data need built; nothing is trained yet."""
        self.members, self.data, self.recipe = members, data, recipe
        self.shares = shares or Shares()
        if members.trained is None:
            members.templates = [template.built_for(data) for template in members.templates]
        self.network = members.templates[0].network
        first = BatchOrder(data.training.rows, recipe, self.network.steps_per_execution)
        self.is_plain, self.has_own_rows = first.is_plain, self.shares.training is not None
        # To rounding, the order within a batch does not count: what it draws from the generators stays owed.
        blind = not members.exact and keras_parts.is_blind_to_row_order(self.network)
        self.is_order_seen = self.has_own_rows or not (blind and first.is_one_batch)
        widest = max(block.width for block in members.blocks)
        row_bytes = first.row_bytes if not self.has_own_rows else first.cut.rows * first.row_type.itemsize
        self.row_type = first.row_type
        self.capacity = engine.capacity(row_bytes * widest if self.is_order_seen else 0)
        self.plans = self._plans()
        # Programs of another form are traced anew.
        form = (first.carries_rows and self.is_order_seen, recipe.validation_freq == 1, self.has_own_rows)
        programs = tuple(plan.program for plan in self.plans)
        paces = members.templates[0].programs
        self.pace: Pace = paces.pace(programs, form, shapes_of(data), len(members.seeds))
        self.progress = Progress(recipe.epochs, verbose)

    def _plans(self) -> list[Plan]:
        """Returns the plan of each block; blocks that are alike share one."""
        made: dict[Any, Plan] = {}
        keys = [(block.kind, self.shares.sizes(block.members[0])) for block in self.members.blocks]
        for key, block in zip(keys, self.members.blocks, strict=True):
            if key not in made:
                made[key] = self._plan(block)
        return [made[key] for key in keys]

    def _plan(self, block: Block) -> Plan:
        members, data, steps = self.members, self.data, self.network.steps_per_execution
        training, validation = self.shares.sizes(block.members[0])
        if training is not None:
            data = inputs_of_share(data, training, validation, self.recipe, steps)
        own = None if self.shares.weights is None else (None, None, 0)
        cuts = data.cut, data.validation_cut, self.capacity
        axes = own, own if validation is not None else None
        program = members.template(block).programs.epochs(*cuts, members=not members.exact, own=axes)
        # A plain order is drawn anew each epoch; Keras's own iterator also remembers where in the data it is.
        count, rows = 1 if self.is_plain else len(members.seeds), training or data.training.rows
        return Plan(data, program, [BatchOrder(rows, self.recipe, steps) for _ in range(count)], rows)

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
                trained = trained._replace(states=self._finalized(trained))
        members.trained = trained
        return trained.history

    def _finalized(self, trained: Trained) -> list[State]:
        members = self.members
        pairs = zip(members.blocks, trained.states, strict=True)
        return [members.template(block).finalized(state, not members.exact) for block, state in pairs]

    def _begin(self) -> Trained:
        """Returns the members as they begin, with the batch read that Keras reads to build losses and metrics."""
        trained = self.members.begin()
        if keras_internals.fresh_fit_reads_a_batch(self.network):
            if not self.is_order_seen:
                return trained._replace(generators=trained.generators.owing(self.data.cut.rows, 1))
            for block, plan in zip(self.members.blocks, self.plans, strict=True):
                for member in block.members:
                    with self._generator(trained.generators, member, trained.generators.states) as generator:
                        order_of(member, plan).read_a_batch(generator)
        return trained

    @contextmanager
    def _generator(self, generators: MemberGenerators, member: int, states: np.ndarray) -> Iterator[Any]:
        """Gives the member's generator; where Keras's iterator draws the order, it stands in for `np.random`."""
        with generators.of(member, states) as generator:
            if self.is_plain:
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
        validates = validation_epochs(self.plans[0].data, self.recipe, epochs, self.capacity)

        def advance(block: Block, plan: Plan, state: State) -> tuple | None:
            schedule = self._schedule(trained.generators, block, plan, len(epochs), generators)
            return self._call(block, plan, state, schedule._replace(validates=validates), len(epochs), interrupt)

        # Blocks take turns where Keras's iterator draws from the one global generator, and in the first round, which
        # traces the network: tracing leaves notes on it.
        is_traced = self.pace.seconds_per_epoch is not None
        each = executor.map if is_traced and self.is_plain else map
        results = list(each(advance, self.members.blocks, self.plans, trained.states))
        if any(result is None for result in results):
            return None
        self.pace.record(len(epochs), time.perf_counter() - start)
        states, logs = zip(*results, strict=True)
        history = extended(trained.history, epochs, self.members.join(list(logs)), validates)
        return Trained(list(states), generators, history)

    def _schedule(
        self, generators: MemberGenerators, block: Block, plan: Plan, count: int, after: MemberGenerators
    ) -> Schedule:
        """Draws the batch orders of a block; the padding repeats the last member."""
        if not self.is_order_seen:
            return Schedule()
        schedules, own = [], len(block.members)
        rows = engine.room((block.width, self.capacity, plan.orders[0].cut.rows), self.row_type)
        for member, its_rows in zip(block.members, rows, strict=False):
            with self._generator(generators, member, after.states) as generator:
                schedules.append(self._draw(member, plan, count, generator, its_rows))
        rows[own:, :count] = rows[own - 1, :count]
        first = schedules[0]
        rows = first.rows if first.rows is None or self.members.exact else rows
        return first._replace(rows=rows, validation_rows=self._validation_rows(block))

    def _draw(self, member: int, plan: Plan, count: int, generator: Any, room: np.ndarray) -> Schedule:
        """Draws the batch orders of a member, as numbers of rows of the data that all members share."""
        order = order_of(member, plan)
        if self.shares.training is None:
            return order.draw(count, self.capacity, generator, room)
        schedule, own = order.draw(count, self.capacity, generator), self.shares.training[member]
        room[:count] = own if schedule.rows is None else own[schedule.rows[:count]]
        return schedule._replace(rows=room)

    def _validation_rows(self, block: Block) -> np.ndarray | None:
        if self.shares.validation is None:
            return None
        rows = np.stack([self.shares.validation[member] for member in block.lanes]).astype(self.row_type)
        return rows[0] if self.members.exact else rows

    def _batch(self, block: Block, samples: Samples | None) -> Any:
        """Returns samples that all members share, with the weights of those of a block where they have their own."""
        if samples is None or self.shares.weights is None:
            return samples and samples.batch
        weights = self.shares.weights[list(block.lanes)]
        return (*samples.batch[:2], weights[0] if self.members.exact else weights)

    def _call(
        self, block: Block, plan: Plan, state: State, schedule: Schedule, count: int, interrupt: Interrupt
    ) -> tuple | None:
        data, validation = plan.data, plan.data.validation
        is_own = self.shares.validation is not None  # else it comes with weights of its own, or without
        validating = self._batch(block, validation) if is_own else validation and validation.batch
        state, logs = plan.program(state, self._batch(block, data.training), validating, schedule, count)
        finished = engine.wait(logs, interrupt) if count == 1 else jax.block_until_ready(logs)
        return (state, logs) if finished else None


def order_of(member: int, plan: Plan) -> BatchOrder:
    """Returns what draws the batch order of a member."""
    return plan.orders[member if len(plan.orders) > 1 else 0]


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
