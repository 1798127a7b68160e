"""One fit of a cohort's members: all blocks advance together, round by round.

In come members, checked data and a recipe; out go the members' trained states, generators and history. The room exists
because members may stop at different epochs, and an interrupt must leave all of them at the same one.
"""

import concurrent.futures
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kohort import keras_internals
from kohort.choice import Choice
from kohort.cohort_callbacks import Listeners
from kohort.cores import cores, spread_out, threads
from kohort.curves import Curves
from kohort.data import Inputs, Recipe
from kohort.engine import Pace, State
from kohort.folds import Shares
from kohort.generators import MemberGenerators
from kohort.history import CohortHistory
from kohort.lanes import Block, Lanes, Packing, parts, widths
from kohort.lots import Ahead, Lot
from kohort.members import Members, Trained
from kohort.programs import shapes_of
from kohort.progress import Interrupt, Progress, held_interrupt
from kohort.rules import Course

# All blocks advance together by about this long, so that an interrupt leaves every member at the same epoch; where
# members may stop, by less.
ROUND_SECONDS, STOPPING_ROUND_SECONDS, MOST_STOPPING_ROUNDS = 0.4, 0.15, 25
# What is left is run in one round where that is so many times as long at most: to wait for each other once more costs.
LONGEST_ROUND = 2
# Calls that have no room in memory are cut to an eighth.
SHORTER = 3
# By then all blocks of a round have begun, each in a thread of XLA's.
BEGUN_SECONDS = 0.003
# To move members costs a copy of their states, so it has to save at least this share of what is left.
LEAST_SAVING = 0.1
# The mappings are measured where what is left takes so many times as long as it took to compile the first of them; each
# then runs for about so long.
WORTH_MEASURING, MEASURING_SECONDS = 10, 0.1


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
        """Builds what the data need built; nothing is compiled or trained yet."""
        self.members, self.recipe, self.listeners = members, recipe, listeners
        self._shortened = 0  # how often calls were made shorter, as memory has no room for more epochs
        with members.tracing:
            if members.trained is None:
                members.templates = [template.built_for(data) for template in members.templates]
            self.ahead = Ahead(members, data, recipe, shares or Shares())
            self.choices = [Choice(members, self.ahead, template) for template in members.templates]
            self._widths, self._callbacks = [choice.width for choice in self.choices], callbacks
            members.cut_anew(self._widths)
            self.lots = self._lots(callbacks)
        self._calm_rounds = 0  # the last ones, in which next to nobody has stopped
        self._is_warm = False  # whether the last round compiled nothing, so that its time tells what an epoch takes
        self.progress = Progress(recipe.epochs, verbose)
        epochs = range(recipe.initial_epoch, recipe.epochs)
        self.curves = Curves(members.seeds, epochs, members.roster.differences, members.settings.memory)

    def prepare(self) -> None:
        """Compiles what the members begin with and how they train, in blocks for which there is room."""
        with self.members.tracing:
            self._prepare()

    def _prepare(self) -> None:
        members, widths = self.members, self._widths
        begun = members.trained._replace(history=members.no_history()) if members.trained else self._begin()
        while (narrower := self._within_memory(begun, widths)) != widths:
            if 0 in narrower:
                self._shortened += 1
            else:
                states = members.cut_anew(widths := narrower, begun.states)
                begun = begun._replace(states=states)
            self.lots = self._lots(self._callbacks)
        self.begun, self.guide = begun, self.lots[0].guide  # those of other lots differ in places only
        self._order = np.argsort(np.concatenate([lot.members for lot in self.lots]))

    def _lots(self, callbacks: list) -> list[Lot]:
        places: dict[Any, list[int]] = {}
        for place, block in enumerate(self.members.blocks):
            places.setdefault((block.lot, self.ahead.shares.sizes(block.members[0])), []).append(place)
        widest = max(block.width for block in self.members.blocks)
        turns = 1 if self.members.exact else -(-len(self.members.blocks) // cores())
        capacity = self.ahead.capacity(widest, turns, self.members.settings.memory)
        self.capacity = max(1, capacity >> SHORTER * self._shortened)
        return [Lot(self.members, of_lot, self.ahead, callbacks, self.capacity) for of_lot in places.values()]

    def _choice(self, lot: Lot) -> Choice:
        return self.choices[self.members.blocks[lot.places[0]].kind]

    def _within_memory(self, begun: Trained, widths: list[int]) -> list[int]:
        """Returns widths of blocks, for each kind of member, for which there is room; 0 if for none, as calls are."""
        narrower = list(widths)
        for lot in self.lots:
            kind = self.members.blocks[lot.places[0]].kind
            if (width := self._choice(lot).within_memory(lot, begun)) is not None:
                narrower[kind] = min(narrower[kind], width)
        return narrower

    def _begin(self) -> Trained:
        """Returns the members as they begin, with the batch read that Keras reads to build losses and metrics."""
        begun = self.members.begin()
        if keras_internals.fresh_fit_reads_a_batch(self.members.templates[0].network):
            if not self.ahead.is_order_seen:
                return begun._replace(generators=begun.generators.owing(self.ahead.data.cut.rows, 1))
            for lot in self.lots:
                lot.read_a_batch(begun.generators)
        return begun

    @property
    def _programs(self) -> list:
        return [lot.program(self._choice(lot).mapping) for lot in self.lots]

    def _known(self, *key: Any) -> Pace:
        """Returns a pace that was measured with such programs and data, in an earlier fit or in this one."""
        is_scheduled = bool(self.guide.schedulers)
        form = self.ahead.carries_rows, self.ahead.recipe.validation_freq == 1, self.ahead.has_own_rows, is_scheduled
        return self.members.templates[0].programs.pace(tuple(self._programs), form, shapes_of(self.ahead.data), *key)

    def _pace(self, packings: tuple[Packing, ...]) -> Pace:
        """Returns the measured pace of rounds of blocks packed so, lot by lot."""
        return self._known(packings)

    def _first_call(self, lot: int, width: int) -> Pace:
        """Returns what the first round with blocks of this width took, most of it to compile, if there was one."""
        return self._known("first", lot, width)

    def train(self) -> CohortHistory:
        """Runs all epochs, after `prepare`; every finished round is kept, whatever happens in a later one."""
        members, epoch, tell, trained = self.members, self.recipe.initial_epoch, self.listeners.tell, self.begun
        if self.ahead.is_order_seen:
            _ = trained.generators.states  # what is owed is drawn now, where Ctrl-C is heard
        self.lanes = [self._lanes(lot, trained) for lot in self.lots]
        self.pace = self._pace(self._packings())
        with held_interrupt() as interrupt:
            members.trained = trained  # as they begin: whoever listens may ask them
            tell(interrupt, "on_train_begin")
            while epoch < self.recipe.epochs and self.goes_on.any() and not interrupt:
                self._measure(self.recipe.epochs - epoch)
                count = self._round_epochs(epoch)
                tell(interrupt, "on_epoch_begin", epoch)
                further = self._round(trained, range(epoch, epoch + count), interrupt)
                if further is None:
                    break
                trained = members.trained = further
                epoch += count
                self.progress.update(epoch - count, count, medians(trained.history) if self.progress.verbose else {})
                tell(interrupt, "on_epoch_end", epoch - 1, self._last_logs(trained.history))
                if self.listeners.stop:
                    trained = trained._replace(history=stopped(trained.history, self.goes_on))
                    break
            self.progress.finish()
            if not interrupt:
                trained = trained._replace(states=self._in_blocks(Lot.ended))
            members.trained = trained
            if not interrupt:
                tell(interrupt, "on_train_end", self._last_logs(trained.history))
        return trained.history

    def _measure(self, remaining: int) -> None:
        """Tries the mappings on one block of each kind, if what is left is long enough; the results are dropped."""
        for number, block in self._blocks():
            choice, per_epoch = self._choice(self.lots[number]), self.pace.seconds_per_epoch
            first = self._first_call(number, len(block.members)).seconds_per_epoch
            if choice.is_settled or not self._is_warm or not first or not per_epoch:
                continue
            if remaining * per_epoch < WORTH_MEASURING * (choice.compiling + first):
                continue
            count = int(MEASURING_SECONDS * len(self._blocks()) / (per_epoch * cores()))
            seconds_of = self._timed(self.lots[number], block, max(1, min(self.capacity, count)))
            choice.measure(seconds_of, len(block.members))
            self.pace = self._pace(self._packings())

    def _timed(self, lot: Lot, block: Block, count: int) -> Callable[[str], float]:
        """Returns what tells the seconds of a call of so many epochs, by its mapping."""
        arguments = lot.blank_arguments(block.carry[0], len(block.members), count)

        def seconds_of(mapping: str) -> float:
            seconds = []
            for _ in range(3):  # the first of which compiles
                start = time.perf_counter()
                lot.call(mapping, block, arguments, Interrupt())
                seconds.append(time.perf_counter() - start)
            return min(seconds)

        return seconds_of

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

    def _round_epochs(self, epoch: int) -> int:
        # Where members may stop, a round is shorter, as they keep their lanes to its end, but not so short that a fit
        # has too many; and Keras's own iterator cannot go back to where a member has stopped.
        may_stop = self.guide.may_stop
        is_single = self.progress.is_per_epoch or self.guide.is_per_epoch or (may_stop and not self.ahead.is_plain)
        remaining = 1 if is_single else self.listeners.epochs_alone(epoch, self.recipe.epochs - epoch)
        count = self.pace.epochs(remaining, self.capacity, ROUND_SECONDS)
        if may_stop:
            share = (self.recipe.epochs - self.recipe.initial_epoch) // MOST_STOPPING_ROUNDS
            seconds = min(ROUND_SECONDS, STOPPING_ROUND_SECONDS * 2**self._calm_rounds)
            count = min(count, max(share, self.pace.epochs(remaining, self.capacity, seconds)))
            if (impatient := self.guide.end_of_patience(self.recipe.initial_epoch)) > epoch:
                remaining = min(remaining, impatient - epoch)  # when the first members leave their lanes
                count = min(count, remaining)
        # Many blocks cost time by themselves: a second epoch tells it apart, unless an epoch is long in any case.
        share = self.pace.seconds_per_epoch
        if count == 1 and share and share < 5 * ROUND_SECONDS:
            return min(2, remaining, self.capacity)
        return remaining if remaining <= min(self.capacity, LONGEST_ROUND * count) else count

    def _blocks(self) -> list[tuple[int, Block]]:
        """Returns the number of the lot and the block, of all blocks in which members still train."""
        return [(number, block) for number, lanes in enumerate(self.lanes) for block in lanes.blocks]

    def _round(self, trained: Trained, epochs: range, interrupt: Interrupt) -> Trained | None:
        """Advances every block by the same epochs; returns None if a round of one epoch was interrupted."""
        blocks = self._blocks()
        self.curves.begin(epochs)
        drawn = trained.generators
        if self.ahead.is_order_seen:
            drawn = trained.generators.like()
            drawn.states[~self.goes_on] = trained.generators.states[~self.goes_on]  # who has stopped draws nothing
        rates = self._rates(epochs, interrupt)

        def advance(place: int, part: range, before: concurrent.futures.Future | None = None) -> Any:
            number, block = blocks[place]
            if before is not None:
                block = block._replace(carry=before.result())
            from_here = trained.generators if part.start == epochs.start else drawn
            carry = self._advance(number, block, from_here, drawn, part, rates[place], interrupt)
            if carry is not None and part.stop == epochs.stop and self.ahead.is_order_seen:
                ran = self.lanes[number].ran(block, carry)
                self.lots[number].draw_again(block, trained.generators, drawn, ran, len(epochs))
            return carry

        def one_by_one() -> list:
            return [advance(place, epochs) for place in range(len(blocks))]

        # Blocks take turns where Keras's iterator draws from the one global generator, and in the first round, which
        # traces the network: tracing leaves notes on it. Another fit of the same model may just be doing that.
        with self.members.tracing:
            start = time.perf_counter()
            first_calls = [self._first_call(lot, len(block.members)) for lot, block in blocks]
            untraced = {id(call): call for call in first_calls if call.seconds_per_epoch is None}
            carries = one_by_one() if untraced else []
        if not untraced:
            is_plain = self.ahead.is_plain
            carries = self._side_by_side(advance, len(blocks), epochs) if is_plain else one_by_one()
        if any(carry is None for carry in carries):
            return None
        seconds = time.perf_counter() - start
        self.pace.record(len(epochs), seconds)
        self._is_warm = not untraced
        for call in untraced.values():
            call.record(1, seconds)
        further = self._taken(trained, epochs, carries, drawn)
        self._make_room(self.recipe.epochs - epochs.stop)
        return further

    def _side_by_side(self, advance: Callable, blocks: int, epochs: range) -> list:
        """Advances the blocks on all cores; returns what each carries on."""
        workers = threads(min(choice.at_once for choice in self.choices))
        every: list[concurrent.futures.Future] = []
        last: dict[int, concurrent.futures.Future] = {}
        # Learning rates that are told begin with those of the round's first epoch.
        order = parts(blocks, epochs, 1 if self.guide.schedulers else cores())
        try:
            for place, part in order:
                last[place] = workers.submit(advance, place, part, last.get(place))
                every.append(last[place])
            if concurrent.futures.wait(every, BEGUN_SECONDS).not_done:
                spread_out()
            return [last[place].result() for place in range(blocks)]
        finally:
            for future in every:
                future.cancel()  # those that wait, where another has failed
            concurrent.futures.wait(every)

    def _advance(
        self,
        number: int,
        block: Block,
        before: MemberGenerators,
        drawn: MemberGenerators,
        epochs: range,
        rates: Any,
        interrupt: Interrupt,
    ) -> Any:
        """Trains a block; its logs go into the curves, what is carried on comes back."""
        lot, lanes, own = self.lots[number], self.lanes[number], block.members[: block.own]
        begun = np.array(np.atleast_1d(block.carry[1].epochs)[: block.own])
        schedule = lot.schedule(block, lanes.goes_on, len(epochs), before, drawn)
        validates = lot.validates(epochs)
        arguments = lot.arguments(block, schedule._replace(validates=validates), epochs, rates)
        result = lot.call(self._choice(lot).mapping, block, arguments, interrupt)
        if result is None:
            return None  # the call may still read its schedule
        lot.take_back(schedule)
        carry, logs = result
        ran = np.atleast_1d(carry[1].epochs)[: block.own] - begun
        logs = logs if lanes.is_stacked else jax.tree.map(lambda log: log[:, None], logs)
        self.curves.put(lot.members[own], epochs, logs, ran, validates)
        return carry

    def _taken(self, trained: Trained, epochs: range, carries: list, drawn: MemberGenerators) -> Trained:
        """Takes what a round made of all blocks, and returns how far the members then are."""
        rest = iter(carries)
        for lot, lanes in zip(self.lots, self.lanes, strict=True):
            self.curves.skip(lot.members[lanes.without_lane()], epochs)
        going = self.goes_on.sum()
        ran = self._joined([lanes.advance([next(rest) for _ in lanes.blocks]) for lanes in self.lanes])
        is_calm = self.goes_on.sum() > (1 - LEAST_SAVING) * going
        self._calm_rounds = self._calm_rounds + 1 if is_calm else 0
        stopped_epoch = np.where(~self.goes_on & (ran > 0), epochs.start + ran - 1, trained.history.stopped_epoch)
        history = self.curves.history(epochs.start + int(ran.max()), stopped_epoch)
        if not self.ahead.is_order_seen:
            is_short = (ran < len(epochs)).any()
            drawn = drawn.owing(self.ahead.data.cut.rows, ran if is_short else len(epochs))
        return Trained(self._in_blocks(lambda lot, state, course: state), drawn, history)

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
        return [part[0] if self.ahead.exact else part for part in parts]

    def _make_room(self, remaining: int) -> None:
        """Lets members that have stopped leave their lanes, and moves the others together where that pays."""
        for lanes in self.lanes:
            if not all(lanes.goes_on[block.members].any() for block in lanes.blocks):
                lanes.drop()
        if self.ahead.exact or not remaining:
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
        return {name: history[name][:, -1].copy() for name in history if validated or not name.startswith("val_")}


def stopped(history: CohortHistory, goes_on: np.ndarray) -> CohortHistory:
    """Returns the history of members that are all stopped after its last epoch."""
    stopped_epoch = np.where(goes_on, history.epoch[-1], history.stopped_epoch)
    return CohortHistory(history.history, history.seeds, history.epoch, stopped_epoch, history.differences)


def medians(history: CohortHistory) -> dict[str, float]:
    """Returns the median over members of each metric's last recorded value; members that diverged do not count."""
    last = {name: history.last(name) for name in history}
    finite = {name: values[np.isfinite(values)] for name, values in last.items() if values.ndim == 1}
    return {name: float(np.median(values)) for name, values in finite.items() if values.size}
