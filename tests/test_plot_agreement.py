"""How far members agree: shares counted anew from the members' own answers."""

import re

import numpy as np
import pytest
from pictures import (
    LIMITS,
    Cohort,
    Study,
    X,
    Y,
    network,
    overlaps,
    points,
    recorded,
    text_boxes,
    trained_cohort,
)

import kohort
from kohort import plot


@pytest.fixture(scope="module")
def trained():
    return trained_cohort(seeds=range(9))


def test_the_share_is_that_of_the_members_own_answers(trained):
    picture = plot.spread(trained, X, Y, grid_resolution=7)

    said = [trained.member(seed).predict(points(picture), verbose=0)[:, 0] > 0.5 for seed in trained.seeds]
    np.testing.assert_allclose(picture.share, np.mean(said, axis=0).reshape(7, 7))
    assert 0 < picture.share.mean() < 1
    assert (picture.members, picture.diverged, picture.label) == (9, 0, 1)
    assert picture.figure_ is picture.ax_.figure


def test_the_median_boundary_is_where_the_median_answer_is_the_threshold(trained):
    picture = plot.spread(trained, X, Y, grid_resolution=7)

    median = np.median(trained.predict(points(picture))[..., 0], axis=0).reshape(7, 7)
    np.testing.assert_array_equal(picture.share > 0.5, median > 0.5)


def test_lines_are_drawn_where_10_50_and_90_percent_say_it():
    answers = np.arange(1, 101)[:, None, None] / 100  # at x[:, 0] = t the share 1 - t of the members is above 1/2
    cohort = Cohort(range(100), answer=lambda x: answers + 0.5 - x[None, :, :1])

    picture = plot.spread(cohort, xlim=(0, 1), ylim=(0, 1), grid_resolution=101)

    (lines,) = (c for c in picture.ax_.collections if hasattr(c, "levels") and not c.filled)
    np.testing.assert_array_equal(lines.levels, [0.1, 0.5, 0.9])
    places = [path.vertices[:, 0].mean() for path in lines.get_paths()]
    np.testing.assert_allclose(places, [0.9, 0.5, 0.1], atol=0.02)
    assert len({str(dash) for dash in lines.get_linestyle()[:2]}) == 2
    texts = {text.get_text(): text.get_position() for text in picture.ax_.texts}
    np.testing.assert_allclose([texts[name][0] for name in ("10 %", "90 %")], [0.9, 0.1], atol=0.02)


@pytest.mark.parametrize("width", [0.03, 0.2, 0.9])
def test_names_of_lines_stand_on_nothing_however_near_the_lines_are(width):
    answers = np.arange(1, 101)[:, None, None] / 100
    cohort = Cohort(range(100), answer=lambda x: answers + 0.5 - (x[None, :, :1] - 0.5) / width - 0.5)

    picture = plot.spread(cohort, np.array([[0.4, 0.4], [0.6, 0.6]]), np.array([0, 1]), xlim=(0, 1), ylim=(0, 1))

    places = {text.get_text(): np.array(text.get_position()) for text in picture.ax_.texts}
    assert places.keys() == {"10 %", "90 %"}
    assert overlaps(picture.figure_) == []
    assert all(np.hypot(*(picture.x - place).T).min() > 0.1 for place in places.values())


@pytest.mark.parametrize(("label", "expected"), [(None, 1 / 3), (1, 1 / 3), (0, 1 / 3), (2, 1 / 3)])
def test_the_share_of_a_class_among_several(label, expected):
    answer = np.eye(3)[:, None, :]  # each member says one class everywhere
    cohort = Cohort(answer=lambda x: np.broadcast_to(answer, (3, len(x), 3)))

    picture = plot.spread(cohort, **LIMITS, label=label, grid_resolution=3)

    np.testing.assert_allclose(picture.share, expected)
    assert picture.label == label
    assert picture.share.shape == ((3, 3, 3) if label is None else (3, 3))


def test_of_several_classes_each_is_shown():
    """Nine members that say class 0, 1 or 2 by thirds of the plane, three of which always say 2."""
    x = np.array([[0.0, 0.0], [1.0, 1.0]])

    def answer(x):
        said = np.eye(3)[np.clip(x[:, 0] * 3, 0, 2).astype(int)]
        always = np.broadcast_to(np.eye(3)[2], said.shape)
        return np.stack([said] * 6 + [always] * 3)

    picture = plot.spread(Cohort(range(9), answer=answer), x, np.array([0, 2]), grid_resolution=31)

    middle = picture.share[:, 15, [10, 15, 21]]
    np.testing.assert_allclose(middle, [[2 / 3, 0, 0], [0, 2 / 3, 0], [1 / 3, 1 / 3, 1]])
    legend = picture.figure_.legends[0]
    assert by_rows(legend) == ["class 0", "class 1", "class 2", "lead changes", "90 % agree"]
    lines = {
        name: line for name, line in zip(texts_of(legend), legend.legend_handles, strict=True) if "class" not in name
    }
    assert [lines[name].get_linewidth() for name in ("lead changes", "90 % agree")] == [2, 1]
    assert legend.get_title().get_text() == "what most of 9 members say, fainter the fewer they are"
    assert overlaps(picture.figure_) == []


def texts_of(legend):
    return [text.get_text() for text in legend.get_texts()]


def by_rows(legend):
    """Returns the entries of a legend as they are read: row by row."""
    legend.figure.canvas.draw()
    places = [text.get_window_extent() for text in legend.get_texts()]
    order = sorted(range(len(places)), key=lambda i: (-round(places[i].y0 / 8), places[i].x0))
    return [texts_of(legend)[i] for i in order]


@pytest.mark.parametrize("classes", [4, 5, 7, 10])
def test_a_legend_of_classes_and_lines_is_read_row_by_row(classes):
    scores = np.random.default_rng(1).normal(size=(3, 2, classes))
    cohort = Cohort(answer=lambda x: x @ scores)

    figure = plot.spread(cohort, X, np.arange(4), grid_resolution=20).figure_
    legend = figure.legends[0]

    names = [each for each in by_rows(legend) if each != "undecided"]
    assert names == [*(f"class {k}" for k in range(classes)), "lead changes", "90 % agree"]
    assert overlaps(figure) == []


def test_members_that_are_undecided_count_in_part():
    answers = np.array([0.2, 0.5 + 1e-5, 0.5 - 1e-5, 0.9])[:, None, None]
    binary = Cohort(range(4), answer=lambda x: np.broadcast_to(answers, (4, len(x), 1)))
    scores = np.array([[0.5, 0.5, 0.0], [0.2, 0.2, 0.6], [1 / 3, 1 / 3, 1 / 3]])[:, None]
    several = Cohort(range(3), answer=lambda x: np.broadcast_to(scores, (3, len(x), 3)))

    np.testing.assert_allclose(plot.spread(binary, **LIMITS, grid_resolution=3).share, 0.5)
    shares = plot.spread(several, **LIMITS, grid_resolution=3).share
    np.testing.assert_allclose(shares[:, 1, 1], [5 / 18, 5 / 18, 8 / 18])


@pytest.mark.parametrize(("label", "share"), [(-1, 2 / 3), (1, 1 / 3), (None, 1 / 3)])
def test_labels_other_than_0_and_1(label, share):
    answers = np.array([-0.5, -0.1, 0.5])[:, None, None]
    cohort = Cohort(answer=lambda x: np.broadcast_to(answers, (3, len(x), 1)))

    picture = plot.spread(cohort, X, 2 * Y - 1, label=label, grid_resolution=3)

    np.testing.assert_allclose(picture.share, share)


def test_members_that_diverged_are_not_counted():
    answers = np.array([0.0, np.nan, 1.0])[:, None, None]
    cohort = Cohort(answer=lambda x: np.broadcast_to(answers, (3, len(x), 1)))

    picture = plot.spread(cohort, **LIMITS, grid_resolution=3)

    np.testing.assert_array_equal(picture.share, 0.5)
    assert (picture.members, picture.diverged) == (2, 1)
    assert picture.figure_.legends[0].get_title().get_text() == "2 members, without 1 diverged"


@pytest.mark.parametrize("draw", [plot.spread, plot.wall, plot.minima, plot.survival])
def test_pictures_agree_on_who_diverged(draw):
    """Of members 0 to 3 the second has a loss that is not finite, but answers, and the third no answers."""
    log = recorded(range(4), loss=[[1.0, 0.1], [1.0, np.inf], [1.0, np.nan], [1.0, 0.2]])
    steep = np.array([1.0, 2.0, np.nan, 3.0])[:, None, None]
    cohort = Cohort(range(4), log, lambda x: steep * x[:, :1])

    record = draw(cohort, loss=0.01) if draw is plot.survival else draw(cohort, **LIMITS, grid_resolution=5)

    counts = {"Minima": lambda: int((record.group < 0).sum()), "Wall": lambda: int(record.failed.sum())}
    assert counts.get(type(record).__name__, lambda: record.diverged)() == 2
    said = " ".join(text for text, _ in text_boxes(record.figure_))
    assert "2 diverged" in said


def test_one_member_is_no_members():
    log = recorded([5, 7], loss=[[1.0, 0.1], [1.0, np.inf]])
    cohort = Cohort([5, 7], log, lambda x: np.stack([x[:, :1], x[:, 1:]]))
    one = Cohort([5], recorded([5], loss=[[1.0, 0.1]]), lambda x: x[None, :, :1])

    for record in (
        plot.spread(cohort, **LIMITS, grid_resolution=5),
        plot.wall(one, **LIMITS, grid_resolution=5),
        plot.minima(one, **LIMITS, grid_resolution=5),
        plot.survival(one, loss=0.5),
        plot.success(Study({"hidden": [2]}, members=1), loss=0.5),
    ):
        said = " ".join(text for text, _ in text_boxes(record.figure_))
        assert re.search(r"\b1 member\b", said), said
        assert "1 members" not in said


def test_only_the_named_members_are_counted(trained):
    picture = plot.spread(trained, X, Y, members=[8, 2], grid_resolution=5)

    expected = np.mean([trained.member(s).predict(points(picture), verbose=0) > 0.5 for s in (8, 2)], axis=0)
    np.testing.assert_allclose(picture.share.ravel(), expected[:, 0])
    assert picture.members == 2


def test_drawing_again_asks_nobody_and_no_text_overlaps():
    cohort = Cohort()

    picture = plot.spread(cohort, X, Y, grid_resolution=9)
    picture.plot()

    assert cohort.calls == 1
    assert overlaps(picture.figure_) == []


# Misuse.


def test_classes_and_cohorts_that_cannot_be():
    with pytest.raises(ValueError, match=r"`label` must be one of the classes 0, 1\. Received: label=2\. Pass one"):
        plot.spread(Cohort(), X, Y, label=2)
    with pytest.raises(TypeError, match=r"`cohort` must be a `kohort\.Cohort`"):
        plot.spread(network(), X)
    with pytest.raises(ValueError, match=r"`y` must be labels of two classes\..*the model tells 2 apart\.$"):
        plot.spread(Cohort(), X, Y + X[:, 0] / 3)
    nothing = Cohort(answer=lambda x: np.full((3, len(x), 1), np.nan))
    with pytest.raises(ValueError, match="`cohort` must be one of which at least one member did not diverge"):
        plot.spread(nothing, X)
    with pytest.raises(ValueError, match="`members` must be a number of at least 1, or seeds among 5, 2, 9"):
        plot.spread(Cohort(), X, members=0)


def test_a_cohort_that_is_not_trained():
    model = network()
    model.compile(loss="mse")

    with pytest.raises(RuntimeError, match=r"must come after `cohort\.fit`"):
        plot.spread(kohort.Cohort(model, seeds=2), X)
