"""What all pictures keep to: axes of ones own, both grounds, readable text, nothing global, nothing twice."""

import io

import keras
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from pictures import Cohort, Study, X, Y, network, overlaps, recorded, trained_cohort

from kohort import plot
from kohort.plot import style


def compiled():
    model = network()
    model.compile(loss="mse")
    return model


def losses():
    return recorded(range(6), loss=[[1, 0.1, 0.01]] * 3 + [[1, 0.9, 0.8]] * 2 + [[2, np.nan, np.nan]])


NUMBERS = {"hidden": [2, 10, 20], "rate": [0.01, 0.1]}
PICTURES = {
    "decision_boundary": lambda **ax: plot.decision_boundary(network(3, "softmax"), X, [0, 1, 2, 1] * np.ones(4), **ax),
    "bare boundary": lambda **ax: plot.decision_boundary(network(), xlim=(-2, 2), ylim=(-2, 2), **ax),
    "regression": lambda **ax: plot.decision_boundary(network(), X, X[:, 0] + X[:, 1] / 2, **ax),
    "network": lambda **ax: plot.network(network(), X, **ax),
    "layers": lambda **ax: plot.network(network(hidden=(20,)), **ax),
    "units": lambda **ax: plot.units(network(), 0, X, grid_resolution=12, **ax),
    "feature_space": lambda **ax: plot.feature_space(network(), 0, X, Y, **ax),
    "loss_landscape": lambda **ax: plot.loss_landscape(compiled(), X, Y, grid_resolution=7, **ax),
    "wall": lambda **ax: plot.wall(Cohort(range(6), losses()), X, Y, grid_resolution=12, loss=0.5, **ax),
    "spread": lambda **ax: plot.spread(Cohort(range(6), losses()), X, Y, grid_resolution=12, **ax),
    "response_curve": lambda **ax: plot.response_curve(network(features=1), X[:, :1], X[:, 0] ** 2, **ax),
    "history": lambda **ax: plot.history(losses(), **ax),
    "survival": lambda **ax: plot.survival(Cohort(range(6), losses()), loss=0.5, **ax),
    "success": lambda **ax: plot.success(Study({"hidden": [2, 4, 8], "activation": ["relu", "tanh"]}), loss=0.5, **ax),
    "success map": lambda **ax: plot.success(Study(NUMBERS, k=lambda hidden, rate: hidden), loss=0.5, **ax),
    "animate": lambda **ax: plot.animate(compiled(), X, Y, epochs=2, frames=2, grid_resolution=12, verbose=0, **ax),
    "minima": lambda **ax: plot.minima(Cohort(range(6), losses()), X, Y, grid_resolution=12, **ax),
}
each_picture = pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)


def contrast(text):
    """Returns the contrast between a text and the ground it stands on, of 1 to 21 (WCAG 2)."""
    halos = [effect for effect in text.get_path_effects() if hasattr(effect, "_gc")]
    axes = text.axes
    ground = axes.get_facecolor() if axes is not None and axes.axison else text.figure.get_facecolor()
    if halos:
        ground = halos[0]._gc["foreground"]

    def light(colour):
        channels = np.array(to_rgb(colour))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((light(text.get_color()), light(ground)))
    return (high + 0.05) / (low + 0.05)


@each_picture
@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_text_is_readable_on_both_grounds_and_overlaps_nowhere(draw, style):
    with plt.style.context(style):
        figure = draw().figure_
        assert overlaps(figure) == []
        texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
        assert texts
        assert min(map(contrast, texts)) > 4.5
        figure.set_dpi(200)  # twice as many pixels
        assert overlaps(figure) == []


LONG = "the_standard_error_of_the_mean_concavity_of_the_nucleus"
PANDAS = pytest.importorskip("pandas")
TABLE = PANDAS.DataFrame(1e5 * np.random.default_rng(0).normal(size=(9, 5)), columns=[f"{LONG}_{i}" for i in range(5)])
SHARES = {"loss": np.linspace(0.1, 1, 320).reshape(64, 5), LONG: np.linspace(1, 1e6, 320).reshape(64, 5)}
MANY = Cohort(range(10**6, 10**6 + 64), recorded(range(64), **SHARES))
TEN = np.arange(9)


def long_names(features=2):
    keras.utils.set_random_seed(7)
    hidden = [keras.layers.Dense(9, "tanh", name=f"{LONG}_{i}") for i in range(2)]
    return keras.Sequential([keras.Input((features,)), *hidden, keras.layers.Dense(10, "softmax")])


UGLY = {
    "boundary": lambda **ax: plot.decision_boundary(long_names(), TABLE.iloc[:, :2], TEN, **ax),
    "boundary held": lambda **ax: plot.decision_boundary(long_names(5), TABLE, TEN, features=(1, 3), **ax),
    "network": lambda **ax: plot.network(long_names(), TABLE.iloc[:, :2], **ax),
    "network held": lambda **ax: plot.network(long_names(5), TABLE, features=(1, 3), **ax),
    "feature_space": lambda **ax: plot.feature_space(long_names(), 0, TABLE.iloc[:, :2], TEN, **ax),
    "units": lambda **ax: plot.units(network(hidden=(64,)), 0, TABLE.iloc[:, :2], grid_resolution=4, **ax),
    "wall": lambda **ax: plot.wall(MANY, TABLE.iloc[:, :2], by=LONG, grid_resolution=4, loss=0.5, **ax),
    "history": lambda **ax: plot.history(MANY, LONG, **ax),
    "survival": lambda **ax: plot.survival(MANY, **{LONG: 0.5}, loss=0.5, **ax),
    "response": lambda **ax: plot.response_curve(network(features=1), TABLE.iloc[:, 0], TABLE.iloc[:, 1], **ax),
    "success": lambda **ax: plot.success(Study({LONG: [LONG, "b" + LONG], "b" + LONG: [1, 2]}), loss=0.5, **ax),
    "success crowded": lambda **ax: plot.success(Study({LONG: list(10.0 ** -np.arange(9)), "b": [1, 2]}), loss=1, **ax),
    "history of one": lambda **ax: plot.history(recorded([0], loss=[[0.9, 0.05, 0.02]]), **ax),
    "nothing finite": lambda **ax: plot.history(recorded([0, 1], loss=np.full((2, 3), np.nan)), **ax),
    "success map": lambda **ax: plot.success(Study({LONG: [1e-5, 123456.0], "b" + LONG: [1, 2]}), loss=0.5, **ax),
}


@pytest.mark.parametrize("layout", ["alone", None, "constrained"])
@pytest.mark.parametrize("draw", UGLY.values(), ids=UGLY)
def test_long_names_fit_on_axes_however_small(draw, layout):
    ax = {}
    if layout != "alone":
        _, axes = plt.subplots(2, 2, figsize=(6.4, 4.8), layout=layout)
        for other in (axes[0, 0], *axes[1]):
            other.set(xticks=[], yticks=[])
        ax["ax"] = axes[0, 1]

    figure = draw(**ax).figure_

    assert overlaps(figure) == []


def test_names_are_shortened_in_the_middle_and_broken_between_words():
    assert style.shortened("loss", 4) == "loss"
    assert style.shortened("mean concavity of the nucleus 1", 12) == "mean c…eus 1"
    _, ax = plt.subplots(figsize=(3, 3), layout="constrained")
    ax.set(title="solved: loss ≤ 0.01, val_loss ≤ 0.03, accuracy", xlabel="x", ylabel=3 * LONG)

    style.fit_labels(ax)

    assert ax.get_title() == "solved: loss ≤ 0.01,\nval_loss ≤ 0.03, accuracy"
    assert ax.get_xlabel() == "x"
    assert "…" in ax.get_ylabel()
    assert ax.get_ylabel().startswith("the_")


@each_picture
def test_axes_of_ones_own_are_drawn_on_and_nothing_global_changes(draw):
    before = dict(matplotlib.rcParams)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6))

    record = draw(ax=right)

    assert (record.ax_, record.figure_) == (right, figure)
    assert figure.legends == []
    assert len(plt.get_fignums()) == 1
    assert not left.has_data()
    figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before


@each_picture
def test_a_record_draws_itself_again_on_axes_and_in_a_figure_of_its_own(draw):
    record = draw()
    first = record.figure_
    arrays = {name: np.copy(value) for name, value in vars(record).items() if isinstance(value, np.ndarray)}
    _, ax = plt.subplots(figsize=(8, 8))

    assert record.plot(ax) is record
    assert record.ax_ is ax
    assert record.plot().figure_ is not first
    assert record._repr_png_().startswith(b"\x89PNG")

    for name, value in arrays.items():
        np.testing.assert_array_equal(getattr(record, name), value)


def test_axes_in_a_part_of_a_figure_and_in_other_axes_are_drawn_on():
    figure = plt.figure(figsize=(8, 4))
    left, right = figure.subfigures(1, 2)
    inside = right.subplots().inset_axes((0.1, 0.1, 0.8, 0.8)).inset_axes((0.1, 0.1, 0.8, 0.8))

    for ax in (left.subplots(), inside):
        record = plot.decision_boundary(network(), X, Y, ax=ax)

        assert (record.ax_, record.figure_) == (ax, ax.figure)
        with io.BytesIO() as drawn:
            figure.savefig(drawn, format="png")
            assert record._repr_png_() == drawn.getvalue()


@each_picture
def test_what_are_no_axes_to_draw_on(draw):
    removed = plt.figure().add_subplot()
    removed.remove()
    polar = plt.figure().add_subplot(projection="polar")
    cleared = plt.figure().add_subplot()
    inside = cleared.inset_axes((0, 0, 1, 1))
    cleared.figure.clf()
    figures = plt.get_fignums()
    for ax in (3, plt.figure(figures[0]), [removed]):
        with pytest.raises(TypeError, match=r"`ax` must be Matplotlib axes or None\. Received: ax="):
            draw(ax=ax)
    for ax in (removed, polar, cleared, inside):
        with pytest.raises(ValueError, match=r"`ax` must be flat axes that stand in a figure\. Received: ax="):
            draw(ax=ax)
    assert plt.get_fignums() == figures


def test_a_real_cohort_is_asked_through_its_public_parts_alone():
    cohort = trained_cohort(seeds=range(5), epochs=5)

    for draw in (plot.wall, plot.spread, plot.minima):
        assert draw(cohort, X, Y, grid_resolution=8).figure_ is not None
    assert plot.survival(cohort, loss=0.1).figure_ is not None
    assert isinstance(cohort.member(0), keras.Model)


def test_every_picture_is_tried_here():
    drawn = {name for name in plot.__all__ if name[0].islower()}

    assert drawn <= PICTURES.keys()


def test_ticks_that_somebody_has_chosen_stay():
    _, ax = plt.subplots()
    ax.xaxis.set_major_locator(matplotlib.ticker.MultipleLocator(7))

    for axis in (ax.xaxis, ax.yaxis):
        style.set_ticks(axis, nbins=2, integer=True)
    ax.set(xlim=(0, 15), ylim=(0, 15))

    assert set(ax.get_xticks()) >= {0, 7, 14}
    assert len(ax.get_yticks()) <= 4


def test_a_display_says_what_it_keeps():
    grid = np.zeros((3, 4))
    record = plot.DecisionBoundary(xx0=grid, xx1=grid, response=grid, x=np.zeros((9, 2)))

    assert repr(record) == (
        "DecisionBoundary(xx0 (3, 4), xx1 (3, 4), x (9, 2), names ('x[:, 0]', 'x[:, 1]'), classes (0, 1), "
        "threshold 0.5, response (3, 4))"
    )
    kinds = [getattr(plot, name) for name in plot.__all__ if name[0].isupper()]
    assert all(kind.__repr__ is style.Display.__repr__ for kind in kinds)
