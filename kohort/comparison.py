"""Which of two cohorts does better, seed by seed.

In come the results of two cohorts for the seeds that they share; out comes a paired test with the size of the effect
and its interval. The room exists because members of the same seed begin alike: compared pair by pair, the luck of the
start drops out, and far fewer members tell two recipes apart.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from kohort import notebook
from kohort.history import CohortHistory, check_confidence, solved, success_rate


class Comparison(NamedTuple):
    """How two cohorts differ on the seeds that they share; `Cohort.compare` computes it.

    Args:
        seeds: How many seeds they share.
        better: For how many of them the first does better.
        worse: For how many the second does.
        effect: The first minus the second: of success rates, or the median of the differences of a metric.
        low: Lower end of the interval of the effect.
        high: Upper end of it.
        p_value: Probability of a split at least as uneven where neither is better, two-sided.
        confidence: Confidence level of the interval.
        what: What was compared, in words.

    Example:
        >>> from kohort.comparison import compared_successes
        >>> print(compared_successes([True] * 8 + [False] * 2, [False] * 10))
        success rate +0.800 (95 % interval +0.384 to +0.943), better for 8 of 10 seeds, worse for 0, p = 0.0078
    """

    seeds: int
    better: int
    worse: int
    effect: float
    low: float
    high: float
    p_value: float
    confidence: float
    what: str

    def __str__(self) -> str:
        """Reads as a sentence part."""
        effect, low, high = (f"{value:+.3f}" for value in (self.effect, self.low, self.high))
        interval = f"{100 * self.confidence:g} % interval {low} to {high}"
        counts = f"better for {self.better} of {self.seeds} seeds, worse for {self.worse}"
        return f"{self.what} {effect} ({interval}), {counts}, p = {self.p_value:.2g}"

    def _repr_html_(self) -> str:
        """Shows that in a notebook."""
        return notebook.line(str(self))


def compared(
    ours: CohortHistory,
    theirs: CohortHistory,
    directions: tuple[Mapping[str, str | None], Mapping[str, str | None]],
    criterion: Callable | None,
    by: Any,
    bounds: Mapping[str, float],
    confidence: float,
) -> Comparison:
    """Compares two histories in which a seed names a member, on the seeds that they share.

    Args:
        ours: The first.
        theirs: The second.
        directions: For each of the two, metric name to "down", "up" or None.
        criterion: Callable that takes a history and returns one truth value per member, or None.
        by: Instead of criterion and bounds, a metric whose last recorded values are compared.
        bounds: Metric name to the bound that its last recorded value must reach.
        confidence: Confidence level of the interval, between 0 and 1.

    Returns:
        The comparison.

    Raises:
        ValueError: If nothing is asked, or too much, they share no seed, or a metric is unknown or has no direction.
    """
    if (by is None) == (criterion is None and not bounds):
        raise ValueError(
            "`compare` must be given a metric as `by`, or a criterion or bounds, and not both. "
            f"Received: by={by!r}, criterion={criterion!r}, bounds={bounds!r}. "
            "Write for example `compare(other, loss=0.01)`."
        )
    place = {seed: row for row, seed in enumerate(theirs.seeds)}
    pairs = [(row, place[seed]) for row, seed in enumerate(ours.seeds) if seed in place]
    if not pairs:
        raise ValueError(
            "`other` must share seeds with this cohort, because members are compared seed by seed. "
            f"Received: other of {len(theirs.seeds)} members, with none of this cohort's seeds. "
            "Train both cohorts from the same seeds."
        )
    mine, others = map(list, zip(*pairs, strict=True))
    if by is None:
        met = [solved(each, criterion, bounds, own) for each, own in zip((ours, theirs), directions, strict=True)]
        return compared_successes(met[0][mine], met[1][others], confidence)
    ranked = [name for name in ours if directions[0].get(name) and ours[name].ndim == 2 and name in theirs]
    if not isinstance(by, str) or by not in ranked or not directions[1].get(by):
        raise ValueError(
            "`by` must be a metric of the history of both of which Keras knows whether more is better: "
            f"{', '.join(ranked)}. Received: by={by!r}. For any other rule pass a criterion."
        )
    last, last_there = ours.last(by)[mine], theirs.last(by)[others]
    return compared_values(last, last_there, str(directions[0][by]), confidence, f"last {by}")


def compared_successes(
    ours: Bool[np.ndarray, " seed"] | list[bool],
    theirs: Bool[np.ndarray, " seed"] | list[bool],
    confidence: float = 0.95,
) -> Comparison:
    """Compares two success rates of the same seeds.

    Args:
        ours: Whether each seed solved it in the first cohort.
        theirs: Likewise in the second.
        confidence: Confidence level of the interval, between 0 and 1.

    Returns:
        The comparison; the effect is the difference of the rates.

    Source:
        McNemar (1947), exact: `scipy.stats.binomtest` of the seeds that only one of them solved. The interval is
        Newcombe's for paired proportions (1998, method 10), from the Wilson intervals of both rates.
    """
    mine, other = np.asarray(ours, bool), np.asarray(theirs, bool)
    a, b = success_rate(mine, confidence), success_rate(other, confidence)
    better, worse, n = int((mine & ~other).sum()), int((~mine & other).sum()), len(mine)
    both, neither = int((mine & other).sum()), int((~mine & ~other).sum())
    margins = a.k * (n - a.k) * b.k * (n - b.k)
    surplus = both * neither - better * worse
    surplus = max(surplus - n / 2, 0) if surplus > 0 else surplus
    correlation = surplus / math.sqrt(margins) if margins else 0.0
    ends = []
    for mine_off, other_off in ((a.rate - a.low, b.high - b.rate), (a.high - a.rate, b.rate - b.low)):
        ends.append(math.sqrt(mine_off**2 - 2 * correlation * mine_off * other_off + other_off**2))
    effect = a.rate - b.rate
    p_value = _exact(better, worse)
    return Comparison(n, better, worse, effect, effect - ends[0], effect + ends[1], p_value, confidence, "success rate")


def compared_values(
    ours: Float[np.ndarray, " seed"], theirs: Float[np.ndarray, " seed"], direction: str, confidence: float, what: str
) -> Comparison:
    """Compares the values of a metric for the same seeds.

    Args:
        ours: Value of each seed in the first cohort; one that is not finite is worse than any other.
        theirs: Likewise in the second.
        direction: "up" or "down", the way in which the metric gets better.
        confidence: Confidence level of the interval, between 0 and 1.
        what: The metric in words.

    Returns:
        The comparison; the effect is the median of the differences.

    Source:
        The sign test, with the interval of the median that belongs to it: `scipy.stats.quantile_test`.
    """
    from scipy.stats import quantile_test

    check_confidence(confidence)
    worst = -np.inf if direction == "up" else np.inf
    mine, other = (np.where(np.isfinite(values), values, worst).astype(float) for values in (ours, theirs))
    differs = mine != other  # of two that diverged, neither is better
    differences = np.subtract(mine, other, out=np.zeros_like(mine), where=differs)
    gains = differences if direction == "up" else -differences
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    with np.errstate(invalid="ignore"):  # halfway between two infinities
        effect = float(np.median(differences))
    interval = quantile_test(differences, q=0, p=0.5).confidence_interval(confidence)
    low, high = (
        fallback if np.isnan(end) else float(end) for end, fallback in zip(interval, (-np.inf, np.inf), strict=True)
    )
    p_value = _exact(better, worse)
    return Comparison(len(mine), better, worse, effect, low, high, p_value, confidence, f"median of {what}")


def _exact(better: int, worse: int) -> float:
    """Returns the probability of a split at least as uneven, of seeds that fall to either side alike."""
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse, 0.5).pvalue) if better + worse else 1.0
