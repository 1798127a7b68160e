"""Whether it pays to compile for one more shape of data."""

import keras
import numpy as np
import pytest
from keras import layers

from kohort import shapes as room
from kohort.checks import Recipe
from kohort.fit import Request
from kohort.shapes import STEPS_OF_A_COMPILATION, UNPAID_SHAPES, shapes_of

REASON = "its data have another shape than those before, and to compile for a few steps would take longer"


class Shapes(room.Shapes):
    """Of fits that run compiled where nothing is said against it."""

    def why_not_compile(self, request):
        reason = super().why_not_compile(request)
        if reason is None:
            self.compile(request)
        return reason


def build():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def asked(rows, epochs=1, **options):
    return Request(np.zeros((rows, 2)), np.zeros(rows), recipe=Recipe(epochs=epochs, **options))


@pytest.fixture
def shapes():
    """Shapes of a model that has been fitted on three already, a step each."""
    shapes = Shapes(build())
    assert [shapes.why_not_compile(asked(rows)) for rows in range(1, UNPAID_SHAPES + 1)] == [None] * UNPAID_SHAPES
    return shapes


def test_ever_new_shapes_are_left_to_keras(shapes):
    assert [shapes.why_not_compile(asked(rows)) for rows in range(10, 20)] == [REASON] * 10


def test_what_is_compiled_already_runs_compiled(shapes):
    assert shapes.why_not_compile(asked(50)) == REASON
    assert [shapes.why_not_compile(asked(rows)) for rows in (1, 2, 3, 1)] == [None] * 4


def test_a_long_fit_is_compiled_at_once(shapes):
    assert shapes.why_not_compile(asked(50, epochs=STEPS_OF_A_COMPILATION // 2)) is None  # two steps an epoch
    assert shapes.why_not_compile(asked(51, epochs=STEPS_OF_A_COMPILATION // 2 - 1)) == REASON


def test_a_shape_that_returns_is_compiled_in_the_end(shapes):
    epochs = STEPS_OF_A_COMPILATION // 4
    told = [shapes.why_not_compile(asked(30, epochs)) for _ in range(5)]

    assert told == [REASON] * 3 + [None] * 2


def test_a_shape_that_has_paid_makes_room_for_another(shapes):
    assert shapes.why_not_compile(asked(1, epochs=STEPS_OF_A_COMPILATION)) is None
    assert [shapes.why_not_compile(asked(rows)) for rows in (10, 11)] == [None, REASON]


def test_steps_are_counted_as_asked(shapes):
    half = STEPS_OF_A_COMPILATION // 2
    assert shapes.why_not_compile(asked(50, epochs=half, batch_size=50)) == REASON
    assert shapes.why_not_compile(asked(50, epochs=2 * half, initial_epoch=half + 1)) == REASON
    assert shapes.why_not_compile(asked(9, epochs=half, steps_per_epoch=2)) is None


def test_another_way_of_cutting_is_another_shape(shapes):
    assert shapes.why_not_compile(asked(1)) is None
    assert shapes.why_not_compile(asked(1, batch_size=1)) == REASON


def test_streams_have_no_shape():
    shapes = Shapes(build())

    assert {shapes.why_not_compile(Request(i for i in range(3))) for _ in range(9)} == {None}


def test_a_model_that_is_compiled_anew_begins_anew():
    model = build()
    first = shapes_of(model)

    assert shapes_of(model) is first
    model.compile("sgd", "mse")
    assert shapes_of(model) is not first
