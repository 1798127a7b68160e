"""Which rows of the data each member trains on and validates on: folds, bootstrap samples, weights of its own.

In come the folds that a fit is asked for, with the data to be split; out go row numbers for each member, into one copy
of the data that all share. The room exists because cross-validation is a cohort like any other: only rows differ.
"""

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from kohort.checks import Recipe, loss_kind, received

CLASS_LOSSES = ("binarycrossentropy", "categoricalcrossentropy", "sparsecategoricalcrossentropy")


class Shares(NamedTuple):
    """What of the data is each member's own; None stands for "the same for all members"."""

    training: Sequence[np.ndarray] | None = None  # for each member the numbers of the rows that it trains on
    validation: Sequence[np.ndarray] | None = None  # likewise, of those that it validates on
    weights: np.ndarray | None = None  # (member, sample)
    rows: int = 0  # of the data that all members share

    def sizes(self, member: int) -> tuple[int | None, int | None]:
        """Returns how many rows a member trains on and validates on: members of equal sizes share a program."""
        of_training = None if self.training is None else len(self.training[member])
        return of_training, None if self.validation is None else len(self.validation[member])


Split = tuple[np.ndarray, np.ndarray]  # the rows to train on, and those to validate on


def sizes_of(splits: list[Split]) -> list[tuple[int, ...]]:
    """Returns how many rows each fold trains and validates on."""
    return [tuple(map(len, split)) for split in splits]


# --- folds ------------------------------------------------------------------------------------------------------------


def splits_of(network: keras.Model, folds: Any, x: Any, y: Any, groups: Any) -> list[Split]:
    """Returns the row numbers of each fold, as scikit-learn's `cross_validate(cv=folds)` would split the data.

    Raises:
        TypeError: If these are no folds.
        ValueError: If the data cannot be split so.
    """
    from sklearn.model_selection import check_cv

    rows = int(keras.tree.flatten(x)[0].shape[0])
    check_folds(folds, rows)
    loss = keras.tree.flatten(network.loss)
    is_classifier = len(loss) == 1 and loss_kind(loss[0]) in CLASS_LOSSES
    targets = _classes(y, is_classifier)
    splitter: Any = check_cv(folds, targets, classifier=is_classifier)
    try:
        splits = list(splitter.split(np.arange(rows)[:, None], targets, groups))
    except ValueError as error:
        raise ValueError(
            f"`folds` must be able to split these samples. Received: {received('folds', folds)}, which says: "
            f"{str(error).splitlines()[0].rstrip('.')}. Pass another splitter, or `groups` if it takes them."
        ) from error
    return [checked_split(split, rows) for split in splits]


def check_folds(folds: Any, rows: int) -> None:
    """Raises unless these can be folds of so many rows."""
    is_number = isinstance(folds, numbers.Integral) and not isinstance(folds, bool)
    is_listed = isinstance(folds, list | tuple) and all(isinstance(s, tuple | list) and len(s) == 2 for s in folds)
    is_splitter = hasattr(folds, "split") and not isinstance(folds, str)
    if not (is_number or is_splitter or (is_listed and folds)):
        raise TypeError(
            "`folds` must be a number of folds, a splitter of scikit-learn, or a list of pairs (rows to train on, "
            f"rows to validate on). Received: {received('folds', folds)}. "
            "Pass for example 5, or sklearn.model_selection.StratifiedKFold(5)."
        )
    if is_number and folds not in range(2, rows + 1):
        raise ValueError(
            f"`folds` must be at least 2 and at most the number of samples ({rows}). Received: folds={folds}. "
            f"Pass for example {max(2, min(5, rows))}."
        )


def _classes(y: Any, is_classifier: bool) -> Any:
    """Returns the targets as scikit-learn takes them: class numbers, or None where there is not one array of them."""
    if y is None or keras.tree.is_nested(y):
        return None
    targets = np.asarray(y)
    if targets.ndim == 2 and targets.shape[1] == 1:
        return targets[:, 0]
    return targets.argmax(axis=1) if is_classifier and targets.ndim == 2 else targets


def checked_split(split: Any, rows: int) -> Split:
    """Returns the rows to train on and to validate on, or raises that they are none of so many."""
    training, validation = (np.asarray(part) for part in split)
    for part in (training, validation):
        are_rows = part.ndim == 1 and part.size > 0 and part.dtype.kind in "iu"
        if not are_rows or part.min() < 0 or part.max() >= rows:
            raise ValueError(
                f"`folds` must hold row numbers from 0 to {rows - 1}, at least one to train on and one to validate on. "
                f"Received: {received('a part', part)}. Check the splitter on `np.arange({rows})`."
            )
    return training, validation


def check_beside_folds(folds: Any, groups: Any, bootstrap: Any, validation_data: Any, recipe: Recipe) -> None:
    """Raises if arguments of a fit are given that folds or their absence make meaningless."""
    if not isinstance(bootstrap, bool | np.bool) or (bootstrap and folds is not None):
        raise ValueError(
            "`bootstrap` must be True or False, and False where folds are given. "
            f"Received: {received('bootstrap', bootstrap)}{'' if folds is None else ' beside folds'}. "
            "Fit one cohort with folds, another with bootstrap=True."
        )
    if folds is None and groups is not None:
        raise ValueError(
            f"`groups` must be left out unless folds are given. Received: {received('groups', groups)}. "
            "Pass for example folds=sklearn.model_selection.GroupKFold(5)."
        )
    if folds is not None and (validation_data is not None or recipe.validation_split):
        given = "validation_data" if validation_data is not None else "validation_split"
        value = validation_data if validation_data is not None else recipe.validation_split
        raise ValueError(
            f"`{given}` must be left out where folds are given: each member validates on its own fold. "
            f"Received: {received(given, value)}. Leave it out, or hold data back for `cohort.evaluate`."
        )


def out_of_fold(outputs: np.ndarray, splits: list[Split]) -> np.ndarray:
    """Picks from the outputs (member, sample, ...) those of samples that the member has not trained on.

    Returns:
        Array (member, sample, ...), where the members of all folds have become one.

    Raises:
        RuntimeError: If the folds do not hold each sample out exactly once.
    """
    fold_of = np.full(outputs.shape[1], -1)
    times = np.bincount(np.concatenate([validation for _, validation in splits]), minlength=len(fold_of))
    if not (times == 1).all():
        raise RuntimeError(
            "`predict_out_of_fold` must find each sample held out exactly once. "
            f"Received: folds of which {int((times != 1).sum())} sample(s) are held out never or more than once. "
            "Fit with folds that are a partition, such as KFold."
        )
    for fold, (_, validation) in enumerate(splits):
        fold_of[validation] = fold
    by_fold = outputs.reshape(-1, len(splits), *outputs.shape[1:])
    return by_fold[:, fold_of, np.arange(len(fold_of))]


# --- bootstrap and weights --------------------------------------------------------------------------------------------


def shares_of(
    seeds: Sequence[int], rows: int, splits: list[Split] | None, bootstrap: bool, weights: np.ndarray | None
) -> Shares:
    """Returns what is each member's own in a fit.

    Args:
        seeds: The seed of each member; where there are folds, members stand once for each, next to each other.
        rows: Rows to train on.
        splits: The folds, if there are any.
        bootstrap: Whether each member draws its rows by its seed.
        weights: Weights (member, sample), if members have their own.
    """
    if weights is not None and len(weights) != len(seeds):
        raise ValueError(
            f"`sample_weight` must have shape (sample,), or (member, sample): ({len(seeds)}, {weights.shape[1]}). "
            f"Received: {received('sample_weight', weights)}. Pass one row per member, as in `cohort.parameters`."
        )
    if splits:
        return shares_of_folds(splits, len(seeds), rows, weights)
    if bootstrap:
        from sklearn.utils import resample

        drawn = {seed: np.asarray(resample(np.arange(rows), random_state=seed)) for seed in dict.fromkeys(seeds)}
        return Shares([drawn[seed] for seed in seeds], None, weights, rows)
    return Shares(None, None, weights, rows)


def shares_of_folds(splits: list[Split], members: int, rows: int, weights: np.ndarray | None = None) -> Shares:
    """Returns what is each member's own where members stand once for each fold, next to each other."""
    training, validation = zip(*splits, strict=True)
    times = members // len(splits)
    return Shares(training * times, validation * times, weights, rows)


def out_of_bag(outputs: np.ndarray, training: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the outputs (member, sample, ...) with NaN at samples that the member has trained on."""
    held_out = np.array(outputs, dtype=np.result_type(outputs, np.float32))
    for member, rows in enumerate(training):
        held_out[member, rows] = np.nan
    return held_out


def own_weights(sample_weight: Any, x: Any, members: int, recipe: Recipe, validation_data: Any) -> np.ndarray | None:
    """Returns weights (member, sample), or None where all members share what is given.

    Weights of as many rows as there are samples are those of time steps, as Keras takes them, unless there are as many
    members.
    """
    first = next((leaf for leaf in keras.tree.flatten(x) if hasattr(leaf, "shape")), None)
    if first is None or keras.tree.is_nested(sample_weight) or np.ndim(sample_weight) != 2:
        return None
    rows, shape = first.shape[0], np.shape(sample_weight)
    if shape[1] != rows or (shape[0] == rows and members != rows):
        return None
    if recipe.validation_split and validation_data is None:
        raise ValueError(
            "`validation_split` must be left out where each member has its own weights. "
            f"Received: {received('validation_split', recipe.validation_split)}. Pass `validation_data`."
        )
    return np.asarray(sample_weight, keras.config.floatx())


def _are_equal(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return len(some) == len(others) and all(map(np.array_equal, some, others))


class HeldOut(NamedTuple):
    """What of the data of a fit its members have not trained on."""

    splits: list[Split] | None = None
    shares: Shares = Shares()

    def after(self, earlier: "HeldOut | None") -> "HeldOut":
        """Returns what neither this fit nor those before have trained on: nothing, where they left out other rows."""
        if earlier is None or (self.shares.rows == earlier.shares.rows and _are_equal(self._rows, earlier._rows)):
            return self
        return HeldOut(None, Shares(rows=self.shares.rows))

    @property
    def _rows(self) -> Sequence[np.ndarray]:
        """The rows of each fold, or those that each member has drawn."""
        return [own for split in self.splits for own in split] if self.splits else self.shares.training or []

    def picker(self, x: Any) -> Callable[[np.ndarray], np.ndarray]:
        """Returns what picks from outputs for the samples of the fit those of samples that a member has not seen."""
        splits, training = self.splits, self.shares.training
        if splits is None and training is None:
            raise RuntimeError(
                "`cohort.predict_out_of_fold` must come after a fit with folds or with bootstrap=True, and all fits of "
                "the cohort must leave out the same rows. Received: a fit without, or with others. "
                "Make a cohort whose only fit is `cohort.fit(x, y, folds=5)`."
            )
        shapes = [np.shape(leaf)[:1] for leaf in keras.tree.flatten(x)]
        if shapes and shapes[0] != (self.shares.rows,):
            raise ValueError(
                f"`x` must hold the {self.shares.rows} samples with which the last fit trained, in the same order. "
                f"Received: {received('x', x)}. Pass what was passed to `fit`, without the last rows if "
                "`validation_split` kept these back."
            )
        if splits:
            return lambda outputs: out_of_fold(outputs, splits)
        return lambda outputs: out_of_bag(outputs, training or [])
