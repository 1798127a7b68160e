"""One model over a plane: the record is what plain Keras answers, drawing it computes nothing."""

import keras
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from pictures import LIMITS, Cohort, Model, X, Y, boundaries, network, overlaps, points

from kohort import plot
from kohort.plot import style

# One model.


@pytest.mark.parametrize(
    ("units", "activation", "axes"),
    [(1, None, ()), (1, "sigmoid", ()), (2, "softmax", (2,)), (4, "softmax", (4,))],
)
def test_the_record_is_what_predict_answers_on_the_grid(units, activation, axes):
    model = network(units, activation)

    display = plot.decision_boundary(model, **LIMITS, grid_resolution=9)

    assert display.response.shape == (9, 9, *axes)
    np.testing.assert_array_equal(display.xx0[0], np.linspace(-0.5, 1.5, 9))
    np.testing.assert_array_equal(display.xx1[:, 0], np.linspace(-1, 2, 9))
    expected = model.predict(points(display), verbose=0).reshape(display.response.shape)
    np.testing.assert_allclose(display.response, expected, rtol=1e-6, atol=1e-6)
    assert len(display.surface_) == max(2, units)
    assert display.figure_ is display.ax_.figure
    assert display.ax_.get_xlabel() == "x[:, 0]"


@pytest.mark.parametrize(
    "answer",
    [lambda x: x[:, 0] * x[:, 1], lambda x: np.column_stack((x, x[:, 0] * x[:, 1], 0.9 - x.sum(axis=1)))],
    ids=["single", "classes"],
)
def test_each_point_is_painted_in_the_colour_of_its_answer(answer):
    display = plot.decision_boundary(Model(answer), **LIMITS, grid_resolution=30)
    response = display.response
    answer = response.argmax(axis=-1) if response.ndim == 3 else (response > 0.5).astype(int)
    # Not the points next to a border: there the contour runs between them.
    inner = answer[1:-1, 1:-1]
    same = [answer[1 + i : 29 + i, 1 + j : 29 + j] == inner for i in (-1, 0, 1) for j in (-1, 0, 1)]
    rows, columns = np.nonzero(np.all(same, axis=0))

    at = np.column_stack((display.xx0[rows + 1, columns + 1], display.xx1[rows + 1, columns + 1]))
    painted = np.zeros(len(at), int)
    for k, surface in enumerate(display.surface_):
        painted[surface.get_paths()[0].contains_points(at)] = k

    assert len(set(painted)) == len(display.surface_)
    np.testing.assert_array_equal(painted, inner[rows, columns])


@pytest.mark.parametrize(
    ("answer", "crossings"),
    [
        (lambda x: x[:, 0] + 0.2, [0.3]),
        (lambda x: np.column_stack((0.2 - x[:, 0], x[:, 0])), [0.1]),
        (lambda x: np.column_stack((0 * x[:, 0], x[:, 0], 3 * x[:, 0] - 2)), [0, 1]),
    ],
    ids=["single", "two", "three"],
)
def test_a_line_is_drawn_where_the_answer_changes(answer, crossings):
    display = plot.decision_boundary(Model(answer), **LIMITS, grid_resolution=30)

    lines = boundaries(display.ax_)

    assert len(lines) == len(crossings)
    for line, crossing in zip(lines, crossings, strict=True):
        np.testing.assert_allclose(line[:, 0], crossing, atol=1e-5)
        assert (line[:, 1].min(), line[:, 1].max()) == LIMITS["ylim"]


def test_no_line_is_drawn_where_two_classes_are_alike_and_a_third_one_is_the_answer():
    """The border of the first two goes up from the middle, and would go on downwards, through the third."""
    towards = np.array([[-1.0, 0.6], [1.0, 0.6], [0.0, -1.0]])
    display = plot.decision_boundary(Model(lambda x: x @ towards.T), xlim=(-1, 1), ylim=(-1, 1))
    for text in display.ax_.texts:
        text.set_visible(False)
    display.figure_.canvas.draw()
    drawn = np.asarray(display.figure_.canvas.buffer_rgba())[::-1, :, :3].astype(float) / 255

    def darkest(height):
        column, row = display.ax_.transData.transform((0, height)).astype(int)
        return drawn[row, column - 4 : column + 5].min()

    tints = style.tints(3)[:, :3]
    assert [darkest(height) for height in (-0.3, -0.9)] == pytest.approx([tints[2].min()] * 2, abs=0.01)
    assert max(darkest(height) for height in (0.3, 0.9)) < 0.3 < tints.min()


def test_drawing_again_computes_nothing():
    model = Model(lambda x: x[:, :1])
    display = plot.decision_boundary(model, X, [0, 1, 1, 0] * np.ones(4))
    first, kept = display.ax_, display.response.copy()

    _, ax = plt.subplots()
    assert display.plot(ax) is display

    assert model.calls == 1
    assert display.ax_ is ax is not first
    assert display.ax_.get_xlim() == first.get_xlim() == (-0.25, 1.25)
    np.testing.assert_array_equal(display.response, kept)


def test_limits_come_from_the_samples_with_a_quarter_on_each_side():
    x = np.array([[0, 3], [4, 3]], "float32")

    display = plot.decision_boundary(Model(lambda x: x[:, 0]), x, ylim=[2, 5], grid_resolution=2)
    constant = plot.decision_boundary(Model(lambda x: x[:, 0]), x, grid_resolution=2)

    assert display.limits == {"xlim": (-1, 5), "ylim": (2, 5)}
    assert constant.limits == {"xlim": (-1, 5), "ylim": (2, 4)}


@pytest.mark.parametrize(
    ("y", "classes", "threshold"),
    [
        (np.array([0, 1, 1, 0]), (0, 1), 0.5),
        (np.array([[0.0], [1.0], [1.0], [0.0]]), (0, 1), 0.5),
        (np.array([False, True, True, False]), (0, 1), 0.5),
        (np.array([-1, 1, 1, -1]), (-1, 1), 0),
        (np.array([10, 20, 20, 10]), (10, 20), 15),
    ],
)
def test_labels_of_a_single_output(y, classes, threshold):
    display = plot.decision_boundary(Model(lambda x: x[:, 0]), X, y)

    assert display.classes == classes
    assert display.threshold == threshold
    np.testing.assert_array_equal(display.labels, [0, 1, 1, 0])
    assert plot.decision_boundary(Model(lambda x: x[:, 0]), X, y, threshold=3).threshold == 3


@pytest.mark.parametrize("y", [np.array([2, 0, 1, 2]), np.eye(3)[[2, 0, 1, 2]], np.array([[2.0], [0.0], [1.0], [2.0]])])
def test_labels_of_one_output_for_each_class(y):
    display = plot.decision_boundary(network(3, "softmax"), X, y)

    assert display.classes == (0, 1, 2)
    np.testing.assert_array_equal(display.labels, [2, 0, 1, 2])


def test_classes_differ_in_more_than_colour():
    display = plot.decision_boundary(network(3, "softmax"), X, np.array([2, 0, 1, 2]))
    bare = plot.decision_boundary(network(3, "softmax"), xlim=(-9, 9), ylim=(-9, 9))

    lines = display.ax_.get_lines()
    assert [line.get_label() for line in lines] == ["class 0", "class 1", "class 2"]
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 3
    np.testing.assert_array_equal(np.column_stack(lines[2].get_data()), X[[0, 3]])
    assert {text.get_text() for text in bare.ax_.texts} <= {"0", "1", "2"}
    assert len(bare.ax_.texts) > 1


def test_regions_of_many_classes_are_named_where_there_is_room():
    peaks = np.random.default_rng(0).uniform(-1, 1, (30, 2))
    model = Model(lambda x: -np.linalg.norm(x[:, None] - peaks, axis=2))
    figure, ax = plt.subplots(figsize=(3, 3), layout="constrained")

    plot.decision_boundary(model, xlim=(-1, 1), ylim=(-1, 1), ax=ax)

    assert 3 < len(ax.texts) < 25
    assert overlaps(figure) == []


def test_samples_without_classes_are_hollow():
    (line,) = plot.decision_boundary(network(), X).ax_.get_lines()

    assert line.get_label() == "sample"
    assert line.get_markerfacecolor() == "none"


def test_axes_of_ones_own_get_no_legend_and_no_setting_changes():
    before = dict(matplotlib.rcParams)
    figure, ax = plt.subplots()

    display = plot.decision_boundary(network(), X, np.array([0, 1, 1, 0]), ax=ax)

    assert (display.ax_, display.figure_) == (ax, figure)
    assert figure.legends == []
    assert ax.get_legend() is None
    assert len(plot.decision_boundary(network(), X).figure_.legends) == 1
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("units", [1, 3])
def test_a_response_that_is_not_finite_is_said(bad, units):
    display = plot.decision_boundary(Model(lambda x: np.full((len(x), units), bad)), X)

    assert [text.get_text() for text in display.ax_.texts] == ["not finite"]
    display.figure_.canvas.draw()


def test_a_model_that_always_says_the_same_is_drawn():
    for answer in (0.0, 0.5, 1.0):
        plot.decision_boundary(Model(lambda x, answer=answer: np.full(len(x), answer)), X).figure_.canvas.draw()


# Regressions.


def test_the_surface_of_a_regression_is_what_predict_answers():
    model, y = network(), np.array([0.0, 0.3, 0.8, 2.0])

    display = plot.decision_boundary(model, X, y, grid_resolution=12)

    expected = model.predict(points(display), verbose=0).reshape(12, 12)
    np.testing.assert_allclose(display.response, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(display.targets, y)
    assert display.labels is None
    assert display.levels[0] <= min(expected.min(), 0)
    assert display.levels[-1] >= max(expected.max(), 2)
    samples = next(c for c in display.ax_.collections if c.get_label() == "sample")
    np.testing.assert_array_equal(samples.get_array(), y)
    (region,) = display.surface_
    assert (samples.norm.vmin, samples.norm.vmax) == (region.levels[0], region.levels[-1])


@pytest.mark.parametrize(
    ("y", "regression", "is_one"),
    [
        (Y, None, False),
        (Y + 0.5, None, False),
        (np.array([0.0, 0.5, 1.0, 0.0]), None, True),
        (np.array([[0.0], [0.5], [1.0], [0.0]]), None, True),
        (np.array([0, 1, 2, 3]), True, True),
        (Y, True, True),
        (None, True, True),
        (None, None, False),
    ],
)
def test_what_counts_as_a_regression(y, regression, is_one):
    display = plot.decision_boundary(Model(lambda x: x[:, 0]), X, y, regression=regression)

    assert (display.levels is not None) == is_one


@pytest.mark.parametrize("value", [3.0, np.nan, np.inf])
def test_a_regression_that_always_says_the_same_or_nothing_is_drawn(value):
    display = plot.decision_boundary(Model(lambda x: np.full(len(x), value)), X, regression=True)

    assert [text.get_text() for text in display.ax_.texts] == ["not finite"] * (not np.isfinite(value))
    display.figure_.canvas.draw()


# Plateaus.


def test_where_no_class_leads_it_says_so():
    """Right of the middle the answer is the threshold, but for rounding."""
    noise = np.random.default_rng(0).normal(0, 1e-7, 2500)
    model = Model(lambda x: (np.where(x[:, 0] > 0.5, 0.5 + noise, x[:, 0] * 0.9))[:, None])

    picture = plot.decision_boundary(model, xlim=(0, 1), ylim=(0, 1), grid_resolution=50)

    assert picture.undecided_
    hatched = picture.surface_[-1]
    (path,) = (path for path in hatched.get_paths() if len(path.vertices))
    assert path.vertices[:, 0].min() == pytest.approx(0.5, abs=0.03)
    assert path.vertices[:, 0].max() == 1
    assert "undecided" in [text.get_text() for text in picture.figure_.legends[0].get_texts()]
    assert [text.get_text() for text in picture.ax_.texts] == ["0"]  # class 1 leads nowhere
    lines = [c for c in picture.ax_.collections if hasattr(c, "levels") and not c.filled]
    assert not any(len(path.vertices) for line in lines for path in line.get_paths())


@pytest.mark.parametrize("classes", [1, 3])
def test_a_boundary_that_is_crossed_is_decided(classes):
    picture = plot.decision_boundary(Model(lambda x: np.tile(x[:, :1], classes) * range(1, classes + 1)), **LIMITS)

    assert not picture.undecided_


# Misuse.


@pytest.mark.parametrize("draw", [plot.decision_boundary, plot.network, plot.loss_landscape, plot.units])
def test_a_cohort_is_no_single_model(draw):
    message = (
        r"`model` must be one network, and not a cohort\. Received: model=.*\. Draw all members with "
        r"`kohort\.plot\.wall`, or one of them: `cohort\.best\(\)` or `cohort\.member\(seed\)`\."
    )
    with pytest.raises(TypeError, match=message):
        draw(Cohort(), *{plot.units: [0], plot.loss_landscape: [X, Y]}.get(draw, []))


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"`xlim` must be two finite numbers, the lower first \(without `x` .* Received: xlim=None\. Pass"),
        ({"xlim": (0, 1)}, r"`ylim` must be two finite numbers.*Received: ylim=None"),
        ({"xlim": (1, 0), "ylim": (0, 1)}, r"`xlim` must be .*the lower first. Received: xlim=\(1, 0\)"),
        ({"xlim": (0, 0), "ylim": (0, 1)}, "`xlim` must be"),
        ({"xlim": (0, 1), "ylim": (0, np.inf)}, "`ylim` must be two finite numbers"),
        ({"xlim": (np.nan, 1), "ylim": (0, 1)}, "`xlim` must be two finite numbers"),
        ({"xlim": (0, 1, 2), "ylim": (0, 1)}, "`xlim` must be two finite numbers"),
        ({"xlim": "ab", "ylim": (0, 1)}, "`xlim` must be two finite numbers"),
        (
            {**LIMITS, "grid_resolution": 1},
            r"`grid_resolution` must be an integer of at least 2\. Received: .*=1\. Pass",
        ),
        ({**LIMITS, "y": np.zeros(4)}, r"`y` must be left out where `x` is\. Received: y=<ndarray>, shape=\(4,\)"),
        ({"x": X[:, :1]}, r"`x` must be of shape \(sample, 2\)\. Received: x=<ndarray>, shape=\(4, 1\).*Select"),
        ({"x": X[0]}, r"`x` must be of shape \(sample, 2\)"),
        ({"x": np.where(X == 1, np.nan, X)}, "`x` must hold finite numbers"),
        ({"x": X[:0]}, "`x` must have at least one sample"),
        ({"x": X, "y": np.zeros(3)}, r"`y` must have one row per sample of `x` \(4\)"),
        ({"x": X, "y": np.arange(4)}, r"`y` must be labels of two classes\. .*It holds \[0, 1, 2, 3\]"),
        ({"x": X, "y": np.eye(4)}, "`y` must be labels of two classes"),
        ({"x": X, "threshold": "a"}, r"`threshold` must be a finite number or None\. Received: threshold='a'\. Leave"),
        ({"x": X, "threshold": np.nan}, r"`threshold` must be a finite number or None\. Received: threshold=nan"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    model, cohort = Model(lambda x: x[:, 0]), Cohort()

    with pytest.raises(ValueError, match=message):
        plot.decision_boundary(model, **arguments)
    with pytest.raises(ValueError, match=message):
        plot.wall(cohort, **arguments)
    assert plt.get_fignums() == []


def test_strings_are_no_samples():
    with pytest.raises(TypeError, match="`x` must hold numbers"):
        plot.decision_boundary(network(), X.astype(str))


@pytest.mark.parametrize("y", [np.array([0, 1, 2, 3]), np.array([0, 1, 0.5, 1]), np.eye(4), np.array([0, -1, 1, 2])])
def test_labels_that_the_model_does_not_have(y):
    with pytest.raises(
        ValueError, match=r"`y` must be class numbers from 0 to 2, or one-hot\. Received: y=<ndarray>, shape="
    ):
        plot.decision_boundary(network(3, "softmax"), X, y)


def test_models_of_fewer_features_or_of_another_rank():
    message = r"`model` must be a model of at least two features\..*Of one feature draw `kohort.plot.response_curve`"
    with pytest.raises(ValueError, match=message):
        plot.decision_boundary(network(features=1), X)
    images = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"`model` must be a model of one array of features.*\(None, 4, 4, 1\)"):
        plot.decision_boundary(images, X)


def test_a_model_of_several_inputs():
    inputs = [keras.Input((2,)), keras.Input((2,))]
    model = keras.Model(inputs, keras.layers.Add()(inputs))

    with pytest.raises(ValueError, match="`model` must be a model of one array of features"):
        plot.decision_boundary(model, X)


@pytest.mark.parametrize("answer", [lambda x: [x, x], lambda x: {"a": x}, lambda x: x[:, None, None], lambda x: 1.0])
def test_a_model_of_other_outputs(answer):
    with pytest.raises(ValueError, match=r"`model` must be a model with one output \(sample, class\)"):
        plot.decision_boundary(Model(answer), X)


def test_what_is_no_model_or_no_axes():
    with pytest.raises(TypeError, match=r"`model` must be a trained model\. Received: model=3\. Pass a `keras.Model`"):
        plot.decision_boundary(3, X)
    with pytest.raises(TypeError, match=r"`ax` must be Matplotlib axes or None\. Received: ax=<Figure"):
        plot.decision_boundary(network(), X, ax=plt.figure())


def test_labels_that_could_be_numbers_say_how_to_draw_a_regression():
    with pytest.raises(ValueError, match=r"tells 2 apart\. Of a regression pass `regression=True`\.$"):
        plot.decision_boundary(network(), X, np.arange(4))


def test_regression_of_several_outputs():
    message = r"`regression` must be True, False or None, and not True for a model of several outputs\. .*=True\."
    with pytest.raises(ValueError, match=message):
        plot.decision_boundary(network(3, "softmax"), X, regression=True)
