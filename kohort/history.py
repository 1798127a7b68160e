"""What comes out: the histories of many members, how each ended, and how often they succeed.

In come plain NumPy arrays; out go records of plain NumPy arrays and Python numbers. The room exists so that results can
be read, tested and kept without JAX or Keras.
"""

import enum
import importlib.util
import numbers
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Num

from kohort import notebook

__all__ = ["CohortHistory", "Outcome", "SuccessRate", "success_rate"]


def __dir__() -> list[str]:
    """Names what is for users, and not what only kohort needs."""
    return __all__


class Outcome(enum.StrEnum):
    """Why a member stopped training; the value is the message.

    Example:
        >>> from kohort.history import Outcome
        >>> print(Outcome.DIVERGED)
        the loss is no longer a finite number
    """

    COMPLETED = "all epochs were run"
    STOPPED_EARLY = "a callback stopped it"
    DIVERGED = "the loss is no longer a finite number"


class SuccessRate(NamedTuple):
    """How many members of a cohort succeeded, with the Wilson interval of the rate.

    Args:
        k: Members that met the criterion.
        n: Members in all.
        rate: k / n.
        low: Lower end of the interval.
        high: Upper end of the interval.
        confidence: Confidence level of the interval.

    Example:
        >>> from kohort.history import success_rate
        >>> print(success_rate([True, True, False, False]))
        2 of 4 (50.0 %, 95 % interval 15.0 to 85.0 %)
    """

    k: int
    n: int
    rate: float
    low: float
    high: float
    confidence: float = 0.95

    def __str__(self) -> str:
        """Reads as a sentence part: counts, rate, interval."""
        interval = f"{self.confidence:.0%} interval".replace("%", " %")
        rate, low, high = (f"{100 * share:.1f}" for share in (self.rate, self.low, self.high))
        return f"{self.k} of {self.n} ({rate} %, {interval} {low} to {high} %)"

    def _repr_html_(self) -> str:
        """Shows that in a notebook."""
        return notebook.line(str(self))


def success_rate(solved: Bool[np.ndarray, " member"] | list[bool], confidence: float = 0.95) -> SuccessRate:
    """Counts successes and gives the Wilson score interval of their rate.

    The Wilson interval keeps its level for rates near 0 and 1 and for few members, where the textbook interval fails.

    Args:
        solved: One truth value per member, at least one.
        confidence: Confidence level, between 0 and 1.

    Returns:
        The counts, the rate and the interval.

    Raises:
        ValueError: If there are no members or the level is not between 0 and 1.

    Example:
        >>> from kohort.history import success_rate
        >>> success_rate([True] * 9 + [False]).k
        9

    Source:
        Wilson, Probable inference (1927); `scipy.stats.binomtest(...).proportion_ci("wilson")`.
    """
    from scipy.stats import binomtest

    met = np.asarray(solved, bool)
    if met.ndim != 1 or met.size == 0:
        raise ValueError(
            f"`solved` must have one truth value per member. Received: solved with shape={met.shape}. "
            "Pass an array of shape (member,)."
        )
    check_confidence(confidence)
    k, n = int(met.sum()), int(met.size)
    interval = binomtest(k, n).proportion_ci(confidence, method="wilson")
    return SuccessRate(k, n, k / n, float(interval.low), float(interval.high), confidence)


def check_confidence(confidence: Any) -> None:
    """Raises unless this is a confidence level."""
    if not isinstance(confidence, numbers.Real) or not 0 < float(confidence) < 1:
        raise ValueError(
            f"`confidence` must be between 0 and 1. Received: confidence={confidence!r}. Pass for example 0.95."
        )


class CohortHistory(Mapping):
    """The metrics of all members by epoch: a mapping from metric name to an array (member, epoch).

    Args:
        metrics: Metric name to array (member, epoch); NaN where an epoch did not record the metric.
        seeds: The seed of each member, in the order of the arrays.
        epoch: The number of each epoch, as in `keras.callbacks.History.epoch`.
        stopped_epoch: The number of the epoch after which a callback stopped the member, or -1, shape (member,); the
            metrics are NaN from there on. If not given, nobody was stopped.
        differences: What else tells the members apart, such as their varied values and folds: name to array (member,).

    Example:
        >>> import numpy as np
        >>> from kohort.history import CohortHistory
        >>> history = CohortHistory({"loss": np.array([[0.5, 0.1], [0.5, np.nan]])}, seeds=[3, 8], epoch=[0, 1])
        >>> history
        CohortHistory(2 members, 2 epochs: loss)
        >>> float(history["loss"][0, -1])
        0.1
        >>> [outcome.name for outcome in history.outcome]
        ['COMPLETED', 'DIVERGED']
    """

    def __init__(
        self,
        metrics: Mapping[str, np.ndarray],
        seeds: list[int],
        epoch: list[int],
        stopped_epoch: np.ndarray | None = None,
        differences: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Keeps the arrays as they are."""
        self.history: dict[str, Num[np.ndarray, "member epoch *value"]] = dict(metrics)
        self.seeds = list(seeds)
        self.epoch = list(epoch)
        self.stopped_epoch = np.full(len(self.seeds), -1) if stopped_epoch is None else np.asarray(stopped_epoch)
        self.differences = dict(differences or {})

    def __getitem__(self, metric: str) -> np.ndarray:
        """Returns the array (member, epoch) of the metric."""
        if metric not in self.history:
            raise KeyError(
                f"`metric` must be one of {', '.join(map(repr, self.history)) or '(none)'}. "
                f"Received: metric={metric!r}. "
                "Metrics are named in `model.compile(metrics=...)`; those of validation begin with 'val_'."
            )
        return self.history[metric]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the metric names."""
        return iter(self.history)

    def __len__(self) -> int:
        """Returns the number of metrics."""
        return len(self.history)

    def __repr__(self) -> str:
        """Says how many members and epochs there are and which metrics."""
        return f"CohortHistory({len(self.seeds)} members, {len(self.epoch)} epochs: {', '.join(self.history)})"

    def _repr_html_(self) -> str:
        """Shows the curves of all metrics in a notebook."""
        counts = Counter(outcome.name for outcome in self.outcome) if "loss" in self else {}
        return notebook.section(repr(self), self, [f"{name}: {count}" for name, count in sorted(counts.items())])

    def last(self, metric: str) -> np.ndarray:
        """Returns the last recorded value of the metric for each member, shape (member,).

        Args:
            metric: A metric name.

        Returns:
            Array (member,): of the last epoch that the member ran, or of the last one that validated.

        Raises:
            KeyError: If there is no such metric.

        Example:
            >>> import numpy as np
            >>> from kohort.history import CohortHistory
            >>> history = CohortHistory({"val_loss": np.array([[0.5, np.nan]])}, seeds=[0], epoch=[0, 1])
            >>> history.last("val_loss")
            array([0.5])
        """
        values, places = self[metric], np.flatnonzero(self._recorded(metric))
        numbers = np.array(self.epoch)[places]
        ran = np.where(self.stopped_epoch < 0, len(places), np.searchsorted(numbers, self.stopped_epoch, "right"))
        last = np.append(places, -1)[ran - 1]
        return values[np.arange(len(values)), last]

    def _ran(self, epochs: int) -> np.ndarray:
        """Says which members ran which of the first epochs, shape (member, epoch)."""
        numbers = np.array(self.epoch[:epochs])
        return (self.stopped_epoch[:, None] < 0) | (numbers <= self.stopped_epoch[:, None])

    def _recorded(self, metric: str) -> np.ndarray:
        """Says which epochs recorded the metric: of validation, not those where it is NaN in members that are well."""
        values = self[metric]
        if not metric.startswith("val_"):
            return np.ones(values.shape[1], bool)
        others = tuple(i for i in range(values.ndim) if i != 1)
        recorded = np.any(~np.isnan(values[:1]), axis=others)
        if not recorded.all():  # of many members, most epochs show by one of them
            recorded[~recorded] = np.any(~np.isnan(values[:, ~recorded]), axis=others)
        if "loss" in self.history:
            recorded |= ~np.isfinite(self.history["loss"]).any(axis=0) & self._ran(values.shape[1]).any(axis=0)
        return recorded

    def to_xarray(self) -> Any:
        """Returns the metrics as labelled arrays.

        Returns:
            An `xarray.Dataset` with the axes `member`, whose labels are the seeds, and `epoch`; each metric is a
            variable of it, and so is the `outcome` of each member, by name. Metrics of several numbers have one axis
            more. Where members differ in more than their seeds, each parameter and the fold is a coordinate along
            `member`.

        Raises:
            ImportError: If xarray is not installed.

        Example:
            >>> import numpy as np
            >>> from kohort.history import CohortHistory
            >>> history = CohortHistory({"loss": np.array([[0.5, 0.1], [0.5, 0.4]])}, seeds=[3, 8], epoch=[0, 1])
            >>> float(history.to_xarray().loss.sel(member=8, epoch=1))
            0.4
        """
        xarray = optional("xarray", "to_xarray")

        def variable(name: str, values: np.ndarray) -> tuple:
            further = [f"{name}_{axis}" for axis in range(values.ndim - 2)]
            return ("member", "epoch", *further), values

        metrics = {name: variable(name, values) for name, values in self.history.items()}
        if "loss" in self:
            metrics["outcome"] = ("member",), np.array([outcome.name for outcome in self.outcome])
        along = {name: (("member",), values) for name, values in self.differences.items()}
        return xarray.Dataset(metrics, {"member": self.seeds, "epoch": self.epoch, **along})

    def to_pandas(self) -> Any:
        """Returns the metrics as a table, one row for each member and epoch.

        Returns:
            A `pandas.DataFrame` with the index (`member`, `epoch`), of which a member's label is its seed, and a column
            for each metric; of a metric of several numbers one for each of them, such as `f1_score[0]`. Where members
            differ in more than their seeds, the index has a level for each parameter and the fold between the two.

        Raises:
            ImportError: If pandas is not installed.

        Example:
            >>> import numpy as np
            >>> from kohort.history import CohortHistory
            >>> history = CohortHistory({"loss": np.array([[0.5, 0.1], [0.5, 0.4]])}, seeds=[3, 8], epoch=[0, 1])
            >>> history.to_pandas()
                          loss
            member epoch
            3      0       0.5
                   1       0.1
            8      0       0.5
                   1       0.4
        """
        pandas = optional("pandas", "to_pandas")
        index = pandas.MultiIndex.from_product([self.seeds, self.epoch], names=["member", "epoch"])
        if self.differences:
            members = {"member": np.array(self.seeds), **self.differences}
            levels = {name: np.repeat(column, len(self.epoch)) for name, column in members.items()}
            levels["epoch"] = np.tile(np.array(self.epoch, int), len(self.seeds))
            index = pandas.MultiIndex.from_arrays([*levels.values()], names=[*levels])
        columns: dict[str, np.ndarray] = {}
        for name, values in self.history.items():
            rows = values.reshape(len(index), -1)
            labels = [name] if values.ndim == 2 else [f"{name}[{i}]" for i in range(rows.shape[1])]
            columns |= dict(zip(labels, rows.T, strict=True))
        return pandas.DataFrame(columns, index)

    @property
    def outcome(self) -> np.ndarray:
        """The `Outcome` of each member, an object array (member,)."""
        finite = np.isfinite(self.last("loss")) if self.epoch else np.ones(len(self.seeds), bool)
        ended = [Outcome.STOPPED_EARLY if epoch >= 0 else Outcome.COMPLETED for epoch in self.stopped_epoch]
        return np.array([end if ok else Outcome.DIVERGED for end, ok in zip(ended, finite, strict=True)], dtype=object)


def optional(package: str, asked: str) -> Any:
    """Returns a package that kohort can do without, or raises."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"`{asked}` must find the package {package}. Received: an environment without it. "
            f"Install it: `python -m pip install 'kohort[{package}]'`."
        )
    return importlib.import_module(package)


Criterion = Callable[[CohortHistory], np.ndarray]


def solved(
    history: CohortHistory,
    criterion: Criterion | None,
    bounds: Mapping[str, float],
    directions: Mapping[str, str | None],
) -> Bool[np.ndarray, " member"]:
    """Says which members meet a criterion after training.

    Args:
        history: The members' metrics.
        criterion: Callable that takes the history and returns one truth value per member, or None.
        bounds: Metric name to the bound that its last recorded value must reach; all must hold.
        directions: Metric name to "down" (at most the bound), "up" (at least the bound) or None (unknown).

    Returns:
        Array (member,) of bool. NaN meets no bound.

    Raises:
        TypeError: If the criterion is not callable.
        ValueError: If nothing is asked, a metric is unknown or has no direction, or the criterion returns another
            shape.
    """
    if criterion is None and not bounds:
        raise ValueError(
            "`success_rate` must be given a criterion, by metric or as a callable. Received: none. "
            "Write for example `success_rate(loss=0.01)`."
        )
    met = np.ones(len(history.seeds), bool)
    if criterion is not None:
        met &= _called(criterion, history)
    for metric, bound in bounds.items():
        met &= _reaches(history, metric, bound, directions.get(metric))
    return met


def _called(criterion: Criterion, history: CohortHistory) -> np.ndarray:
    if not callable(criterion):
        raise TypeError(
            "`criterion` must be a callable that takes the history and returns one truth value per member. "
            f"Received: criterion={criterion!r}. For a bound on a metric write `success_rate(loss={criterion!r})`."
        )
    met = np.asarray(criterion(history))
    if met.shape != (len(history.seeds),) or met.dtype != bool:
        raise ValueError(
            f"`criterion` must return a bool array of shape ({len(history.seeds)},), one truth value per member. "
            f"Received: shape={met.shape}, dtype={met.dtype}. Compare along the epochs, "
            "for example `lambda history: history['loss'].min(axis=1) < 0.01`."
        )
    return met


def _reaches(history: CohortHistory, metric: str, bound: float, direction: str | None) -> np.ndarray:
    if metric not in history:
        raise ValueError(
            f"`{metric}` must be a metric of the history: {', '.join(history)}. Received: {metric}={bound!r}. "
            "Metrics are named in `model.compile(metrics=...)`."
        )
    if not isinstance(bound, numbers.Real) or np.isnan(bound):
        raise ValueError(
            f"`{metric}` must be the bound that its last value must reach, a number. Received: {metric}={bound!r}. "
            "Pass for example 0.01."
        )
    if direction not in ("up", "down") or history[metric].ndim != 2:
        raise ValueError(
            f"`{metric}` must be a metric of one number per epoch that says whether more is better. "
            f"Received: {metric}={bound!r}. "
            f"Pass a callable instead, for example `lambda history: history.last({metric!r}) >= {bound!r}`."
        )
    last = history.last(metric)
    return last <= bound if direction == "down" else last >= bound
