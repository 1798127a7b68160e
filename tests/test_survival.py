"""Survival: the first epoch solved, who is censored, and a band that is SciPy's own."""

import numpy as np
import pytest
from scipy.stats import CensoredData, ecdf

from kohort.history import CohortHistory
from kohort.survival import survival_curve

NAN = np.nan
LOSS = np.array([[1, 0.5, 0.1, 0.1], [1, 0.2, 0.3, 0.05], [1, 1, 1, 1], [0.05, 0.5, 0.5, NAN]])


class Named:
    def __init__(self, name):
        self.name = name


class Ended(CohortHistory):
    """A history whose members end as told, whatever outcomes there are."""

    ends: tuple = ()

    @property
    def outcome(self):
        return np.array([Named(name) for name in self.ends], dtype=object)


def curve(loss=LOSS, ends=None, bounds=None, **options):
    kind = CohortHistory if ends is None else Ended
    history = kind({"loss": np.asarray(loss, float)}, list(range(len(loss))), list(range(len(loss[0]))))
    history.ends = ends
    return survival_curve(history, bounds or {"loss": 0.25}, {"loss": "down"}, **options)


def test_the_first_epoch_counts():
    made = curve()

    np.testing.assert_array_equal(made.first, [3, 2, NAN, 1])
    np.testing.assert_array_equal(made.epochs, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(made.share, [1, 0.75, 0.5, 0.25, 0.25])
    assert (made.median, made.stopped, made.diverged) == (2, 0, 0)
    assert str(made) == "3 of 4 solved by epoch 4, half of them by epoch 2 (0 stopped early, 0 diverged)"


def test_who_solved_it_before_it_stopped_or_diverged_has_solved_it():
    made = curve(ends=["COMPLETED", "STOPPED_EARLY", "COMPLETED", "DIVERGED"])

    assert (made.stopped, made.diverged) == (0, 0)
    np.testing.assert_allclose(made.share, curve().share)


def test_who_stopped_early_is_censored_there_and_who_diverged_never_solves_it():
    loss = [[1, 0.1, 0.1, 0.1], [1, NAN, NAN, NAN], [1, 1, 1, NAN], [1, NAN, NAN, NAN], [1, 1, 1, 0.1], [1, 1, 1, 1]]
    made = curve(loss, ["COMPLETED", "STOPPED_EARLY", "STOPPED_EARLY", "DIVERGED", "COMPLETED", "COMPLETED"])

    theirs = ecdf(CensoredData(uncensored=[2, 4], right=[1, 3, 4, 4])).sf
    np.testing.assert_allclose(made.share, theirs.evaluate(made.epochs))
    assert (made.stopped, made.diverged) == (2, 1)
    np.testing.assert_array_equal(made.censored, [1, 3])


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_band_is_scipys(confidence):
    loss = np.ones((20, 6))
    loss[:8, 2:] = loss[8:12, 4:] = 0.0
    made = curve(loss, confidence=confidence)

    theirs = ecdf(CensoredData(uncensored=[3] * 8 + [5] * 4, right=[6] * 8)).sf
    band = theirs.confidence_interval(confidence, method="log-log")
    np.testing.assert_allclose(made.low, band.low.evaluate(made.epochs))
    np.testing.assert_allclose(made.high, band.high.evaluate(made.epochs))
    assert made.confidence == confidence


def test_nobody_solves_it():
    made = curve(np.ones((3, 2)))

    np.testing.assert_array_equal([made.share, made.low, made.high], np.ones((3, 3)))
    assert np.isnan(made.median)
    assert "fewer than half of them" in str(made)


@pytest.mark.parametrize(
    ("bounds", "confidence", "message"),
    [
        ({"acc": 0.9}, 0.95, r"`acc` must be a metric of the history: loss\. Received: acc=0\.9\. Metrics are named"),
        ({"loss": NAN}, 0.95, r"`loss` must be the bound that its value must reach, a number\. Received: loss=nan"),
        ({"loss": 1.0}, 1.0, r"`confidence` must be between 0 and 1\. Received: confidence=1\.0\."),
    ],
)
def test_what_cannot_be_asked(bounds, confidence, message):
    with pytest.raises(ValueError, match=message):
        curve(bounds=bounds, confidence=confidence)


def test_metrics_without_direction_and_histories_without_epochs():
    history = CohortHistory({"loss": np.ones((2, 3))}, [0, 1], [0, 1, 2])
    with pytest.raises(
        ValueError, match=r"`loss` must be a metric that says whether more is better\. Received: loss=1"
    ):
        survival_curve(history, {"loss": 1.0}, {"loss": None})
    with pytest.raises(
        ValueError, match=r"`bounds` must be at least one metric with its bound\. Received: bounds=\{\}"
    ):
        survival_curve(history, {}, {})
    with pytest.raises(ValueError, match=r"`history` must hold at least one epoch\. .*\. Fit for some epochs first\."):
        survival_curve(CohortHistory({}, [0], []), {"loss": 1.0}, {"loss": "down"})
