"""The wall: what each member answers, sorted and marked."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from pictures import LIMITS, Cohort, X, Y, network, overlaps, points, recorded, trained_cohort

import kohort
from kohort import plot


@pytest.fixture(scope="module")
def trained():
    return trained_cohort()


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


def test_members_of_one_seed_are_all_shown():
    cohort = Cohort(seeds=(5, 5, 2), answer=lambda x: np.stack([k * x[:, :1] for k in (1, 2, 3)]))

    first = plot.wall(cohort, **LIMITS, grid_resolution=3)
    named = plot.wall(cohort, **LIMITS, grid_resolution=3, members=[2, 5])

    assert (first.seeds, named.seeds) == ((5, 5, 2), (2, 5, 5))
    np.testing.assert_allclose(first.responses[:, 0, -1], [1.5, 3, 4.5])
    np.testing.assert_allclose(named.responses[:, 0, -1], [4.5, 1.5, 3])


def test_by_sorts_what_is_shown_and_does_not_choose_it():
    log = recorded(loss=[[0.3], [0.2], [0.1]])

    assert plot.wall(Cohort(history=log), **LIMITS, members=2, by="loss").seeds == (2, 5)


def test_a_wall_without_a_history_has_seeds_as_titles():
    picture = plot.wall(Cohort(), **LIMITS, columns=1)

    assert (picture.metric, picture.values) == (None, None)
    assert [ax.get_title() for ax in picture.axes_] == ["seed 5", "seed 2", "seed 9"]
    assert len({ax.get_position().x0 for ax in picture.axes_}) == 1


def test_no_text_of_a_wall_overlaps_another():
    seeds = range(2**31, 2**31 + 64)
    history = recorded(seeds, val_binary_accuracy=np.linspace(0.1234, 1, 64)[:, None])

    picture = plot.wall(Cohort(seeds, history), **LIMITS, by="val_binary_accuracy", grid_resolution=20)

    assert overlaps(picture.figure_) == []


@pytest.mark.parametrize("draw", [plot.wall, plot.minima])
def test_the_legend_of_many_classes_stays_in_the_figure(draw):
    scores = np.random.default_rng(0).normal(size=(3, 9, 12))
    cohort = Cohort(history=recorded(loss=np.ones((3, 1))), answer=lambda x: scores)

    for columns in (1, 3):
        assert overlaps(draw(cohort, X, Y, grid_resolution=3, columns=columns).figure_) == []


# Members that failed.


def test_members_that_do_not_reach_the_bounds_are_marked():
    log = recorded(loss=[[0.3], [0.001], [0.2]], accuracy=[[0.5], [1.0], [0.99]])

    picture = plot.wall(Cohort(history=log), **LIMITS, grid_resolution=3, loss=0.25, accuracy=0.99)
    plain = plot.wall(Cohort(history=log), **LIMITS, grid_resolution=3)

    np.testing.assert_array_equal(picture.failed, [True, False, False])
    assert picture.criterion == "loss ≤ 0.25, accuracy ≥ 0.99"
    assert [ax.get_title() for ax in picture.axes_] == ["× seed 5 · 0.3", "seed 2 · 0.001", "seed 9 · 0.2"]
    dashes = [ax.spines["top"].get_linestyle() for ax in picture.axes_]
    assert dashes[0] != dashes[1] == dashes[2]
    assert any("× 1 did not reach loss ≤ 0.25, accuracy ≥ 0.99" in text.get_text() for text in picture.ax_.texts)
    np.testing.assert_array_equal(plain.failed, [False] * 3)
    assert not any("reach" in text.get_text() for text in plain.ax_.texts)


def test_members_that_diverged_are_marked_without_any_bound():
    log = recorded(loss=[[0.3], [np.nan], [0.2]])
    cohort = Cohort(history=log, answer=lambda x: np.stack([x[:, :1], np.nan * x[:, :1], np.inf * x[:, :1]]))

    picture = plot.wall(cohort, **LIMITS, grid_resolution=3, by="loss")

    assert picture.seeds == (9, 5, 2)
    np.testing.assert_array_equal(picture.failed, [True, False, True])
    assert [ax.get_title()[0] for ax in picture.axes_] == ["×", "s", "×"]


def test_marks_follow_the_order_of_the_cells(trained):
    losses = trained.history.last("loss")
    middle = float(np.median(losses))

    picture = plot.wall(trained, X, Y, by="loss", grid_resolution=4, loss=middle)

    np.testing.assert_array_equal(picture.values, np.sort(losses))
    np.testing.assert_array_equal(picture.failed, [False, False, True])
    assert picture.failed.sum() == 3 - trained.success_rate(loss=middle).k


# More features, regressions, axes of ones own.


def test_a_wall_of_more_features_holds_the_others():
    cohort = Cohort(answer=lambda x: np.stack([seed * x[:, 1:2] + x[:, 2:3] for seed in (5, 2, 9)]))
    x = np.array([[0, 0, 1], [1, 1, 3], [2, 4, 5]], "float32")

    picture = plot.wall(cohort, x, features=(1, 0), grid_resolution=3)

    assert picture.names == ("x[:, 1]", "x[:, 0]")
    np.testing.assert_allclose(picture.responses, np.multiply.outer([5, 2, 9], picture.xx0) + 3)
    assert any("x[:, 2] = 3" in text.get_text() for text in picture.ax_.texts)


def test_members_of_more_features_are_drawn_without_samples():
    generator = np.random.default_rng(2)
    x = generator.normal(size=(12, 3)).astype("float32")
    model = network(features=3)
    model.compile(loss="mse")
    cohort = kohort.Cohort(model, seeds=2)
    cohort.fit(x, x[:, 0], verbose=0)

    picture = plot.wall(cohort, xlim=(0, 1), ylim=(0, 1), fixed={1: 0.5}, grid_resolution=3)

    assert picture.names == ("x[:, 0]", "x[:, 2]")
    expected = cohort.member(1).predict(picture.points, verbose=0).reshape(3, 3)
    np.testing.assert_allclose(picture.responses[1], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="`features` must be given where the model takes 3 features"):
        plot.wall(cohort, x)


def test_a_wall_of_a_regression_has_the_same_levels_in_all_cells():
    picture = plot.wall(Cohort(), X, np.array([0.0, 0.5, 1.0, 9.0]), grid_resolution=5)

    regions = [next(c for c in ax.collections if hasattr(c, "levels")) for ax in picture.axes_]
    for region in regions:
        np.testing.assert_array_equal(region.levels[:: len(region.levels) - 1], picture.levels[[0, -1]])
    assert picture.levels[-1] >= picture.responses.max()
    assert overlaps(picture.figure_) == []


def test_a_wall_in_the_place_of_axes_of_ones_own():
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5))

    picture = plot.wall(Cohort(), X, Y, ax=right, grid_resolution=5)

    assert (picture.ax_, picture.figure_) == (right, figure)
    assert figure.legends == []
    figure.canvas.draw()
    inside, around = [ax.get_window_extent() for ax in picture.axes_], right.get_window_extent()
    assert all(around.x0 <= box.x0 < box.x1 <= around.x1 for box in inside)
    assert all(around.y0 <= box.y0 < box.y1 <= around.y1 for box in inside)
    assert not any(a.overlaps(b) for i, a in enumerate(inside) for b in inside[:i])
    assert left.axison


# Misuse.


@pytest.mark.parametrize("members", [0, -1, [], [5, 3]])
def test_members_that_the_cohort_does_not_have(members):
    message = r"`members` must be a number of at least 1, or seeds among 5, 2, 9\. Received: members="
    with pytest.raises(ValueError, match=message):
        plot.wall(Cohort(), X, members=members)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("members", [None, 1.5, True])
def test_members_that_are_no_choice(members):
    message = r"`members` must be a number of at least 1, or seeds\. Received: members=.*Pass for example 64"
    with pytest.raises(TypeError, match=message):
        plot.wall(Cohort(), X, members=members)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(("columns", "error"), [(0, ValueError), (1.5, ValueError), ("a", TypeError)])
def test_columns_that_cannot_be(columns, error):
    with pytest.raises(error, match=r"`columns` must be an integer of at least 1\. Received: columns="):
        plot.wall(Cohort(), X, columns=columns)


def test_members_of_other_features_are_told_by_their_own_shape():
    three, one = trained_cohort(features=3, x=np.ones((4, 3))), trained_cohort(features=1, x=X[:, :1])
    for draw in (plot.wall, plot.spread, plot.minima):
        with pytest.raises(ValueError, match="`features` must be given where the model takes 3 features"):
            draw(three, xlim=(0, 1), ylim=(0, 1))
        with pytest.raises(ValueError, match=r"`cohort` must be a cohort of at least two features\..*response_curve"):
            draw(one, X[:, :1])
        with pytest.raises(ValueError, match=r"`x` must be of shape \(sample, 3\).*shape=\(4, 2\)"):
            draw(three, X, features=(0, 1))


def test_what_is_no_cohort():
    message = r"`cohort` must be a `kohort\.Cohort`.*Draw one model with `decision_boundary`"
    with pytest.raises(TypeError, match=message):
        plot.wall(network(), X)


def test_metrics_and_bounds_that_the_cohort_does_not_have():
    cohort = Cohort(history=recorded(loss=np.ones((3, 2)), confusion=np.ones((3, 2, 4))))
    with pytest.raises(ValueError, match=r"`by` must be one of 'loss'\. Received: by='auc'\. Metrics are named in"):
        plot.wall(cohort, X, by="auc")
    with pytest.raises(ValueError, match=r"`auc` must be a metric of the history: loss, confusion\. .*auc=0\.9"):
        plot.wall(cohort, X, auc=0.9)
    with pytest.raises(ValueError, match=r"`loss` must be the bound that its last value must reach, a number"):
        plot.wall(cohort, X, loss=float("nan"))


def test_a_cohort_that_is_not_trained():
    model = network()
    model.compile(loss="mse")

    with pytest.raises(TypeError, match=r"`source` must be what a `fit` returned, or a cohort\. .*Fit first"):
        plot.wall(Cohort(), X, by="loss")
    with pytest.raises(RuntimeError, match=r"must come after `cohort\.fit`"):
        plot.wall(kohort.Cohort(model, seeds=2), X)
