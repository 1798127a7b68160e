"""Curves over the epochs: the members' own values and their quantiles, and how members end."""

import types

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from pictures import network, recorded, trained_cohort

import kohort
from kohort import plot
from kohort.history import CohortHistory


@pytest.fixture(scope="module")
def trained():
    return trained_cohort()


# Histories.


def test_the_curves_of_a_cohort_are_its_quantiles(trained):
    curves = plot.history(trained)

    np.testing.assert_array_equal(curves.values, trained.history["loss"])
    np.testing.assert_array_equal(curves.epochs, [1, 2, 3])
    expected = np.quantile(trained.history["loss"], [0.1, 0.5, 0.9], axis=0)
    np.testing.assert_allclose(curves.quantiles, expected)
    np.testing.assert_array_equal(plot.history(trained.history).quantiles, curves.quantiles)
    (line,) = curves.ax_.get_lines()
    np.testing.assert_array_equal(line.get_ydata(), curves.quantiles[1])
    assert curves.figure_ is curves.ax_.figure


def test_members_that_diverge_and_epochs_that_record_nothing():
    nan = np.nan
    log = recorded(val_loss=[[nan, 1, nan, 3, nan], [nan, 2, nan, nan, nan], [nan, 6, nan, np.inf, nan]])

    curves = plot.history(log, "val_loss")

    np.testing.assert_array_equal(curves.epochs, [2, 4])
    np.testing.assert_array_equal(curves.values, [[1, 3], [2, nan], [6, nan]])
    np.testing.assert_array_equal(curves.quantiles[1], [2, 3])
    np.testing.assert_array_equal(curves.ends, ["", "diverged", "diverged"])
    labels = curves.ax_.get_legend_handles_labels()[1]
    assert labels == ["10 to 90 %", "3 of 3 members", "2 diverged", "median val_loss"]


def stopped_history():
    """Members of which the second stops early and the third diverges."""

    class Known(CohortHistory):
        @property
        def outcome(self):
            names = ["COMPLETED", "STOPPED_EARLY", "DIVERGED"]
            return np.array([types.SimpleNamespace(name=name) for name in names])

    nan = np.nan
    losses = np.array([[4.0, 3, 2, 1], [2, 1.5, nan, nan], [9, nan, nan, nan]])
    return Known({"loss": losses}, seeds=[0, 1, 2], epoch=[0, 1, 2, 3])


def test_members_that_stop_early_count_on_and_those_that_diverge_do_not():
    curves = plot.history(stopped_history())

    np.testing.assert_array_equal(curves.ends, ["", "stopped", "diverged"])
    np.testing.assert_array_equal(curves.quantiles[1], [4, 2.25, 1.75, 1.25])
    assert np.isnan(curves.values[1, 2:]).all()


def test_stopped_and_diverged_members_are_told_apart_by_more_than_colour():
    ax = plot.history(stopped_history()).ax_

    ends = {line.get_label(): line for line in ax.get_lines() if line.get_linestyle() == "None"}
    stopped, diverged = ends["1 stopped early"], ends["1 diverged"]
    np.testing.assert_array_equal(np.column_stack(stopped.get_data()), [[2, 1.5]])
    np.testing.assert_array_equal(np.column_stack(diverged.get_data()), [[1, 9]])
    assert stopped.get_marker() != diverged.get_marker()
    lines = [collection for collection in ax.collections if isinstance(collection, LineCollection)]
    assert len({str(collection.get_linestyle()) for collection in lines}) == 2


def test_only_some_of_many_members_are_drawn_and_always_the_same():
    values = np.arange(1.0, 1002)[:, None] * np.ones(4)

    curves = plot.history(recorded(range(1001), loss=values))

    (faint,) = (c for c in curves.ax_.collections if isinstance(c, LineCollection))
    drawn = [path[0, 1] for path in faint.get_segments()]
    assert drawn == list(np.arange(1.0, 1002)[::6])
    assert curves.values.shape == (1001, 4)


def test_every_member_that_ended_has_a_mark_however_few_lines_are_drawn():
    values = np.arange(1.0, 1002)[:, None] * np.ones(4)
    values[500, 2:] = np.nan  # not one of every sixth

    ax = plot.history(recorded(range(1001), loss=values)).ax_

    (marks,) = (line for line in ax.get_lines() if line.get_label() == "1 diverged")
    np.testing.assert_array_equal(np.column_stack(marks.get_data()), [[2, 501]])
    running, diverged = (c for c in ax.collections if isinstance(c, LineCollection))
    assert (len(running.get_segments()), len(diverged.get_segments())) == (167, 1)
    assert running.get_label() == "168 of 1001 members"
    values[:, 3] = np.nan
    ax = plot.history(recorded(range(1001), loss=values)).ax_
    (marks,) = (line for line in ax.get_lines() if line.get_label() == "1001 diverged")
    assert len(marks.get_xdata()) == 1001


def test_the_history_of_one_network_with_its_validation():
    x, y = kohort.data.xor()
    model = network()
    model.compile(optimizer="sgd", loss="mse")
    log = model.fit(x, y, epochs=10, validation_data=(x, y), validation_freq=5, verbose=0)

    curves = plot.history(log)

    np.testing.assert_array_equal(curves.values, [log.history["loss"]])
    np.testing.assert_array_equal(curves.epochs, range(1, 11))
    np.testing.assert_array_equal(curves.validation.epochs, [5, 10])
    np.testing.assert_array_equal(curves.validation.quantiles[1], log.history["val_loss"])
    solid, dashed = curves.ax_.get_lines()
    assert (solid.get_label(), solid.get_linestyle()) == ("loss", "-")
    assert (dashed.get_label(), dashed.get_linestyle()) == ("val_loss", "--")
    assert curves.ax_.collections[:] == []


def test_epochs_of_a_later_fit_keep_their_numbers():
    log = CohortHistory({"loss": np.ones((2, 3))}, seeds=[0, 1], epoch=[7, 8, 9])

    np.testing.assert_array_equal(plot.history(log).epochs, [8, 9, 10])
    np.testing.assert_array_equal(plot.history({"loss": [3.0, 2.0]}).epochs, [1, 2])


@pytest.mark.parametrize(
    ("metric", "values", "scale"),
    [
        ("loss", [[1, 0.01], [1, 0.02]], "log"),
        ("loss", [[1, 0.01], [1, 0.02], [1, 0]], "log"),
        ("loss", [[1, 0.5], [1, 0.2]], "linear"),
        ("loss", [[1, 0], [1, -0.02]], "linear"),
        ("accuracy", [[0.01, 1], [0.02, 1]], "linear"),
    ],
)
def test_the_scale_is_logarithmic_for_a_loss_over_more_than_a_decade(metric, values, scale):
    curves = plot.history(recorded(range(len(values)), **{metric: values}), metric)

    assert curves.ax_.get_yscale() == scale
    curves.figure_.canvas.draw()


@pytest.mark.parametrize("values", [[np.nan, np.nan], [np.inf, np.nan]])
def test_a_history_without_a_finite_value_says_so(values):
    for source in ({"loss": values}, recorded((0, 1), loss=[values, values])):
        curves = plot.history(source)

        assert curves.epochs.size == 0
        assert [text.get_text() for text in curves.ax_.texts] == ["not finite"]
        curves.figure_.canvas.draw()


def test_curves_are_drawn_on_axes_of_ones_own():
    _, ax = plt.subplots()

    curves = plot.history({"loss": [2.0, 1.0], "val_loss": [3.0, 2.0]}, ax=ax)
    again = curves.plot()

    assert again is curves
    assert curves.ax_ is not ax
    assert [line.get_label() for line in ax.get_lines()] == ["loss", "val_loss"]
    assert ax.get_legend() is None
    assert len(curves.figure_.legends) == 1


# Misuse.


def test_what_is_no_history():
    message = r"`source` must be what a `fit` returned, or a cohort\. Received: source=\[1\.0"
    with pytest.raises(TypeError, match=message):
        plot.history([1.0, 0.5])
    with pytest.raises(TypeError, match="`ax` must be Matplotlib axes"):
        plot.history({"loss": [1.0]}, ax=3)


def test_metrics_that_were_not_recorded():
    log = recorded(loss=np.ones((3, 2)), confusion=np.ones((3, 2, 4)))
    with pytest.raises(ValueError, match="`metric` must be one of 'loss'"):
        plot.history(log, "confusion")
    with pytest.raises(ValueError, match="`metric` must be a number that a `fit` recorded"):
        plot.history(keras.callbacks.History())


def test_a_cohort_that_is_not_trained():
    model = network()
    model.compile(loss="mse")

    with pytest.raises(RuntimeError, match=r"must come after `cohort\.fit`"):
        plot.history(kohort.Cohort(model, seeds=2))
