"""How long it takes until a problem is solved: the share of members that are not there yet, by epoch.

In come a history and bounds; out comes a survival curve with its band, as arrays. The room exists because "stuck" and
"slow" look alike in a success rate and differ here, and because who was stopped early must not count as stuck.
"""

import numbers
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kohort import notebook
from kohort.history import CohortHistory, check_confidence


class SurvivalCurve(NamedTuple):
    """The share of members that have not solved a problem yet, by epoch; `Cohort.survival` computes it.

    Args:
        epochs: Numbers of epochs, counted from 1, after the one before the first; (epoch,).
        share: Share of the members that have not solved it by the end of the epoch, likewise.
        low: Lower end of its interval, likewise.
        high: Upper end, likewise.
        first: The first epoch in which each member met the criterion, NaN: none; (member,).
        stopped: How many stopped early, unsolved: censored then.
        diverged: How many diverged, unsolved: never solved.
        confidence: Confidence level of the band.
        censored: The epochs after which those that stopped early are not known, in order; (stopped,).

    Example:
        >>> import numpy as np
        >>> from kohort.history import CohortHistory
        >>> from kohort.survival import survival_curve
        >>> history = CohortHistory({"loss": np.array([[0.5, 0.1], [0.5, 0.4]])}, seeds=[3, 8], epoch=[0, 1])
        >>> print(survival_curve(history, {"loss": 0.2}, {"loss": "down"}))
        1 of 2 solved by epoch 2, half of them by epoch 2 (0 stopped early, 0 diverged)
    """

    epochs: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    first: np.ndarray
    stopped: int
    diverged: int
    confidence: float
    censored: np.ndarray = np.empty(0)

    @property
    def median(self) -> float:
        """The first epoch by which half of the members have solved it, as the curve estimates it; NaN: none yet."""
        below = np.flatnonzero(self.share <= 0.5)
        return float(self.epochs[below[0]]) if below.size else float("nan")

    def __str__(self) -> str:
        """Reads as a sentence part."""
        solved = int(np.isfinite(self.first).sum())
        half = "fewer than half of them" if np.isnan(self.median) else f"half of them by epoch {self.median:g}"
        said = f"{solved} of {len(self.first)} solved by epoch {self.epochs[-1]}, {half}"
        return f"{said} ({self.stopped} stopped early, {self.diverged} diverged)"

    def _repr_html_(self) -> str:
        """Shows that in a notebook."""
        return notebook.line(str(self))


def survival_curve(
    history: CohortHistory,
    bounds: Mapping[str, float],
    directions: Mapping[str, str | None],
    confidence: float = 0.95,
) -> SurvivalCurve:
    """Computes the share of members that have not met all bounds in any epoch yet, with its band.

    A member that stopped early without is censored there: nobody knows what it would have done. One that diverged never
    solves it, and counts to the end.

    Args:
        history: The members' metrics, of at least one epoch.
        bounds: Metric name to its bound.
        directions: Metric name to "down" (at most the bound) or "up" (at least).
        confidence: Confidence level of the band, between 0 and 1.

    Returns:
        The curve.

    Raises:
        ValueError: If nothing is asked, a metric is unknown or has no direction, or a bound is no number.

    Source:
        Kaplan and Meier (1958), by `scipy.stats.ecdf`; the band is its exponential Greenwood interval, and where that
        is undefined (nobody or everybody solved) the point itself, or down to 0.
    """
    _check(history, bounds, directions, confidence)
    met = np.logical_and.reduce([_met(history[name], bound, directions[name]) for name, bound in bounds.items()])
    epochs = 1 + np.asarray(history.epoch)
    first = np.where(met.any(axis=1), epochs[met.argmax(axis=1)], np.nan)
    outcomes = np.array([outcome.name for outcome in history.outcome]) if "loss" in history else np.full(len(first), "")
    is_unsolved = np.isnan(first)
    is_stopped, is_diverged = (is_unsolved & (outcomes == name) for name in ("STOPPED_EARLY", "DIVERGED"))
    recorded = history["loss"] if "loss" in history else history[next(iter(bounds))]
    censored = np.where(is_stopped, _last_epochs(epochs, recorded), epochs[-1])[is_unsolved]
    curve = _curve(first[~is_unsolved], censored, np.append(epochs[0] - 1, epochs), float(confidence))
    counts: dict[str, Any] = {"stopped": int(is_stopped.sum()), "diverged": int(is_diverged.sum())}
    counts |= {"first": first, "censored": np.sort(_last_epochs(epochs, recorded)[is_stopped])}
    return SurvivalCurve(**curve, **counts, confidence=float(confidence))


def _check(history: CohortHistory, bounds: Mapping, directions: Mapping, confidence: float) -> None:
    check_confidence(confidence)
    if not bounds:
        raise ValueError(
            "`bounds` must be at least one metric with its bound. Received: bounds={}. "
            "Write for example `survival(loss=0.01)`."
        )
    if not history.epoch:
        raise ValueError(f"`history` must hold at least one epoch. Received: {history}. Fit for some epochs first.")
    for name, bound in bounds.items():
        _check_bound(history, name, bound, directions.get(name))


def _check_bound(history: CohortHistory, name: str, bound: float, direction: str | None) -> None:
    numbered = [each for each in history if history[each].ndim == 2]
    if name not in numbered:
        raise ValueError(
            f"`{name}` must be a metric of the history: {', '.join(numbered) or '(none)'}. Received: {name}={bound!r}. "
            "Metrics are named in `model.compile(metrics=...)`; those of validation begin with 'val_'."
        )
    if not isinstance(bound, numbers.Real) or np.isnan(float(bound)):
        raise ValueError(
            f"`{name}` must be the bound that its value must reach, a number. Received: {name}={bound!r}. "
            "Pass for example 0.01."
        )
    if direction not in ("up", "down"):
        raise ValueError(
            f"`{name}` must be a metric that says whether more is better. Received: {name}={bound!r}. "
            "Take one that does, such as the loss."
        )


def _met(values: np.ndarray, bound: float, direction: str | None) -> np.ndarray:
    """Says in which epochs which members keep a bound, (member, epoch); NaN keeps none."""
    return values >= bound if direction == "up" else values <= bound


def _last_epochs(epochs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the last epoch in which each member has a value."""
    return epochs[values.shape[1] - 1 - np.isfinite(values)[:, ::-1].argmax(axis=1)]


def _curve(solved: np.ndarray, censored: np.ndarray, epochs: np.ndarray, confidence: float) -> dict:
    """Returns the survival curve at the epochs, with its interval."""
    from scipy.stats import CensoredData, ecdf

    survivors = ecdf(CensoredData(uncensored=solved, right=censored)).sf
    share = np.asarray(survivors.evaluate(epochs), float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # undefined where all or none survive: filled below
        interval = survivors.confidence_interval(confidence, method="log-log")
    low, high = (np.asarray(end.evaluate(epochs), float) for end in (interval.low, interval.high))
    low = np.where(np.isnan(low), np.where(share == 1, 1, 0), low)
    high = np.where(share == 1, 1, np.fmin.accumulate(np.where(np.isnan(high) & (share == 1), 1, high)))
    return {"epochs": epochs, "share": share, "low": low, "high": high}
