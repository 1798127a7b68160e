"""The survival curve: counted by hand where it can be, and SciPy's own for what is censored."""

import types

import numpy as np
import pytest
from pictures import Cohort, network, overlaps, recorded, trained_cohort
from scipy.stats import CensoredData, ecdf

import kohort
from kohort import plot
from kohort.history import CohortHistory

NAN = np.nan


def cohort_of(losses, outcomes=None):
    """Returns a stand-in of which each member has these losses, and ends as told."""
    log = recorded(range(len(losses)), loss=losses)
    if outcomes is not None:

        class Known(CohortHistory):
            @property
            def outcome(self):
                return np.array([types.SimpleNamespace(name=name) for name in outcomes])

        log = Known(log.history, log.seeds, log.epoch)
    return Cohort(range(len(losses)), log)


def test_the_curve_is_the_share_that_has_not_solved_it_yet():
    losses = [[1, 0.5, 0.1, 0.1], [1, 0.2, 0.3, 0.05], [1, 1, 1, 1], [0.05, 0.5, 0.5, 0.5]]

    record = plot.survival(cohort_of(losses), loss=0.25)

    np.testing.assert_array_equal(record.first, [3, 2, NAN, 1])
    np.testing.assert_array_equal(record.epochs, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(record.share, [1, 0.75, 0.5, 0.25, 0.25])
    assert (record.low <= record.share).all()
    assert (record.share <= record.high).all()
    assert record.criterion == "loss ≤ 0.25"


def test_the_curve_of_a_real_cohort_ends_where_the_success_rate_begins():
    trained = trained_cohort(seeds=range(8), epochs=40)
    bound = float(np.median(trained.history.last("loss")))

    record = plot.survival(trained, loss=bound)

    met = trained.history["loss"] <= bound
    np.testing.assert_allclose(record.share[1:], 1 - np.maximum.accumulate(met, axis=1).mean(axis=0))
    assert record.share[0] == 1
    assert np.isfinite(record.first).sum() >= trained.success_rate(loss=bound).k


def test_stopped_members_are_censored_and_diverged_ones_never_solve_it():
    stopped = [[1, NAN, NAN, NAN], [1, 1, 1, NAN]]
    losses = [[1, 0.1, 0.1, 0.1], *stopped, [1, NAN, NAN, NAN], [1, 1, 1, 0.1], [1, 1, 1, 1]]
    outcomes = ["COMPLETED", "STOPPED_EARLY", "STOPPED_EARLY", "DIVERGED", "COMPLETED", "COMPLETED"]

    record = plot.survival(cohort_of(losses, outcomes), loss=0.2)

    by_hand = ecdf(CensoredData(uncensored=[2, 4], right=[1, 3, 4, 4])).sf
    np.testing.assert_allclose(record.share, by_hand.evaluate(record.epochs))
    np.testing.assert_allclose(record.share, [1, 1, 0.8, 0.8, 0.8 * 2 / 3])  # of 5 and 3 at risk, after the stops
    assert (record.stopped, record.diverged) == (2, 1)
    labels = record.ax_.get_legend_handles_labels()[1]
    assert {"1 diverged: never solved", "2 stopped early: censored there"} <= set(labels)
    (marks,) = (line for line in record.ax_.lines if line.get_label().endswith("censored there"))
    np.testing.assert_array_equal(record.censored, [1, 3])
    np.testing.assert_allclose(marks.get_xydata(), [[1, 1], [3, 0.8]])  # on the curve
    assert marks.get_marker() not in ("", "None")


def test_the_band_is_scipys_and_defined_everywhere():
    losses = np.ones((20, 6))
    losses[:8, 2:] = losses[8:12, 4:] = 0.0

    record = plot.survival(cohort_of(losses), loss=0.5, confidence=0.9)

    interval = ecdf(CensoredData(uncensored=[3] * 8 + [5] * 4, right=[6] * 8)).sf.confidence_interval(
        0.9, method="log-log"
    )
    np.testing.assert_allclose(record.low, interval.low.evaluate(record.epochs))
    np.testing.assert_allclose(record.high, interval.high.evaluate(record.epochs))
    assert record.confidence == 0.9


@pytest.mark.parametrize(("last", "share", "low"), [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)])
def test_where_all_or_none_solve_it_the_band_has_no_gap(last, share, low):
    record = plot.survival(cohort_of([[1, last], [1, last], [1, last]]), loss=0.5)

    assert (record.share[-1], record.low[-1]) == (share, low)
    assert np.isfinite([record.low, record.high]).all()
    record.figure_.canvas.draw()


def test_several_bounds_must_hold_in_the_same_epoch():
    log = recorded((0, 1), loss=[[1, 0.1, 1], [1, 0.1, 0.1]], accuracy=[[1, 0, 1], [0, 0, 1]])

    record = plot.survival(Cohort((0, 1), log), loss=0.5, accuracy=0.9)

    np.testing.assert_array_equal(record.first, [NAN, 3])
    assert record.criterion == "loss ≤ 0.5, accuracy ≥ 0.9"


def test_epochs_of_a_later_fit_keep_their_numbers():
    log = CohortHistory({"loss": np.array([[1.0, 0.1], [1.0, 1.0]])}, seeds=[0, 1], epoch=[7, 8])

    record = plot.survival(Cohort((0, 1), log), loss=0.5)

    np.testing.assert_array_equal(record.epochs, [7, 8, 9])
    np.testing.assert_array_equal(record.first, [9, NAN])


def test_no_text_overlaps():
    assert overlaps(plot.survival(cohort_of([[1, 0.1], [NAN, NAN]], ["COMPLETED", "DIVERGED"]), loss=0.2).figure_) == []


# Misuse.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"`bounds` must be at least one metric with its bound\. Received: bounds=\{\}\. Write for example"),
        ({"auc": 0.9}, r"`auc` must be a metric of the history: loss\. Received: auc=0\.9\. Metrics are named"),
        ({"loss": NAN}, r"`loss` must be the bound that its value must reach, a number\. Received: loss=nan"),
        ({"loss": 0.1, "confidence": 1.0}, r"`confidence` must be between 0 and 1\. Received: confidence=1.0\. Pass"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.survival(cohort_of([[1.0, 0.1]]), **arguments)


def test_metrics_without_a_direction():
    cohort = cohort_of([[1.0, 0.1]])
    cohort.direction = lambda metric: None
    with pytest.raises(ValueError, match="`loss` must be a metric that says whether more is better"):
        plot.survival(cohort, loss=0.1)


def test_what_is_no_cohort_or_not_trained():
    model = network()
    model.compile(loss="mse")
    with pytest.raises(TypeError, match=r"`cohort` must be a `kohort\.Cohort`"):
        plot.survival(model, loss=0.1)
    with pytest.raises(RuntimeError, match=r"must come after `cohort\.fit`"):
        plot.survival(kohort.Cohort(model, seeds=2), loss=0.1)
