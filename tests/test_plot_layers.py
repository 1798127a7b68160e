"""Units and hidden spaces: what layers answer, compared with plain Keras models that end there."""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from pictures import LIMITS, X, Y, boundaries, network, overlaps, points
from sklearn.decomposition import PCA

from kohort import plot

GENERATOR = np.random.default_rng(5)
CLOUD = GENERATOR.normal(size=(40, 2)).astype("float32")
KINDS = (CLOUD[:, 0] * CLOUD[:, 1] > 0).astype(int)


def ending_at(model, layer):
    """Returns a plain Keras model that ends at one of the layers."""
    return keras.Model(model.inputs[0], model.layers[layer].output)


def grown():
    """Returns a sequential model that was built again with each layer, so that its layers have several inputs."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,))])
    for layer in (keras.layers.Dense(3, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(2, "tanh")):
        model.add(layer)
    model.add(keras.layers.BatchNormalization())
    model.add(keras.layers.Dense(1))
    return model


def functional():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(3, "relu", name="first")(inputs)
    hidden = keras.layers.Dense(2, "tanh", name="second")(hidden)
    return keras.Model(inputs, keras.layers.Dense(3, "softmax", name="last")(hidden))


# Units.


@pytest.mark.parametrize(("model", "layer", "units"), [(network, 0, 6), (grown, 2, 2), (functional, 1, 3)])
def test_the_maps_are_what_keras_answers_at_the_layer(model, layer, units):
    model = model()

    record = plot.units(model, layer, **LIMITS, grid_resolution=7)

    expected = ending_at(model, layer).predict(points(record), verbose=0)
    assert record.activations.shape == (units, 7, 7)
    np.testing.assert_allclose(record.activations, expected.T.reshape(units, 7, 7), rtol=1e-5, atol=1e-6)
    assert [ax.get_title() for ax in record.axes_] == [f"unit {k}" for k in range(units)]
    assert overlaps(record.figure_) == []


def test_a_layer_is_named_numbered_or_given():
    model = functional()

    records = [plot.units(model, layer, **LIMITS, grid_resolution=4) for layer in ("second", 2, -2, model.layers[2])]

    assert {record.layer for record in records} == {"second"}
    for record in records:
        np.testing.assert_array_equal(record.activations, records[0].activations)


def test_some_units_in_the_order_that_is_asked_for():
    whole = plot.units(network(), 0, X, grid_resolution=4)
    record = plot.units(network(), 0, X, units=[4, 1], grid_resolution=4)

    np.testing.assert_array_equal(record.activations, whole.activations[[4, 1]])
    assert (record.shown, record.units) == ((4, 1), 6)


def test_at_most_64_units_are_drawn_and_a_layer_that_is_silent_too():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(80, kernel_initializer="zeros"), keras.layers.Dense(1)]
    )

    record = plot.units(model, 0, X, grid_resolution=3)

    assert (len(record.axes_), record.units) == (64, 80)
    assert "64 of 80 units" in record.ax_.texts[-1].get_text()


def test_limits_of_the_maps():
    model = network()

    assert plot.units(model, 0, grid_resolution=4).limits == {"xlim": (-1, 1), "ylim": (-1, 1)}
    assert plot.units(model, 0, ylim=np.array([0, 3]), grid_resolution=4).limits == {"xlim": (-1, 1), "ylim": (0, 3)}
    assert plot.units(model, 0, X, grid_resolution=4).limits == {"xlim": (-0.25, 1.25), "ylim": (-0.25, 1.25)}


def test_units_of_more_features():
    model, x = network(features=4), GENERATOR.normal(size=(9, 4)).astype("float32")

    record = plot.units(model, 0, x, features=(3, 0), grid_resolution=4)

    expected = ending_at(model, 0).predict(record.points, verbose=0)
    np.testing.assert_allclose(record.activations, expected.T.reshape(6, 4, 4), rtol=1e-5, atol=1e-6)


# Hidden spaces.


@pytest.mark.parametrize("model", [grown, functional])
def test_two_units_are_the_axes_of_their_space(model):
    model = model()
    layer = 2

    record = plot.feature_space(model, layer, CLOUD, KINDS, grid_resolution=6)

    hidden = ending_at(model, layer).predict(CLOUD, verbose=0)
    np.testing.assert_allclose(record.hidden, hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(record.x, hidden, rtol=1e-5, atol=1e-6)
    flow = points(record)
    for each in model.layers[layer + 1 :]:
        flow = each(flow)
    np.testing.assert_allclose(record.response.reshape(36, -1), np.asarray(flow), rtol=1e-5, atol=1e-6)
    assert record.variance == 1
    assert record.names == (f"{model.layers[layer].name}, unit 0", f"{model.layers[layer].name}, unit 1")


def test_the_answer_at_each_sample_s_place_is_the_model_s():
    """With the plane through all of the space, the rest of the network must say there what the model says."""
    model = network(hidden=(2,))

    record = plot.feature_space(model, 0, CLOUD, KINDS, grid_resolution=400)

    rows = np.abs(record.xx1[:, :1] - record.x[:, 1]).argmin(axis=0)
    columns = np.abs(record.xx0[0][:, None] - record.x[:, 0]).argmin(axis=0)
    says = model.predict(CLOUD, verbose=0)[:, 0]
    np.testing.assert_allclose(record.response[rows, columns], says, atol=0.02)


def test_a_line_is_drawn_in_that_space_where_the_answer_changes():
    model = network(hidden=(2,))
    first, last = model.layers
    last.set_weights([np.array([[2.0], [1.0]]), np.array([0.25])])

    record = plot.feature_space(model, first, CLOUD, KINDS)

    (line,) = boundaries(record.ax_)
    assert len(line) > 50
    np.testing.assert_allclose(2 * line[:, 0] + line[:, 1] + 0.25, record.threshold, atol=1e-5)


def test_more_units_are_seen_along_two_principal_components():
    model = network()

    record = plot.feature_space(model, 0, CLOUD, KINDS, grid_resolution=6)

    hidden = ending_at(model, 0).predict(CLOUD, verbose=0)
    components = PCA(2).fit(record.hidden)
    np.testing.assert_allclose(record.hidden, hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(record.x, components.transform(record.hidden), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(record.variance, components.explained_variance_ratio_.sum(), rtol=1e-5)
    there = components.inverse_transform(points(record)).astype("float32")
    expected = np.asarray(model.layers[-1](there)).reshape(6, 6)
    np.testing.assert_allclose(record.response, expected, rtol=1e-4, atol=1e-5)
    assert record.ax_.get_title() == f"2 components of 6 units: {100 * record.variance:.3g} % of the variance"
    assert overlaps(record.figure_) == []


def test_images_have_a_hidden_space_too():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(2, 3),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    images = GENERATOR.normal(size=(12, 4, 4, 1)).astype("float32")

    record = plot.feature_space(model, "flat", images, np.arange(12) % 3)

    assert (record.units, record.response.shape) == (8, (100, 100, 3))


def test_a_regression_has_levels_there():
    record = plot.feature_space(network(), 0, CLOUD, CLOUD[:, 0] ** 2)

    assert record.levels is not None
    np.testing.assert_allclose(record.targets, CLOUD[:, 0] ** 2)


# Misuse.


def test_layers_that_do_not_exist():
    message = r"`layer` must be the name or number of a layer of the model, one of 'first', 'second', 'last'"
    model = functional()
    named = message.replace("one of 'first'", f"one of '{model.layers[0].name}', 'first'")
    for layer in ("third", 4, -5, None, 1.5, True, X, keras.layers.Dense(1)):
        with pytest.raises(ValueError, match=named):
            plot.units(model, layer, X)
        with pytest.raises(ValueError, match=named):
            plot.feature_space(model, layer, X, Y)
    assert plt.get_fignums() == []


def test_models_that_cannot_be_looked_into():
    with pytest.raises(TypeError, match=r"`model` must be a `keras\.Model`\. Received: model=3"):
        plot.units(3, 0, X)
    with pytest.raises(ValueError, match="`model` must be a built sequential or functional model of one input"):
        plot.units(keras.Sequential([keras.layers.Dense(1)]), 0, X)
    with pytest.raises(ValueError, match=r"`features` must be given where the model takes 3 features"):
        plot.units(network(features=3), 0, GENERATOR.normal(size=(5, 3)))


@pytest.mark.parametrize("y", [Y, 2 * Y - 1, np.eye(2)[Y.astype(int)], Y[:, None], Y > 0], ids=lambda y: str(y.shape))
def test_samples_of_each_class_have_a_marker_and_a_filling_of_their_own(y):
    record = plot.units(network(), 0, X, y, grid_resolution=6)

    np.testing.assert_array_equal(record.labels, Y)
    first, second = record.axes_[0].lines
    np.testing.assert_array_equal(first.get_xydata(), X[Y == 0])
    np.testing.assert_array_equal(second.get_xydata(), X[Y == 1])
    assert first.get_marker() != second.get_marker()
    for line in (first, second):  # one of both is seen on any colour
        assert {line.get_markerfacecolor(), line.get_markeredgecolor()} == {"black", "white"}
    assert first.get_markerfacecolor() != second.get_markerfacecolor()
    named = [text.get_text() for text in record.figure_.legends[0].get_texts()]
    assert named == [f"class {record.classes[k]:g}" for k in (0, 1)]
    assert overlaps(record.figure_) == []


def test_samples_of_a_regression_are_samples():
    record = plot.units(network(), 0, X, np.array([0.0, 0.5, 1.0, 9.0]), grid_resolution=6)

    assert record.labels is None
    assert [line.get_label() for line in record.axes_[0].lines] == ["sample"]
    assert record.figure_.legends == []
    with pytest.raises(ValueError, match=r"`y` must be classes of shape \(sample,\), or one-hot\. .*shape=\(4, 1, 1\)"):
        plot.units(network(), 0, X, np.zeros((4, 1, 1)))
    with pytest.raises(TypeError, match=r"`y` must hold numbers"):
        plot.units(network(), 0, X, np.array(["a", "b", "a", "b"]))


def test_lines_of_all_units_are_at_the_same_levels_which_the_bar_shows():
    record = plot.units(network(), 0, X, grid_resolution=20)

    (bar,) = (ax for ax in record.ax_.child_axes if ax not in record.axes_)
    ticks = set(np.round(bar.get_yticks(), 6))
    assert len(ticks) > 3
    for cell in record.axes_:
        (lines,) = (each for each in cell.collections if hasattr(each, "levels"))
        assert set(np.round(lines.levels, 6)) <= ticks
        dashed = [pattern is not None for _, pattern in lines.get_linestyle()]
        assert dashed == [level < 0 for level in lines.levels]
    assert "lines at the ticks of the bar, dashed below 0" in [text.get_text() for text in record.ax_.texts]


def test_the_name_of_the_first_axis_stands_in_the_middle_of_the_cells():
    record = plot.units(network(), 0, X, grid_resolution=6)

    record.figure_.canvas.draw()
    boxes = [cell.get_window_extent() for cell in record.axes_]
    middle = (min(box.x0 for box in boxes) + max(box.x1 for box in boxes)) / 2
    label = next(text for text in record.ax_.texts if text.get_text().startswith("x[:, 0]")).get_window_extent()
    assert abs((label.x0 + label.x1) / 2 - middle) < 2


def test_a_layer_whose_units_all_answer_the_same_has_a_space_without_a_warning():
    model = network()
    model.set_weights([0 * weights for weights in model.get_weights()])

    assert plot.feature_space(model, 0, X, Y).variance == 0


def test_units_that_the_layer_does_not_have():
    for units in ([6], [-1], []):
        with pytest.raises(ValueError, match=r"`units` must be numbers of the layer's units, from 0 to 5\. Received"):
            plot.units(network(), 0, X, units=units)
    with pytest.raises(
        TypeError, match=r"`units` must be numbers of the layer's units, from 0 to 5\. Received: units=3"
    ):
        plot.units(network(), 0, X, units=3)
    with pytest.raises(ValueError, match=r"`columns` must be an integer of at least 1\. Received: columns=0"):
        plot.units(network(), 0, X, columns=0)


def test_layers_that_do_not_answer_with_one_number_per_unit():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Reshape((2, 1), name="rows"), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    with pytest.raises(ValueError, match=r"`layer` must be a layer that answers .sample, unit.\. .*'rows'.*, 2, 1\)"):
        plot.units(model, "rows", X)


def test_layers_without_a_space_of_their_own():
    model = functional()
    with pytest.raises(ValueError, match=r"`layer` must be a layer that all later ones follow from.*layer='last'"):
        plot.feature_space(model, "last", X, Y)
    with pytest.raises(ValueError, match=r"`layer` must be a layer of at least two units\. Received: layer='dense"):
        plot.feature_space(network(hidden=(1,)), 0, X, Y)
    with pytest.raises(ValueError, match=r"`x` must be at least three samples"):
        plot.feature_space(network(), 0, X[:2], Y[:2])
    with pytest.raises(ValueError, match=r"`x` must have samples of shape \(2,\)"):
        plot.feature_space(network(), 0, np.zeros((4, 3), "float32"))
    with pytest.raises(ValueError, match="`y` must have one row per sample"):
        plot.feature_space(network(), 0, X, Y[:3])


def test_layers_that_others_bypass():
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(2, name="bypassed")(inputs)
    model = keras.Model(inputs, keras.layers.Add()([inputs, hidden]))

    message = r"`layer` must be a layer that all later ones follow from.*'bypassed', which others bypass"
    with pytest.raises(ValueError, match=message):
        plot.feature_space(model, "bypassed", X, Y)


def test_networks_that_diverged():
    model = network()
    model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    with pytest.raises(ValueError, match="`model` must be a model whose layer gives finite answers"):
        plot.feature_space(model, 0, X, Y)
    plot.units(model, 0, X, grid_resolution=3).figure_.canvas.draw()
