"""The members of a cohort as arrays.

In come templates and who the members are; out go the blocks in which members are trained together, the states that
they begin with, and what is known of all of them, in their order. The room exists so that `Cohort` can speak to people
while this one knows where each member is.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
from jaxtyping import Bool

from kohort.checks import received
from kohort.cores import cores
from kohort.engine import State
from kohort.folds import Split
from kohort.generators import MemberGenerators
from kohort.history import CohortHistory
from kohort.lanes import block_step
from kohort.mapping import WIDEST
from kohort.roster import Roster
from kohort.template import Template, preserved_generators, template_of
from kohort.vary import kinds_of


class Trained(NamedTuple):
    """What training leaves: the state of each block, the members' generators and the history of the last fit."""

    states: list[State]
    generators: MemberGenerators
    history: CohortHistory


class Settings(NamedTuple):
    """How a cohort's members are computed, as its user has said."""

    exact: bool = False  # each by itself
    mapping: str = "auto"
    memory: int | None = None  # the most bytes to take


class Block(NamedTuple):
    """Members that one call trains together, by their numbers in the cohort."""

    members: tuple[int, ...]
    width: int  # its lanes; those beyond the members repeat the last of them
    kind: int = 0  # which of the cohort's templates its members are made from
    lot: int = 0  # blocks of one lot are of one width, and all but the last are full

    @property
    def lanes(self) -> tuple[int, ...]:
        """The member of each lane."""
        return (*self.members, *self.members[-1:] * (self.width - len(self.members)))


class Members:
    """The members of one cohort: who they are, how they are cut into blocks, and how far they are trained."""

    def __init__(
        self, templates: list[Template], roster: Roster, settings: Settings, lots: Sequence | None = None
    ) -> None:
        """Cuts the members into blocks; nothing is computed yet.

        Args:
            templates: What members are made from, one for each of the roster's kinds.
            roster: Who the members are.
            settings: How they are computed.
            lots: For each member what it must have in common with those of its block, beside the kind.
        """
        self.templates, self.roster, self.settings, self.exact = templates, roster, settings, settings.exact
        self._lots = _alike(roster.kinds, lots)
        self.trained: Trained | None = None
        self.single: Members | None = None  # of members that stand once for each fold: each of them once
        self.fold_sizes: list[tuple[int, ...]] = []  # likewise: how many rows each fold trains and validates on
        self._take(self._cut([WIDEST] * len(templates)))

    @property
    def tracing(self) -> Any:
        """The lock that a fit holds while it builds or traces networks of the model: others may be of the same."""
        return self.templates[0].tracing

    def _cut(self, widths: list[int]) -> list[Block]:
        return [b for i, (kind, lot) in enumerate(self._lots) for b in cut_into_blocks(lot, kind, i, widths[kind])]

    def _take(self, wide_blocks: list[Block]) -> None:
        self.wide_blocks = self.blocks = wide_blocks
        if self.exact:
            singles = {m: block._replace(members=(m,), width=1) for block in wide_blocks for m in block.members}
            self.blocks = [singles[member] for member in sorted(singles)]
        self.__dict__.pop("_places", None)

    @functools.cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        """The number of the block and the lane of each member: found when somebody asks for one of many thousands."""
        return {m: (b, lane) for b, block in enumerate(self.blocks) for lane, m in enumerate(block.members)}

    def cut_anew(self, widths: list[int], states: list[State] | None = None) -> list[State] | None:
        """Cuts the members of each kind into blocks of at most so many, also those that are trained.

        Returns:
            Other states of the members, given for the blocks as they were, for the blocks as they now are.
        """
        before, blocks = self.blocks, self._cut(widths)
        if blocks == self.wide_blocks:
            return states
        self._take(blocks)
        if self.exact:
            return states
        if self.trained is not None:
            self.trained = self.trained._replace(states=self._moved(before, self.trained.states))
        return None if states is None else self._moved(before, states)

    def _moved(self, before: list[Block], states: list[State]) -> list[State]:
        """Returns the states of the blocks as they now are, given those of the blocks before."""
        moved = {}
        for kind in range(len(self.templates)):  # states of one kind have one structure
            pairs = [pair for pair in zip(before, states, strict=True) if pair[0].kind == kind]
            counts, parts = [len(block.members) for block, _ in pairs], [state for _, state in pairs]
            joined = jax.tree.map(
                lambda *arrays, counts=counts: np.concatenate(
                    [np.asarray(array)[:count] for array, count in zip(arrays, counts, strict=True)]
                ),
                *parts,
            )
            places = {member: place for place, member in enumerate(m for block, _ in pairs for m in block.members)}
            for number, block in enumerate(self.blocks):
                if block.kind == kind:
                    lanes = [places[member] for member in block.lanes]
                    moved[number] = jax.tree.map(lambda a, lanes=lanes: a[lanes], joined)
        return [moved[number] for number in range(len(moved))]

    def crossed_with(self, fold_sizes: list[tuple[int, ...]]) -> "Members":
        """Returns members of which each stands once for each fold, given the rows of these to train and validate on."""
        roster = self.roster.crossed_with_folds(len(fold_sizes))
        crossed = Members(self.templates, roster, self.settings, fold_sizes * len(self.seeds))
        crossed.single, crossed.fold_sizes = self, fold_sizes
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

    def need_training(self, asked: str) -> Trained:
        """Returns the trained members, or raises that they are asked too early."""
        if self.trained is None:
            raise RuntimeError(
                f"`cohort.{asked}` must come after `cohort.fit`. Received: a cohort that is not trained. "
                "Call `cohort.fit(x, y, epochs=...)` first."
            )
        return self.trained

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

    def of_kind(self, kind: int) -> np.ndarray:
        """Returns the numbers of the members that are made from one of the templates."""
        return np.flatnonzero(np.array(self.roster.kinds) == kind)

    def cut(self, states: list[State]) -> list[State]:
        """Cuts the states of all members of each kind, leading axis member, into those of the blocks."""
        places = {member: place for kind in range(len(states)) for place, member in enumerate(self.of_kind(kind))}
        with_values = []
        for kind, (template, state) in enumerate(zip(self.templates, states, strict=True)):
            values = {path: column[self.of_kind(kind)] for path, column in self.roster.varied.items()}
            with_values.append(template.with_values(state, values))
        if self.exact:
            singles = [unstacked(state) for state in with_values]
            return [singles[block.kind][places[block.members[0]]] for block in self.blocks]
        lanes = [[places[member] for member in block.lanes] for block in self.blocks]
        pairs = zip(self.blocks, lanes, strict=True)
        return [jax.tree.map(lambda a, own=own: a[own], with_values[block.kind]) for block, own in pairs]

    def state(self, trained: Trained, member: int) -> State:
        """Returns the state of one trained member."""
        block, lane = self._places[member]
        return trained.states[block] if self.exact else jax.tree.map(lambda a: a[lane], trained.states[block])

    def states(self, trained: Trained, which: Sequence[int] | np.ndarray) -> State:
        """Returns the states of some members, made from one template: leading axis member; in their order."""
        places = [self._places[int(member)] for member in which]
        if self.exact:
            states = [State(*trained.states[block]) for block, _ in places]
            return jax.tree.map(lambda *parts: np.stack([np.asarray(part) for part in parts]), *states)
        block_of, lane_of = np.array(places).T
        rows = {int(block): np.flatnonzero(block_of == block) for block in np.unique(block_of)}
        runs = [(in_one_run(own), in_one_run(lane_of[own])) for own in rows.values()]
        parts = [jax.tree.leaves(State(*trained.states[block])) for block in rows]
        structure = jax.tree.structure(State(*trained.states[next(iter(rows))]))
        arrays = []
        for leaves in zip(*parts, strict=True):
            first = np.asarray(leaves[0])
            array = np.empty((len(places), *first.shape[1:]), first.dtype)
            for (own, lanes), leaf in zip(runs, leaves, strict=True):
                array[own] = np.asarray(leaf)[lanes]
            arrays.append(array)
        return jax.tree.unflatten(structure, arrays)

    def are_finite(self, trained: Trained) -> Bool[np.ndarray, " member"]:
        """Says of which members all trained weights are finite: a loss is that of the weights before the last step."""
        found = []
        for block, state in zip(self.blocks, trained.states, strict=True):
            are_finite = np.ones(() if self.exact else block.width, bool)
            for weights in map(np.asarray, State(*state).trainable_variables):
                are_finite &= np.isfinite(weights).all(axis=tuple(range(are_finite.ndim, weights.ndim)))
            found.append(are_finite)
        return self.join(found)

    def network(self, trained: Trained, member: int) -> keras.Model:
        """Returns a compiled model of one trained member."""
        block = self.blocks[self._places[member][0]]
        values = {path: float(column[member]) for path, column in self.roster.varied.items()}
        return self.template(block).member(self.state(trained, member), values)

    def begin(self) -> Trained:
        """Returns the state that the members' seeds begin with, and an empty history."""
        # Also with `exact`, initial states are computed for several members at once: they are bit for bit Keras's.
        with preserved_generators():
            if self.single is None:
                states = self._initial(self.wide_blocks)
            else:
                states = self._initial_of(self.single)
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
            states[kind] = jax.tree.map(lambda *parts: np.concatenate(parts), *single._initial(blocks))
            places |= {member: place for place, member in enumerate(m for block in blocks for m in block.lanes)}
        lanes = [[places[member // folds] for member in block.lanes] for block in self.wide_blocks]
        pairs = zip(self.wide_blocks, lanes, strict=True)
        return [jax.tree.map(lambda a, own=own: a[own], states[block.kind]) for block, own in pairs]

    def _initial(self, blocks: list[Block]) -> list[State]:
        """Returns the states that the members of blocks begin with, those of several narrow ones computed at once."""
        states = []
        for together in self._together(blocks):
            lanes = [member for block in together for member in block.lanes]
            values = {path: column[lanes] for path, column in self.roster.varied.items()}
            state = self.template(together[0]).initial(tuple(map(self.roster.seeds.__getitem__, lanes)), values)
            ends = np.cumsum([block.width for block in together])
            own = [slice(end - block.width, end) for block, end in zip(together, ends, strict=True)]
            states += [state] if len(own) == 1 else [_lanes(state, part) for part in own]
        return states

    def _together(self, blocks: list[Block]) -> Iterator[list[Block]]:
        """Gives blocks of one kind that are next to each other, as many as may begin at once."""
        for kind, of_kind in itertools.groupby(blocks, lambda block: block.kind):
            together: list[Block] = []
            for block in of_kind:
                if together and sum(b.width for b in (*together, block)) > self.templates[kind].most_at_once:
                    yield together
                    together = []
                together.append(block)
            yield together

    def no_history(self) -> CohortHistory:
        """Returns the history of no epochs."""
        return CohortHistory({}, list(self.seeds), [], differences=self.roster.differences)


def members_of(
    model: keras.Model, seeds: tuple[int, ...], varied: dict[str, np.ndarray], settings: Settings
) -> Members:
    """Returns the members of a model with these seeds and values, each (member,)."""
    kinds, kind_of = kinds_of(model, varied, len(seeds), settings.exact)

    def of_kind(kind: int) -> dict[str, np.ndarray]:
        return {path: values[np.array(kind_of) == kind] for path, values in varied.items()}

    templates = [template_of(model, kind, of_kind(i)) for i, kind in enumerate(kinds)]
    return Members(templates, Roster(seeds, varied, kind_of), settings)


def _alike(kinds: Sequence[int], lots: Sequence | None) -> list[tuple[int, Sequence[int]]]:
    """Returns the kind and the numbers of the members that have kind and lot in common, for each such pair."""
    if lots is None and kinds.count(kinds[0]) == len(kinds):  # mostly, and then many thousands of members
        return [(kinds[0], range(len(kinds)))]
    together: dict[Any, list[int]] = {}
    for member, pair in enumerate(zip(kinds, lots or kinds, strict=True)):
        together.setdefault(pair, []).append(member)
    return [(kind, members) for (kind, _), members in together.items()]


def _lanes(state: State, lanes: slice) -> State:
    return jax.tree.map(lambda array: np.asarray(array)[lanes], state)


def in_one_run(rows: np.ndarray) -> slice | np.ndarray:
    """Returns numbers of rows as a slice where each follows the one before: then nothing is looked up row by row."""
    first, count = int(rows[0]), len(rows)
    return slice(first, first + count) if np.array_equal(rows, np.arange(first, first + count)) else rows


def unstacked(state: State) -> list[State]:
    """Returns the states of the members of a block, one by one."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, state))
    return [jax.tree.unflatten(structure, lane) for lane in zip(*leaves, strict=True)]


def cut_into_blocks(members: Sequence[int], kind: int, lot: int, widest: int) -> list[Block]:
    """Cuts members into blocks of one width, enough of them to occupy all cores; the last may be wider than it need."""
    step = min(block_step(), widest)
    fewest = -(-len(members) // widest)
    blocks = min(-(-fewest // cores()) * cores(), -(-len(members) // step))
    width = -(-len(members) // (blocks * step)) * step
    return [Block(tuple(members[i : i + width]), width, kind, lot) for i in range(0, len(members), width)]
