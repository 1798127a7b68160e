"""Pictures: the record is what plain Keras answers; drawing it computes nothing. Arrays are compared, not pixels."""

import keras
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection

import kohort
from kohort import plot
from kohort.history import CohortHistory

LIMITS = {"xlim": (-0.5, 1.5), "ylim": (-1, 2)}
X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "float32")


def network(units=1, activation=None, features=2):
    keras.utils.set_random_seed(7)
    hidden = keras.layers.Dense(6, "tanh", bias_initializer="normal")
    last = keras.layers.Dense(units, activation, bias_initializer="normal")
    return keras.Sequential([keras.Input((features,)), hidden, last])


def points(record):
    return np.column_stack((record.xx0.ravel(), record.xx1.ravel())).astype("float32")


class Model:
    """Answers like a Keras model and counts how often it is asked."""

    def __init__(self, answer):
        self.answer, self.calls = answer, 0

    def predict(self, x):
        self.calls += 1
        return self.answer(x)


class Cohort:
    """Answers like a cohort whose member with seed s says `s * x[:, 0]`, and counts how often it is asked."""

    def __init__(self, seeds=(5, 2, 9), history=None):
        self.seeds, self.history, self.calls = seeds, history, 0

    def predict(self, x, batch_size=None, verbose=0):
        self.calls += 1
        return np.stack([seed * x[:, :1] for seed in self.seeds])

    def direction(self, metric):
        return "down" if metric.endswith("loss") else "up"


def recorded(seeds=(5, 2, 9), **metrics):
    values = {name: np.asarray(rows, float) for name, rows in metrics.items()}
    return CohortHistory(values, seeds=list(seeds), epoch=list(range(len(next(iter(values.values()))[0]))))


@pytest.fixture(scope="module")
def trained():
    x, y = kohort.data.xor()
    model = network()
    model.compile(optimizer="adam", loss="mse")
    cohort = kohort.Cohort(model, seeds=[4, 0, 7])
    cohort.fit(x, y, epochs=3, verbose=0)
    return cohort


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


# Many members.


def test_the_wall_is_what_the_members_answer(trained):
    picture = plot.wall(trained, X, [0, 1, 1, 0] * np.ones(4), grid_resolution=6)

    assert picture.seeds == trained.seeds == (4, 0, 7)
    assert picture.responses.shape == (3, 6, 6)
    np.testing.assert_allclose(
        picture.responses, trained.predict(points(picture)).reshape(3, 6, 6), rtol=1e-6, atol=1e-6
    )
    for seed, response in zip(picture.seeds, picture.responses, strict=True):
        expected = trained.member(seed).predict(points(picture), verbose=0).reshape(6, 6)
        np.testing.assert_allclose(response, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(picture.values, trained.history.last("loss"))
    losses = [f"{loss:.3g}" for loss in trained.history.last("loss")]
    titles = [f"seed {seed} · {loss}" for seed, loss in zip(trained.seeds, losses, strict=True)]
    assert [ax.get_title() for ax in picture.axes_] == titles
    assert all(ax.figure is picture.figure_ for ax in picture.axes_)


def test_a_wall_of_softmax_keeps_the_axis_of_classes():
    cohort = Cohort()
    cohort.predict = lambda x, batch_size: np.stack([network(3, "softmax").predict(x, verbose=0)] * 3)

    assert plot.wall(cohort, X, grid_resolution=4).responses.shape == (3, 4, 4, 3)


def test_the_wall_asks_the_cohort_once_and_drawing_again_never():
    cohort = Cohort()

    picture = plot.wall(cohort, **LIMITS, grid_resolution=5)
    first = picture.figure_
    picture.plot()

    assert cohort.calls == 1
    assert picture.figure_ is not first
    assert len(picture.axes_) == 3
    expected = np.multiply.outer([5, 2, 9], picture.xx0)
    np.testing.assert_allclose(picture.responses, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("members", "seeds"), [(64, (5, 2, 9)), (2, (5, 2)), ([9, 5], (9, 5)), (range(9, 10), (9,)), (iter([2]), (2,))]
)
def test_members_are_the_first_ones_or_the_named_ones(members, seeds):
    picture = plot.wall(Cohort(), **LIMITS, members=members, grid_resolution=3)

    assert picture.seeds == seeds
    assert picture.members == 3
    np.testing.assert_allclose(picture.responses[:, 0, -1], np.multiply(1.5, seeds))


@pytest.mark.parametrize(
    ("metric", "last", "seeds"),
    [
        ("loss", [0.3, 0.1, 0.2], (2, 9, 5)),
        ("val_accuracy", [0.3, 0.1, 0.2], (5, 9, 2)),
        ("loss", [np.nan, 0.1, np.inf], (2, 9, 5)),
        ("auc_1", [np.nan, 0.1, 0.2], (9, 2, 5)),
        ("loss", [0.1, 0.1, 0.0], (9, 5, 2)),
    ],
)
def test_by_sorts_the_best_first_and_what_is_not_a_number_last(metric, last, seeds):
    log = recorded(**{metric: np.column_stack((np.ones(3), last))})

    picture = plot.wall(Cohort(history=log), **LIMITS, by=metric, grid_resolution=3)

    assert picture.seeds == seeds
    assert picture.metric == metric
    np.testing.assert_array_equal(picture.values, np.take(last, [(5, 2, 9).index(seed) for seed in seeds]))
    np.testing.assert_allclose(picture.responses[:, 0, -1], np.multiply(1.5, seeds))


def test_by_sorts_what_is_shown_and_does_not_choose_it():
    log = recorded(loss=[[0.3], [0.2], [0.1]])

    assert plot.wall(Cohort(history=log), **LIMITS, members=2, by="loss").seeds == (2, 5)


def test_a_wall_without_a_history_has_seeds_as_titles():
    picture = plot.wall(Cohort(), **LIMITS, columns=1)

    assert (picture.metric, picture.values) == (None, None)
    assert [ax.get_title() for ax in picture.axes_] == ["seed 5", "seed 2", "seed 9"]
    assert len({ax.get_position().x0 for ax in picture.axes_}) == 1


def test_no_text_of_a_wall_overlaps_another():
    history = recorded(range(2**31, 2**31 + 64), val_binary_accuracy=np.linspace(0.1234, 1, 64)[:, None])
    picture = plot.wall(
        Cohort(range(2**31, 2**31 + 64), history), **LIMITS, by="val_binary_accuracy", grid_resolution=20
    )
    picture.figure_.canvas.draw()

    boxes = [text.get_window_extent() for text in picture.figure_.findobj(matplotlib.text.Text) if text.get_text()]

    assert len(boxes) > 64
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


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
    labels = curves.ax_.get_legend_handles_labels()[1]
    assert "3 of 3 members, 2 end early" in labels


def test_only_some_of_many_members_are_drawn_and_always_the_same():
    values = np.arange(1.0, 1002)[:, None] * np.ones(4)

    curves = plot.history(recorded(range(1001), loss=values))

    (faint,) = (c for c in curves.ax_.collections if isinstance(c, LineCollection))
    drawn = [path[0, 1] for path in faint.get_segments()]
    assert drawn == list(np.arange(1.0, 1002)[::6])
    assert curves.values.shape == (1001, 4)


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
        ({**LIMITS, "y": np.zeros(4)}, r"`y` must be left out where `x` is\. Received: y with shape=\(4,\)"),
        ({"x": X[:, :1]}, r"`x` must be of shape \(sample, 2\)\. Received: x with shape=\(4, 1\)\. Select"),
        ({"x": X[0]}, r"`x` must be of shape \(sample, 2\)"),
        ({"x": np.where(X == 1, np.nan, X)}, "`x` must hold finite numbers"),
        ({"x": X[:0]}, "`x` must have at least one sample"),
        ({"x": X, "y": np.zeros(3)}, r"`y` must have one row per sample of `x` \(4\)"),
        ({"x": X, "y": np.arange(4)}, r"`y` must be labels of two classes\. .*It holds \[0, 1, 2, 3\]"),
        ({"x": X, "y": np.eye(4)}, "`y` must be labels of two classes"),
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
        ValueError, match=r"`y` must be class numbers from 0 to 2, or one-hot\. Received: y with shape="
    ):
        plot.decision_boundary(network(3, "softmax"), X, y)


@pytest.mark.parametrize("features", [1, 3])
def test_a_model_of_other_features(features):
    message = rf"`model` must be a model of two input features\. .*Its input shape is \(None, {features}\): draw"
    with pytest.raises(ValueError, match=message):
        plot.decision_boundary(network(features=features), X)


def test_a_model_of_several_inputs():
    inputs = [keras.Input((2,)), keras.Input((2,))]
    model = keras.Model(inputs, keras.layers.Add()(inputs))

    with pytest.raises(ValueError, match="`model` must be a model of two input features"):
        plot.decision_boundary(model, X)


@pytest.mark.parametrize("answer", [lambda x: [x, x], lambda x: {"a": x}, lambda x: x[:, None, None], lambda x: 1.0])
def test_a_model_of_other_outputs(answer):
    with pytest.raises(ValueError, match=r"`model` must be a model with one output \(sample, class\)"):
        plot.decision_boundary(Model(answer), X)


def test_what_is_no_model_cohort_history_or_axes():
    with pytest.raises(TypeError, match=r"`model` must be a trained model\. Received: model=3\. Pass a `keras.Model`"):
        plot.decision_boundary(3, X)
    with pytest.raises(
        TypeError, match=r"`cohort` must be a `kohort\.Cohort`.*Draw one model with `decision_boundary`"
    ):
        plot.wall(network(), X)
    with pytest.raises(
        TypeError, match=r"`source` must be what a `fit` returned, or a cohort\. Received: source=\[1\.0"
    ):
        plot.history([1.0, 0.5])
    with pytest.raises(TypeError, match=r"`ax` must be Matplotlib axes or None\. Received: ax=<Figure"):
        plot.decision_boundary(network(), X, ax=plt.figure())
    with pytest.raises(TypeError, match="`ax` must be Matplotlib axes"):
        plot.history({"loss": [1.0]}, ax=3)


@pytest.mark.parametrize("members", [0, -1, [], [5, 3]])
def test_members_that_the_cohort_does_not_have(members):
    message = r"`members` must be a number of at least 1, or seeds among \[5, 2, 9\]\. Received: members="
    with pytest.raises(ValueError, match=message):
        plot.wall(Cohort(), X, members=members)


def test_columns_below_one():
    with pytest.raises(ValueError, match=r"`columns` must be at least 1\. Received: columns=0"):
        plot.wall(Cohort(), X, columns=0)


def test_metrics_that_were_not_recorded():
    log = recorded(loss=np.ones((3, 2)), confusion=np.ones((3, 2, 4)))
    with pytest.raises(ValueError, match=r"`by` must be one of 'loss'\. Received: by='auc'\. Metrics are named in"):
        plot.wall(Cohort(history=log), X, by="auc")
    with pytest.raises(ValueError, match="`metric` must be one of 'loss'"):
        plot.history(log, "confusion")
    with pytest.raises(ValueError, match="`metric` must be a number that a `fit` recorded"):
        plot.history(keras.callbacks.History())


def test_a_cohort_without_a_history():
    model = network()
    model.compile(loss="mse")
    untrained = kohort.Cohort(model, seeds=2)

    with pytest.raises(TypeError, match=r"`source` must be what a `fit` returned, or a cohort\. .*Fit first"):
        plot.wall(Cohort(), X, by="loss")
    with pytest.raises(RuntimeError, match=r"must come after `cohort\.fit`"):
        plot.wall(untrained, X)
    with pytest.raises(RuntimeError, match=r"must come after `cohort\.fit`"):
        plot.history(untrained)
