"""What goes in: samples, the order of their batches, and the classic problems with two features.

In come arrays and the arguments of a fit, as a person has them; out go checked arrays as Keras's own adapter converts them,
and the row numbers of every batch exactly as Keras draws them. The room exists so that everything after it can trust both.
"""

import ctypes
import functools
import math
import numbers
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras import tree

from kohort import keras_internals
from kohort.engine import Cut, Schedule

__all__ = ["moons", "xor"]

# Datasets up to this many rows have all their permutations in a table (6! = 720 of them).
TABLE_ROWS = 6
INT32_MAX = 2**31 - 1


# --- the classic problems ---------------------------------------------------------------------------------------------


def xor() -> tuple[np.ndarray, np.ndarray]:
    """Returns the four points of the exclusive or, which no linear function separates.

    Returns:
        `x` of shape (4, 2) and `y` of shape (4,), both float32 with values 0 and 1.

    Example:
        >>> import kohort
        >>> x, y = kohort.data.xor()
        >>> [(*map(int, point), int(label)) for point, label in zip(x, y)]
        [(1, 0, 1), (0, 1, 1), (1, 1, 0), (0, 0, 0)]

    Source:
        Minsky and Papert, Perceptrons (1969).
    """
    x = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype="float32")
    return x, np.array([1, 1, 0, 0], dtype="float32")


def moons(n_samples: int = 400, noise: float = 0.1, random_state: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns two interleaved half circles, a problem that needs a curved boundary.

    Args:
        n_samples: Number of points, at least 2.
        noise: Standard deviation of the Gaussian noise on both features, at least 0.
        random_state: Seed of the noise and of the points' order.

    Returns:
        `x` of shape (n_samples, 2) and `y` of shape (n_samples,), both float32; labels 0 and 1.

    Raises:
        ValueError: If an argument is out of range (raised by scikit-learn).

    Example:
        >>> import kohort
        >>> x, y = kohort.data.moons(n_samples=100)
        >>> x.shape, y.shape, float(y.mean())
        ((100, 2), (100,), 0.5)

    Source:
        `sklearn.datasets.make_moons`, cast to float32.
    """
    import sklearn.datasets

    x, y = sklearn.datasets.make_moons(n_samples=n_samples, noise=noise, random_state=random_state)
    return x.astype("float32"), y.astype("float32")


# --- samples ----------------------------------------------------------------------------------------------------------


class Samples(NamedTuple):
    """All rows as one batch in the form in which Keras hands a batch to `train_step`."""

    batch: Any
    rows: int


def samples(x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None, prefix: str = "") -> Samples:
    """Checks arrays and converts them as Keras's adapter does (floats to `keras.config.floatx()`).

    Args:
        x: Array or nested structure of arrays, each (sample, ...).
        y: Targets likewise, or None.
        sample_weight: Weights of the samples, or None.
        class_weight: Class number to weight, or None.
        prefix: What the messages put before the names ("validation_data ").

    Returns:
        The samples as device arrays.

    Raises:
        TypeError: If something is not an array of numbers.
        ValueError: If lengths differ, there are no rows, or a value is not finite or does not fit.
    """
    leaves = check_arrays(x, y, sample_weight, prefix)
    rows = int(leaves[0][1].shape[0])
    batch = keras_internals.whole_batch(x, y, sample_weight, class_weight, rows)
    for (name, _), leaf in zip(leaves, jax.tree.leaves(batch), strict=False):
        _check_values(name, leaf)
    return Samples(jax.tree.map(jnp.asarray, batch), rows)


def check_arrays(x: Any, y: Any, sample_weight: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Raises unless these are arrays of numbers of one length; returns each with its name."""
    named = {"x": x, "y": y, "sample_weight": sample_weight}
    leaves = [(f"{prefix}{name}", leaf) for name, part in named.items() for leaf in _leaves(part)]
    if x is None or not leaves:
        raise TypeError(f"`{prefix}x` must be an array. Received: {prefix}x={x!r}. Pass the samples.")
    for name, leaf in leaves:
        _check_numbers(name, leaf)
    _check_lengths(leaves)
    return leaves


def _leaves(structure: Any) -> list:
    return [leaf for leaf in tree.flatten(structure) if leaf is not None]


def _check_numbers(name: str, leaf: Any) -> None:
    if not keras_internals.is_array_like(leaf):
        raise TypeError(
            f"`{name}` must be an array of numbers (NumPy, JAX or pandas), or a structure of them. "
            f"Received: {name} with an element {leaf!r} of type {type(leaf).__name__}. "
            f"Convert it with `np.asarray({name})` first."
        )
    columns = leaf.dtypes if hasattr(leaf, "iloc") else leaf.dtype  # a pandas table has one type per column
    dtypes = set(map(str, np.atleast_1d(np.asarray(columns, dtype=object))))
    odd = sorted(d for d in dtypes if not d.lower().startswith(("float", "int", "uint", "bool", "bfloat16")))
    if odd:
        raise TypeError(
            f"`{name}` must hold numbers. Received: {name} with dtype={odd[0]}. "
            "Encode text and categories as numbers first, for example with `keras.layers.StringLookup` "
            "or `sklearn.preprocessing.OrdinalEncoder`."
        )
    if len(leaf.shape) == 0:
        raise ValueError(
            f"`{name}` must have an axis of samples. Received: {name}={leaf!r}, shape=(). Pass shape (sample, ...)."
        )


def _check_lengths(leaves: list[tuple[str, Any]]) -> None:
    first_name, first = leaves[0]
    rows = int(first.shape[0])
    if rows == 0:
        raise ValueError(
            f"`{first_name}` must have at least one sample. Received: {first_name} with shape={tuple(first.shape)}. "
            "Check how the data was selected."
        )
    for name, leaf in leaves:
        if leaf.shape[0] != rows:
            raise ValueError(
                f"`{name}` must have one row per sample of `{first_name}` ({rows}). "
                f"Received: {name} with shape={tuple(leaf.shape)}. Pass arrays of the same length."
            )


def _check_values(name: str, leaf: np.ndarray) -> None:
    kind = np.asarray(leaf).dtype.kind
    if kind not in "iu" and not bool(np.isfinite(np.asarray(leaf, dtype="float32")).all()):
        row = int(np.argwhere(~np.isfinite(np.asarray(leaf, dtype="float32")))[0][0])
        value = np.asarray(leaf)[row].ravel()
        raise ValueError(
            f"`{name}` must hold finite numbers. Received: {name}[{row}]={value[:4]}, shape={leaf.shape}. "
            "Remove or impute such rows, for example with `sklearn.impute.SimpleImputer`."
        )
    if kind in "iu" and leaf.dtype.itemsize == 8 and int(np.abs(leaf).max()) > INT32_MAX:
        raise ValueError(
            f"`{name}` must hold integers of at most {INT32_MAX} (JAX computes in 32 bits). "
            f"Received: {name} with a largest value of {int(np.abs(leaf).max())}. Scale it or convert it to float32."
        )


def check_features(model: keras.Model, x: Any, name: str = "x") -> None:
    """Raises a ValueError when the features of `x` are not those that the built model takes."""
    specs = _leaves(getattr(model, "inputs", None))
    arrays = _leaves(x)
    if isinstance(x, dict) or not specs:
        return
    if len(specs) != len(arrays):
        raise ValueError(
            f"`{name}` must have {len(specs)} array(s), one per input of the model. "
            f"Received: {name} with {len(arrays)} array(s). Pass them in the order of `model.inputs`."
        )
    for spec, array in zip(specs, arrays, strict=True):
        wanted, given = tuple(spec.shape[1:]), tuple(array.shape[1:])
        squeezed = wanted if len(wanted) == len(given) else tuple(d for d in wanted if d != 1)
        given_too = given if len(wanted) == len(given) else tuple(d for d in given if d != 1)
        fits = len(squeezed) == len(given_too) and all(
            w in (None, g) for w, g in zip(squeezed, given_too, strict=True)
        )
        if not fits:
            raise ValueError(
                f"`{name}` must have samples of shape {wanted}, as the model's input `{spec.name}` has. "
                f"Received: {name} with shape={tuple(array.shape)}. Select the features or change `keras.Input(shape=...)`."
            )


# --- the recipe of a fit ----------------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """The arguments of a fit that say how to go through the data, by Keras's names."""

    batch_size: int | None = None
    epochs: int = 1
    validation_split: float = 0.0
    shuffle: Any = True
    class_weight: dict | None = None
    initial_epoch: int = 0
    steps_per_epoch: int | None = None
    validation_steps: int | None = None
    validation_batch_size: int | None = None
    validation_freq: Any = 1


def check_recipe(recipe: Recipe) -> None:
    """Raises for any argument that is not what it must be."""
    _check_integer("epochs", recipe.epochs, 1)
    _check_integer("initial_epoch", recipe.initial_epoch, 0)
    for name in ("batch_size", "steps_per_epoch", "validation_steps", "validation_batch_size"):
        value = getattr(recipe, name)
        if value is not None:
            _check_integer(name, value, 1)
    fraction = recipe.validation_split
    if not isinstance(fraction, numbers.Real) or isinstance(fraction, bool) or not 0 <= fraction < 1:
        raise ValueError(
            "`validation_split` must be a number from 0 up to, but not including, 1. "
            f"Received: validation_split={fraction!r}. It is the share of the last rows that validate, such as 0.2."
        )
    if recipe.shuffle not in (True, False, "batch"):
        raise ValueError(
            f"`shuffle` must be True, False or 'batch'. Received: shuffle={recipe.shuffle!r}. Pass one of the three."
        )
    freq = recipe.validation_freq
    for number in freq if isinstance(freq, list) else [freq]:
        _check_integer("validation_freq", number, 1)


def _check_integer(name: str, value: Any, least: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        error = ValueError if isinstance(value, numbers.Real) else TypeError
        raise error(
            f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}. "
            f"Pass a whole number such as {max(least, 10)}."
        )


class Inputs(NamedTuple):
    """Everything a fit reads: training and validation samples and how each is cut into batches."""

    training: Samples
    cut: Cut
    validation: Samples | None
    validation_cut: Cut | None
    build_iterator: Any  # Keras's own iterator over the training data: unbuilt models read a batch of it


def inputs(
    model: keras.Model, x: Any, y: Any, sample_weight: Any, validation_data: Any, recipe: Recipe
) -> Inputs:
    """Checks and converts the data of a fit, splits it, and cuts it into batches as Keras does.

    Raises:
        TypeError: If something is not an array.
        ValueError: If data and arguments do not fit each other or the model.
    """
    check_arrays(x, y, sample_weight)
    check_features(model, x)
    if recipe.validation_split and validation_data is None:
        _check_split(recipe.validation_split, int(_leaves(x)[0].shape[0]))
        parts = keras_internals.validation_split((x, y, sample_weight), float(recipe.validation_split))
        (x, y, sample_weight), validation_data = parts
    training = samples(x, y, sample_weight, recipe.class_weight)
    steps = model.steps_per_execution
    iterator = keras_internals.epoch_iterator(
        x,
        y,
        sample_weight,
        batch_size=recipe.batch_size,
        steps_per_epoch=recipe.steps_per_epoch,
        shuffle=recipe.shuffle,
        class_weight=recipe.class_weight,
        steps_per_execution=steps,
    )
    cut = _cut(training.rows, recipe.batch_size, recipe.steps_per_epoch)
    if validation_data is None:
        return Inputs(training, cut, None, None, iterator)
    validation = _validation_samples(model, validation_data)
    batch_size = recipe.validation_batch_size or recipe.batch_size
    return Inputs(
        training, cut, validation, pass_cut(validation.rows, batch_size, recipe.validation_steps, steps), iterator
    )


def _check_split(fraction: float, rows: int) -> None:
    if math.floor(rows * (1.0 - fraction)) in (0, rows):
        raise ValueError(
            f"`validation_split` must leave at least one sample on each side. "
            f"Received: validation_split={fraction} for {rows} sample(s). Pass more data or another share."
        )


def _validation_samples(model: keras.Model, validation_data: Any) -> Samples:
    if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
        raise ValueError(
            "`validation_data` must be a tuple (x, y) or (x, y, sample_weight). "
            f"Received: validation_data of type {type(validation_data).__name__}. Pass such a tuple of arrays."
        )
    x, y, sample_weight = (*validation_data, None)[:3]
    checked = samples(x, y, sample_weight, prefix="validation_data ")
    check_features(model, x, "validation_data x")
    return checked


def default_batch_size(rows: int, batch_size: int | None, steps: int | None) -> int:
    """Returns the batch size that Keras's array adapter would use."""
    return batch_size or (math.ceil(rows / steps) if steps else 32)


def _cut(rows: int, batch_size: int | None, steps: int | None) -> Cut:
    size = default_batch_size(rows, batch_size, steps)
    return Cut(size, *divmod(rows, size))


def pass_cut(rows: int, batch_size: int | None, steps: int | None = None, steps_per_execution: int = 1) -> Cut:
    """Returns how one pass without shuffling is cut: all batches, or the first `steps` of them."""
    cut = _cut(rows, batch_size, steps)
    if steps is None:
        return cut
    iterator = keras_internals.epoch_iterator(
        np.arange(rows), batch_size=batch_size, steps_per_epoch=steps, steps_per_execution=steps_per_execution
    )
    lengths = [len(batch) for batch in keras_internals.epoch_batches(iterator, steps_per_execution)]
    full = sum(length == cut.batch_size for length in lengths)
    return Cut(cut.batch_size, full, lengths[-1] if lengths[-1] != cut.batch_size else 0)


# --- the order of the batches -----------------------------------------------------------------------------------------


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
    if rows > TABLE_ROWS:
        return np.array([generator.permutation(rows) for _ in range(count)], dtype).reshape(count, rows)
    bounds = np.arange(rows, 1, -1)
    picks = generator.randint(0, np.tile(bounds, count), dtype=np.uint32).reshape(count, rows - 1)
    return _shuffles(rows)[picks @ _place_values(rows)]


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


class MemberGenerators:
    """The states of NumPy's legacy generators of many members: each begins as `np.random.seed(seed)` leaves it.

    A generator object costs 0.1 ms to make and its state 0.03 ms to read, as much as a whole training of a small network;
    its memory, which `bit_generator.ctypes` gives the address of, costs a microsecond to copy.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        """Seeds one state per member: 624 words of key and the position."""
        self.states = np.empty((len(seeds), 625), np.uint32)
        generator, memory = _generator_with_memory()
        for state, seed in zip(self.states, seeds, strict=True):
            generator.seed(seed)
            state[:] = memory

    def like(self) -> "MemberGenerators":
        """Returns generators for as many members, in no state yet."""
        others = MemberGenerators(())
        others.states = np.empty_like(self.states)
        return others

    @contextmanager
    def of(self, member: int, states: np.ndarray) -> Iterator[np.random.RandomState]:
        """Gives the generator of a member; where it is left goes into `states[member]`."""
        generator, memory = _generator_with_memory()
        memory[:] = self.states[member]
        yield generator
        states[member] = memory


_of_thread = threading.local()


def _generator_with_memory() -> tuple[np.random.RandomState, np.ndarray]:
    """Returns this thread's generator and a view of its memory."""
    if not hasattr(_of_thread, "pair"):
        bits = np.random.MT19937(0)
        words = (ctypes.c_uint32 * 625).from_address(bits.ctypes.state_address)
        _of_thread.pair = np.random.RandomState(bits), np.frombuffer(words, np.uint32)
    return _of_thread.pair


class BatchOrder:
    """The row numbers of the batches of one fit, epoch by epoch, drawn from NumPy's generator as Keras draws them."""

    def __init__(self, rows: int, recipe: Recipe, steps_per_execution: int) -> None:
        """Prepares the order; nothing is drawn yet."""
        self.cut = _cut(rows, recipe.batch_size, recipe.steps_per_epoch)
        self.shuffle = recipe.shuffle
        self._steps_per_execution = steps_per_execution
        arguments = {"batch_size": recipe.batch_size, "steps_per_epoch": recipe.steps_per_epoch}
        self._iterator = keras_internals.epoch_iterator(
            np.arange(rows), shuffle=recipe.shuffle, steps_per_execution=steps_per_execution, **arguments
        )
        plain = recipe.steps_per_epoch is None and recipe.shuffle != "batch"
        self.is_plain = plain and (not recipe.shuffle or keras_internals.shuffles_like_numpy())

    @property
    def row_bytes(self) -> int:
        """Bytes of row numbers that one epoch of one member carries."""
        return self.cut.rows * np.min_scalar_type(self.cut.rows).itemsize if self._carries_rows else 0

    @property
    def _carries_rows(self) -> bool:
        return bool(self.shuffle) or not self.is_plain

    def read_a_batch(self, generator: Any = np.random) -> None:
        """Draws what reading one batch ahead of the training draws: Keras does it to build losses and metrics."""
        if self.is_plain:
            permutations(generator, self.cut.rows, int(bool(self.shuffle)))
            return
        for _, _, source in self._iterator:
            next(source)
            break
        self._iterator.reset()

    def draw(self, count: int, capacity: int, generator: Any = np.random) -> Schedule:
        """Draws the next `count` epochs into arrays with room for `capacity`.

        Args:
            count: Number of epochs.
            capacity: Length of the arrays' epoch axis.
            generator: Where a plain order is drawn from; Keras's iterator always draws from `np.random`.
        """
        if not self._carries_rows:
            return Schedule()
        rows = np.zeros((capacity, self.cut.rows), np.min_scalar_type(self.cut.rows))
        if self.is_plain:
            rows[:count] = permutations(generator, self.cut.rows, count)
            return Schedule(rows)
        full, partial = np.zeros((2, capacity), np.int32)
        for e in range(count):
            batches = keras_internals.epoch_batches(self._iterator, self._steps_per_execution)
            whole = [batch for batch in batches if len(batch) == self.cut.batch_size]
            full[e], partial[e] = len(whole), len(whole) < len(batches)
            for k, batch in enumerate(whole):
                rows[e, k * self.cut.batch_size : (k + 1) * self.cut.batch_size] = batch
            if partial[e]:
                rows[e, self.cut.full * self.cut.batch_size :] = batches[-1]
        return Schedule(rows, full, partial)
