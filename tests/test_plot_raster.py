"""Pixels of many cells: the regions that Matplotlib would draw."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from kohort.plot.raster import enlarged, pixels
from kohort.plot.style import tints
from kohort.plot.surface import Surface, undecided

XX0, XX1 = np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 9))


def surface(**options):
    return Surface(xx0=XX0, xx1=XX1, **options)


def colours(n):
    return np.rint(255 * tints(n)[:, :3]).astype(int).tolist()


def test_values_between_grid_points_are_linear():
    big = enlarged((2 * XX0 - XX1)[None].astype("float32"), 33)

    across, up = np.meshgrid(np.linspace(0, 1, 33), np.linspace(0, 1, 33))
    np.testing.assert_allclose(big[0], 2 * across - up, atol=1e-6)


def test_each_side_has_the_tint_of_its_class_and_a_line_is_between():
    (image,) = pixels(surface(), XX0[None], 40, 1.0)

    first, second = colours(2)
    assert image[:, 0].tolist() == [first] * 40
    assert image[:, -1].tolist() == [second] * 40
    dark = image.sum(axis=2) < 400  # half covered: the boundary is between two pixels
    assert dark.any(axis=1).all()
    assert np.flatnonzero(dark.any(axis=0)).tolist() == [19, 20]


def test_the_first_row_is_at_the_top():
    (image,) = pixels(surface(), XX1[None], 10, 1.0)

    first, second = colours(2)
    assert (image[0, 3].tolist(), image[-1, 3].tolist()) == (second, first)


def test_several_classes_have_the_tint_of_the_largest():
    scores = np.stack([1 - XX0 - XX1, XX0 - 0.2, XX1], axis=-1)
    (image,) = pixels(surface(classes=(0, 1, 2)), scores[None], 81, 1.0)

    sampled = image[::-1][40, [4, 76]].tolist()
    assert image[::-1][2, 2].tolist() == colours(3)[0]
    assert sampled[1] == colours(3)[1]
    assert image[::-1][76, 40].tolist() == colours(3)[2]


def test_a_plateau_is_striped_and_has_no_line():
    flat = np.where(XX0 < 0.5, 0.5, XX0)
    (image,) = pixels(surface(), flat[None], 64, 1.0)

    assert undecided(np.stack([0 * flat + 0.5, flat])).any()
    found = {tuple(each) for each in image[:, :24].reshape(-1, 3).tolist()}
    assert found == {(255, 255, 255), (153, 153, 153)}
    assert image.min() > 100


def test_levels_have_the_shades_that_matplotlib_gives_them():
    record = surface(levels=np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    (image,) = pixels(record, XX0[None], 100, 1.0)
    ax = plt.figure(figsize=(1, 1), dpi=100).add_axes((0, 0, 1, 1))
    record.paint(ax, XX0, 6.0)
    ax.set_axis_off()
    ax.figure.canvas.draw()
    drawn = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].astype(int)

    columns = [12, 37, 62, 87]
    np.testing.assert_allclose(image[50, columns].astype(int), drawn[50, columns], atol=2)


def test_what_is_not_finite_is_blank():
    with plt.rc_context({"axes.facecolor": "#123456"}):
        images = pixels(surface(), np.stack([np.nan * XX0, np.full_like(XX0, np.inf), XX0]), 20, 1.0)

    blank = np.rint(255 * np.array(to_rgb("#123456"))).astype(int).tolist()
    assert images[:2].reshape(-1, 3).tolist() == [blank] * 800
    assert len(np.unique(images[2].reshape(-1, 3), axis=0)) > 2


@pytest.mark.parametrize("line", [1.0, 2.0, 4.0])
def test_a_line_is_as_wide_as_asked(line):
    (image,) = pixels(surface(), XX0[None], 40, line)

    covered = 1 - image[20].astype(float).min(axis=1) / image[20, [0, -1]].min()
    assert covered.clip(0).sum() == pytest.approx(line, abs=1.0)
