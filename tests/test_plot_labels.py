"""What stands beside the data of every picture: a name along each axis, and a legend that covers nothing."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from test_plot_style import PICTURES, UGLY, each_picture

from kohort import plot

# Pictures whose axes have no scale, so that there is nothing to name, and why.
WITHOUT_SCALE = {
    "network": "a diagram: where a unit stands has no meaning",
    "layers": "likewise where a layer stands",
}
EPOCHS = {"history", "survival"}  # pictures over the epochs
SHARES = {"survival", "success"}  # pictures of shares of the members, in percent


def standing(axes):
    """Yields axes and those that stand in them."""
    for ax in axes:
        yield ax
        yield from standing(ax.child_axes)


def with_data(record):
    """Returns the axes of a picture that hold data: those of the record, its cells, and the bars of colours."""
    every = [ax for ax in standing(record.figure_.axes) if ax.has_data() or ax.collections or ax.images]
    bars = [ax for ax in every if getattr(ax, "_colorbar", None) is not None]
    cells = [ax for ax in every if ax in getattr(record, "axes_", [])]
    return [ax for ax in every if ax not in bars and ax not in cells], cells, bars


@pytest.mark.parametrize("name", PICTURES)
def test_all_axes_with_data_say_what_they_show(name):
    record = PICTURES[name]()
    axes, cells, bars = with_data(record)

    assert axes or cells
    for ax in axes:
        if name in WITHOUT_SCALE:
            assert not ax.axison
        else:
            assert ax.axison
            assert ax.get_xlabel()
            assert ax.get_ylabel()
    for bar in bars:
        assert bar.get_ylabel() or bar.get_title(loc="left")
    if cells:  # they share their axes, which are named once, with their ends
        sides = zip(record.names, record.limits.values(), strict=True)
        ends = {f"{label}, {low:.3g} to {high:.3g}" for label, (low, high) in sides}
        assert ends <= {text.get_text() for text in record.ax_.texts}
        assert all(cell.get_xlim() == record.limits["xlim"] for cell in cells)
        assert all(cell.get_ylim() == record.limits["ylim"] for cell in cells)
    if name in EPOCHS:
        assert record.ax_.get_xlabel() == "epoch"
    if name in SHARES:
        assert "members" in record.ax_.get_ylabel()
        record.figure_.canvas.draw()
        assert all(text.get_text().endswith("%") for text in record.ax_.get_yticklabels())


def test_every_picture_is_looked_at():
    assert {name for name in plot.__all__ if name[0].islower()} <= PICTURES.keys()
    assert WITHOUT_SCALE.keys() | EPOCHS | SHARES <= PICTURES.keys()


def covered(figure):
    """Returns which share of the ground of each legend something else is drawn on."""
    legends = [each for each in (*figure.legends, *(ax.get_legend() for ax in standing(figure.axes))) if each]
    if not legends:
        return []
    figure.canvas.draw()  # then everything has its place
    boxes = [legend.get_window_extent().get_points().round().astype(int) for legend in legends]
    figure.set_layout_engine("none")
    for legend in legends:
        legend.set_visible(False)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[::-1, :, :3].astype(float)
    is_other = np.abs(drawn - 255 * np.array(to_rgb(figure.get_facecolor()))).max(axis=2) > 8
    return [float(is_other[max(0, y0) : y1, max(0, x0) : x1].mean()) for (x0, y0), (x1, y1) in boxes]


@each_picture
def test_no_legend_covers_what_is_drawn(draw):
    """On light ground at one resolution: where things stand, in points, depends on neither."""
    assert max(covered(draw().figure_), default=0) < 0.01


@pytest.mark.parametrize("draw", UGLY.values(), ids=UGLY)
def test_no_legend_of_long_names_covers_what_is_drawn(draw):
    assert max(covered(draw().figure_), default=0) < 0.01


def test_a_legend_that_covers_something_is_noticed():
    figure, ax = plt.subplots()
    ax.plot([0, 1], [1, 1], label="line")
    ax.legend(loc="upper right", framealpha=1)
    ax.set_ylim(0, 1.05)

    assert covered(figure)[0] > 0.01
