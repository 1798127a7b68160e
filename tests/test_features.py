"""P1 for what a model can be made of: each trains through kohort to the same bits as through Keras, compiled."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops, optimizers
from keras.optimizers import schedules
from oracle import assert_same_fit, by_kohort, run

import kohort

RNG = np.random.default_rng(4)
X = RNG.normal(size=(40, 4)).astype("float32")
Y = (X[:, :1] * X[:, 1:2] > 0).astype("float32")
STEPS = RNG.normal(size=(32, 5, 3)).astype("float32")
WEIGHTS = RNG.uniform(0.2, 2, size=40).astype("float32")
FIT = {"x": X, "y": Y, "epochs": 3, "batch_size": 16, "validation_split": 0.25}


@pytest.fixture(autouse=True)
def nothing_falls_back():
    with warnings.catch_warnings():
        warnings.simplefilter("error", kohort.FallBackWarning)
        yield


def dense(*middle):
    middle = middle or (layers.Dense(8, "relu"),)
    return keras.Sequential([keras.Input((4,)), *middle, layers.Dense(1, "sigmoid")])


def compiled(make, optimizer=lambda: optimizers.Adam(0.01), loss="binary_crossentropy", **options):
    def build():
        model = make()
        model.compile(optimizer(), loss, **options)
        return model

    return build


RATES = {
    "exponential": lambda: schedules.ExponentialDecay(0.1, 3, 0.9, staircase=True),
    "cosine": lambda: schedules.CosineDecay(0.1, 9, warmup_target=0.2, warmup_steps=2),
    "restarts": lambda: schedules.CosineDecayRestarts(0.1, 3),
    "piecewise": lambda: schedules.PiecewiseConstantDecay([2, 4], [0.1, 0.05, 0.01]),
    "polynomial": lambda: schedules.PolynomialDecay(0.1, 6, power=2.0),
    "inverse-time": lambda: schedules.InverseTimeDecay(0.1, 2, 0.5),
}


@pytest.mark.many
@pytest.mark.parametrize("name", RATES)
def test_learning_rate_schedule(name):
    assert_same_fit(compiled(dense, lambda: optimizers.SGD(RATES[name]())), FIT)


OPTIMIZERS = {
    "clipnorm": lambda: optimizers.Adam(0.01, clipnorm=0.05),
    "clipvalue": lambda: optimizers.SGD(0.1, clipvalue=0.01),
    "global-clipnorm": lambda: optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.05),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "ema": lambda: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.8),
    "ema-overwrite": lambda: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2),
    "weight-decay": lambda: optimizers.Adam(0.01, weight_decay=0.1),
    "loss-scale-factor": lambda: optimizers.Adam(0.01, loss_scale_factor=8.0),
    "loss-scale-grows": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1), dynamic_growth_steps=2),
    "loss-scale-shrinks": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=1e38),
}


@pytest.mark.many
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_option(name):
    fits = [FIT] if "ema" in name else [FIT, FIT]  # Keras itself fails in a second fit after EMA, see below
    assert_same_fit(compiled(dense, OPTIMIZERS[name]), *fits)


@pytest.mark.parametrize("callbacks", [None, [keras.callbacks.LambdaCallback()]])
def test_a_second_fit_with_ema(callbacks):
    """Keras puts the averages themselves into the weights and then cannot donate one array twice; kohort can."""
    fit = FIT | {"callbacks": callbacks, "epochs": 6}
    twice = run(by_kohort, compiled(dense, OPTIMIZERS["ema"]), 1, [fit, fit])
    whole = run(by_kohort, compiled(dense, OPTIMIZERS["ema"]), 1, [fit])
    assert twice.history["loss"][-1] < whole.history["loss"][-1]
    assert np.isfinite(twice.history["loss"]).all()


@pytest.mark.many
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    def make():
        middle = [layers.Dense(8, "relu", dtype=policy), layers.BatchNormalization(dtype=policy)]
        inputs = keras.Input((4,))
        outputs = inputs
        for layer in middle:
            outputs = layer(outputs)
        return keras.Model(inputs, layers.Dense(1, "sigmoid", dtype="float32")(outputs))

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        assert_same_fit(compiled(make), FIT)
    finally:
        keras.config.set_dtype_policy(before)


def test_lists_of_inputs_and_outputs():
    def make():
        a, b = keras.Input((4,)), keras.Input((2,))
        joined = layers.Concatenate()([layers.Dense(5, "relu")(a), b])
        return keras.Model([a, b], [layers.Dense(1, "sigmoid")(joined), layers.Dense(2)(joined)])

    build = compiled(make, loss=["binary_crossentropy", "mse"], loss_weights=[1.0, 0.3], metrics=[["accuracy"], []])
    assert_same_fit(build, FIT | {"x": [X, X[:, :2]], "y": [Y, X[:, 2:]]})


def test_weighted_metrics():
    build = compiled(dense, metrics=["accuracy"], weighted_metrics=["accuracy", keras.metrics.AUC()])
    assert_same_fit(build, FIT | {"sample_weight": WEIGHTS})


def test_masking_and_recurrence():
    x = STEPS * (np.arange(5) < RNG.integers(1, 6, size=(32, 1)))[..., None]

    def make():
        stack = [layers.Masking(), layers.GRU(4, return_sequences=True), layers.LSTM(3), layers.Dense(1)]
        return keras.Sequential([keras.Input((5, 3)), *stack])

    assert_same_fit(compiled(make, loss="mse"), {"x": x, "y": STEPS[:, 0, :1], "epochs": 2, "batch_size": 16})


def test_stateful_recurrence():
    def make():
        return keras.Sequential([keras.Input(batch_shape=(8, 5, 3)), layers.LSTM(4, stateful=True), layers.Dense(1)])

    fit = {"x": STEPS, "y": STEPS[:, 0, :1], "epochs": 2, "batch_size": 8, "shuffle": False}
    assert_same_fit(compiled(make, loss="mse"), fit, fit)


class Penalised(layers.Layer):
    """Adds a loss. Keras 3 refuses `add_metric`; for what it advises instead see tests/test_fall_back.py."""

    def call(self, x):
        self.add_loss(0.1 * ops.mean(ops.square(x)))
        return x


def test_losses_made_in_layers():
    assert_same_fit(compiled(lambda: dense(layers.Dense(6, "relu", kernel_regularizer="l1"), Penalised())), FIT)


class Own(keras.Model):
    """A subclassed model with loss and metrics of its own."""

    def __init__(self):
        super().__init__()
        self.inner, self.drop, self.outer = layers.Dense(6, "relu"), layers.Dropout(0.3), layers.Dense(1, "sigmoid")
        self.error = keras.metrics.MeanSquaredError(name="error")

    def call(self, x, training=False):
        return self.outer(self.drop(self.inner(x), training=training))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight, training) + 0.01 * ops.mean(ops.square(y_pred))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.error.update_state(y, y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight)


def test_subclass_with_loss_and_metrics_of_its_own():
    assert_same_fit(compiled(Own, metrics=["accuracy"]), FIT)


class AnyShape(keras.Model):
    def __init__(self):
        super().__init__()
        self.outer = layers.Dense(1)

    def call(self, x):
        return self.outer(x)


def test_subclass_fitted_on_several_shapes():
    others = [FIT | {"x": STEPS, "y": STEPS[..., :1]}, FIT | {"x": STEPS[:, :2], "y": STEPS[:, :2, :1]}]
    assert_same_fit(compiled(AnyShape, loss="mse"), *others)


class OwnStep(keras.Model):
    """A step of its own, in the JAX form, with a step for validation."""

    def __init__(self):
        super().__init__()
        self.outer = layers.Dense(1)

    def call(self, x, training=False):
        return self.outer(x)

    def train_step(self, state, data):
        trainable, non_trainable, optimizer, metrics = state
        x, y = data

        def loss_of(trainable):
            prediction, updated = self.stateless_call(trainable, non_trainable, x, training=True)
            return ops.mean(ops.square(y - prediction)), updated

        import jax

        (loss, updated), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        return {"mine": loss, "size": ops.mean(ops.abs(y))}, (trainable, updated, optimizer, metrics)

    def test_step(self, state, data):
        return {"mine": ops.mean(data[1])}, state


class OwnStepInTuples(OwnStep):
    """Returns tuples where Keras returns lists."""

    def train_step(self, state, data):
        logs, new = super().train_step(state, data)
        return logs, tuple(map(tuple, new))

    def test_step(self, state, data):
        return super().test_step(tuple(map(tuple, state)), data)


@pytest.mark.parametrize("kind", [OwnStep, OwnStepInTuples])
def test_steps_of_its_own(kind):
    assert_same_fit(compiled(kind, loss="mse"), FIT, FIT | {"validation_split": 0.2})


@pytest.mark.parametrize("rows", [8, 16])
def test_validation_of_one_small_batch(rows):
    """A pass of a single batch whose rows are known beforehand: to XLA no loop, unless it is told otherwise."""
    x, y = STEPS[:, :2], STEPS[:, :2, :1]
    fit = {"x": x, "y": y, "epochs": 2, "batch_size": 16, "validation_data": (x[:rows], y[:rows])}
    assert_same_fit(compiled(AnyShape, loss="mse"), fit, {"x": x[:8], "y": y[:8], "epochs": 2, "shuffle": False})


def test_frozen_layer():
    def make():
        model = dense(layers.Dense(6, "relu"), layers.BatchNormalization())
        model.layers[0].trainable = model.layers[1].trainable = False
        return model

    assert_same_fit(compiled(make), FIT)


def test_shared_layer_and_nested_models():
    def make():
        inner = keras.Sequential([keras.Input((2,)), layers.Dense(3, "tanh"), layers.Dropout(0.2)])
        a, b = keras.Input((2,)), keras.Input((2,))
        joined = layers.Concatenate()([inner(a), inner(b)])
        return keras.Model([a, b], layers.Dense(1, "sigmoid")(joined))

    assert_same_fit(compiled(make, metrics=["accuracy"]), FIT | {"x": [X[:, :2], X[:, 2:]]})
