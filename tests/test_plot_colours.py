"""Colours as colour-blind readers see them, and what tells things apart beside them.

The matrices are those of Machado, Oliveira and Fernandes, A physiologically-based model for simulation of color vision
deficiency, IEEE Transactions on Visualization and Computer Graphics 15 (2009), table 1, at severity 1.0. They act on
linear RGB. Distances are Euclidean in CIE L*a*b* (1976, white D65): about 2 is just seen side by side.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from pictures import LIMITS, Model, X, network, overlaps

from kohort import plot
from kohort.plot import curves, style

READERS = {
    "all colours": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
each_reader = pytest.mark.parametrize("reader", READERS)
each_ground = pytest.mark.parametrize("ground", ["default", "dark_background"])


def seen(colours, reader):
    """Returns colours as a reader sees them, in L*a*b*, (colour, 3)."""
    channels = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ READERS[reader].T, 0, 1)
    ratios = linear @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    x, y, z = np.where(ratios > (6 / 29) ** 3, np.cbrt(ratios), ratios * 841 / 108 + 4 / 29).T
    return np.column_stack((116 * y - 16, 500 * (x - y), 200 * (y - z)))


def nearest(colours, reader):
    """Returns how far the two colours that look most alike are from each other."""
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen(colours, reader), 2))


def test_the_simulation_does_what_is_known_of_it():
    """Greys stay greys, and of red and green only the brightness is told apart."""
    for reader in ("protanopia", "deuteranopia"):
        assert np.abs(seen(["#808080"], reader)[0, 1:]).max() < 1
        red, green = seen(["#d00000", "#00a000"], reader), seen(["#d00000", "#00a000"], "all colours")
        assert abs(np.diff(red[:, 1])[0]) < 0.2 * abs(np.diff(green[:, 1])[0])
    np.testing.assert_allclose(seen(["white", "red"], "all colours"), [[100, 0, 0], [53.24, 80.09, 67.20]], atol=0.05)


@each_reader
def test_colours_of_classes_are_told_apart(reader):
    assert nearest(style.COLOURS[:3], reader) > 40
    assert nearest(style.COLOURS[:10], reader) > 15


@each_reader
@each_ground
@pytest.mark.parametrize(("classes", "least"), [(2, 30), (4, 10), (6, 5)])
def test_regions_of_classes_are_told_apart(reader, ground, classes, least):
    with plt.style.context(ground):
        assert nearest(style.tints(classes)[:, :3], reader) > least


@each_reader
@each_ground
def test_the_ends_of_a_share_and_the_lines_of_a_history_are_told_apart(reader, ground):
    with plt.style.context(ground):
        shares = style.between_classes()
        assert nearest(shares([0.0, 0.5, 1.0])[:, :3], reader) > 30
        ends = [look["color"] for look in curves.ENDS.values()]
        assert nearest([style.COLOURS[0], style.COLOURS[6], *ends], reader) > 20


@each_reader
def test_numbers_grow_lighter_for_all_readers(reader):
    shades = plt.get_cmap(style.NUMBERS)(np.linspace(0, 1, 9))[:, :3]

    assert (np.diff(seen(shades, reader)[:, 0]) > 2).all()


# Regions have names, too: a tint alone would not tell them apart.


def near(n):
    """Returns a model that says which of n places is nearest, and samples around each of them with their classes."""
    angles = 2 * np.pi * np.arange(n) / n + 0.3
    places = np.column_stack((np.cos(angles), np.sin(angles)))
    spread = np.random.default_rng(0).normal(0, 0.15, (n, 12, 2))
    x = (places[:, None] + spread).reshape(-1, 2).astype("float32")
    return Model(lambda x: -np.linalg.norm(x[:, None] - places, axis=2)), x, np.repeat(np.arange(n), 12)


def names_of(record, ax=None):
    """Returns the names in the regions: the class that each says, the one that is the answer there, and the place."""
    texts = (ax or record.ax_).texts
    places = np.array([text.get_position() for text in texts]).reshape(-1, 2)
    rows = np.abs(record.xx1[:, :1] - places[:, 1]).argmin(axis=0)
    columns = np.abs(record.xx0[0][:, None] - places[:, 0]).argmin(axis=0)
    is_one = record.response.ndim == 2
    answers = record.response > record.threshold if is_one else record.response.argmax(axis=-1)
    return [int(text.get_text()) for text in texts], answers[rows, columns].astype(int).tolist(), places


@each_ground
@pytest.mark.parametrize("n", range(2, 7))
def test_each_region_has_the_name_of_its_class_inside_and_on_no_sample(n, ground):
    model, x, y = near(n)
    with plt.style.context(ground):
        record = plot.decision_boundary(model, x, y)
        assert overlaps(record.figure_) == []

    said, answers, places = names_of(record)
    assert sorted(said) == list(range(n))
    assert said == answers
    pixels = record.ax_.transData.transform
    gaps = np.linalg.norm(pixels(places)[:, None] - pixels(record.x), axis=2) * 72 / record.figure_.dpi
    (size, *_) = {line.get_markersize() for line in record.ax_.get_lines()}
    assert gaps.min() > size / 2 + record.ax_.texts[0].get_fontsize() / 3


def test_each_piece_of_a_region_has_a_name_and_what_is_too_narrow_has_none():
    model = Model(lambda x: np.where(np.abs(x[:, 0]) > 0.5, 0.9, 0.1) + 0.6 * (np.abs(x[:, 0]) < 0.02))

    record = plot.decision_boundary(model, xlim=(-1, 1), ylim=(-1, 1), grid_resolution=200)

    said, answers, places = names_of(record)
    assert said == answers
    sides = np.sign(places[:, 0]).tolist()
    assert sorted(zip(said, sides, strict=True)) == [(0, -1), (0, 1), (1, -1), (1, 1)]


def test_where_samples_stand_everywhere_the_name_stands_over_them():
    model, _, _ = near(3)
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, 30)] * 2), axis=-1).reshape(-1, 2)
    y = model.predict(x).argmax(axis=1)

    record = plot.decision_boundary(model, x, y, xlim=(-1, 1), ylim=(-1, 1))

    said, answers, _ = names_of(record)
    assert said == answers == [0, 1, 2]
    markers = max(line.get_zorder() for line in record.ax_.get_lines())
    assert all(text.get_zorder() > markers and text.get_path_effects() for text in record.ax_.texts)


def test_a_network_that_says_one_class_has_its_name_and_a_space_of_units_has_names():
    one = plot.decision_boundary(Model(lambda x: np.ones(len(x))), X, X[:, 0], **LIMITS)
    space = plot.feature_space(network(3, "softmax"), 0, X, np.array([0, 1, 2, 1]))

    assert names_of(one)[0] == [1]
    said, answers, _ = names_of(space)
    assert said == answers != []
