"""Many cells in the place of one axes: they take the room there is, in the middle of it, and the next ones theirs."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from pictures import Cohort, X, Y, compiled, network, overlaps, recorded, trained_cohort

from kohort import plot

LOSSES = np.linspace(0.001, 0.5, 12)
COHORT = Cohort(
    range(12),
    recorded(range(12), loss=LOSSES[:, None]),
    lambda x: np.stack([(k + 1) * x[:, :1] - k % 5 for k in range(12)]),
)
DRAWN = {
    "wall": lambda ax: plot.wall(COHORT, X, Y, ax=ax, grid_resolution=6),
    "minima": lambda ax: plot.minima(COHORT, X, Y, ax=ax, grid_resolution=6),
    "units": lambda ax: plot.units(network(), 0, X, Y, ax=ax, grid_resolution=6),
    "animate": lambda ax: plot.animate(
        trained_cohort(epochs=1), X, Y, epochs=2, frames=2, verbose=0, ax=ax, grid_resolution=6
    ),
}
each_picture = pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)


def axes_of(width, height):
    figure = plt.figure(figsize=(width, height))
    return figure.add_axes((0.02, 0.02, 0.96, 0.96))


def around(record):
    """Returns the box of all cells, in pixels: left, bottom, right, top."""
    record.figure_.canvas.draw()
    boxes = np.array([cell.get_window_extent().extents for cell in record.axes_])
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


@each_picture
def test_what_is_drawn_in_the_same_axes_takes_the_place_of_what_was_there(draw):
    ax = axes_of(6, 6)
    own = ax.text(0.5, 0.5, "")
    first = draw(ax)
    children, texts = len(ax.child_axes), len(ax.texts)

    second = draw(ax)

    assert len(ax.child_axes) == children
    assert len(ax.texts) == texts
    assert own in ax.texts
    assert not set(first.axes_) & set(second.axes_)
    assert all(cell in ax.child_axes for cell in second.axes_)
    assert overlaps(ax.figure) == []


def test_another_picture_takes_the_place_too():
    ax = axes_of(6, 6)
    DRAWN["units"](ax)

    record = DRAWN["wall"](ax)

    assert set(ax.child_axes) == set(record.axes_)


@each_picture
@pytest.mark.parametrize("size", [(9, 3), (3, 7), (5, 5)], ids=["wide", "high", "square"])
def test_cells_take_the_room_of_the_axes_in_the_middle_of_it(draw, size):
    ax = axes_of(*size)

    record = draw(ax)

    left, bottom, right, top = around(record)
    whole, dpi = ax.get_window_extent(), ax.figure.dpi
    free_left, free_right = left - whole.x0 - 0.42 * dpi, whole.x1 - right
    assert -1 <= free_left
    assert abs(free_left - free_right + (0.8 * dpi if isinstance(record, plot.Units) else 0)) < 2
    most = max(right - left, 0.8 * dpi) / (whole.width - 0.42 * dpi), (top - bottom) / (whole.height - 1.2 * dpi)
    assert max(most) > 0.6
    label = next(text for text in ax.texts if text.get_text().startswith("x[:, 0]"))
    box = label.get_window_extent()
    assert 0 < bottom - box.y1 < 0.2 * dpi
    assert abs((box.x0 + box.x1) / 2 - (left + right) / 2) < 2 or abs(box.x0 - left) < 2


def test_counts_of_minima_stand_where_there_is_room_for_them():
    for width, said in ((9, "1 (8.33 %)\nloss 0.001"), (3, "1 (8.33 %)"), (2.6, "1")):
        record = DRAWN["minima"](axes_of(width, width))

        assert record.axes_[0].get_title() == said
        assert record.axes_[0].title.get_visible()
        assert overlaps(record.figure_) == []


def test_seeds_on_a_wall_stand_where_there_is_room_for_them():
    for width, said in ((9, "seed 0 · 0.001"), (3.4, "0 · 0.001"), (2.6, "0")):
        record = DRAWN["wall"](axes_of(width, width))

        assert record.axes_[0].get_title() == said
        assert overlaps(record.figure_) == []


def test_columns_that_are_asked_for_are_kept():
    record = plot.wall(COHORT, X, Y, columns=6, ax=axes_of(4, 8), grid_resolution=6)

    record.figure_.canvas.draw()
    assert len({round(cell.get_window_extent().x0) for cell in record.axes_}) == 6


def test_one_model_is_filmed_in_axes_of_ones_own():
    record = plot.animate(compiled(), X, Y, epochs=1, frames=2, verbose=0, ax=axes_of(3, 3), grid_resolution=6)

    assert overlaps(record.figure_) == []
