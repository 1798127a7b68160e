"""NumPy's legacy generators, those of many members at once.

In come seeds; out come the permutations that each member's generator draws, bit for bit NumPy's. The room exists
because drawing takes longer than training where networks are small, so that it has to be done in bulk, or not at all.
"""

import ctypes
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt32

# Datasets up to this many rows have all their permutations in a table (6! = 720 of them).
TABLE_ROWS = 6
# Row numbers that a member may owe, as a file says: hours of drawing.
MOST_OWED = 10**12
# So many of them are drawn at a time.
OWED_AT_ONCE = 2**22


def permutations(generator: Any, rows: int, count: int) -> np.ndarray:
    """Draws what `count` calls of `generator.permutation(rows)` draw, and leaves the generator where they leave it.

    NumPy's legacy `permutation` is a Fisher-Yates shuffle whose picks are drawn by masked rejection from 32-bit words;
    `randint` with the same bounds draws the same picks in one call. For a handful of rows that saves the 2 microseconds
    that each call costs, many times the training of an epoch.

    Args:
        generator: `np.random` or a `np.random.RandomState`.
        rows: Length of each permutation.
        count: Number of permutations.

    Returns:
        Array (count, rows) of the smallest unsigned integer type that holds the row numbers.
    """
    dtype = np.min_scalar_type(rows)
    if rows == 1 or count == 0:
        return np.zeros((count, rows), dtype)
    if count == 1:
        return generator.permutation(rows).astype(dtype)[None]
    bits = _bits_of(generator)
    if bits is not None and (permute := _permute()) is not None:
        drawn, address = np.empty((1, count, rows), dtype), bits.ctypes.state_address
        with bits.lock:
            permute(address, address, [0], [count], drawn, [0])
        return drawn[0]
    if rows > TABLE_ROWS or count < 8:  # for a few, one call each is the faster way
        return _shuffled(generator, rows, count)
    picks = generator.randint(0, _bounds(rows, count), dtype=np.uint32).reshape(count, rows - 1)
    place = picks[:, 0] * _place_values(rows)[0]
    for column, value in enumerate(_place_values(rows)[1:], 1):
        place += picks[:, column] * value
    return _shuffles(rows)[place]


def _shuffled(generator: Any, rows: int, count: int) -> np.ndarray:
    """Draws permutations in one call, a quarter faster than in one call each, and without holding Python's lock."""
    bits = _bits_of(generator)
    if bits is None or not _shuffles_alike():
        return np.array([generator.permutation(rows) for _ in range(count)], np.min_scalar_type(rows))
    drawn = np.empty((count, rows), int)
    drawn[:] = _counted(rows)
    return np.random.Generator(bits).permuted(drawn, axis=1, out=drawn).astype(np.min_scalar_type(rows))


@functools.lru_cache(maxsize=8)
def _counted(rows: int) -> np.ndarray:
    return np.arange(rows)


@functools.cache
def _shuffles_alike() -> bool:
    """Says whether NumPy's newer interface shuffles by the picks of the legacy one: no version promises that."""
    bits = np.random.MT19937(0)
    legacy, drawn = np.random.RandomState(bits), np.tile(np.arange(100), (2, 1))
    before = legacy.get_state()
    drawn = np.random.Generator(bits).permuted(drawn, axis=1)
    legacy.set_state(before)
    return np.array_equal(drawn, [legacy.permutation(100) for _ in range(2)])


@functools.lru_cache(maxsize=8)
def _bounds(rows: int, count: int) -> np.ndarray:
    return np.tile(np.arange(rows, 1, -1, dtype=np.uint32), count)


@functools.cache
def _place_values(rows: int) -> np.ndarray:
    bounds = np.arange(rows, 1, -1)
    return np.append(np.cumprod(bounds[:0:-1])[::-1], 1).astype(np.uint32)


@functools.cache
def _shuffles(rows: int) -> np.ndarray:
    """Returns the result of the Fisher-Yates shuffle for each combination of picks, in mixed-radix order."""
    picks = np.indices(range(rows, 1, -1)).reshape(rows - 1, -1)
    table = np.tile(np.arange(rows, dtype=np.uint8), (picks.shape[1], 1))
    every = np.arange(len(table))
    for i, pick in zip(range(rows - 1, 0, -1), picks, strict=True):
        table[every, pick], table[:, i] = table[:, i].copy(), table[every, pick].copy()
    return table


class Owed(NamedTuple):
    """Permutations that the members have drawn as far as anybody can see, and that are still to be drawn."""

    rows: int
    times: Any  # by each member: one number for all, or an array (member,)


class MemberGenerators:
    """The states of NumPy's legacy generators of many members: each begins as `np.random.seed(seed)` leaves it.

    A generator object costs 0.1 ms to make and its state 0.03 ms to read, as much as a whole training of a small
    network; its memory, which `bit_generator.ctypes` gives the address of, costs a microsecond to copy. And where
    nobody looks at what is drawn, it is only owed: the states are made when somebody looks.
    """

    def __init__(self, seeds: Sequence[int], owed: tuple[Owed, ...] = ()) -> None:
        """Seeds nothing yet."""
        self._seeds = seeds
        self._owed = owed
        self._states: UInt32[np.ndarray, "member 625"] | None = None
        self._lock = threading.Lock()

    @property
    def states(self) -> UInt32[np.ndarray, "member 625"]:
        """One state per member: 624 words of key and the position."""
        with self._lock:
            if self._states is None or self._owed:
                # Made aside: an interrupt in the middle leaves all as it was.
                self._states, self._owed = self._settled(), ()
            return self._states

    def _settled(self) -> UInt32[np.ndarray, "member 625"]:
        states = np.empty((len(self._seeds), 625), np.uint32) if self._states is None else self._states.copy()
        owed = [(rows, np.broadcast_to(times, len(states))) for rows, times in self._owed]
        generator, memory = _generator_with_memory()
        for member, (state, seed) in enumerate(zip(states, self._seeds, strict=True)):
            memory[:] = state
            if self._states is None:
                generator.seed(seed)
            for rows, times in owed:
                for begin in range(0, int(times[member]), at_once := max(1, OWED_AT_ONCE // max(1, rows))):
                    permutations(generator, rows, min(at_once, int(times[member]) - begin))
            state[:] = memory
        return states

    def owing(self, rows: int, count: int | np.ndarray) -> "MemberGenerators":
        """Returns generators from which `count` more permutations, one number or one per member, were drawn unseen."""
        *before, last = self._owed or (Owed(rows, 0),)
        owed = (*before, Owed(rows, last.times + count)) if last.rows == rows else (*before, last, Owed(rows, count))
        return self._with(None if self._states is None else self._states.copy(), owed)

    def like(self) -> "MemberGenerators":
        """Returns generators for as many members, in no state yet."""
        return self._with(np.empty_like(self.states), ())

    def _with(self, states: np.ndarray | None, owed: tuple[Owed, ...]) -> "MemberGenerators":
        others = MemberGenerators(self._seeds, owed)
        others._states = states
        return others

    def kept(self) -> tuple[UInt32[np.ndarray, "member 625"] | None, tuple[Owed, ...]]:
        """Returns all that `restored` needs beside the seeds: the states as far as they are made, and what is owed."""
        with self._lock:
            return self._states, self._owed

    @classmethod
    def restored(cls, seeds: Sequence[int], states: np.ndarray | None, owed: tuple[Owed, ...]) -> "MemberGenerators":
        """Returns the generators of which `kept` told all this.

        Raises:
            ValueError: If there are no such generators: their memory is read by C, or what is owed is never drawn.
        """
        are_states = states is None or (states.dtype == np.uint32 and states.shape == (len(seeds), 625))
        if not are_states or (states is not None and (states[:, 624] > 624).any()):
            raise ValueError("The states of NumPy's generators are none.")
        if any(not 0 <= rows * int(np.max(times)) <= MOST_OWED or np.min(times) < 0 for rows, times in owed):
            raise ValueError("Generators owe more than anybody draws.")
        return cls(seeds)._with(states, owed)

    def draw(
        self, after: "MemberGenerators", members: Int[np.ndarray, " some"], counts: Any, room: np.ndarray, places: Any
    ) -> None:
        """Draws permutations for some members: `counts` of each, into `room` (place, epoch, row) at its own place.

        Args:
            after: Where the generators are left.
            members: Their numbers.
            counts: How many, one number or an array (some,).
            room: C-contiguous, of an unsigned integer type.
            places: Where in it, one number or an array (some,).
        """
        own, left = self.states, after.states
        if (permute := _permute()) is not None:
            permute(own.ctypes.data, left.ctypes.data, members, counts, room, places)
            return
        counts, places = (np.broadcast_to(of, len(members)).tolist() for of in (counts, places))
        for generator, count, place in zip(self.each(members.tolist(), left), counts, places, strict=True):
            room[place, :count] = permutations(generator, room.shape[2], count)

    def each(self, members: Sequence[int], states: UInt32[np.ndarray, "member 625"]) -> Iterator[np.random.RandomState]:
        """Gives the generators of some members, one after the other; where each is left goes into `states`."""
        own, (generator, memory) = self.states, _generator_with_memory()
        for member in members:
            memory[:] = own[member]
            yield generator
            states[member] = memory


_of_thread = threading.local()


def _generator_with_memory() -> tuple[np.random.RandomState, np.ndarray]:
    """Returns this thread's generator and a view of its memory."""
    if not hasattr(_of_thread, "pair"):
        _of_thread.bits = bits = np.random.MT19937(0)
        words = (ctypes.c_uint32 * 625).from_address(bits.ctypes.state_address)
        _of_thread.pair = np.random.RandomState(bits), np.frombuffer(memoryview(words), np.uint32)
    return _of_thread.pair


def _bits_of(generator: Any) -> np.random.MT19937 | None:
    """Returns what the global generator, or this thread's own, draws from; None for another one."""
    if generator is np.random:
        bits = np.random.get_bit_generator()  # type: ignore[attr-defined]
        return bits if isinstance(bits, np.random.MT19937) else None
    is_own = hasattr(_of_thread, "pair") and generator is _of_thread.pair[0]
    return _of_thread.bits if is_own else None


@functools.cache
def _permute() -> Callable[[int, int, Any, Any, np.ndarray, Any], None] | None:
    """Returns what draws by `shuffle.c`: of generators at one address into those at another.

    None if it was not compiled when kohort was installed, or does not draw what NumPy draws.
    """
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name("shuffle.compiled")))
    except OSError:
        return None
    of_sizes = {size: getattr(library, f"permuted_{size}") for size in (1, 2, 4)}
    for of_size in of_sizes.values():
        number, address = ctypes.c_int64, ctypes.c_void_p
        of_size.argtypes, of_size.restype = [*[address] * 5, number, address, number, number], None

    def permute(before: int, after: int, members: Any, counts: Any, room: np.ndarray, places: Any) -> None:
        each = [np.array(of, np.int64) for of in np.broadcast_arrays(members, places, counts)]
        _, epochs, rows = room.shape
        addresses = (of.ctypes.data for of in each)
        of_sizes[room.itemsize](before, after, *addresses, each[0].size, room.ctypes.data, epochs * rows, rows)

    return permute if _draws_as_numpy(permute) else None


def _draws_as_numpy(permute: Callable) -> bool:
    """Says whether this draws what NumPy does, on this machine and with this NumPy."""
    # Not by this thread's generator: it may be asked in the middle of what that draws.
    theirs: list[Any] = [np.random.RandomState(seed) for seed in range(2)]
    drawn = np.zeros((2, 9, 300), np.uint16)
    states = np.array([[*key, position] for _, key, position, *_ in (their.get_state() for their in theirs)], np.uint32)
    permute(states.ctypes.data, states.ctypes.data, [0, 1], 9, drawn, [0, 1])
    return np.array_equal(drawn, [[their.permutation(300) for _ in range(9)] for their in theirs])
