"""Where a loss takes logits, the second class begins at 0: in every picture, and without a word of the user."""

import functools
import pathlib

import keras
import numpy as np
import pytest
from pictures import X, Y, network

import kohort
from kohort import plot

LOSS = keras.losses.BinaryCrossentropy(from_logits=True)
GRID = {"grid_resolution": 7}


def made(loss=LOSS):
    model = network()
    model.compile("sgd", loss)
    return model


@pytest.fixture(scope="module")
def cohort():
    cohort = kohort.Cohort(made(), seeds=3)
    cohort.fit(X, Y, verbose=0)
    return cohort


PICTURES = {
    "decision_boundary": lambda cohort, **told: plot.decision_boundary(made(), X, Y, **GRID, **told),
    "feature_space": lambda cohort, **told: plot.feature_space(made(), 0, X, Y, **GRID, **told),
    "wall": lambda cohort, **told: plot.wall(cohort, X, Y, **GRID, **told),
    "spread": lambda cohort, **told: plot.spread(cohort, X, Y, **GRID, **told),
    "minima": lambda cohort, **told: plot.minima(cohort, X, Y, **GRID, **told),
    "animate": lambda cohort, **told: plot.animate(
        kohort.Cohort(made(), seeds=2), X, Y, epochs=1, frames=2, verbose=0, **GRID, **told
    ),
    "animate one": lambda cohort, **told: plot.animate(made(), X, Y, epochs=1, frames=2, verbose=0, **GRID, **told),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_second_class_begins_at_a_logit_of_0(name, cohort):
    assert PICTURES[name](cohort).threshold == 0
    assert PICTURES[name](cohort, threshold=0.25).threshold == 0.25


@pytest.mark.parametrize(
    "loss",
    [functools.partial(keras.losses.binary_crossentropy, from_logits=True), [LOSS]],
    ids=["function", "in a list"],
)
def test_a_loss_is_asked_however_it_is_given_and_before_it_is_built(loss):
    assert plot.decision_boundary(made(loss), X, Y, **GRID).threshold == 0


@pytest.mark.parametrize("loss", ["mse", "binary_crossentropy", keras.losses.BinaryCrossentropy()])
def test_other_answers_change_class_between_the_labels(loss):
    assert plot.decision_boundary(made(loss), X, Y, **GRID).threshold == 0.5
    assert plot.decision_boundary(made(loss), X, 2 * Y, **GRID).threshold == 1


def test_files_and_ensembles_say_it_too(cohort, tmp_path):
    path = pathlib.Path(tmp_path) / "a.keras"
    cohort.member(1).save(path)
    cohort.save(path.with_suffix(".kohort"))

    assert plot.decision_boundary(keras.saving.load_model(path), X, Y, **GRID).threshold == 0
    assert plot.decision_boundary(cohort.ensemble(2), X, Y, **GRID).threshold == 0
    assert plot.spread(kohort.Cohort.load(path.with_suffix(".kohort")), X, Y, **GRID).threshold == 0


def test_the_share_of_a_spread_is_that_of_the_logits_above_0(cohort):
    picture = plot.spread(cohort, X, Y, **GRID)

    np.testing.assert_allclose(picture.share.ravel(), (cohort.predict(picture.points)[..., 0] > 0).mean(axis=0))
