"""Answers along one feature: what plain Keras answers, and its quantiles."""

import keras
import numpy as np
import pandas as pd
import pytest
from pictures import Cohort, Model, compiled, network, overlaps, trained_cohort

import kohort
from kohort import plot

LINE = np.linspace(-1, 1, 12)


def test_the_curve_of_one_model_is_what_it_answers():
    model = network(features=1)

    record = plot.response_curve(model, LINE, LINE**2, grid_resolution=9)

    np.testing.assert_allclose(record.grid, np.linspace(-1.5, 1.5, 9))
    said = model.predict(record.grid[:, None].astype("float32"), verbose=0)[:, 0]
    np.testing.assert_array_equal(record.responses, said[None])
    np.testing.assert_array_equal(record.ax_.lines[0].get_ydata(), record.responses[0])
    assert overlaps(record.figure_) == []


def test_of_a_cohort_every_member_is_kept_and_the_band_holds_the_middle_of_them():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    cohort = kohort.Cohort(model, seeds=[3, 1, 4])
    cohort.fit(LINE[:, None], LINE**2, epochs=2, verbose=0)

    record = plot.response_curve(cohort, LINE[:, None], LINE**2, xlim=(-2, 2), grid_resolution=5)

    points = np.linspace(-2, 2, 5, dtype="float32")[:, None]
    said = np.stack([np.asarray(cohort.member(seed)(points))[:, 0] for seed in cohort.seeds])
    np.testing.assert_allclose(record.responses, said, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(record.quantiles, np.quantile(said, [0.1, 0.5, 0.9], axis=0), rtol=1e-5, atol=1e-6)
    labels = [text.get_text() for text in record.figure_.legends[0].get_texts()]
    assert sorted(labels) == ["10 to 90 %", "3 of 3 members", "median", "sample"]
    assert overlaps(record.figure_) == []


def test_members_that_diverged_are_left_out_and_drawing_again_asks_nobody():
    cohort = Cohort(answer=lambda x: np.array([1, np.nan, 3])[:, None, None] * x[None])

    record = plot.response_curve(cohort, xlim=(0, 1), grid_resolution=2)
    record.plot()

    np.testing.assert_array_equal(record.responses, [[0, 1], [0, 3]])
    assert (record.diverged, cohort.calls) == (1, 1)
    assert record.figure_.legends[0].get_title().get_text() == "without 1 diverged"


def test_the_axis_has_the_name_of_the_column():
    table = pd.DataFrame({"length": LINE})

    assert plot.response_curve(Model(lambda x: x), table, LINE).ax_.get_xlabel() == "length"
    assert plot.response_curve(Model(lambda x: x), table["length"]).ax_.get_xlabel() == "length"
    assert plot.response_curve(Model(lambda x: x), LINE).ax_.get_xlabel() == "x"


# Misuse.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {},
            r"`xlim` must be two finite numbers, the lower first \(without `x` there is no default\)\. Received: xlim",
        ),
        ({"xlim": (1, 0)}, r"`xlim` must be two finite numbers, the lower first\. Received: xlim=\(1, 0\)\."),
        (
            {"x": np.ones((4, 2))},
            r"`x` must be of shape \(sample,\) or \(sample, 1\)\. .*`kohort\.plot\.decision_boundary`",
        ),
        ({"x": LINE, "y": LINE[:3]}, r"`y` must be given with as many samples in `x`\. Received: y="),
        ({"y": LINE, "xlim": (0, 1)}, r"`y` must be given with as many samples in `x`\."),
        ({"x": LINE, "grid_resolution": 1}, r"`grid_resolution` must be an integer of at least 2\. Received: grid_res"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.response_curve(Model(lambda x: x), **arguments)


def test_networks_that_have_no_curve():
    with pytest.raises(
        ValueError, match=r"`source` must be a network of one feature\. .*`kohort\.plot\.decision_boundary`"
    ):
        plot.response_curve(network(), LINE)
    with pytest.raises(
        ValueError, match=r"`source` must be a network of one output\. .*Draw one that ends in `Dense\(1\)`"
    ):
        plot.response_curve(network(units=2, features=1), LINE)
    with pytest.raises(ValueError, match=r"`source` must be one of which at least one network gives finite answers\."):
        plot.response_curve(Model(lambda x: x * np.nan), LINE)
    with pytest.raises(TypeError, match=r"`source` must be a trained model or cohort\. Received: source=3\. Pass a"):
        plot.response_curve(3, LINE)


def test_a_cohort_that_is_not_trained_or_of_more_features():
    with pytest.raises(RuntimeError, match=r"must come after `cohort\.fit`"):
        plot.response_curve(kohort.Cohort(compiled(features=1), seeds=2), LINE)
    with pytest.raises(ValueError, match=r"`source` must be a network of one feature\. .*`kohort\.plot\.spread`"):
        plot.response_curve(trained_cohort(), LINE)
