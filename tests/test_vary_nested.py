"""Numbers that stand deep in a model: in models within it, layers within layers, schedules, and lists of losses."""

import keras
import numpy as np
import pytest
from keras import layers
from oracle import by_keras, differences
from test_vary import FIT, POINTS, SERIES, SIGNS, compiled, dropped, keras_run, net, values
from test_wrong_input import refused

import kohort
from kohort import keras_parts, vary

optimizers, S, L, R = keras.optimizers, keras.optimizers.schedules, keras.losses, keras.regularizers


def inner(value, rate=0.2):
    dense = layers.Dense(8, "tanh", kernel_regularizer=R.L2(value), name="dense")
    return keras.Sequential([keras.Input((2,)), dense, layers.Dropout(rate, name="drop")], name="inner")


def functional(value):
    inputs = keras.Input((2,), name="points")
    outputs = layers.LeakyReLU(value, name="leaky")(layers.Dense(8, name="dense")(inputs))
    return keras.Model(inputs, outputs, name="inner")


def around(layer):
    return keras.Sequential([keras.Input((2,)), layer], name="around")


def both_ways(forward, backward=None, **options):
    backward = backward and layers.LSTM(3, go_backwards=True, **backward)
    return compiled(
        layers.Bidirectional(layers.LSTM(3, **forward), backward_layer=backward, name="both", **options), shape=(5, 2)
    )


def at_each_time(layer):
    return compiled(layers.TimeDistributed(layer, name="each"), layers.Flatten(), shape=(5, 2))


def cells(value):
    return layers.RNN([layers.LSTMCell(3), layers.GRUCell(3, dropout=value)], name="rnn")


def two_losses(value):
    inputs = keras.Input((2,))
    hidden = layers.Dense(8, "tanh", name="dense")(inputs)
    model = keras.Model(inputs, [layers.Dense(1, name="a")(hidden), layers.Dense(1, name="b")(hidden)])
    model.compile(optimizers.SGD(0.1), [L.MeanSquaredError(), L.Huber(delta=value)])
    return model


# path, values, and the model that is built with a value
KINDS = {
    "a layer of a model within": (
        "inner.dense.kernel_regularizer.l2",
        [1e-3, 0.1],
        lambda v: compiled(inner(v)),
    ),
    "a dropout of a model within": ("inner.drop.rate", [0.2, 0.5], lambda v: compiled(inner(0.01, v))),
    "a functional model within": ("inner.leaky.negative_slope", [0.1, 0.3], lambda v: compiled(functional(v))),
    "a model within a model within": (
        "around.inner.drop.rate",
        [0.2, 0.5],
        lambda v: compiled(around(inner(0.01, v))),
    ),
    "one way of two": (
        "both.forward_layer.cell.dropout",
        [0.2, 0.5],
        lambda v: both_ways({"dropout": v}, {"dropout": 0.1}),
    ),
    "the other way": (
        "both.backward_layer.cell.kernel_regularizer.l2",
        [1e-3, 0.1],
        lambda v: both_ways({"kernel_regularizer": R.L2(0.01)}, {"kernel_regularizer": R.L2(v)}),
    ),
    "the layer of a wrapper": (
        "each.layer.kernel_regularizer.l2",
        [1e-3, 0.1],
        lambda v: at_each_time(layers.Dense(3, kernel_regularizer=R.L2(v))),
    ),
    "the slope of a wrapped layer": (
        "each.layer.negative_slope",
        [0.1, 0.3],
        lambda v: at_each_time(layers.LeakyReLU(v)),
    ),
    "a cell of several": ("rnn.cell.cells.1.dropout", [0.2, 0.5], lambda v: compiled(cells(v), shape=(5, 2))),
    "a schedule": (
        "optimizer.learning_rate.decay_rate",
        [0.5, 0.9],
        lambda v: net(optimizers.SGD(S.ExponentialDecay(0.1, 4, decay_rate=v))),
    ),
    "where a schedule begins": (
        "optimizer.learning_rate.initial_learning_rate",
        [0.05, 0.2],
        lambda v: net(optimizers.Adam(S.PolynomialDecay(v, 6, power=2.0))),
    ),
    "one loss of two": ("loss.1.delta", [0.1, 1.0], two_losses),
}


TOGETHER = ("a layer of a model within", "one way of two", "a cell of several", "one loss of two")


@pytest.mark.many
@pytest.mark.parametrize(("kind", "exact"), [*((kind, True) for kind in KINDS), *((kind, False) for kind in TOGETHER)])
def test_a_member_is_keras_with_the_value_there(kind, exact):
    """With `exact` bit for bit, else to rounding."""
    path, numbers, build = KINDS[kind]
    model = build(numbers[1])
    x = SERIES if len(model.input_shape) == 3 else POINTS
    y = [SIGNS] * len(model.outputs) if len(model.outputs) > 1 else SIGNS
    cohort = kohort.Cohort(model, [3, 8], vary={path: numbers}, exact=exact)
    cohort.fit(x, y, verbose=0, **FIT)
    logged = []
    for index, (seed, number) in enumerate(zip([3, 8], numbers, strict=True)):
        theirs, logs = keras_run(build, number, seed, x=x, y=y, **FIT)
        ours = cohort.member(index=index)
        assert keras_parts.held(*vary.place_of(ours, path)) == pytest.approx(number)
        if exact:
            assert differences(values(theirs), values(ours)) == []
        for a, b in zip(values(theirs), values(ours), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
        for metric, column in logs.items():
            np.testing.assert_allclose(column, cohort.history[metric][index], rtol=1e-5)
        logged.append(logs["loss"][-1])
    assert logged[0] != logged[1]


def test_a_member_with_a_value_deep_inside_goes_on_and_is_saved(tmp_path):
    cohort = kohort.Cohort(compiled(inner(0.01)), 2, vary={"inner.drop.rate": [0.1, 0.4]})
    cohort.fit(POINTS, SIGNS, verbose=0, **FIT)
    cohort.member(1).save(tmp_path / "member.keras")
    assert keras.models.load_model(tmp_path / "member.keras").get_layer("inner").get_layer("drop").rate == 0.4
    cohort.save(tmp_path / "cohort.kohort")
    again = kohort.Cohort.load(tmp_path / "cohort.kohort")
    for each in (cohort, again):
        each.fit(POINTS, SIGNS, verbose=0, **FIT)
    np.testing.assert_array_equal(cohort.history["loss"], again.history["loss"])
    by_keras(cohort.member(0), x=POINTS, y=SIGNS, verbose=0)


HEAD = r"`vary` must name numbers that a layer, a regularizer, a loss or the optimizer holds\. Received: vary with .*"
PATHS = {
    "no layer within": (
        lambda: compiled(inner(0.01)),
        "inner.denser.units",
        r"where a Sequential has no 'denser'\. It has the layers 'inner\.dense', 'inner\.drop'\.",
    ),
    "a layer within, and no number": (
        lambda: compiled(inner(0.01)),
        "inner.drop",
        r"where there is a Dropout\. It holds 'inner\.drop\.rate'\.",
    ),
    "units within": (
        lambda: compiled(inner(0.01)),
        "inner.dense.units",
        r"a Dense holds the whole number 8, and whole numbers shape .*Another shape is another cohort",
    ),
    "the model within": (
        lambda: compiled(inner(0.01)),
        "inner",
        r"where there is a Sequential\. It has the layers 'inner\.dense', 'inner\.drop'\.",
    ),
    "a layer within that is asked of the whole": (
        lambda: compiled(inner(0.01)),
        "drop.rate",
        r"where there is no layer 'drop'\. Begin the path with 'optimizer', 'loss' or a layer: 'inner', 'last'\.",
    ),
    "no cell": (
        lambda: compiled(cells(0.2), shape=(5, 2)),
        "rnn.cell.cells.2.dropout",
        r"has no '2'\.",
    ),
    "a wrapper's own": (
        lambda: at_each_time(layers.LeakyReLU(0.1)),
        "each.negative_slope",
        r"where a TimeDistributed has no 'negative_slope'\. It holds no number\.",
    ),
    "a schedule without it": (
        lambda: net(optimizers.SGD(S.ExponentialDecay(0.1, 4, 0.9))),
        "optimizer.learning_rate.alpha",
        r"where an ExponentialDecay has no 'alpha'\. It holds 'optimizer\.learning_rate\.decay_rate', 'opt",
    ),
    "a number where a schedule would be": (
        lambda: dropped(),
        "optimizer.learning_rate.decay_rate",
        r"has no 'decay_rate'",
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_leads_to_no_number_deep_inside(name):
    build, path, message = PATHS[name]
    model = build()
    with refused(ValueError, HEAD + message, model):
        kohort.Cohort(model, 2, vary={path: [0.1, 0.2]})


def test_a_value_that_a_layer_within_refuses():
    model = compiled(inner(0.01))
    with refused(ValueError, r"`vary` must hold values that Keras takes\. Received: .*1\.5, of which it says: ", model):
        kohort.Cohort(model, 2, vary={"inner.drop.rate": [0.1, 1.5]})
