"""What goes in: samples, the order of their batches, and the classic problems with two features.

In come arrays and the arguments of a fit, checked; out go arrays as Keras's own adapter converts them, and the row
numbers of every batch exactly as Keras draws them. The room exists so that everything after it can trust both.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras import tree

from kohort import engine, keras_internals
from kohort.checks import Recipe, check_arrays
from kohort.engine import Cut, Schedule
from kohort.generators import permutations

__all__ = ["moons", "xor"]


def __dir__() -> list[str]:
    """Names what is for users, and not what only kohort needs."""
    return __all__


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
    return np.asarray(x, "float32"), np.asarray(y, "float32")


# --- samples ----------------------------------------------------------------------------------------------------------


# Arrays up to this size are copied in less time than JAX takes to make an array of them.
SMALL_BYTES = 2**16


class Samples(NamedTuple):
    """All rows as one batch in the form in which Keras hands a batch to `train_step`."""

    batch: Any
    rows: int


def samples(x: Any, y: Any = None, sample_weight: Any = None) -> Samples:
    """Checks arrays and converts them as Keras's adapter does (floats to `keras.config.floatx()`).

    Args:
        x: Array or nested structure of arrays, each (sample, ...).
        y: Targets likewise, or None.
        sample_weight: Weights of the samples, or None.

    Returns:
        The samples as device arrays; small ones, and those for the worker, as arrays of NumPy.

    Raises:
        TypeError: If something is not an array of numbers.
        ValueError: If lengths differ, there are no rows, or a value is not finite or does not fit.
    """
    check_arrays(x, y, sample_weight)
    return _converted(x, y, sample_weight)


def _converted(x: Any, y: Any, sample_weight: Any, class_weight: Any = None) -> Samples:
    rows = int(_first_array(x).shape[0])
    batch = keras_internals.whole_batch(x, y, sample_weight, class_weight, rows)
    return Samples(jax.tree.map(_at_hand, batch), rows)


def _at_hand(array: Any) -> Any:
    """Puts an array where the programs read it; there, a small one goes with each call, which costs less than once."""
    if not keras_internals.on_jax():
        return np.asarray(array)
    is_small = array.nbytes <= SMALL_BYTES and jax.default_backend() == "cpu"
    if is_small or isinstance(array, np.ndarray):  # JAX may read it later, or for ever: what is written into `x` now
        array = np.array(array)  # must not be seen
    return array if is_small else jnp.asarray(array)


def _first_array(x: Any) -> Any:
    return next(leaf for leaf in tree.flatten(x) if leaf is not None)


# --- all that a fit reads ---------------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """Everything a fit reads: training and validation samples and how each is cut into batches."""

    training: Samples
    cut: Cut
    validation: Samples | None
    validation_cut: Cut | None
    build_iterator: Callable[[], Any]  # makes Keras's own iterator over the training data: unbuilt models read a batch


def inputs(model: keras.Model, x: Any, y: Any, sample_weight: Any, validation_data: Any, recipe: Recipe) -> Inputs:
    """Converts the data of a fit, which are checked, splits them, and cuts them into batches as Keras does."""
    if recipe.validation_split and validation_data is None:
        parts = keras_internals.validation_split((x, y, sample_weight), float(recipe.validation_split))
        (x, y, sample_weight), validation_data = parts
    training = _converted(x, y, sample_weight, recipe.class_weight)
    steps = model.steps_per_execution
    build_iterator = functools.partial(
        keras_internals.epoch_iterator,
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
        return Inputs(training, cut, None, None, build_iterator)
    return Inputs(training, cut, *validation_inputs(validation_data, recipe, steps), build_iterator)


def inputs_of_share(data: Inputs, training: int, validation: int | None, recipe: Recipe, steps: int) -> Inputs:
    """Returns the inputs of a member that trains on so many of the rows, and validates on so many of the same data.

    Args:
        data: All rows, of which the member's are gathered.
        training: Number of rows that it trains on.
        validation: Number of rows that it validates on; None if it does on what the fit is given.
        recipe: The recipe of the fit.
        steps: Steps per execution.
    """
    data = data._replace(cut=_cut(training, recipe.batch_size, recipe.steps_per_epoch))
    if validation is None:
        return data
    batch = data.training.batch
    samples = data.training if recipe.class_weight is None else Samples(batch[:2], data.training.rows)
    return data._replace(validation=samples, validation_cut=_validation_cut(validation, recipe, steps))


def validation_inputs(validation_data: Any, recipe: Recipe, steps_per_execution: int) -> tuple[Samples, Cut]:
    """Converts the arrays that validate and cuts them into batches as Keras does."""
    validation = _converted(*(*validation_data, None)[:3])
    return validation, _validation_cut(validation.rows, recipe, steps_per_execution)


def _validation_cut(rows: int, recipe: Recipe, steps_per_execution: int) -> Cut:
    batch_size = recipe.validation_batch_size or recipe.batch_size
    return pass_cut(rows, batch_size, recipe.validation_steps, steps_per_execution)


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


class BatchOrder:
    """The row numbers of the batches of one fit, epoch by epoch, drawn from NumPy's generator as Keras draws them."""

    def __init__(self, rows: int, recipe: Recipe, steps_per_execution: int) -> None:
        """Prepares the order; nothing is drawn yet."""
        self.cut = _cut(rows, recipe.batch_size, recipe.steps_per_epoch)
        self.shuffle = recipe.shuffle
        self._steps_per_execution = steps_per_execution
        self._recipe = recipe
        plain = recipe.steps_per_epoch is None and recipe.shuffle != "batch"
        self.is_plain = plain and (not recipe.shuffle or keras_internals.shuffles_like_numpy())

    @functools.cached_property
    def _iterator(self) -> Any:
        """Keras's own iterator over the row numbers, for orders that are not plain."""
        return keras_internals.epoch_iterator(
            np.arange(self.cut.rows),
            batch_size=self._recipe.batch_size,
            steps_per_epoch=self._recipe.steps_per_epoch,
            shuffle=self._recipe.shuffle,
            steps_per_execution=self._steps_per_execution,
        )

    @property
    def is_one_batch(self) -> bool:
        """Whether all that is drawn is the order of the rows within the one batch of an epoch."""
        return self.is_plain and bool(self.shuffle) and self.cut.full + bool(self.cut.partial) == 1

    @property
    def row_type(self) -> np.dtype:
        """The type of row numbers."""
        return np.min_scalar_type(self.cut.rows)

    @property
    def row_bytes(self) -> int:
        """Bytes of row numbers that one epoch of one member carries."""
        return self.cut.rows * self.row_type.itemsize if self.carries_rows else 0

    @property
    def carries_rows(self) -> bool:
        """Whether the order has to be told: it is not simply that of the data."""
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

    def room(self, *axes: int) -> np.ndarray:
        """Returns room for row numbers: `axes`, the last of which is epoch, and one axis more, row."""
        return engine.room((*axes, self.cut.rows), self.row_type)

    def draw(self, count: int, capacity: int, generator: Any = np.random, room: np.ndarray | None = None) -> Schedule:
        """Draws the next `count` epochs into arrays with room for `capacity`.

        Args:
            count: Number of epochs.
            capacity: Length of the arrays' epoch axis.
            generator: Where a plain order is drawn from; Keras's iterator always draws from `np.random`.
            room: Where the row numbers go, (epoch, row), with nobody reading it any more; made if not given.
        """
        if not self.carries_rows:
            return Schedule()
        rows = self.room(capacity) if room is None else room
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
