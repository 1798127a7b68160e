"""What a Keras model is made of, as private parts of Keras 3.15.1 tell it."""

import functools
import types

import keras
import pytest
from keras import layers

from kohort import keras_parts


def compiled(model=None, loss="mse", **options):
    model = model or keras.Sequential([keras.Input((2,)), layers.Dense(3), layers.Dropout(0.5), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, **options)
    return model


@pytest.mark.parametrize(
    ("layer", "is_blind"),
    [
        (lambda: layers.Dense(3, "relu"), True),
        (lambda: layers.BatchNormalization(), True),
        (lambda: keras.Sequential([layers.Dense(2), layers.ReLU()]), True),
        (lambda: layers.Dense(3, activity_regularizer="l2"), True),
        (lambda: layers.Dense(3, activation=lambda rows: rows[::-1]), False),
        (lambda: layers.Dense(3, activation=layers.ReLU()), True),
        (lambda: layers.Dense(3, activation=layers.Dropout(0.5)), False),
        (lambda: layers.Dense(3, activation=functools.wraps(keras.activations.relu)(lambda x: x[::-1])), False),
        (lambda: layers.Dropout(0.5), False),
        (lambda: layers.Lambda(lambda rows: rows[::-1]), False),
        (lambda: types.new_class("Own", (layers.Dense,))(3), False),
        (lambda: keras.Sequential([layers.Dense(2), layers.Dropout(0.5)]), False),
        (lambda: types.new_class("Own", (keras.Sequential,))([layers.Dense(2)]), False),
    ],
)
def test_who_sees_the_order_of_rows(layer, is_blind):
    inputs = keras.Input((2,))
    model = compiled(keras.Model(inputs, layers.Dense(1)(layer()(inputs))))

    assert keras_parts.is_blind_to_row_order(model) == is_blind
    as_layers = keras.Sequential([inputs, layer(), layers.Dense(1)])  # whose operations stand in `_functional`
    assert keras_parts.is_blind_to_row_order(compiled(as_layers)) == is_blind


def test_operations_and_losses_that_see_the_order_of_rows():
    inputs = keras.Input((2,))
    model = compiled(keras.Model(inputs, layers.Dense(1)(keras.ops.flip(inputs, axis=0))))
    assert not keras_parts.is_blind_to_row_order(model)

    model = keras.Sequential([inputs, layers.Dense(1)])
    model.compile(loss="mse", metrics=["accuracy", keras.metrics.AUC()])
    assert keras_parts.is_blind_to_row_order(model)
    kept = {"optimizer": "sgd"}  # and with it the loss of the compile before
    metric = keras.metrics.MeanMetricWrapper(lambda y, out: out[0])
    for own in {"loss": lambda y, out: out - out[::-1]}, kept, {"loss": "mse", "metrics": [metric]}:
        model.compile(**own)
        assert not keras_parts.is_blind_to_row_order(model)


def test_what_flows_between_layers():
    """`Functional._nodes_by_depth` holds each call of an operation once, also of one that is called twice."""
    one, two = keras.Input((2,), name="one"), keras.Input((2,), name="two")
    shared = layers.Dense(2, name="shared")
    first, second = shared(one), shared(two)
    model = keras.Model([one, two], layers.Dense(1, name="last")(keras.ops.add(first, second)))

    steps, flows = keras_parts.flows(model)

    assert sum(map(len, model._nodes_by_depth.values())) == 6
    names = ["sum" if not isinstance(step, layers.Layer) else step.name for step in steps]
    told = {(names[a], names[b]) for a, b in flows}
    assert told == {("one", "shared"), ("two", "shared"), ("shared", "sum"), ("sum", "last")}
    assert keras_parts.flows(keras.Sequential([keras.Input((2,)), layers.Dense(3), layers.Dense(1)]))[1] == [(0, 1)]


def test_layers_of_a_model_keep_their_flags():
    """`_flatten_layers` tells them in one order on both sides."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3), layers.Dense(1)])
    model.layers[0].trainable = False
    flags = keras_parts.trainability(model)
    other = keras.models.clone_model(model)
    keras_parts.set_trainability(other, flags)

    assert keras_parts.trainability(other) == flags
    assert [layer.trainable for layer in other.layers] == [False, True]


def test_places_of_rules():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dropout(0.5), keras.layers.Dense(3), keras.layers.BatchNormalization()]
    )
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.25))
    for optimizer, has_rate in [(keras.optimizers.Adam(0.25), True), (scaled, True), (decay, False)]:
        model.compile(keras.optimizers.SGD(decay) if optimizer is decay else optimizer, "mse")
        model.optimizer.build(model.trainable_variables)
        places = keras_parts.places_of_rules(model)
        weights = [model.non_trainable_variables[place] for place in places.weights]
        assert [weight.name for weight in weights] == ["moving_mean", "moving_variance"]  # and no state of the dropout
        assert (places.rate is not None) == has_rate
        if has_rate:
            assert float(model.optimizer.variables[places.rate]) == 0.25
