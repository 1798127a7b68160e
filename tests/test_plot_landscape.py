"""The landscape of the loss: each point is what plain Keras evaluates with those weights."""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from pictures import X, Y, network, overlaps, text_boxes
from test_promises import compilations

import kohort
from kohort import plot

MOONS = kohort.data.moons(70)


def binary():
    model = network(1, "sigmoid", hidden=(8, 8))
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return model, *MOONS


def regularised():
    keras.utils.set_random_seed(2)
    layers = [
        keras.layers.Dense(6, "relu", kernel_regularizer="l2", bias_initializer="normal"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(3, "softmax"),
    ]
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    return model, MOONS[0], np.arange(70) % 3


def images():
    keras.utils.set_random_seed(4)
    layers = [keras.layers.Conv2D(3, 3, bias_initializer="normal"), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((5, 5, 2)), *layers])
    model.compile(loss="mae")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(33, 5, 5, 2)).astype("float32")
    return model, x, generator.normal(size=(33, 1)).astype("float32")


@pytest.mark.parametrize("case", [binary, regularised, images])
def test_each_point_is_what_keras_evaluates_with_those_weights(case):
    model, x, y = case()
    before = [np.array(weights) for weights in model.get_weights()]

    record = plot.loss_landscape(model, x, y, grid_resolution=3, span=0.7)

    for weights, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weights, kept)
    expected = np.empty_like(record.loss)
    for place in np.ndindex(3, 3):
        for variable, value in zip(
            model.trainable_variables, record.weights(record.aa[place], record.bb[place]), strict=True
        ):
            variable.assign(value)
        expected[place] = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(record.loss, expected, rtol=1e-5)
    assert np.ptp(expected) > 0.01


def test_the_middle_is_the_network_itself():
    model, x, y = binary()

    record = plot.loss_landscape(model, x, y, grid_resolution=5)

    assert (record.aa[2, 2], record.bb[2, 2]) == (0, 0)
    np.testing.assert_allclose(record.loss[2, 2], model.evaluate(x, y, verbose=0)[0], rtol=1e-6)
    np.testing.assert_array_equal(record.aa[0], np.linspace(-1, 1, 5))


def test_directions_have_the_length_of_each_unit_and_leave_vectors_alone():
    model, x, y = images()

    record = plot.loss_landscape(model, x, y, grid_resolution=2)

    for center, first, second in zip(record.center, record.first, record.second, strict=True):
        if center.ndim == 1:
            assert not first.any()
            assert not second.any()
            continue
        rows = [each.reshape(-1, each.shape[-1]) for each in (center, first, second)]
        lengths = [np.linalg.norm(each, axis=0) for each in rows]
        np.testing.assert_allclose(lengths[1], lengths[0], rtol=1e-5)
        np.testing.assert_allclose(lengths[2], lengths[0], rtol=1e-5)
        assert not np.allclose(first, second)


def test_a_seed_gives_the_same_directions_and_another_one_others():
    model, x, y = binary()
    first, again, other = (plot.loss_landscape(model, x, y, grid_resolution=3, seed=seed) for seed in (1, 1, 2))

    np.testing.assert_array_equal(first.loss, again.loss)
    assert not np.allclose(first.loss, other.loss)


def test_no_global_generator_is_touched():
    model, x, y = binary()
    before = np.random.get_state()[1].copy()

    plot.loss_landscape(model, x, y, grid_resolution=3)

    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_a_second_landscape_compiles_nothing():
    model, x, y = binary()
    plot.loss_landscape(model, x, y, grid_resolution=3)

    with compilations() as seen:
        plot.loss_landscape(model, x, y, grid_resolution=3, seed=5)

    assert seen == []


def test_points_that_do_not_fit_into_one_call(monkeypatch):
    from kohort.plot import landscape

    model, x, y = binary()
    whole = plot.loss_landscape(model, x, y, grid_resolution=5)
    monkeypatch.setattr(landscape, "MOST_POINTS", 8)

    parts = plot.loss_landscape(model, x, y, grid_resolution=5)

    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-6)


def test_drawing_again_computes_nothing_and_no_text_overlaps():
    model, x, y = binary()
    record = plot.loss_landscape(model, x, y, grid_resolution=15)
    loss = record.loss.copy()

    _, ax = plt.subplots()
    assert record.plot(ax).ax_ is ax

    np.testing.assert_array_equal(record.loss, loss)
    assert overlaps(record.plot().figure_) == []
    assert record.ax_.texts
    assert all(text.get_path_effects() for text in record.ax_.texts)  # readable on light and dark levels


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_network_that_diverged_says_so_and_warns_of_nothing(value):
    model = network()
    model.compile(loss="mse")
    model.set_weights([np.full_like(weights, value) for weights in model.get_weights()])

    record = plot.loss_landscape(model, X, Y, grid_resolution=5)

    texts = [text for text, _ in text_boxes(record.figure_)]
    assert "not finite" in texts
    assert len(record.figure_.axes) == 1  # a bar of colours would show numbers that there are not
    assert overlaps(record.figure_) == []


def test_what_is_not_finite_in_a_landscape_is_named():
    aa, bb = np.meshgrid(*[np.linspace(-1, 1, 5)] * 2)
    loss = np.where(aa > 0.7, np.nan, 1 + aa**2 + bb**2)
    flat = {"center": [np.zeros(2)], "first": [np.ones(2)], "second": [np.ones(2)]}

    record = plot.LossLandscape(aa=aa, bb=bb, loss=loss, **flat).plot()

    assert "blank: not finite" in [text for text, _ in text_boxes(record.figure_)]
    assert overlaps(record.figure_) == []


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_flat_landscape_and_one_that_diverged_are_drawn(value):
    model = network()
    model.compile(loss="mse")
    model.set_weights([np.full_like(weights, value) for weights in model.get_weights()])

    plot.loss_landscape(model, X, Y, grid_resolution=5).figure_.canvas.draw()


# Misuse.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid_resolution": 1}, r"`grid_resolution` must be an integer of at least 2\. Received: .*=1\. Pass"),
        ({"span": 0}, r"`span` must be a finite number above 0\. Received: span=0\. Pass"),
        ({"span": np.inf}, r"`span` must be a finite number above 0\. Received: span=inf"),
        ({"seed": -1}, r"`seed` must be an integer of at least 0\. Received: seed=-1\. Pass"),
        ({"x": X[:, :1]}, r"`x` must have samples of shape \(2,\)"),
        ({"y": Y[:2]}, "`y` must have one row per sample"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    model = network()
    model.compile(loss="mse")
    with pytest.raises(ValueError, match=message):
        plot.loss_landscape(model, **{"x": X, "y": Y} | arguments)
    assert plt.get_fignums() == []


def test_models_that_have_no_loss():
    with pytest.raises(ValueError, match="`model` must be compiled"):
        plot.loss_landscape(network(), X, Y)
    with pytest.raises(TypeError, match="`model` must be a"):
        plot.loss_landscape(3, X, Y)
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    unbuilt.compile(loss="mse")
    with pytest.raises(ValueError, match=r"`model` must be a built model\."):
        plot.loss_landscape(unbuilt, X, Y)
