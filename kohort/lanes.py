"""Where the members are while they train: each in a lane of a block.

In come the states of a cohort's blocks; out come, round by round, fewer or narrower blocks of those members that still
train, and at the end the states in the order of the cohort again. The room exists because a member that has stopped
costs as much as before as long as it keeps its lane.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from kohort.engine import State
from kohort.rules import Course, Rule

# Results are the same bits for all widths of a block that are multiples of 8.
BLOCK_STEP = 8


class Block(NamedTuple):
    """Members that one call trains together."""

    members: Int[np.ndarray, " lane"]  # the number of each lane's member; the padding repeats the last
    own: int  # lanes that are no padding
    carry: tuple[State, Course]  # leading axis lane, but where the program is that of one member

    @classmethod
    def of(cls, members: np.ndarray, width: int, carry: Any) -> "Block":
        """Makes a block of these members, or of as many as fit, with padding."""
        own = members[:width]
        return cls(np.append(own, np.repeat(own[-1:], width - len(own))), len(own), carry)


class Packing(NamedTuple):
    """How members are packed: in so many blocks of this width."""

    blocks: int
    width: int

    def turns(self, cores: int) -> float:
        """Returns how often a core takes a block in a round, if it is long enough for `parts` to halve some."""
        return self.blocks / cores if _may_halve(self.blocks, cores) else float(-(-self.blocks // cores))


# A call of one epoch ends at an interrupt without a result.
FEWEST_EPOCHS_TO_HALVE = 4


def parts(blocks: int, epochs: range, cores: int) -> list[tuple[int, range]]:
    """Returns the numbers of blocks, in the order in which cores take them, each with the epochs that it then runs.

    Where a few blocks would be left for the last turn and most cores idle, each of these is halved: one half of its
    epochs comes first of all, the other last of all.

    Args:
        blocks: How many there are.
        epochs: Of the round.
        cores: How many blocks are trained at once.
    """
    odd = blocks % cores if _may_halve(blocks, cores) and len(epochs) >= FEWEST_EPOCHS_TO_HALVE else 0
    half = len(epochs) // 2
    first, last = ([(block, part) for block in range(odd)] for part in (epochs[:half], epochs[half:]))
    return [*first, *((block, epochs) for block in range(odd, blocks)), *last]


def _may_halve(blocks: int, cores: int) -> bool:
    return blocks > cores and 2 * (blocks % cores) <= cores


class Lanes:
    """All members of a fit, those that still train in blocks."""

    def __init__(self, home: list[range], states: list[State], members: int, rules: tuple[Rule, ...]) -> None:
        """Puts every member in the lane that it has in the cohort's own blocks.

        Args:
            home: The cohort's own blocks, the last of which may reach beyond the members.
            states: Their states. Where a block is of one member, they have no axis lane.
            members: Number of members.
            rules: What guides each member.
        """
        self._home, self._count = home, members
        self.is_stacked = len(home[0]) > 1
        axes = (len(home[0]),) if self.is_stacked else ()
        everyone = np.arange(members)
        self.blocks = [
            Block.of(everyone[block.start :], len(block), (state, Course.begin(rules, axes, state)))
            for block, state in zip(home, states, strict=True)
        ]
        self.goes_on: Bool[np.ndarray, " member"] = np.ones(members, bool)
        self.epochs: Int[np.ndarray, " member"] = np.zeros(members, int)  # that each has run in this fit
        self._left: Any = None  # all members as they were when some last moved; None if nobody has

    def advance(self, carries: list[tuple[State, Course]]) -> Int[np.ndarray, " member"]:
        """Takes what a round made of the blocks, and returns how many epochs each member ran in it."""
        before = self.epochs.copy()
        self.blocks = [block._replace(carry=carry) for block, carry in zip(self.blocks, carries, strict=True)]
        for block in self.blocks:
            course, own = block.carry[1], block.members[: block.own]
            self.goes_on[own] = np.atleast_1d(course.goes_on)[: block.own]
            self.epochs[own] = np.atleast_1d(course.epochs)[: block.own]
        return self.epochs - before

    def ran(self, block: Block, carry: tuple[State, Course]) -> Int[np.ndarray, " lane"]:
        """Returns how many epochs the members of a block, without padding, have run in the round that made this."""
        return np.atleast_1d(carry[1].epochs)[: block.own] - self.epochs[block.members[: block.own]]

    def without_lane(self) -> Int[np.ndarray, " member"]:
        """Returns the numbers of the members that have none any more."""
        if sum(block.own for block in self.blocks) == self._count:
            return np.zeros(0, int)
        return np.setdiff1d(np.arange(self._count), np.concatenate([b.members for b in self.blocks] or [[]]))

    def drop(self) -> None:
        """Drops the blocks none of whose members still trains."""
        self._leave()
        self.blocks = [block for block in self.blocks if self.goes_on[block.members].any()]

    def move(self, width: int) -> None:
        """Gives lanes to those members only that still train, in blocks of this width."""
        self._leave()
        going = np.flatnonzero(self.goes_on)
        blocks = [Block.of(going[start:], width, None) for start in range(0, len(going), width)]
        self.blocks = [block._replace(carry=_rows(self._left, block.members)) for block in blocks]

    def carries(self) -> list[tuple[State, Course]]:
        """Returns all members as they now are, in the cohort's own blocks: until the next call, if some have moved."""
        if self._left is None:
            return [block.carry for block in self.blocks]
        self._leave()
        if not self.is_stacked:
            return [self._left[block.start] for block in self._home]
        whole = [slice(block.start, block.stop) for block in self._home if block.stop <= self._count]
        cut = [np.minimum(block, self._count - 1) for block in self._home if block.stop > self._count]
        return [_rows(self._left, members) for members in (*whole, *cut)]

    def _leave(self) -> None:
        """Notes how the members in lanes are."""
        if not self.is_stacked:
            self._left = (self._left or {}) | {int(block.members[0]): block.carry for block in self.blocks}
            return
        if self._left is None:
            room = [np.empty((self._count, *a.shape[1:]), a.dtype) for a in jax.tree.leaves(self.blocks[0].carry)]
            self._left = jax.tree.unflatten(jax.tree.structure(self.blocks[0].carry), room)
        for block in self.blocks:
            own = block.members[: block.own]
            for left, now in zip(jax.tree.leaves(self._left), jax.tree.leaves(block.carry), strict=True):
                left[own] = np.asarray(now)[: block.own]


def _rows(carry: Any, members: Any) -> Any:
    return jax.tree.map(lambda a: a[members], carry)


def widths(width: int) -> list[int]:
    """Returns the widths that blocks of this width may be moved to: a few, as each is compiled by itself."""
    all_widths = [width]
    step = block_step()
    while all_widths[-1] > step:
        all_widths.append(-(-all_widths[-1] // (2 * step)) * step)
    return all_widths


def block_step() -> int:
    """Returns what the widths of blocks are multiples of: all devices may take the same share of the lanes."""
    return math.lcm(BLOCK_STEP, len(jax.local_devices()))
