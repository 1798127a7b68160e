"""What comes out: success rates, histories, outcomes; plain arrays, no training."""

import math
import sys
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohort.history import CohortHistory, Outcome, SuccessRate, solved, success_rate


def wilson(k, n, confidence):
    """The closed formula of Wilson (1927), as textbooks and statsmodels (`proportion_confint`, "wilson") have it."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    return max(0, middle - half), min(1, middle + half)


@given(n=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.floats(0.01, 0.999))
def test_the_interval_is_wilsons(n, share, confidence):
    k = round(share * n)
    rate = success_rate(np.arange(n) < k, confidence)

    assert (rate.k, rate.n, rate.rate, rate.confidence) == (k, n, k / n, confidence)
    assert (rate.low, rate.high) == pytest.approx(wilson(k, n, confidence), abs=1e-9)
    assert 0 <= rate.low <= rate.rate <= rate.high <= 1


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [  # the intervals that Wilson's method gives in the published comparison of Newcombe (1998), table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_intervals(k, n, low, high):
    rate = success_rate([True] * k + [False] * (n - k))

    assert (round(rate.low, 4), round(rate.high, 4)) == (low, high)


def test_a_rate_is_plain_numbers_and_reads_as_a_sentence():
    rate = success_rate(np.array([True, False, True, False]), 0.9)

    assert [type(value) for value in rate] == [int, int, float, float, float, float]
    low, high = wilson(2, 4, 0.9)
    assert str(rate) == f"2 of 4 (50.0 %, 90 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    assert str(SuccessRate(0, 1, 0.0, 0.0, 0.793)) == "0 of 1 (0.0 %, 95 % interval 0.0 to 79.3 %)"


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("members", [[], np.ones((2, 2), bool)])
def test_a_rate_needs_members(members):
    with pytest.raises(
        ValueError, match=r"`solved` must have one truth value per member\. Received: solved with shape="
    ):
        success_rate(members)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 1.5, float("nan")])
def test_a_confidence_lies_between_0_and_1(confidence):
    with pytest.raises(ValueError, match=r"`confidence` must be between 0 and 1\. Received: confidence="):
        success_rate([True], float(confidence))


NAN = np.nan
LOSS = np.array([[0.9, 0.5, 0.1], [0.9, NAN, NAN], [0.9, 0.8, np.inf], [0.9, 0.6, 0.2]])
VALIDATION = np.array([[NAN, 0.4, NAN], [NAN, NAN, NAN], [NAN, 0.7, NAN], [NAN, 0.3, NAN]])
ACCURACY = np.array([[0.5, 0.5, 1.0], [0.5, 0.5, NAN], [0.5, 0.5, 0.5], [0.5, 0.75, 0.75]])


def history(**metrics):
    metrics = metrics or {"accuracy": ACCURACY, "loss": LOSS, "val_loss": VALIDATION}
    return CohortHistory(metrics, seeds=[3, 8, 1, 4], epoch=[0, 1, 2])


# The mapping.


def test_a_history_is_a_mapping():
    recorded = history()

    assert isinstance(recorded, Mapping)
    assert list(recorded) == ["accuracy", "loss", "val_loss"] == list(recorded.keys())
    assert len(recorded) == 3
    assert recorded["loss"] is LOSS
    assert "loss" in recorded
    assert "acc" not in recorded
    assert recorded.get("acc") is None
    assert dict(recorded).keys() == recorded.history.keys()
    assert repr(recorded) == "CohortHistory(4 members, 3 epochs: accuracy, loss, val_loss)"
    assert (recorded.seeds, recorded.epoch) == ([3, 8, 1, 4], [0, 1, 2])


def test_a_history_does_not_follow_what_it_was_made_of():
    metrics, seeds, epoch = {"loss": LOSS}, [3, 8, 1, 4], [0, 1, 2]
    recorded = CohortHistory(metrics, seeds, epoch)
    metrics["other"] = LOSS
    seeds.append(9)
    epoch.append(3)

    assert (list(recorded), recorded.seeds, recorded.epoch) == (["loss"], [3, 8, 1, 4], [0, 1, 2])


def test_an_unknown_metric():
    text = (
        "`metric` must be one of 'accuracy', 'loss', 'val_loss'. Received: metric='val_acc'. "
        "Metrics are named in `model.compile(metrics=...)`; those of validation begin with 'val_'."
    )
    for ask in (lambda: history()["val_acc"], lambda: history().last("val_acc")):
        with pytest.raises(KeyError) as caught:
            ask()
        assert caught.value.args == (text,)


# The last values and the outcomes.


def test_the_last_value_is_that_of_the_last_epoch():
    np.testing.assert_array_equal(history().last("loss"), [0.1, NAN, np.inf, 0.2])


def test_the_last_value_of_a_validation_is_that_of_the_last_epoch_that_validated():
    np.testing.assert_array_equal(history().last("val_loss"), [0.4, NAN, 0.7, 0.3])


def test_a_diverged_member_has_no_earlier_value():
    """An epoch that one member recorded was recorded by all: its NaN is a result, not a gap."""
    np.testing.assert_array_equal(history().last("accuracy"), [1.0, NAN, 0.5, 0.75])


def test_the_last_value_where_nothing_was_recorded():
    assert np.isnan(history(val_loss=np.full((4, 3), NAN)).last("val_loss")).tolist() == [True] * 4


def test_the_last_value_of_a_metric_of_several_numbers():
    values = np.full((4, 3, 2), NAN)
    values[:, 1] = np.arange(8).reshape(4, 2)

    np.testing.assert_array_equal(history(val_f1=values).last("val_f1"), np.arange(8).reshape(4, 2))


def test_when_all_diverged_the_last_value_is_nan():
    """Also of the validation: that nobody has a value is then no sign that the epoch did not validate."""
    loss = np.array([[0.5, 0.1, NAN, NAN], [0.5, 0.1, np.inf, NAN]])
    recorded = CohortHistory({"loss": loss, "val_loss": loss, "accuracy": loss}, seeds=[0, 1], epoch=[0, 1, 2, 3])

    assert all(np.isnan(recorded.last(metric)).all() for metric in recorded)
    assert list(recorded.outcome) == [Outcome.DIVERGED] * 2
    assert met(recorded=recorded, loss=0.9) == met(recorded=recorded, val_loss=0.9) == [False, False]


def test_a_metric_of_training_was_recorded_in_every_epoch():
    recorded = history(loss=np.ones((4, 3)), precision=np.array([[0.5, 0.5, NAN]] * 4))

    assert np.isnan(recorded.last("precision")).all()


def test_no_epochs():
    nothing = CohortHistory({}, seeds=[3, 8], epoch=[])

    assert list(nothing.outcome) == [Outcome.COMPLETED] * 2
    with pytest.raises(KeyError, match=r"`metric` must be one of \(none\)\."):
        nothing.last("loss")


def test_outcomes():
    outcome = history().outcome

    assert outcome.dtype == object
    assert list(outcome) == [Outcome.COMPLETED, Outcome.DIVERGED, Outcome.DIVERGED, Outcome.COMPLETED]


def test_a_member_that_comes_back_from_nan_did_not_diverge():
    assert list(history(loss=np.array([[NAN, 0.5]] * 4)).outcome) == [Outcome.COMPLETED] * 4


def test_an_outcome_is_its_message():
    assert [str(outcome) for outcome in Outcome] == list(Outcome)
    assert len({str(outcome) for outcome in Outcome}) == len(Outcome)


# What is solved.

DIRECTIONS = {"loss": "down", "val_loss": "down", "accuracy": "up", "other": None}


def met(criterion=None, recorded=None, **bounds):
    return solved(recorded or history(), criterion, bounds, DIRECTIONS).tolist()


def test_solved_by_bounds():
    assert met(loss=0.2) == [True, False, False, True]
    assert met(loss=0.1) == [True, False, False, False]
    assert met(accuracy=0.75) == [True, False, False, True]
    assert met(val_loss=0.35) == [False, False, False, True]
    assert met(loss=0.2, accuracy=0.8) == [True, False, False, False]


def test_solved_by_a_criterion():
    assert met(lambda h: h["loss"].min(axis=1) < 0.85) == [True, False, True, True]
    assert met(lambda h: h["loss"].min(axis=1) < 0.85, accuracy=0.75) == [True, False, False, True]


@pytest.mark.parametrize("bounds", [{"loss": 1e300}, {"loss": np.inf}, {"accuracy": 0.0}, {"accuracy": -np.inf}])
def test_a_member_at_nan_is_never_solved(bounds):
    assert met(**bounds)[1] is False


def test_a_member_that_diverged_counts_among_all():
    rate = success_rate(np.array(met(loss=np.inf)))

    assert (rate.k, rate.n) == (3, 4)


@pytest.mark.usefixtures("annotations_unchecked")
def test_solved_takes_numpy_bounds():
    assert met(loss=np.float32(0.25)) == met(loss=0.25)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("criterion", "bounds", "error", "match"),
    [
        (None, {}, ValueError, r"`success_rate` must be given a criterion, by metric or as a callable"),
        (0.01, {}, TypeError, r"`criterion` must be a callable that takes the history"),
        (None, {"acc": 1}, ValueError, r"`acc` must be a metric of the history: accuracy, loss, val_loss\. .*acc=1\."),
        (None, {"loss": NAN}, ValueError, r"`loss` must be the bound that its last value must reach, a number"),
        (lambda h: [True], {}, ValueError, r"`criterion` must return a bool array of shape \(4,\), .*shape=\(1,\)"),
        (lambda h: [1, 0, 1, 0], {}, ValueError, r"`criterion` must return a bool array .*dtype=int64"),
    ],
)
def test_what_cannot_be_asked(criterion, bounds, error, match):
    with pytest.raises(error, match=match):
        solved(history(), criterion, bounds, DIRECTIONS)


@pytest.mark.parametrize("values", [LOSS, np.zeros((4, 3, 2))])
def test_a_bound_on_a_metric_without_direction_or_of_several_numbers(values):
    name = "other" if values.ndim == 2 else "loss"
    with pytest.raises(ValueError, match=rf"`{name}` must be a metric of one number per epoch that says whether more"):
        met(recorded=history(**{name: values}), **{name: 0.5})


# Tables.


def test_a_history_as_labelled_arrays():
    values = np.arange(24.0).reshape(4, 3, 2)
    arrays = history(loss=LOSS, f1=values).to_xarray()

    assert dict(arrays.sizes) == {"member": 4, "epoch": 3, "f1_0": 2}
    assert arrays.member.values.tolist() == [3, 8, 1, 4]
    np.testing.assert_array_equal(arrays.loss, LOSS)
    np.testing.assert_array_equal(arrays.f1.sel(member=1, epoch=2), values[2, 2])
    assert arrays.outcome.sel(member=8).item() == "DIVERGED"


def test_a_history_as_a_table():
    values = np.arange(24.0).reshape(4, 3, 2)
    table = history(loss=LOSS, f1=values).to_pandas()

    assert list(table) == ["loss", "f1[0]", "f1[1]"]
    assert table.index.names == ["member", "epoch"]
    np.testing.assert_array_equal(table["loss"].unstack()[[0, 1, 2]].loc[[3, 8, 1, 4]], LOSS)
    assert table.loc[(1, 2), "f1[1]"] == values[2, 2, 1]


def test_tables_of_no_epochs():
    nothing = CohortHistory({}, seeds=[3, 8], epoch=[])

    assert nothing.to_pandas().shape == (0, 0)
    assert dict(nothing.to_xarray().sizes) == {"member": 2, "epoch": 0}


@pytest.mark.parametrize("package", ["xarray", "pandas"])
def test_what_is_not_installed_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    match = (
        rf"`to_{package}` must find the package {package}\. Received: an environment without it\. "
        rf"Install it: `python -m pip install 'kohort\[{package}\]'`\."
    )
    with pytest.raises(ImportError, match=match):
        getattr(history(), f"to_{package}")()
