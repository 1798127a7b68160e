"""How often trials solve a problem: counted anew from fits of plain Keras, and drawn so that no mark hides another."""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text
from pictures import Study, X, Y, overlaps

import kohort
from kohort import plot

WIDTHS, KINDS, RATES = (2, 3, 16), ("relu", "tanh"), (0.001, 0.01, 0.1)


def made(hidden=2, activation="tanh"):
    layers = [keras.Input((2,)), keras.layers.Dense(hidden, activation), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.5), "mse")
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    study = kohort.Study(tmp_path_factory.mktemp("study") / "a", made, {"hidden": [3, 2]}, seeds=[4, 0, 7])
    study.run(X, Y, epochs=3, verbose=0)
    return study


def test_a_study_that_is_kept_has_the_same_picture(trained):
    opened = kohort.open(trained.path)

    for name in ("solved", "members", "rate", "low", "high"):
        ours, theirs = (getattr(plot.success(study, loss=0.3), name) for study in (trained, opened))
        np.testing.assert_array_equal(ours, theirs)


# What stands where.


def test_there_is_a_line_for_each_value_of_a_second_parameter():
    study = Study(
        {"hidden": WIDTHS, "activation": KINDS}, k=lambda hidden, activation: hidden // (1 + (activation > "s"))
    )

    record = plot.success(study, loss=0.5)

    assert (record.by, record.groups, record.is_map) == ("activation", KINDS, False)
    assert record.solved.tolist() == [[2, 3, 16], [1, 1, 8]]
    assert record.members.tolist() == [[20] * 3] * 2
    lines = record.ax_.containers
    assert [bars.get_label() for bars in lines] == list(KINDS)
    for bars, rates, lows, highs in zip(lines, record.rate, record.low, record.high, strict=True):
        line, _, (intervals,) = bars
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack((WIDTHS, rates)))
        np.testing.assert_allclose(np.array(intervals.get_segments())[:, :, 1], np.column_stack((lows, highs)))
    assert len({bars[0].get_marker() for bars in lines}) == 2
    assert len({bars[0].get_color() for bars in lines}) == 2
    assert record.figure_.legends[0].get_title().get_text() == "activation (20 members each, 95 % interval)"


def test_intervals_at_one_value_stand_side_by_side():
    record = plot.success(Study({"hidden": [2, 4], "activation": KINDS}), loss=0.5)
    record.figure_.canvas.draw()

    first, second = (bars[0].get_transform().transform((2, 0.5)) for bars in record.ax_.containers)
    np.testing.assert_allclose(second - first, [5 * record.figure_.dpi / 72, 0])


def test_two_parameters_of_numbers_make_a_map_with_values_in_its_cells():
    study = Study({"rate": RATES, "hidden": WIDTHS}, k=lambda rate, hidden: hidden if rate > 0.005 else 0)
    study.trials.pop(4)  # the one of 0.01 and 3

    record = plot.success(study, loss=0.5)

    assert record.is_map
    assert (record.over, record.places, record.by, record.groups) == ("rate", RATES, "hidden", WIDTHS)
    assert record.solved.tolist() == [[0, 2, 2], [0, 0, 3], [0, 16, 16]]
    assert record.members.tolist() == [[20, 20, 20], [20, 0, 20], [20, 20, 20]]
    assert np.isnan([record.rate[1, 1], record.low[1, 1], record.high[1, 1]]).all()
    said = {text.get_position(): text.get_text() for text in record.ax_.texts}
    assert len(said) == 8
    for (column, row), text in said.items():
        percent = [f"{100 * each[row, column]:.0f}" for each in (record.rate, record.low, record.high)]
        assert text == "{} %\n{}–{}".format(*percent)
    assert [patch.get_xy() for patch in record.ax_.patches if patch.get_hatch()] == [(0.5, 0.5)]
    assert [each.get_text() for each in record.ax_.get_xticklabels()] == ["0.001", "0.01", "0.1"]


def test_names_stand_side_by_side_in_their_own_order():
    record = plot.success(Study({"activation": ("tanh", "relu"), "layers": [(4, 4), (2,), None]}), loss=0.5)

    assert (record.places, record.groups) == (("tanh", "relu"), ((4, 4), (2,), None))
    assert [text.get_text() for text in record.ax_.get_xticklabels()] == ["tanh", "relu"]
    assert {bars[0].get_linestyle() for bars in record.ax_.containers} == {"None"}


def test_truth_is_no_number_and_one_value_is_one_place():
    flags = plot.success(Study({"bias": [True, False], "hidden": [1]}), loss=0.5)
    one = plot.success(Study({"hidden": [1]}), loss=0.5)

    assert (flags.over, flags.places, flags.by) == ("bias", (True, False), None)
    assert (one.over, one.places, one.by) == ("hidden", (1,), None)


def test_parameters_are_chosen_and_held():
    study = Study({"hidden": WIDTHS, "activation": KINDS, "rate": RATES}, k=lambda hidden, activation, rate: hidden)

    record = plot.success(study, by="rate", over="activation", fixed={"hidden": np.int64(3)}, loss=0.5)

    assert (record.places, record.groups) == (KINDS, RATES)
    assert record.solved.tolist() == [[3, 3]] * 3
    assert record.ax_.get_title() == "solved: loss ≤ 0.5\nhidden = 3"


def test_a_criterion_of_ones_own():
    record = plot.success(Study({"hidden": [2, 4]}), lambda history: None)

    assert record.criterion == "criterion"


@pytest.mark.parametrize(
    ("places", "scale"), [((1, 2, 32), "log"), ((2, 4, 20), "linear"), ((0.0, 1.0, 30.0), "linear"), ((5,), "linear")]
)
def test_the_scale_is_logarithmic_over_more_than_a_decade(places, scale):
    assert plot.success(Study({"hidden": places}), loss=0.5).ax_.get_xscale() == scale


@pytest.mark.parametrize(
    "grid",
    [
        {"hidden": range(1, 60), "activation": ["relu", "tanh"]},
        {"hidden": [1, 2, 3, 100, 101, 102, 10_000]},
        {"activation": [f"a rather long name of a function {k}" for k in range(6)], "hidden": range(9)},
        {"hidden": range(12), "activation": [f"kind {k}" for k in range(12)]},
        {"hidden": range(9), "learning_rate": np.geomspace(1e-5, 1, 9).tolist()},
    ],
    ids=["many numbers", "far apart", "long names", "many lines", "map"],
)  # fmt: skip
def test_no_text_overlaps(grid):
    assert overlaps(plot.success(Study(grid), loss=0.5).figure_) == []


def test_a_map_on_small_axes_of_ones_own_has_small_letters():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")

    record = plot.success(Study({"hidden": WIDTHS, "rate": RATES}), loss=0.5, ax=right)

    assert (record.ax_, figure.legends, len(figure.axes)) == (right, [], 2)
    assert not left.has_data()
    assert overlaps(figure) == []
    assert all(4 < text.get_fontsize() <= 10 for text in right.texts)


def test_drawing_again_reads_nothing():
    study = Study({"hidden": [2, 4]})
    record = plot.success(study, loss=0.5)
    study.trials.clear()

    assert record.plot().figure_.findobj(Text)


# Misuse.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"over": "width"}, r"`over` must be one of the parameters 'hidden', 'activation', 'rate'\. .*over='width'"),
        ({"by": 3}, r"`by` must be one of the parameters 'hidden', 'activation', 'rate'\. Received: by=3\. They are"),
        ({"over": "rate", "by": "rate"}, r"`by` must be another parameter than `over`\. Received: by='rate'\. Leave"),
        ({}, r"`fixed` must be given, with a value for 'rate': .* Pass .*by='activation', fixed=\{'rate': 0\.001\}\."),
        ({"over": "rate", "by": "hidden"}, r"`fixed` must be given, with a value for 'activation': trials differ"),
        ({"fixed": {"width": 3}}, r"`fixed` must be one of the parameters 'hidden', .* Received: fixed='width'"),
        ({"fixed": {"rate": 3}}, r"`fixed` must be a dict of values that trials have, 'rate' one of 0\.001, 0\.01"),
        ({"fixed": {"rate": np.ones(2)}}, r"`fixed` must be a dict of values that trials have, 'rate' one of"),
        ({"fixed": {"activation": "relu"}, "confidence": 2.0}, r"`confidence` must be between 0 and 1\."),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(arguments, message):
    study = Study({"hidden": WIDTHS, "activation": KINDS, "rate": RATES})
    with pytest.raises(ValueError, match=message):
        plot.success(study, **{"loss": 0.5} | arguments)


def test_a_parameter_that_only_has_a_default_is_not_in_the_grid(trained):
    with pytest.raises(
        ValueError, match=r"`over` must be one of the parameters 'hidden'\..* They are those in the grid"
    ):
        plot.success(trained, over="activation", loss=0.5)


def test_an_argument_that_is_misspelt(trained):
    message = r"`confidense` must be an argument of `kohort\.plot\.success`, or .* Did you mean `confidence`\?"
    with pytest.raises(TypeError, match=message):
        plot.success(trained, confidense=0.9, loss=0.1)


def test_fixed_must_be_a_dict():
    with pytest.raises(TypeError, match=r"`fixed` must be a dict from parameter to value\. Received: fixed='hidden'\."):
        plot.success(Study({"hidden": WIDTHS}), fixed="hidden", loss=0.5)


def test_studies_that_have_no_rates(trained, tmp_path):
    with pytest.raises(
        TypeError, match=r"`study` must be a `kohort\.Study`, or what `kohort\.open` gives\. .*3\. Count"
    ):
        plot.success(3, loss=0.5)
    with pytest.raises(
        ValueError, match=r"`bounds` must be at least one metric with its bound, where there is no crit"
    ):
        plot.success(trained)
    with pytest.raises(ValueError, match=r"`auc` must be a metric of the history: loss\. Received: auc=0\.9"):
        plot.success(trained, auc=0.9)
    with pytest.raises(ValueError, match=r"`study` must be one whose networks have parameters\. .*success_rate"):
        plot.success(Study({}), loss=0.5)
    with pytest.raises(RuntimeError, match=r"`study` must be run before it is asked\. .* Call `study\.run\(x, y, ep"):
        plot.success(kohort.Study(tmp_path / "b", made, {"hidden": [2]}, seeds=2), loss=0.5)
    begun = Study({"hidden": WIDTHS}, members=0)
    with pytest.raises(
        RuntimeError, match=r"`study` must have members that are trained\. .* Call `study\.run` first\."
    ):
        plot.success(begun, loss=0.5)
