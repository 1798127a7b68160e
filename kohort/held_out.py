"""How well, and how surely, networks predict a table: judged on rows that they have not seen.

In come the columns of a table, a target, and how to train; out come scores of single networks, of their ensemble and of
a plain guess, each on held-out rows, and predictors that can be kept. The room exists because one network, scored on
one split, says neither how well the next one does nor how much of it is luck.

Nothing leaks. Folds share one copy of the data in a cohort, and each fold must fill and scale by its own training rows;
so the data that go in are one copy of the table for each fold, one below the other, each prepared by what was learned
from that fold's training rows, and a fold trains and validates on rows of its own copy.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from kohort import files, networks, saving, tables
from kohort.checks import check_integer
from kohort.cohort import Cohort
from kohort.comparison import Comparison, compared_successes, compared_values
from kohort.files import Contents
from kohort.folds import Split
from kohort.history import Outcome, success_rate
from kohort.keras_parts import fresh_names
from kohort.members import Settings, members_of
from kohort.membership import check_seeds
from kohort.tables import Preparation, Table, Target

KIND, VERSION = "predictor", 1
MOST_BYTES = 2**31
# Members that agree so far are called sure.
SURE = 0.9


class Way(NamedTuple):
    """How the networks are trained."""

    parameters: dict[str, Any]  # of `networks.dense`
    seeds: Any = 10
    epochs: int = 100
    batch_size: int | None = None


class Told(NamedTuple):
    """What members say of rows: of classes the probabilities, of numbers the numbers."""

    members: np.ndarray  # (seed, row, class), or (seed, row); NaN where a member diverged

    @property
    def ensemble(self) -> np.ndarray:
        """The average over the members that have not diverged, (row, class) or (row,)."""
        return _mean_of_finite(self.members)

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviation over the members that have not diverged, likewise."""
        is_finite = np.isfinite(self.members)
        return np.sqrt(_mean_of_finite(np.where(is_finite, self.members - self.ensemble, np.nan) ** 2))

    @property
    def votes(self) -> np.ndarray:
        """The class that each member says, (seed, row); -1 where it diverged, which says none."""
        return np.where(np.isfinite(self.members).all(axis=2), self.members.argmax(axis=2), -1)

    @property
    def said(self) -> np.ndarray:
        """The class that the ensemble says, (row,); -1 where all members diverged."""
        ensemble = self.ensemble
        return np.where(np.isfinite(ensemble).all(axis=1), ensemble.argmax(axis=1), -1)


def _mean_of_finite(values: np.ndarray) -> np.ndarray:
    """Returns the mean over the first axis of what is finite there; NaN where nothing is."""
    is_finite = np.isfinite(values)
    counts = is_finite.sum(axis=0)
    total = np.where(is_finite, values, 0).sum(axis=0)
    return np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)


class Score(NamedTuple):
    """A score with its interval."""

    value: float
    low: float
    high: float


class Judged(NamedTuple):
    """How well a table is predicted, on held-out rows."""

    measure: str  # "accuracy", or "root mean squared error"
    single: Score  # of one network: the median over seeds, and where 95 % of members are on the fold of each
    ensemble: Score  # of all networks together, with its interval over rows
    plain: float  # of the guess that knows the target alone
    guess: str  # what that is
    comparison: Comparison  # of the ensemble with it, row by row
    agreement: (
        tuple[int, int] | None
    )  # of classes: rows on which at least nine of ten members agree, right ones of them
    diverged: int
    members: int
    parameters: int  # of one network
    seconds: float


# --- validation -------------------------------------------------------------------------------------------------------


def judge(table: Table, target: Target, way: Way, folds: int, verbose: str | int = "auto") -> Judged:
    """Trains networks from each seed on all but one fold, for each fold, and scores them on that fold.

    Args:
        table: The columns to predict from.
        target: What to predict.
        way: How to train.
        folds: How many folds, at least 2; of classes, stratified.
        verbose: As in `Cohort.fit`.

    Raises:
        TypeError, ValueError: If an argument is not what it must be, or a class has fewer rows than there are folds.
    """
    start = time.perf_counter()
    splits = splits_of(target, folds)
    told = out_of_fold(table, target, way, splits, verbose)
    parameters = int(_network(tables.layout_of(table), target, way).count_params())
    return _judged(told, target, splits, parameters, time.perf_counter() - start)


def out_of_fold(table: Table, target: Target, way: Way, splits: Sequence[Split], verbose: str | int = "auto") -> Told:
    """Returns what networks of each seed say of every row, each trained without the fold in which that row is."""
    layout, rows = tables.layout_of(table), table.rows
    copies = [tables.learned(layout, table.taken(training))(table) for training, _ in splits]
    units = [_Unit.of(target, training) for training, _ in splits]
    own = [(k * rows + training, k * rows + held) for k, (training, held) in enumerate(splits)]
    cohort = Cohort(_network(layout, target, way), way.seeds)
    cohort.fit(
        np.concatenate(copies), np.concatenate([unit.scaled(target) for unit in units]), way.batch_size, way.epochs,
        verbose=verbose, folds=own, validation_freq=way.epochs,
    )  # fmt: skip
    # One after the other, the rows that each fold holds out; of what all members say, those of that fold count.
    outputs = cohort.predict(np.concatenate([x[held] for x, (_, held) in zip(copies, splits, strict=True)]))
    by_fold = np.split(outputs, np.cumsum([len(held) for _, held in splits])[:-1], axis=1)
    meant = [_meant(part[k :: len(splits)], units[k], target) for k, part in enumerate(by_fold)]
    order = np.concatenate([held for _, held in splits])
    return Told(np.concatenate(meant, axis=1)[:, np.argsort(order)])


def splits_of(target: Target, folds: int) -> list[Split]:
    """Returns the rows to train on, and those held out, of each fold: shuffled, always alike."""
    from sklearn.model_selection import KFold, StratifiedKFold

    check_integer("folds", folds, 2)
    rarest, count = Counter(target.values.tolist()).most_common()[-1] if target.classes else (0, len(target.values))
    if folds > count:
        of = f"of the rarest class, {target.classes[rarest]!r}," if target.classes else "of the table,"
        raise ValueError(
            f"`folds` must be at most the number of rows {of} which is {count}. Received: folds={folds}. "
            "Take fewer folds, or add rows."
        )
    splitter = (StratifiedKFold if target.classes else KFold)(folds, shuffle=True, random_state=0)
    return list(splitter.split(np.zeros(len(target.values)), target.values))


class _Unit(NamedTuple):
    """How a number to be predicted is scaled: by the rows that train."""

    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, target: Target, rows: np.ndarray) -> "_Unit":
        if target.classes:
            return cls()
        own = target.values[rows]
        return cls(float(own.mean()), float(own.std()) or 1.0)

    def scaled(self, target: Target) -> np.ndarray:
        if target.classes:
            return target.values.astype("int32")
        return ((target.values - self.mean) / self.scale).astype("float32")


def _network(layout: Preparation, target: Target, way: Way) -> keras.Model:
    with fresh_names():
        return networks.dense(len(layout.names), max(1, len(target.classes)), target.task)(**way.parameters)


def _meant(outputs: np.ndarray, unit: _Unit, target: Target) -> np.ndarray:
    """Returns outputs (member, row, 1 or class) as probabilities of all classes, or as numbers (member, row)."""
    if not target.classes:
        return outputs[..., 0].astype("float64") * unit.scale + unit.mean
    if outputs.shape[-1] > 1:
        return outputs
    return np.concatenate([1 - outputs, outputs], axis=-1)


# --- scores -----------------------------------------------------------------------------------------------------------


def _judged(told: Told, target: Target, splits: Sequence[Split], parameters: int, seconds: float) -> Judged:
    score = _of_classes if target.classes else _of_numbers
    diverged = sum(int((~np.isfinite(each[held])).any()) for each in told.members for _, held in splits)
    members = len(told.members) * len(splits)
    about = {"diverged": diverged, "members": members, "parameters": parameters, "seconds": seconds}
    return Judged(**score(told, target, splits), **about)


def _of_classes(told: Told, target: Target, splits: Sequence[Split]) -> dict[str, Any]:
    votes = told.votes
    right: np.ndarray = np.equal(votes, target.values)  # who diverged is right of no row
    guesses = np.empty(len(target.values), int)
    for training, held in splits:
        guesses[held] = np.bincount(target.values[training]).argmax()
    is_right: np.ndarray = np.equal(told.said, target.values)
    rate = success_rate(is_right)
    most = np.stack([(votes == number).mean(axis=0) for number in range(len(target.classes))]).max(axis=0)
    return {
        "measure": "accuracy",
        "single": _spread(right.mean(axis=1), [right[:, held].mean(axis=1) for _, held in splits]),
        "ensemble": Score(rate.rate, rate.low, rate.high),
        "plain": float((guesses == target.values).mean()),
        "guess": f"always {target.classes[np.bincount(target.values).argmax()]!r}, the most frequent",
        "comparison": compared_successes(is_right, np.equal(guesses, target.values)),
        "agreement": (int((most >= SURE).sum()), int((is_right & (most >= SURE)).sum())),
    }


def _of_numbers(told: Told, target: Target, splits: Sequence[Split]) -> dict[str, Any]:
    guesses = np.empty(len(target.values))
    for training, held in splits:
        guesses[held] = target.values[training].mean()
    errors = np.abs(told.members - target.values)
    ensemble, plain = np.abs(told.ensemble - target.values), np.abs(guesses - target.values)
    return {
        "measure": "root mean squared error",
        "single": _spread(_root_mean_square(errors), [_root_mean_square(errors[:, held]) for _, held in splits]),
        "ensemble": _root_of_mean(ensemble**2),
        "plain": float(_root_mean_square(plain)),
        "guess": "the mean",
        "comparison": compared_values(ensemble, plain, "down", 0.95, "the error"),
        "agreement": None,
    }


def _root_mean_square(errors: np.ndarray) -> np.ndarray:
    """Returns the root of the mean over the last axis, of what is finite there."""
    return np.sqrt(_mean_of_finite(np.moveaxis(errors, -1, 0) ** 2))


def _root_of_mean(squares: np.ndarray) -> Score:
    """Returns the root of the mean, with the interval of the mean by Student's t."""
    from scipy.stats import ttest_1samp

    mean = squares.mean()
    ends = ttest_1samp(squares, 0).confidence_interval(0.95) if squares.std() > 0 else (mean, mean)
    low, high = (float(np.sqrt(np.maximum(end, 0))) for end in ends)
    return Score(float(np.sqrt(mean)), low, high)


def _spread(of_seeds: np.ndarray, of_folds: list[np.ndarray]) -> Score:
    """Returns the median over seeds, each judged by all rows as the ensemble is, and where 95 % of members are.

    Args:
        of_seeds: The score of each seed on all rows, whichever of its members has not seen them.
        of_folds: The scores of each fold's members on its own rows alone: what one training on one split would show.
    """
    every = np.concatenate(of_folds)
    finite = every[np.isfinite(every)]
    if not finite.size:
        return Score(*[float("nan")] * 3)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Score(float(np.median(of_seeds[np.isfinite(of_seeds)])), float(low), float(high))


def lines(judged: Judged, table: Table, target: Target, way: Way, folds: int) -> list[str]:
    """Returns what was found out as text, for people."""
    of = ", ".join(f"{name} {(target.values == number).sum():,}" for number, name in enumerate(target.classes))
    wanted = f"classes {of}" if target.classes else f"a number, {target.values.min():g} to {target.values.max():g}"
    shown = _share if target.classes else "{:.4g}".format
    settings = ", ".join(f"{name} {value}" for name, value in way.parameters.items())
    seeds = judged.members // folds
    counted = f"{judged.members:,} members: {seeds} seed{'s' * (seeds > 1)} x {folds} folds"
    told = [
        f"{table.path}: {tables.described(table)}; to predict {target.name!r}: {wanted}",
        f"{counted}, of {judged.parameters:,} parameters ({settings}), {way.epochs} epochs, {judged.seconds:.1f} s",
        f"{judged.measure} on held-out rows",
        f"  one network  {shown(judged.single.value):>9}   95 % of members by fold: {_range(judged.single, shown)}",
        f"  ensemble     {shown(judged.ensemble.value):>9}   95 % interval over rows: {_range(judged.ensemble, shown)}",
        f"  plain guess  {shown(judged.plain):>9}   {judged.guess}",
        f"ensemble against plain guess: {judged.comparison}".replace("seeds", "rows"),
    ]
    if judged.agreement is not None:
        sure, right = judged.agreement
        share = f", {_share(right / sure)} of them predicted right" if sure else ""
        told.append(f"on {sure:,} of {table.rows:,} rows at least nine of ten networks agree{share}")
    if judged.diverged:
        told.append(f"{judged.diverged} of {judged.members} members diverged: try a smaller --learning-rate")
    return told


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _range(score: Score, shown: Callable[[float], str]) -> str:
    return f"{shown(score.low)} to {shown(score.high)}"


# --- predictors -------------------------------------------------------------------------------------------------------


class Predictor(NamedTuple):
    """Networks trained on all rows of a table, and what makes numbers of the columns of another."""

    preparation: Preparation
    target: Target  # without values
    unit: _Unit
    cohort: Cohort

    def __call__(self, table: Table) -> dict[str, list]:
        """Returns a row of predictions for each row: of a class its probability, and how many networks say so."""
        told = Told(_meant(self.cohort.predict(self.preparation(table)), self.unit, self.target))
        name, ensemble = self.target.name, told.ensemble
        if not self.target.classes:
            return {name: ensemble.tolist(), "standard deviation": told.deviation.tolist()}
        said, share = told.said, (told.votes == told.said).mean(axis=0)
        classes = [self.target.classes[number] if number >= 0 else "" for number in said]
        share = np.where(said >= 0, share, 0.0)
        return {name: classes, "probability": ensemble.max(axis=1).tolist(), "agreement": share.tolist()}


def save(path: Any, table: Table, target: Target, way: Way, verbose: str | int = "auto") -> int:
    """Trains networks on all rows, and writes them with what prepares other tables, in one file and one step.

    Returns:
        How many of the networks diverged: they are kept, and say nothing.

    Raises:
        OSError: If the place cannot be written.
    """
    files.checked_room(path)  # before anything is trained
    rows = np.arange(table.rows)
    preparation, unit = tables.learned(tables.layout_of(table), table), _Unit.of(target, rows)
    with fresh_names():
        members = members_of(_network(preparation, target, way), check_seeds(way.seeds), {}, Settings(False))
    cohort = Cohort.of_members(members)
    history = cohort.fit(preparation(table), unit.scaled(target), way.batch_size, way.epochs, verbose=verbose)
    kept = saving.contents_of(members, members.need_training("fit"))
    about = {
        "columns": tables.as_values(preparation),
        "target": [target.name, target.classes],
        "unit": list(unit),
        "cohort": kept.about,
    }
    files.write(path, KIND, VERSION, Contents(about, kept.arrays))
    return Counter(history.outcome.tolist())[Outcome.DIVERGED]


def load(path: Any) -> Predictor:
    """Reads what `save` wrote; nothing in it is executed.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is damaged, or holds something else.
    """
    contents = files.read(path, KIND, VERSION, most_bytes=MOST_BYTES)
    shown = str(Path(path))
    try:
        about = contents.about
        preparation = tables.from_values(about["columns"])
        name, classes = about["target"]
        target = Target(str(name), np.zeros(0), [str(each) for each in classes])
        unit = _Unit(*map(float, about["unit"]))
        kept = Contents(dict(about["cohort"]), contents.arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`path` must be a file that `kohort fit --save` wrote. Received: path={shown!r}, which holds no predictor "
            f"({error}). Save it anew."
        ) from error
    return Predictor(preparation, target, unit, Cohort.of_kept(saving.checked(shown, kept, None)))
