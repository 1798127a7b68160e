"""Members that go through the data alike, and what a call trains of them.

In come a fit's data, folds and callbacks; out come lots, each with a program, and the arguments of its calls: batch
orders, weights, learning rates. The room exists because members of one fit may differ in how many rows they train on.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from kohort import engine, keras_internals, keras_parts
from kohort.cohort_callbacks import Guide, guide_of
from kohort.data import BatchOrder, Inputs, Recipe, Samples, inputs_of_share
from kohort.engine import Schedule, State
from kohort.epochs import validation_epochs
from kohort.folds import Shares
from kohort.generators import MemberGenerators
from kohort.lanes import Block
from kohort.mapping import spread
from kohort.members import Members
from kohort.progress import Interrupt
from kohort.rules import Course, Guidance, end_training
from kohort.template import Template, preserved_generators


class Ahead:
    """What a fit knows before it trains: the data, how members go through them, and how much a call carries."""

    def __init__(self, members: Members, data: Inputs, recipe: Recipe, shares: Shares) -> None:
        """Looks at the data; nothing is drawn yet."""
        network = members.templates[0].network
        self.data, self.recipe, self.shares, self.exact = data, recipe, shares, members.exact
        self.steps_per_execution = network.steps_per_execution
        first = BatchOrder(data.training.rows, recipe, self.steps_per_execution)
        self.is_plain, self.has_own_rows = first.is_plain, shares.training is not None
        # To rounding, the order within a batch does not count: what it draws from the generators stays owed.
        blind = not members.exact and keras_parts.is_blind_to_row_order(network)
        self.is_order_seen = self.has_own_rows or not (blind and first.is_one_batch)
        self.carries_rows = first.carries_rows and self.is_order_seen
        self.row_type = first.row_type
        self._row_bytes = first.row_bytes if not self.has_own_rows else first.cut.rows * first.row_type.itemsize

    def capacity(self, width: int, turns: int, memory: int | None) -> int:
        """Returns the most epochs of a call.

        Each call makes and moves logs for so many, however few it runs: where a core takes many turns, one block after
        the other, each runs few. Two turns have the room of one: to wait for each other once more costs more than that.
        Few numbers are possible, as each is a program of its own.

        Args:
            width: Of the widest block, whose row numbers take a part of the memory.
            turns: How many blocks each core takes.
            memory: The most bytes to take.
        """
        row_bytes = self._row_bytes * width if self.is_order_seen else 0
        most = engine.capacity(row_bytes, min(engine.MAX_ROW_BYTES, (memory or engine.MAX_ROW_BYTES * 16) // 16))
        return max(1, min(most, engine.MAX_EPOCHS >> min(4, ((turns - 1) // 2).bit_length())))


class Lot:
    """Members that go through the data alike: made from one template, with shares of the data of one size.

    Within a lot, members have numbers from 0 on, as those of `Lanes`.
    """

    def __init__(self, members: Members, places: list[int], ahead: Ahead, callbacks: list, capacity: int) -> None:
        """Finds out what the callbacks mean to these members.

        Args:
            members: All members of the cohort.
            places: Of the lot's blocks among those of the cohort.
            ahead: What the fit knows.
            callbacks: Of `check_cohort_callbacks`.
            capacity: The most epochs of a call.
        """
        blocks = [members.blocks[place] for place in places]
        self.members = np.array([member for block in blocks for member in block.members])  # numbers in the cohort
        self.places, self.template, self.ahead = places, members.template(blocks[0]), ahead
        training, self._validating = ahead.shares.sizes(int(self.members[0]))
        self.data = ahead.data
        if training is not None:
            steps = ahead.steps_per_execution
            self.data = inputs_of_share(self.data, training, self._validating, ahead.recipe, steps)
        self.guide, self.capacity = guided_by(callbacks, self.template, self.data), capacity
        weights = None if ahead.shares.weights is None else (None, None, 0)
        self._own = weights, weights if self._validating is not None else None
        # A plain order is drawn anew each epoch; Keras's own iterator also remembers where in the data it is.
        count, rows = 1 if ahead.is_plain else len(self.members), training or self.data.training.rows
        self._orders = [BatchOrder(rows, ahead.recipe, ahead.steps_per_execution) for _ in range(count)]
        self._rooms: list[np.ndarray] = []  # for row numbers, which no call reads any more: new memory costs time

    def program(self, mapping: str | None) -> Any:
        """Returns the training program with the members mapped so; None: each by itself."""
        cuts, programs = (self.data.cut, self.data.validation_cut, self.capacity), self.template.programs
        if self.guide.rules:
            return programs.guided(*cuts, self.guide.rules, mapping=mapping, own=self._own)
        return programs.epochs(*cuts, mapping=mapping, own=self._own)

    def _generators(self, generators: MemberGenerators, numbers: Any, states: np.ndarray) -> Iterator[Any]:
        """Gives the members' generators, each of which stands in for `np.random`: Keras's iterator draws from that."""
        for generator in generators.each(self.members[numbers].tolist(), states):
            with preserved_generators():
                np.random.set_state(generator.get_state())
                yield np.random
                generator.set_state(np.random.get_state())

    def _order(self, number: int) -> BatchOrder:
        return self._orders[number if len(self._orders) > 1 else 0]

    def read_a_batch(self, generators: MemberGenerators) -> None:
        """Draws what Keras draws to build losses and metrics."""
        numbers = np.arange(len(self.members))
        if self.ahead.is_plain:
            self._shuffle(numbers, 1, generators, generators, self._orders[0].room(1, 1), 0)
            return
        each = self._generators(generators, numbers, generators.states)
        for number, generator in zip(numbers.tolist(), each, strict=True):
            self._order(number).read_a_batch(generator)

    def schedule(
        self, block: Block, goes_on: np.ndarray, count: int, before: MemberGenerators, after: MemberGenerators
    ) -> Schedule:
        """Draws the batch orders of a block; the padding repeats the last member, who has stopped draws nothing."""
        if not self.ahead.is_order_seen:
            return Schedule()
        rows, lanes = self._room(len(block.members)), np.flatnonzero(goes_on[block.members[: block.own]])
        schedule = self._draw(block.members[lanes], lanes, count, before, after, rows)
        rows[block.own :, :count] = rows[block.own - 1, :count]
        if self.ahead.carries_rows or self.ahead.has_own_rows:
            schedule = schedule._replace(rows=rows[0] if self.ahead.exact else rows)
        return schedule._replace(validation_rows=self._validation_rows(block))

    def _draw(
        self,
        numbers: Int[np.ndarray, " some"],
        lanes: Int[np.ndarray, " some"],
        count: int,
        before: MemberGenerators,
        after: MemberGenerators,
        rows: np.ndarray,
    ) -> Schedule:
        """Draws batch orders of members into the lanes of `rows`, as numbers of rows of the data that all share."""
        schedule, shares = Schedule(), self.ahead.shares.training
        if self.ahead.is_plain:
            self._shuffle(numbers, count, before, after, rows, lanes)
        else:
            each = self._generators(before, numbers, after.states)
            for number, generator, its_rows in zip(numbers.tolist(), each, map(rows.__getitem__, lanes), strict=True):
                schedule = self._order(number).draw(count, self.capacity, generator, its_rows)
        if shares is not None:
            is_shuffled = self._orders[0].carries_rows
            for lane, member in zip(lanes, self.members[numbers], strict=True):
                own, its_rows = shares[member], rows[lane, :count]
                its_rows[:] = own[its_rows] if is_shuffled else own
        return schedule

    def _shuffle(
        self,
        numbers: Int[np.ndarray, " some"],
        counts: Any,
        before: MemberGenerators,
        after: MemberGenerators,
        room: np.ndarray,
        places: Any,
    ) -> None:
        """Draws plain orders, `counts` of each member: see `MemberGenerators.draw`."""
        members = self.members[numbers]
        if self._orders[0].shuffle:
            before.draw(after, members, counts, room, places)
        else:
            after.states[members] = before.states[members]

    def blank_arguments(self, state: State, width: int, count: int = 1) -> tuple:
        """Returns arguments of the form that calls for blocks of this width have; nothing is drawn for them."""
        axes = () if self.ahead.exact else (width,)
        block = Block(np.zeros(width, int), 1, (state, Course.begin(self.guide.rules, axes, state)))
        is_told = self.ahead.carries_rows or self.ahead.has_own_rows
        schedule = Schedule(self._room(width) if is_told else None, validation_rows=self._validation_rows(block))
        if not self.ahead.is_plain:
            cut = self.data.cut
            full, partial = (np.full(self.capacity, batches, np.int32) for batches in (cut.full, bool(cut.partial)))
            schedule = schedule._replace(full=full, partial=partial)
        epochs = range(self.ahead.recipe.initial_epoch, self.ahead.recipe.initial_epoch + count)
        schedule = schedule._replace(validates=self.validates(epochs))
        rates = np.zeros((width, self.capacity), np.float32) if self.guide.schedulers else None
        if self.ahead.exact:
            rows = None if schedule.rows is None else schedule.rows[0]
            schedule, rates = schedule._replace(rows=rows), None if rates is None else rates[0]
        return self.arguments(block, schedule, epochs, rates)

    def validates(self, epochs: range) -> np.ndarray | None:
        """Returns which of the epochs validate, with room for all of a call; None: all."""
        return validation_epochs(self.data, self.ahead.recipe, epochs, self.capacity)

    def _room(self, members: int) -> np.ndarray:
        shape = members, self.capacity, self._orders[0].cut.rows
        try:
            room = self._rooms.pop()  # or another thread was faster
        except IndexError:
            room = np.empty(0)
        return room if room.shape == shape else engine.room(shape, self.ahead.row_type)

    def take_back(self, schedule: Schedule) -> None:
        """Takes the room of a schedule whose call has ended."""
        if schedule.rows is not None:
            rows = np.asarray(schedule.rows)
            self._rooms.append(rows[None] if self.ahead.exact else rows)

    def _validation_rows(self, block: Block) -> np.ndarray | None:
        if self.ahead.shares.validation is None:
            return None
        rows = np.stack([self.ahead.shares.validation[member] for member in self.members[block.members]])
        rows = rows.astype(self.ahead.row_type)
        return rows[0] if self.ahead.exact else rows

    def draw_again(
        self, block: Block, before: MemberGenerators, after: MemberGenerators, ran: np.ndarray, count: int
    ) -> None:
        """Puts back what was drawn for epochs, of `count`, that members of a block, who `ran` others, have not run."""
        short = np.flatnonzero(ran < count)
        if not short.size:
            return
        numbers, room = block.members[short], self._orders[0].room(1, self.capacity)
        if self.ahead.is_plain:
            self._shuffle(numbers, ran[short], before, after, room, 0)
            return
        each = self._generators(before, numbers, after.states)
        for number, generator, epochs in zip(numbers.tolist(), each, ran[short].tolist(), strict=True):
            if epochs:  # being given its generator alone has put back what the round drew
                self._order(number).draw(epochs, self.capacity, generator, room[0])

    def arguments(self, block: Block, schedule: Schedule, epochs: range, rates: Any) -> tuple:
        """Returns what a call of the program takes."""
        (state, course), validation = block.carry, self.data.validation
        # Validation samples of a member's own come with its weights; those of all with weights of their own, or none.
        is_own = self.ahead.shares.validation is not None
        validating = self._batch(block, validation) if is_own else validation and validation.batch
        data = self._batch(block, self.data.training), validating
        if not self.guide.rules:
            return state, *data, schedule, len(epochs)
        return (state, course), *data, schedule, len(epochs), Guidance(epochs.start, self.guide.numbers, rates)

    def _batch(self, block: Block, samples: Samples | None) -> Any:
        """Returns samples that all members share, with the weights of those of a block where they have their own."""
        if samples is None or self.ahead.shares.weights is None:
            return samples and samples.batch
        weights = self.ahead.shares.weights[self.members[block.members]]
        return (*samples.batch[:2], weights[0] if self.ahead.exact else weights)

    def call(self, mapping: str | None, block: Block, arguments: tuple, interrupt: Interrupt) -> tuple | None:
        """Returns what is carried on after a call, and its logs; None if a call of one epoch was interrupted."""
        count = arguments[4]
        carry, logs = self.program(mapping)(*(spread(arguments, self._own) if mapping == "sharded" else arguments))
        if not self.guide.rules:
            course = block.carry[1]
            carry = carry, course._replace(epochs=course.epochs + count)
        finished = engine.wait(logs, interrupt) if count == 1 else jax.block_until_ready(logs)
        return (carry, logs) if finished else None

    def ended(self, state: State, course: Course) -> State:
        """Returns the state of a block as a fit leaves it: with averages, or the weights of the best epoch."""
        return end_training(self.guide.rules, course, self.template.finalized(state, not self.ahead.exact))


def guided_by(callbacks: list, template: Template, data: Inputs) -> Guide:
    """Returns what the callbacks come to for members that are made from this template."""
    if not callbacks:
        return Guide()
    network = template.network
    logged = template.programs.logged(data, keras_internals.read_state(network))
    scalars = [name for name, log in logged.items() if log.shape == ()]
    return guide_of(callbacks, network, keras_parts.places_of_rules(network), scalars)
