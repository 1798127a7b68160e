"""The diagram of a network: its weights, biases and maps are Keras's own, and a larger one is drawn as layers."""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from pictures import X, network, overlaps, text_boxes
from sklearn.decomposition import PCA

from kohort import plot


def convolutional():
    inputs = keras.Input((8, 8, 1))
    first = keras.layers.Conv2D(2, 3, padding="same", name="first")(inputs)
    second = keras.layers.Conv2D(2, 3, padding="same", name="second")(first)
    flat = keras.layers.Flatten(name="flat")(keras.layers.Add(name="sum")([first, second]))
    return keras.Model(inputs, [keras.layers.Dense(3, name="a")(flat), keras.layers.Dense(1, name="b")(flat)])


def subclassed():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.drop, self.last = keras.layers.Dense(3), keras.layers.Dropout(0.5), keras.layers.Dense(1)

        def call(self, x):
            return self.last(self.drop(self.hidden(x)))

    model = Subclassed()
    model(X)
    return model


# Units.


def test_weights_and_biases_are_those_of_the_layers():
    model = network(3, "softmax", hidden=(4, 2))

    record = plot.network(model, X)

    assert record.sizes == [2, 4, 2, 3]
    for layer, kernel, bias in zip(model.layers, record.weights, record.biases, strict=True):
        np.testing.assert_array_equal(kernel, layer.get_weights()[0])
        np.testing.assert_array_equal(bias, layer.get_weights()[1])
    assert [caption.split("\n")[-1] for caption in record.captions] == ["input", "tanh", "tanh", "softmax"]
    assert len(record.units_) == 11


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_the_map_inside_a_unit_is_what_keras_answers_there(activation):
    keras.utils.set_random_seed(3)
    hidden = keras.layers.Dense(3, activation, bias_initializer="normal")
    model = keras.Sequential([keras.Input((2,)), hidden, keras.layers.Dense(1)])

    record = plot.network(model, X, grid_resolution=8)

    grid = np.column_stack((record.plane.xx0.ravel(), record.plane.xx1.ravel())).astype("float32")
    np.testing.assert_array_equal(record.maps[0], grid.T.reshape(2, 8, 8))
    for layer, maps in zip(model.layers, record.maps[1:], strict=True):
        expected = keras.Model(model.inputs[0], layer.output).predict(grid, verbose=0)
        np.testing.assert_allclose(maps, expected.T.reshape(-1, 8, 8), rtol=1e-5, atol=1e-6)
    applied = np.asarray(keras.activations.get(activation)(record.sums[0].astype("float32")))
    np.testing.assert_allclose(applied, record.maps[1], rtol=1e-5, atol=1e-6)


def test_each_map_is_drawn_inside_the_circle_of_its_unit():
    record = plot.network(network(2, hidden=(3,)), X, grid_resolution=8)

    images = record.ax_.get_images()
    assert len(images) == len(record.units_) == 7
    for image, circle, values in zip(images, record.units_, np.concatenate(record.maps), strict=True):
        np.testing.assert_array_equal(image.get_array(), values)
        (x, y), r = circle.center, circle.radius
        np.testing.assert_allclose(image.get_extent(), [x - r, x + r, y - r, y + r])
        path, transform = image.get_clip_path().get_transformed_path_and_affine()
        held = transform.transform_path(path).get_extents().get_points()
        np.testing.assert_allclose(held, record.ax_.transData.transform([[x - r, y - r], [x + r, y + r]]), atol=0.5)
        assert len(path.vertices) > 4  # round, and not the box of the image
        assert image.get_zorder() >= circle.get_zorder()  # and not hidden behind the ground of the unit


def test_layers_that_act_on_units_belong_to_them():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((2,))
    flow = keras.layers.Dense(3, name="hidden")(inputs)
    flow = keras.layers.Dropout(0.5, name="drop")(keras.layers.LeakyReLU(name="leaky")(flow))
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False, name="out")(flow))

    record = plot.network(model, X, grid_resolution=5)

    assert record.captions[1] == "hidden\nleaky, drop"
    grid = np.column_stack((record.plane.xx0.ravel(), record.plane.xx1.ravel())).astype("float32")
    expected = keras.Model(inputs, flow).predict(grid, verbose=0)
    np.testing.assert_allclose(record.maps[1], expected.T.reshape(3, 5, 5), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(record.biases[1], [0])


def test_signs_are_told_by_dashes_and_sizes_by_widths():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.set_weights([np.array([[1.0, -2.0], [0.5, -0.1]]), np.array([0.3, -0.3])])

    record = plot.network(model)

    positive, negative = (c for c in record.ax_.collections if isinstance(c, LineCollection))
    assert len(positive.get_segments()) == len(negative.get_segments()) == 2
    assert positive.get_linestyle() != negative.get_linestyle()
    for lines, places in ((positive, {(0, 0), (1, 0)}), (negative, {(0, 1), (1, 1)})):
        centres = [[tuple(circle.center) for circle in record.units_[k : k + 2]] for k in (0, 2)]
        ends = [tuple(map(tuple, segment)) for segment in lines.get_segments()]
        assert {(centres[0].index(a), centres[1].index(b)) for a, b in ends} == places
    (own,), (other,) = positive.get_colors(), negative.get_colors()
    assert tuple(own) != tuple(other)
    np.testing.assert_allclose(np.diff(negative.get_linewidth()) / np.diff(positive.get_linewidth()), 1.9 / 0.5)
    texts = {text.get_text() for text in record.ax_.texts}
    assert {"+1", "−2", "+0.5", "−0.1", "+0.3", "−0.3"} <= texts
    on_lines = [text for text in record.ax_.texts if text.get_text()[0] in "+−"]
    assert all(text.get_bbox_patch() for text in on_lines)
    rings = [p for p in record.ax_.patches if not p.get_fill()]
    assert rings[2].get_linestyle() != rings[3].get_linestyle()


def test_limits_of_the_maps():
    model = network()

    assert plot.network(model).plane.limits == {"xlim": (-1, 1), "ylim": (-1, 1)}
    assert plot.network(model, xlim=np.array([0, 3])).plane.limits == {"xlim": (0, 3), "ylim": (-1, 1)}
    assert plot.network(model, X).plane.limits == {"xlim": (-0.25, 1.25), "ylim": (-0.25, 1.25)}
    assert plot.network(model, X, xlim=(0, 3)).plane.limits == {"xlim": (0, 3), "ylim": (-0.25, 1.25)}


def test_more_inputs_have_no_maps_where_no_plane_is_chosen():
    record = plot.network(network(features=4))

    assert record.maps == []
    assert {"x[:, 0]", "x[:, 3]"} <= {text.get_text() for text in record.ax_.texts}


def test_more_inputs_have_maps_over_the_plane_that_is_chosen():
    values = np.random.default_rng(0).normal(size=(9, 4)).astype("float32")
    table, model = pd.DataFrame(values, columns=["bill", "depth", "flipper", "mass"]), network(features=4)

    record = plot.network(model, table, features=("bill", "mass"), fixed={"depth": 0.5}, grid_resolution=5)

    assert record.plane.names == ("bill", "mass")
    assert {"bill", "flipper"} <= {text.get_text() for text in record.ax_.texts}
    points = record.plane.points
    np.testing.assert_allclose(points[:, 1], 0.5)
    np.testing.assert_allclose(points[:, 2], np.median(values[:, 2]), rtol=1e-6)
    np.testing.assert_allclose(record.maps[0].reshape(4, -1).T, points)
    expected = model.predict(points, verbose=0).reshape(5, 5)
    np.testing.assert_allclose(record.maps[-1][0], expected, rtol=1e-5, atol=1e-6)
    assert overlaps(record.figure_) == []


def test_samples_of_more_features_are_not_overlooked():
    with pytest.raises(ValueError, match=r"`features` must be given where the model takes 4 features"):
        plot.network(network(features=4), np.zeros((3, 4), "float32"))
    with pytest.raises(ValueError, match=r"`x` must be of shape \(sample, 4\)"):
        plot.network(network(features=4), np.zeros((3, 2), "float32"), features=(0, 1))


@pytest.mark.parametrize(
    "hidden", [(), (1,), (2,), (6, 4), (16,), (3, 16, 2), (4, 4, 4, 4, 4)], ids=lambda hidden: str(len(hidden))
)
@pytest.mark.parametrize("features", [2, 4])
def test_no_text_overlaps(hidden, features):
    record = plot.network(network(2, features=features, hidden=hidden))

    assert overlaps(record.figure_) == []


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "+inf"), (3e38, "+3e+38"), (0.0, "0")])
def test_a_network_that_diverged_or_was_never_awake_is_drawn(value, said):
    model = network()
    model.set_weights([np.full_like(weights, value) for weights in model.get_weights()])

    figure = plot.network(model, X).figure_

    assert overlaps(figure) == []
    texts = [text for text, _ in text_boxes(figure)]
    assert said in texts
    assert any("not all of them are finite" in text for text in texts) == (not np.isfinite(value))


# One input.


@pytest.mark.parametrize("x", [np.linspace(-1, 1, 9), np.linspace(-1, 1, 9)[:, None], None], ids=["n", "n, 1", "none"])
def test_a_network_of_one_input_shows_the_curve_of_each_unit(x):
    model = network(features=1)

    record = plot.network(model, x, grid_resolution=7)

    ends = (-1, 1) if x is None else (-1.5, 1.5)
    np.testing.assert_allclose(record.grid, np.linspace(*ends, 7))
    assert [maps.shape for maps in record.maps] == [(1, 7), (6, 7), (1, 7)]
    expected = model.predict(record.grid[:, None], verbose=0)[:, 0]
    np.testing.assert_allclose(record.maps[-1][0], expected, rtol=1e-5, atol=1e-6)
    assert len(record.ax_.lines) == 8
    for curve, unit in zip(record.ax_.lines, record.units_, strict=True):
        assert (np.hypot(*(curve.get_xydata() - unit.center).T) <= unit.radius).all()
    assert any(f"for inputs from {ends[0]:g} to {ends[1]:g}" in text.get_text() for text in record.ax_.texts)
    assert overlaps(record.figure_) == []
    assert plot.network(model, x, xlim=(0, 3)).grid[-1] == 3


@pytest.mark.parametrize("name", ["ylim", "features", "fixed", "projection"])
def test_what_a_network_of_one_input_has_no_use_for(name):
    message = rf"`{name}` must be left out where the network has one input\. .*`xlim` chooses what is drawn"
    with pytest.raises(ValueError, match=message):
        plot.network(network(features=1), np.zeros(3), **{name: (0, 1)})


# What stands below and beside the units.


def test_a_long_caption_is_broken():
    x = np.random.default_rng(0).normal(size=(30, 5)).astype("float32")

    record = plot.network(network(features=5), x, projection=PCA(2).fit(x))

    assert overlaps(record.figure_) == []
    assert any("component 1 and component 2" in text.get_text() for text in record.ax_.texts)


@pytest.mark.parametrize("hidden", [(5,), (7,), (8,), (9,), (8, 3)], ids=str)
def test_no_number_stands_on_a_unit(hidden):
    record = plot.network(network(hidden=hidden), X)

    record.figure_.canvas.draw()
    units = [unit.get_window_extent() for unit in record.units_]
    numbers = [text.get_bbox_patch().get_window_extent() for text in record.ax_.texts if text.get_bbox_patch()]
    assert len(numbers) >= sum(hidden) + 1
    assert not any(number.overlaps(unit) for number in numbers for unit in units)


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ((8,), "the ring and the number below a unit: its bias"),
        ((16,), "the ring of a unit and, where there is room, the number below: its bias"),
    ],
    ids=str,
)
def test_the_caption_says_which_numbers_there_are(hidden, said):
    caption = plot.network(network(hidden=hidden), X).ax_.texts[-1].get_text().replace("\n", " ")

    assert said in caption


# Layers.


def test_other_networks_are_drawn_as_layers():
    model = convolutional()

    record = plot.network(model)

    names = [layer[0] for layer in record.layers]
    assert names[1:] == ["first", "second", "sum", "flat", "a", "b"]
    flows = {(names[i], names[j]) for i, j in record.flows}
    assert flows >= {("first", "second"), ("first", "sum"), ("second", "sum"), ("sum", "flat"), ("flat", "b")}
    assert len(flows) == 7
    assert record.rows == [0, 1, 2, 3, 4, 5, 5]
    assert [layer[3] for layer in record.layers] == [0, *(layer.count_params() for layer in model.layers[1:])]
    assert record.layers[4][2] == "(n, 128)"
    assert overlaps(record.figure_) == []


@pytest.mark.parametrize("kind", ["wide", "normalised", "two inputs", "nested", "images", "subclassed"])
def test_what_is_drawn_as_layers(kind):
    two = [keras.Input((2,)), keras.Input((2,))]
    models = {
        "wide": lambda: network(hidden=(17,)),
        "normalised": lambda: keras.Sequential(
            [keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
        ),
        "two inputs": lambda: keras.Model(two, keras.layers.Dense(1)(keras.layers.Add()(two))),
        "nested": lambda: keras.Sequential([keras.Input((2,)), network(), keras.layers.Dense(1)]),
        "images": lambda: keras.Sequential([keras.Input((2, 2)), keras.layers.Dense(1)]),
        "subclassed": subclassed,
    }
    model = models[kind]()

    record = plot.network(model)

    assert isinstance(record, plot.LayerDiagram)
    assert {layer.name for layer in model.layers} <= {layer[0] for layer in record.layers}
    assert sum(layer[3] for layer in record.layers) == model.count_params()
    assert all(bool(layer[2]) == (kind != "subclassed") for layer in record.layers)
    assert overlaps(record.figure_) == []


def test_a_shared_layer_is_one_box():
    one, two = keras.Input((2,), name="one"), keras.Input((2,), name="two")
    shared = keras.layers.Dense(2, name="shared")
    model = keras.Model([one, two], keras.layers.Add(name="sum")([shared(one), shared(two)]))

    record = plot.network(model)

    names = [layer[0] for layer in record.layers]
    assert sorted(names) == ["one", "shared", "sum", "two"]
    assert {(names[i], names[j]) for i, j in record.flows} == {("one", "shared"), ("two", "shared"), ("shared", "sum")}


# Misuse.


def test_what_is_no_built_model():
    with pytest.raises(TypeError, match=r"`model` must be a `keras\.Model`\. Received: model=3"):
        plot.network(3)
    for model in (keras.Sequential([keras.layers.Dense(1)]), keras.Model()):
        with pytest.raises(ValueError, match="`model` must be a built Keras model with layers"):
            plot.network(model)
    with pytest.raises(ValueError, match=r"`x` must be of shape \(sample, 2\)"):
        plot.network(network(), np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"`xlim` must be two finite numbers, the lower first\. .*xlim=\(1, 0\)"):
        plot.network(network(), xlim=(1, 0))
    assert plt.get_fignums() == []


def test_a_network_of_too_many_layers():
    model = keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(2) for _ in range(61))])
    with pytest.raises(ValueError, match="`model` must be a model of at most 60 layers"):
        plot.network(model)
