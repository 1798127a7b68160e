"""One fit of a cohort's members: all blocks advance together, round by round.

In come members, checked data and a recipe; out go the members' trained states, generators and history. The room exists
because members may go through the data in different ways, and may stop at different epochs, in one and the same fit.
"""

import concurrent.futures
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from kohort import engine, keras_internals, keras_parts
from kohort.cohort_callbacks import Guide, Listeners, guide_of
from kohort.data import BatchOrder, Inputs, Recipe, Samples, inputs_of_share
from kohort.engine import Pace, Schedule, State
from kohort.epochs import validation_epochs
from kohort.folds import Shares
from kohort.generators import MemberGenerators
from kohort.history import CohortHistory
from kohort.lanes import Block, Lanes, Packing, widths
from kohort.members import Members, Trained, cores
from kohort.programs import shapes_of
from kohort.progress import Interrupt, Progress, held_interrupt
from kohort.rules import Course, Guidance, end_training
from kohort.template import Template, preserved_generators

# All blocks advance together by about this long, so that an interrupt leaves every member at the same epoch; where
# members may stop, by less.
ROUND_SECONDS, STOPPING_ROUND_SECONDS, MOST_STOPPING_ROUNDS = 0.4, 0.1, 25
# To move members costs a copy of their states, so it has to save at least this share of what is left.
LEAST_SAVING = 0.1


class Lot(NamedTuple):
    """Members that go through the data alike: made from one template, with shares of the data of one size.

    Within a lot, members have numbers from 0 on, as those of `Lanes`.
    """

    members: Int[np.ndarray, " member"]  # their numbers in the cohort
    places: list[int]  # of their blocks among those of the cohort
    template: Template
    data: Inputs
    guide: Guide
    program: Callable
    orders: list[BatchOrder]  # one for all where a plain order is drawn anew each epoch, else one for each member

    def order(self, member: int) -> BatchOrder:
        """Returns what draws the batch order of a member."""
        return self.orders[member if len(self.orders) > 1 else 0]


class Rounds:
    """One fit of the members."""

    def __init__(
        self,
        members: Members,
        data: Inputs,
        recipe: Recipe,
        verbose: Any,
        listeners: Listeners,
        callbacks: list,
        shares: Shares | None = None,
    ) -> None:
        """Builds what the data need built; nothing is trained yet."""
        self.members, self.data, self.recipe, self.listeners = members, data, recipe, listeners
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
        self.lots = self._lots(callbacks)
        self.guide = self.lots[0].guide  # those of other lots differ in places only
        self._order = np.argsort(np.concatenate([lot.members for lot in self.lots]))
        # Programs of another form are traced anew.
        is_scheduled, carries_rows = bool(self.guide.schedulers), first.carries_rows and self.is_order_seen
        form = (carries_rows, recipe.validation_freq == 1, self.has_own_rows, is_scheduled)
        self.form = (tuple(lot.program for lot in self.lots), form, shapes_of(data))
        self.progress = Progress(recipe.epochs, verbose)

    def _lots(self, callbacks: list) -> list[Lot]:
        places: dict[Any, list[int]] = {}
        for place, block in enumerate(self.members.blocks):
            places.setdefault((block.lot, self.shares.sizes(block.members[0])), []).append(place)
        return [self._lot(of_lot, callbacks) for of_lot in places.values()]

    def _lot(self, places: list[int], callbacks: list) -> Lot:
        blocks = [self.members.blocks[place] for place in places]
        members, template = [m for block in blocks for m in block.members], self.members.template(blocks[0])
        data, steps, is_block = self.data, self.network.steps_per_execution, not self.members.exact
        training, validation = self.shares.sizes(members[0])
        if training is not None:
            data = inputs_of_share(data, training, validation, self.recipe, steps)
        guide, cuts = guided_by(callbacks, template, data), (data.cut, data.validation_cut, self.capacity)
        own = None if self.shares.weights is None else (None, None, 0)
        axes = own, own if validation is not None else None
        if guide.rules:
            program = template.programs.guided(*cuts, guide.rules, is_block, own=axes)
        else:
            program = template.programs.epochs(*cuts, members=is_block, own=axes)
        # A plain order is drawn anew each epoch; Keras's own iterator also remembers where in the data it is.
        count, rows = 1 if self.is_plain else len(members), training or data.training.rows
        orders = [BatchOrder(rows, self.recipe, steps) for _ in range(count)]
        return Lot(np.array(members), places, template, data, guide, program, orders)

    def _pace(self, packings: tuple[Packing, ...]) -> Pace:
        """Returns the measured pace of rounds of blocks packed so, lot by lot."""
        return self.members.templates[0].programs.pace(*self.form, packings)

    def _first_call(self, lot: int, width: int) -> Pace:
        """Returns what the first round with blocks of this width took, most of it to compile, if there was one."""
        return self.members.templates[0].programs.pace(*self.form, "first", lot, width)

    def train(self) -> CohortHistory:
        """Runs all epochs; every finished round is kept, whatever happens in a later one."""
        members, epoch, tell = self.members, self.recipe.initial_epoch, self.listeners.tell
        trained = members.trained._replace(history=members.no_history()) if members.trained else self._begin()
        if self.is_order_seen:
            _ = trained.generators.states  # what is owed is drawn now, where Ctrl-C is heard
        self.lanes = [self._lanes(lot, trained) for lot in self.lots]
        self.pace = self._pace(self._packings())
        workers = min(cores(), len(members.blocks))
        with concurrent.futures.ThreadPoolExecutor(workers) as executor, held_interrupt() as interrupt:
            tell(interrupt, "on_train_begin")
            while epoch < self.recipe.epochs and self.goes_on.any() and not interrupt:
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
                    trained = trained._replace(history=stopped(trained.history, self.goes_on))
                    break
            self.progress.finish()
            if not interrupt:
                trained = trained._replace(states=self._in_blocks(self._ended))
            members.trained = trained
            if not interrupt:
                tell(interrupt, "on_train_end", self._last_logs(trained.history))
        return trained.history

    def _lanes(self, lot: Lot, trained: Trained) -> Lanes:
        width = self.members.blocks[lot.places[0]].width
        home = [range(i * width, (i + 1) * width) for i in range(len(lot.places))]
        return Lanes(home, [trained.states[place] for place in lot.places], len(lot.members), lot.guide.rules)

    @property
    def goes_on(self) -> np.ndarray:
        """Whether each member still trains."""
        return self._joined([lanes.goes_on for lanes in self.lanes])

    def _joined(self, of_lots: list[np.ndarray]) -> np.ndarray:
        """Joins arrays of all lots along their leading axis, in the order of the members."""
        return of_lots[0] if len(of_lots) == 1 else np.concatenate(of_lots)[self._order]

    def _in_blocks(self, of_carry: Callable[[Lot, State, Course], State]) -> list[State]:
        """Returns what the function makes of the members, as they now are in the cohort's own blocks."""
        made = {}
        for lot, lanes in zip(self.lots, self.lanes, strict=True):
            made |= {p: of_carry(lot, *carry) for p, carry in zip(lot.places, lanes.carries(), strict=True)}
        return [made[place] for place in range(len(made))]

    def _ended(self, lot: Lot, state: State, course: Course) -> State:
        """Returns the state of a block as a fit leaves it: with averages, or the weights of the best epoch."""
        return end_training(lot.guide.rules, course, lot.template.finalized(state, not self.members.exact))

    def _begin(self) -> Trained:
        """Returns the members as they begin, with the batch read that Keras reads to build losses and metrics."""
        trained = self.members.begin()
        if keras_internals.fresh_fit_reads_a_batch(self.network):
            if not self.is_order_seen:
                return trained._replace(generators=trained.generators.owing(self.data.cut.rows, 1))
            for lot in self.lots:
                for number, member in enumerate(lot.members.tolist()):
                    with self._generator(trained.generators, member, trained.generators.states) as generator:
                        lot.order(number).read_a_batch(generator)
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
        # Where members may stop, a round is shorter, as they keep their lanes to its end, but not so short that a fit
        # has too many; and Keras's own iterator cannot go back to where a member has stopped.
        may_stop = self.guide.may_stop
        is_single = self.progress.is_per_epoch or self.guide.is_per_epoch or bool(self.listeners)
        is_single |= may_stop and not self.is_plain
        remaining = 1 if is_single else self.recipe.epochs - epoch
        count = self.pace.epochs(remaining, self.capacity, ROUND_SECONDS)
        if may_stop:
            share = (self.recipe.epochs - self.recipe.initial_epoch) // MOST_STOPPING_ROUNDS
            count = min(count, max(share, self.pace.epochs(remaining, self.capacity, STOPPING_ROUND_SECONDS)))
        # Many blocks cost time by themselves: a second epoch tells it apart, unless an epoch is long in any case.
        share = self.pace.seconds_per_epoch
        return min(2, remaining, self.capacity) if count == 1 and share and share < 5 * ROUND_SECONDS else count

    def _blocks(self) -> list[tuple[int, Block]]:
        """Returns the number of the lot and the block, of all blocks in which members still train."""
        return [(number, block) for number, lanes in enumerate(self.lanes) for block in lanes.blocks]

    def _round(
        self, trained: Trained, epochs: range, executor: concurrent.futures.Executor, interrupt: Interrupt
    ) -> Trained | None:
        """Advances every block by the same epochs; returns None if a round of one epoch was interrupted."""
        start, blocks = time.perf_counter(), self._blocks()
        generators = trained.generators.like() if self.is_order_seen else trained.generators
        validates = validation_epochs(self.lots[0].data, self.recipe, epochs, self.capacity)
        rates = self._rates(epochs, interrupt)

        def advance(placed: tuple[int, Block], rates: Any) -> tuple | None:
            schedule = self._schedule(*placed, trained.generators, len(epochs), generators)
            lot, block = self.lots[placed[0]], placed[1]
            return self._call(lot, block, schedule._replace(validates=validates), epochs, rates, interrupt)

        # Blocks take turns where Keras's iterator draws from the one global generator, and in the first round, which
        # traces the network: tracing leaves notes on it.
        first_calls = [self._first_call(lot, len(block.members)) for lot, block in blocks]
        untraced = {id(call): call for call in first_calls if call.seconds_per_epoch is None}
        each = executor.map if not untraced and self.is_plain else map
        results = list(each(advance, blocks, rates))
        if any(result is None for result in results):
            return None
        seconds = time.perf_counter() - start
        self.pace.record(len(epochs), seconds)
        for call in untraced.values():
            call.record(1, seconds)
        further = self._taken(trained, epochs, results, validates, generators)
        self._make_room(self.recipe.epochs - epochs.stop)
        return further

    def _taken(
        self,
        trained: Trained,
        epochs: range,
        results: list,
        validates: np.ndarray | None,
        drawn: MemberGenerators,
    ) -> Trained:
        """Takes what a round made of all blocks, and returns how far the members then are."""
        rest = iter(results)
        of_lots = [[next(rest) for _ in lanes.blocks] for lanes in self.lanes]
        columns = self._columns([[logs for _, logs in own] for own in of_lots], len(epochs))
        pairs = zip(self.lanes, of_lots, strict=True)
        ran = self._joined([lanes.advance([carry for carry, _ in own]) for lanes, own in pairs])
        history = extended(trained.history, epochs[: ran.max()], columns, validates, ran, self.goes_on)
        generators = self._generators_after(trained.generators, drawn, len(epochs), ran)
        return Trained(self._in_blocks(lambda lot, state, course: state), generators, history)

    def _columns(self, logs: list[list], epochs: int) -> Any:
        """Returns the logs of the blocks of all lots with a leading axis member; NaN where a member has none."""
        pairs = list(zip(self.lanes, logs, strict=True))
        known = [lanes.scatter(own, epochs) if own else None for lanes, own in pairs]
        like = next(columns for columns in known if columns is not None)

        def none(members: int) -> Any:
            return jax.tree.map(lambda a: np.full((members, *a.shape[1:]), np.nan, a.dtype), like)

        counts = [len(lot.members) for lot in self.lots]
        all_columns = [none(count) if own is None else own for count, own in zip(counts, known, strict=True)]
        return jax.tree.map(lambda *parts: self._joined(list(parts)), *all_columns)

    def _schedule(
        self, number: int, block: Block, generators: MemberGenerators, count: int, after: MemberGenerators
    ) -> Schedule:
        """Draws the batch orders of a block; the padding repeats the last member, who has stopped draws nothing."""
        if not self.is_order_seen:
            return Schedule()
        lot, goes_on = self.lots[number], self.lanes[number].goes_on
        schedules, own = [], block.members[: block.own].tolist()
        rows = engine.room((len(block.members), self.capacity, lot.orders[0].cut.rows), self.row_type)
        for of_lot, its_rows in zip(own, rows, strict=False):
            if goes_on[of_lot]:
                with self._generator(generators, int(lot.members[of_lot]), after.states) as generator:
                    schedules.append(self._draw(lot, of_lot, count, generator, its_rows))
        rows[len(own) :, :count] = rows[len(own) - 1, :count]
        first = schedules[0]
        rows = first.rows if first.rows is None or self.members.exact else rows
        return first._replace(rows=rows, validation_rows=self._validation_rows(lot, block))

    def _draw(self, lot: Lot, number: int, count: int, generator: Any, room: np.ndarray) -> Schedule:
        """Draws the batch orders of a member, as numbers of rows of the data that all members share."""
        order = lot.order(number)
        if self.shares.training is None:
            return order.draw(count, self.capacity, generator, room)
        schedule, own = order.draw(count, self.capacity, generator), self.shares.training[lot.members[number]]
        room[:count] = own if schedule.rows is None else own[schedule.rows[:count]]
        return schedule._replace(rows=room)

    def _validation_rows(self, lot: Lot, block: Block) -> np.ndarray | None:
        if self.shares.validation is None:
            return None
        rows = np.stack([self.shares.validation[member] for member in lot.members[block.members]])
        rows = rows.astype(self.row_type)
        return rows[0] if self.members.exact else rows

    def _generators_after(
        self, before: MemberGenerators, drawn: MemberGenerators, count: int, ran: np.ndarray
    ) -> MemberGenerators:
        """Returns the generators after a round, in which each member `ran` of `count` epochs and drew no more."""
        is_short = ran < count
        if not self.is_order_seen:
            return drawn.owing(self.data.cut.rows, ran if is_short.any() else count)
        for lot in self.lots:
            room = lot.orders[0].room(self.capacity) if lot.orders[0].carries_rows else None
            for number in np.flatnonzero(is_short[lot.members]).tolist():
                member = int(lot.members[number])
                with self._generator(before, member, drawn.states) as generator:
                    if ran[member]:  # entering alone has put back what the round drew
                        lot.order(number).draw(int(ran[member]), self.capacity, generator, room)
        return drawn

    def _rates(self, epochs: range, interrupt: Interrupt) -> list:
        """Returns the learning rates (lane, epoch) that schedules set in each block; None where there are none."""
        blocks = self._blocks()
        if not self.guide.schedulers:
            return [None] * len(blocks)
        rates = [self.lots[number].guide.current_rates(block.carry[0]) for number, block in blocks]
        now = np.concatenate(rates)
        is_on = np.concatenate([self.lanes[number].goes_on[block.members] for number, block in blocks])
        told = np.zeros((len(now), self.capacity), now.dtype)
        with interrupt.opened():
            told[is_on, : len(epochs)] = self.guide.rates(epochs, now[is_on])
        parts = np.split(told, np.cumsum([len(each) for each in rates])[:-1])
        return [part[0] if self.members.exact else part for part in parts]

    def _batch(self, lot: Lot, block: Block, samples: Samples | None) -> Any:
        """Returns samples that all members share, with the weights of those of a block where they have their own."""
        if samples is None or self.shares.weights is None:
            return samples and samples.batch
        weights = self.shares.weights[lot.members[block.members]]
        return (*samples.batch[:2], weights[0] if self.members.exact else weights)

    def _call(
        self, lot: Lot, block: Block, schedule: Schedule, epochs: range, rates: Any, interrupt: Interrupt
    ) -> tuple | None:
        count, (state, course) = len(epochs), block.carry
        is_own = self.shares.validation is not None  # else it comes with weights of its own, or without
        validation = lot.data.validation
        validating = self._batch(lot, block, validation) if is_own else validation and validation.batch
        data = self._batch(lot, block, lot.data.training), validating
        if lot.guide.rules:
            guidance = Guidance(epochs.start, lot.guide.numbers, rates)
            carry, logs = lot.program((state, course), *data, schedule, count, guidance)
        else:
            state, logs = lot.program(state, *data, schedule, count)
            carry = state, course._replace(epochs=course.epochs + count)
        finished = engine.wait(logs, interrupt) if count == 1 else jax.block_until_ready(logs)
        return (carry, logs) if finished else None

    def _make_room(self, remaining: int) -> None:
        """Lets members that have stopped leave their lanes, and moves the others together where that pays."""
        for lanes in self.lanes:
            if not all(lanes.goes_on[block.members].any() for block in lanes.blocks):
                lanes.drop()
        if self.members.exact or not remaining:
            return
        for number, lanes in enumerate(self.lanes):
            if lanes.blocks:
                self._repack(number, remaining)

    def _repack(self, number: int, remaining: int) -> None:
        """Moves the members of a lot together where that pays."""
        lanes, now = self.lanes[number], self._packings()
        stay, going = now[number], int(lanes.goes_on.sum())

        def with_lot(packing: Packing) -> tuple[Packing, ...]:
            return (*now[:number], packing, *now[number + 1 :])

        costs = {Packing(-(-going // width), width): 0.0 for width in widths(stay.width)} | {stay: 0.0}
        for packing in costs:
            costs[packing] = remaining * self._seconds(with_lot(packing), now)
            if self._first_call(number, packing.width).seconds_per_epoch is None:
                costs[packing] += self._first_call(number, stay.width).seconds_per_epoch or 0.0
        best = min(costs, key=costs.__getitem__)
        if costs[best] < (1 - LEAST_SAVING) * costs[stay]:
            seconds = self._seconds(with_lot(best), now)
            lanes.move(best.width)
            self.pace = self._pace(with_lot(best))
            is_traced = self._first_call(number, best.width).seconds_per_epoch is not None
            if self.pace.seconds_per_epoch is None and is_traced:
                self.pace.seconds_per_epoch = seconds

    def _packings(self) -> tuple[Packing, ...]:
        """Returns how the members of each lot are packed."""
        blocks = [lanes.blocks for lanes in self.lanes]
        return tuple(Packing(len(own), len(own[0].members) if own else 0) for own in blocks)

    def _seconds(self, packings: tuple[Packing, ...], now: tuple[Packing, ...]) -> float:
        """Returns what an epoch takes in blocks packed so: as it was measured once, or by what it takes now."""
        known = self._pace(packings).seconds_per_epoch
        if known is not None:
            return known
        # Half of a call's time is taken to depend on its width: the smaller a network, the less does.
        pairs = [(p.turns(cores()), p.width / n.width) for p, n in zip(packings, now, strict=True) if n.blocks]
        share = sum(turns * (1 + width) / 2 for turns, width in pairs) / sum(n.turns(cores()) for n in now)
        return share * (self.pace.seconds_per_epoch or 0.0)

    def _last_logs(self, history: CohortHistory) -> dict[str, np.ndarray]:
        """Returns what the last epoch logged of all members: name to array (member,)."""
        if not history.epoch:
            return {}
        validated = self.lots[0].data.validation and keras_internals.validates_at(
            history.epoch[-1], self.recipe.validation_freq
        )
        return {name: history[name][:, -1] for name in history if validated or not name.startswith("val_")}


def guided_by(callbacks: list, template: Template, data: Inputs) -> Guide:
    """Returns what the callbacks come to for members that are made from this template."""
    if not callbacks:
        return Guide()
    network = template.network
    logged = template.programs.logged(data, keras_internals.read_state(network))
    scalars = [name for name, log in logged.items() if log.shape == ()]
    return guide_of(callbacks, network, keras_parts.places_of_rules(network), scalars)


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
