"""The plane of more than two features: what is held, what is projected, and what plain Keras answers there."""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from pictures import Model, network
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kohort import plot

GENERATOR = np.random.default_rng(3)
X4 = GENERATOR.normal(size=(30, 4)) * [1, 2, 3, 4] + [0, 1, 2, 3]
Y4 = (X4[:, 0] > 0).astype(int)


def predicted(model, record):
    """Asks plain Keras about the record's points."""
    answer = model.predict(record.points, verbose=0)
    return answer.reshape(*record.xx0.shape, *answer.shape[1:][: answer.shape[1] > 1])


@pytest.mark.parametrize(("units", "activation"), [(1, "sigmoid"), (3, "softmax")])
def test_features_that_are_not_drawn_stay_at_the_medians(units, activation):
    model = network(units, activation, features=4)

    display = plot.decision_boundary(model, X4, Y4, features=(1, 3), grid_resolution=5)

    medians = np.median(X4, axis=0)
    expected = np.tile(medians, (25, 1))
    expected[:, 1], expected[:, 3] = display.xx0.ravel(), display.xx1.ravel()
    np.testing.assert_allclose(display.points, expected, rtol=1e-6)
    np.testing.assert_allclose(display.response, predicted(model, display), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(display.x, X4[:, [1, 3]])
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("x[:, 1]", "x[:, 3]")
    assert display.ax_.get_title() == f"x[:, 0] = {medians[0]:.3g}, x[:, 2] = {medians[2]:.3g}"


@pytest.mark.parametrize(
    ("arguments", "drawn", "held"),
    [
        ({"fixed": {0: 7}}, [1, 2], {0: 7, 3: None}),
        ({"fixed": {1: 7, 2: -1.5}}, [0, 3], {1: 7, 2: -1.5}),
        ({"fixed": {}}, [0, 1], {2: None, 3: None}),
        ({"fixed": {0: 7}, "features": [3, 2]}, [3, 2], {0: 7, 1: None}),
    ],
)
def test_features_are_fixed_at_what_is_told(arguments, drawn, held):
    display = plot.decision_boundary(network(features=4), X4, Y4, **arguments, grid_resolution=3)

    for feature, value in held.items():
        expected = np.median(X4[:, feature]) if value is None else value
        np.testing.assert_allclose(display.points[:, feature], expected, rtol=1e-6)
    np.testing.assert_allclose(display.points[:, drawn[0]], display.xx0.ravel(), rtol=1e-6)
    np.testing.assert_allclose(display.points[:, drawn[1]], display.xx1.ravel(), rtol=1e-6)


def test_columns_of_a_table_have_names():
    table = pd.DataFrame(X4.astype("float32"), columns=["bill", "depth", "flipper", "mass"])

    display = plot.decision_boundary(network(features=4), table, features=("mass", "bill"), fixed={"depth": 5})

    assert display.names == ("mass", "bill")
    assert display.note == f"depth = 5, flipper = {np.median(X4[:, 2]):.3g}"
    np.testing.assert_allclose(display.points[:, 1], 5)


def test_many_held_features_are_counted():
    x = np.zeros((4, 8))
    display = plot.decision_boundary(Model(lambda x: x[:, 0]), x, features=(0, 1), grid_resolution=2)

    assert display.note == "6 other features held at their medians"


@pytest.mark.parametrize("scaled", [False, True])
def test_a_projection_is_drawn_in_the_plane_of_its_components(scaled):
    projection = (make_pipeline(StandardScaler(), PCA(2)) if scaled else PCA(2)).fit(X4)
    model = network(features=4)

    display = plot.decision_boundary(model, X4, Y4, projection=projection, grid_resolution=6)

    grid = np.column_stack((display.xx0.ravel(), display.xx1.ravel()))
    np.testing.assert_allclose(display.points, projection.inverse_transform(grid), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(display.x, projection.transform(X4))
    np.testing.assert_allclose(display.response, predicted(model, display), rtol=1e-5, atol=1e-6)
    if not scaled:
        shares = projection.explained_variance_ratio_
        assert display.names[0] == f"component 1 ({100 * shares[0]:.3g} % of the variance)"


def test_a_projection_that_was_fitted_on_a_table_takes_the_table():
    table = pd.DataFrame(X4, columns=list("abcd"))

    display = plot.decision_boundary(network(features=4), table, projection=PCA(2).fit(table), grid_resolution=3)

    np.testing.assert_allclose(display.x, PCA(2).fit(table).transform(table))


# Misuse.


def test_three_features_without_a_choice():
    message = r"`features` must be given where the model takes 3 features: `features`, `fixed` or a `proj.*None"
    with pytest.raises(ValueError, match=message):
        plot.decision_boundary(network(features=3), X4[:, :3])
    with pytest.raises(ValueError, match=r"`x` must be of shape \(sample, 3\)\. .*shape=\(30, 4\)"):
        plot.decision_boundary(network(features=3), X4, features=(0, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": (0, 0)}, r"`features` must be two features that differ, none of them in `fixed`\. .*\(0, 0\)"),
        ({"features": (0, 1), "fixed": {1: 3}}, r"`features` must be two features that differ"),
        ({"fixed": {0: 1, 1: 1, 2: 1}}, r"`features` must be two features .*takes 4 features: fix at most 2"),
        ({"features": (0, 4)}, r"`features` must be of features 0 to 3\. Received: features=4\. Count"),
        ({"features": (0, "mass")}, r"`features` must be of features 0 to 3\. Received: features='mass'"),
        ({"features": 3}, r"`features` must be a pair of features\. Received: features=3"),
        ({"features": "ab"}, r"`features` must be a pair of features"),
        ({"fixed": {-1: 3}}, r"`fixed` must be of features 0 to 3\. Received: fixed=-1"),
        ({"fixed": {0: np.nan}}, r"`fixed` must be a dict from feature to a finite number"),
        ({"fixed": {0: "high"}}, r"`fixed` must be a dict from feature to a finite number"),
    ],
)
def test_choices_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.decision_boundary(network(features=4), X4, **arguments)
    assert plt.get_fignums() == []


def test_what_is_no_dict_and_no_projection():
    model = network(features=4)
    with pytest.raises(TypeError, match=r"`fixed` must be a dict from feature to value\. Received: fixed=3"):
        plot.decision_boundary(model, X4, fixed=3)
    with pytest.raises(TypeError, match=r"`projection` must be a fitted projection with `transform` and `inverse_tran"):
        plot.decision_boundary(model, X4, projection="pca")
    with pytest.raises(ValueError, match="`projection` must be onto two components"):
        plot.decision_boundary(model, X4, projection=PCA(3).fit(X4))
    with pytest.raises(ValueError, match="`projection` must be the only choice of a plane"):
        plot.decision_boundary(model, X4, projection=PCA(2).fit(X4), features=(0, 1))
    with pytest.raises(ValueError, match=r"`x` must be given with a `projection`\. Received: x=None"):
        plot.decision_boundary(model, xlim=(0, 1), ylim=(0, 1), projection=PCA(2).fit(X4))
    with pytest.raises(ValueError, match="This PCA instance is not fitted yet"):
        plot.decision_boundary(model, X4, projection=PCA(2))


def test_medians_need_samples():
    model, limits = network(features=4), {"xlim": (0, 1), "ylim": (0, 1)}
    message = r"`fixed` must be given for features \[2\], as there is no `x` to take medians from\. .*fixed=\{3: 1\}"
    with pytest.raises(ValueError, match=message):
        plot.decision_boundary(model, **limits, features=(0, 1), fixed={3: 1})

    display = plot.decision_boundary(model, **limits, fixed={2: 0.5, 3: 1}, grid_resolution=2)
    np.testing.assert_allclose(display.points[:, 2:], [[0.5, 1]] * 4)


def test_a_model_of_any_rank_but_two():
    sequence = keras.Sequential([keras.Input((5, 2)), keras.layers.Flatten(), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"`model` must be a model of one array of features \(sample, feature\)"):
        plot.decision_boundary(sequence, X4)
