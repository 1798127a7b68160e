"""P1: `kohort.fit` leaves what `model.fit` leaves, bit for bit."""

import jax
import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers, metrics, optimizers
from oracle import assert_same_fit

import kohort

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype("float32")
Y = (X[:, :1] * X[:, 1:2] > 0).astype("float32")
CLASSES = np.digitize(X[:, 0], [-0.5, 0.5])
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]
WEIGHTS = RNG.uniform(0.2, 2, size=50).astype("float32")
IMAGES = RNG.normal(size=(30, 8, 8, 1)).astype("float32")
TOKENS = RNG.integers(0, 12, size=(30, 6))
LABELS = (TOKENS.sum(axis=1) % 2).astype("float32")


def dense(*middle, units=1, activation="sigmoid", shape=(4,)):
    middle = middle or (layers.Dense(8, activation="relu"),)
    stack = [keras.Input(shape), *(type(m).from_config(m.get_config()) for m in middle)]
    return keras.Sequential([*stack, layers.Dense(units, activation=activation)])


def fresh(option):
    """Makes what an option names by a callable, so that two models share no optimizer and no metric."""
    if isinstance(option, list):
        return [fresh(part) for part in option]
    return option() if callable(option) else option


def compiled(make, optimizer="adam", loss="binary_crossentropy", **options):
    def build():
        model = make()
        own = {name: fresh(option) for name, option in options.items()}
        model.compile(fresh(optimizer), loss, **own)
        return model

    return build


BASE = {"x": X, "y": Y, "epochs": 4, "batch_size": 16}

OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.1),
    "nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda: optimizers.RMSprop(1e-3),
    "rmsprop-centered": lambda: optimizers.RMSprop(1e-3, momentum=0.5, centered=True),
    "adam": lambda: optimizers.Adam(1e-2),
    "amsgrad": lambda: optimizers.Adam(1e-2, amsgrad=True),
    "adamw": lambda: optimizers.AdamW(1e-2, weight_decay=0.01),
    "adamax": lambda: optimizers.Adamax(),
    "nadam": lambda: optimizers.Nadam(),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "adadelta": lambda: optimizers.Adadelta(1.0),
    "ftrl": lambda: optimizers.Ftrl(0.1),
    "lion": lambda: optimizers.Lion(),
    "lamb": lambda: optimizers.Lamb(),
    "adafactor": lambda: optimizers.Adafactor(),
    "ema": lambda: optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3),
    "ema-at-end": lambda: optimizers.Adam(0.01, use_ema=True),
    "clip": lambda: optimizers.Adam(0.01, global_clipnorm=0.5),
    "accumulate": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "schedule": lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)),
    "loss-scale": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.01)),
}


@pytest.mark.many
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name):
    assert_same_fit(compiled(dense, OPTIMIZERS[name]), BASE)


LOSSES = {
    "mse": ("linear", 1, Y),
    "mae": ("linear", 1, Y),
    "huber": ("linear", 1, Y),
    "log_cosh": ("linear", 1, Y),
    "hinge": ("tanh", 1, 2 * Y - 1),
    "poisson": ("exponential", 1, Y),
    "binary_focal_crossentropy": ("sigmoid", 1, Y),
    "categorical_crossentropy": ("softmax", 3, ONE_HOT),
    "sparse_categorical_crossentropy": ("softmax", 3, CLASSES),
    "kl_divergence": ("softmax", 3, ONE_HOT),
    "cosine_similarity": ("linear", 3, ONE_HOT),
}


@pytest.mark.many
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    activation, units, y = LOSSES[name]
    build = compiled(lambda: dense(units=units, activation=activation), loss=name)
    assert_same_fit(build, BASE | {"y": y, "validation_split": 0.2})


METRICS = {
    "accuracy": ["accuracy"],
    "auc": [metrics.AUC],
    "pr-auc": [lambda: metrics.AUC(curve="PR", num_thresholds=50)],
    "precision-recall": [metrics.Precision, metrics.Recall],
    "confusion": [metrics.TruePositives, metrics.FalseNegatives],
    "r2": [metrics.R2Score],
    "f1": [lambda: metrics.F1Score(threshold=0.5)],
    "rmse": [metrics.RootMeanSquaredError],
    "iou": [lambda: metrics.BinaryIoU(target_class_ids=[0, 1])],
    "sensitivity": [lambda: metrics.SensitivityAtSpecificity(0.5)],
    "cosine": [metrics.CosineSimilarity],
    "function": [lambda: keras.losses.mean_absolute_error],
}


@pytest.mark.many
@pytest.mark.parametrize("name", METRICS)
def test_metric(name):
    build = compiled(dense, metrics=METRICS[name], weighted_metrics=["mae"])
    assert_same_fit(build, BASE | {"validation_data": (X[:21], Y[:21], WEIGHTS[:21])})


LAYERS = {
    "batch-norm": lambda: dense(layers.Dense(8), layers.BatchNormalization(), layers.ReLU()),
    "dropout": lambda: dense(layers.Dense(8, "relu"), layers.Dropout(0.3)),
    "gaussian-noise": lambda: dense(layers.GaussianNoise(0.1), layers.Dense(8, "tanh")),
    "layer-norm": lambda: dense(layers.Dense(8, "gelu"), layers.LayerNormalization()),
    "regularised": lambda: dense(layers.Dense(8, "relu", kernel_regularizer="l2", activity_regularizer="l1")),
    "constrained": lambda: dense(layers.Dense(8, "relu", kernel_constraint="max_norm")),
    "spectral-norm": lambda: dense(layers.SpectralNormalization(layers.Dense(8))),
    "two-hidden": lambda: dense(layers.Dense(32, "relu"), layers.Dense(32, "relu")),
}


@pytest.mark.many
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_layer(name, shuffle):
    assert_same_fit(compiled(LAYERS[name], metrics=["accuracy"]), BASE | {"shuffle": shuffle, "validation_split": 0.3})


def convolution():
    stack = [layers.Conv2D(3, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 1)), *stack, layers.Dense(1, "sigmoid")])


def recurrent():
    stack = [layers.Embedding(12, 4, mask_zero=True), layers.LSTM(5), layers.Dense(1, "sigmoid")]
    return keras.Sequential([keras.Input((6,), dtype="int32"), *stack])


def test_convolution():
    assert_same_fit(compiled(convolution), {"x": IMAGES, "y": LABELS, "epochs": 3, "batch_size": 8})


def test_embedding_and_lstm_with_mask():
    assert_same_fit(compiled(recurrent), {"x": TOKENS, "y": LABELS, "epochs": 3, "batch_size": 8})


def two_in_two_out():
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    joined = layers.Concatenate()([layers.Dense(5, "relu")(a), b])
    outputs = {"p": layers.Dense(1, "sigmoid", name="p")(joined), "q": layers.Dense(3, name="q")(joined)}
    return keras.Model({"a": a, "b": b}, outputs)


def test_nested_inputs_and_outputs_with_weights():
    build = compiled(two_in_two_out, loss={"p": "binary_crossentropy", "q": "mse"}, loss_weights={"p": 1.0, "q": 0.3})
    x = {"a": X, "b": X[:, :2]}
    y = {"p": Y, "q": ONE_HOT}
    assert_same_fit(build, {"x": x, "y": y, "epochs": 3, "sample_weight": {"p": WEIGHTS, "q": WEIGHTS}})


ARGUMENTS = {
    "one-batch": {"batch_size": 50},
    "one-full-one-partial": {"batch_size": 32},
    "no-partial": {"batch_size": 10},
    "batch-of-one": {"batch_size": 1},
    "batch-larger-than-data": {"batch_size": 64},
    "default-batch": {"batch_size": None},
    "shuffle-in-batches": {"shuffle": "batch"},
    "no-shuffle": {"shuffle": False},
    "class-weight": {"class_weight": {0: 0.4, 1: 2.5}},
    "sample-weight": {"sample_weight": WEIGHTS},
    "initial-epoch": {"initial_epoch": 2, "epochs": 5},
    "nothing-left": {"initial_epoch": 4},
    "steps": {"steps_per_epoch": 3},
    "steps-across-passes": {"steps_per_epoch": 3, "epochs": 6, "batch_size": 8},
    "steps-too-many": {"steps_per_epoch": 9},
    "steps-no-batch-size": {"steps_per_epoch": 7, "batch_size": None},
    "steps-unshuffled": {"steps_per_epoch": 3, "shuffle": False, "batch_size": 8},
    "validation-split": {"validation_split": 0.25},
    "validation-data": {"validation_data": (X[:17], Y[:17])},
    "validation-weights": {"validation_data": (X[:17], Y[:17], WEIGHTS[:17])},
    "validation-batch": {"validation_split": 0.5, "validation_batch_size": 7},
    "validation-steps": {"validation_split": 0.5, "validation_batch_size": 7, "validation_steps": 2},
    "validation-freq": {"validation_split": 0.3, "validation_freq": 3, "epochs": 7},
    "validation-freq-list": {"validation_split": 0.3, "validation_freq": [1, 4]},
    "validation-freq-never": {"validation_split": 0.3, "validation_freq": 9},
}


@pytest.mark.many
@pytest.mark.parametrize("name", ARGUMENTS)
def test_argument(name):
    make = lambda: dense(layers.Dense(8, "relu"), layers.Dropout(0.2))  # noqa: E731
    build = compiled(make, metrics=["accuracy"], weighted_metrics=["mse"])
    assert_same_fit(build, BASE | ARGUMENTS[name])


@pytest.mark.parametrize("steps_per_execution", [2, 3])
def test_steps_per_execution(steps_per_execution):
    build = compiled(dense, steps_per_execution=steps_per_execution)
    assert_same_fit(build, BASE | {"steps_per_epoch": 3, "validation_split": 0.2})


@pytest.mark.many
@pytest.mark.parametrize("rows", range(1, 9))
def test_small_data_keep_the_batch_order(rows):
    build = compiled(lambda: dense(shape=(2,)), loss="mse")
    assert_same_fit(build, {"x": X[:rows, :2], "y": Y[:rows], "epochs": 9, "batch_size": 3})


NEWER_JAX = tuple(map(int, jax.__version__.split(".")[:2])) > (0, 10)


@pytest.mark.xfail(NEWER_JAX, reason="JAX 0.12 makes one piece of machine code of a tiny loop in spite of the ballast")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_tiny_network_in_tiny_batches(batch_size):
    x, y = kohort.data.xor()
    build = compiled(lambda: dense(layers.Dense(2, "relu"), activation="linear", shape=(2,)), "rmsprop", loss="mse")
    assert_same_fit(build, {"x": x, "y": y, "epochs": 60, "batch_size": batch_size})


def test_a_validation_of_one_batch_rounds_as_keras_does():
    # XLA merges a batch that it reads in the same round into the loss, where one epoch in ten then rounds otherwise.
    rng = np.random.default_rng(1)
    x, y = (rng.random((40, width), "float32") for width in (4, 3))
    layer = {"use_bias": False, "kernel_initializer": "ones"}
    build = compiled(lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3, **layer)]), "sgd", "mse")
    validation = {"validation_data": (x[:20], y[:20]), "validation_batch_size": 20}
    assert_same_fit(build, {"x": x, "y": y, "batch_size": 20, "epochs": 80} | validation)


@pytest.mark.many
@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_the_network_of_the_course(width):
    x, y = kohort.data.xor()
    build = compiled(lambda: dense(layers.Dense(width, "relu"), activation="linear", shape=(2,)), "rmsprop", loss="mse")
    assert_same_fit(build, {"x": x, "y": y, "epochs": 100})


FORMS = {
    "float64": (X.astype("float64"), Y.astype("float64")),
    "integers": ((10 * X).astype("int64"), Y.astype("bool")),
    "flat-targets": (X, Y[:, 0]),
    "data-frame": (pd.DataFrame(X.astype("float64")), pd.Series(Y[:, 0].astype("int64"))),
    "jax": (keras.ops.convert_to_tensor(X), keras.ops.convert_to_tensor(Y)),
}


@pytest.mark.many
@pytest.mark.parametrize("name", FORMS)
def test_form_of_the_data(name):
    x, y = FORMS[name]
    assert_same_fit(compiled(dense, metrics=["accuracy"]), BASE | {"x": x, "y": y, "validation_split": 0.2})


def test_no_targets():
    def build():
        inputs = keras.Input((4,))
        model = keras.Model(inputs, layers.Dense(2, activity_regularizer="l2")(inputs))
        model.compile("adam")
        return model

    assert_same_fit(build, {"x": X, "epochs": 3})


def test_model_that_is_built_by_the_fit():
    assert_same_fit(compiled(lambda: keras.Sequential([layers.Dense(4, "relu"), layers.Dense(1, "sigmoid")])), BASE)


def test_second_fit_goes_on():
    build = compiled(LAYERS["dropout"], metrics=["accuracy"])
    assert_same_fit(build, BASE, BASE | {"epochs": 3, "batch_size": 8}, BASE)


def test_many_epochs_over_several_calls():
    assert_same_fit(compiled(dense, loss="mse"), BASE | {"epochs": 700, "batch_size": 64})


class Scaled(keras.Model):
    """A subclassed model with a training step of its own, in the JAX form."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(1)

    def call(self, x):
        return self.inner(x)

    def train_step(self, state, data):
        logs, state = super().train_step(state, data)
        return {"twice": 2 * logs["loss"]}, state


def test_subclass_with_its_own_train_step():
    assert_same_fit(compiled(Scaled, loss="mse"), BASE)


def test_fit_five_and_five_equals_ten():
    build = compiled(LAYERS["batch-norm"])
    keras.utils.set_random_seed(3)
    split = build()
    kohort.fit(split, X, Y, epochs=5, verbose=0, shuffle=False)
    kohort.fit(split, X, Y, epochs=10, initial_epoch=5, verbose=0, shuffle=False)
    keras.utils.set_random_seed(3)
    whole = build()
    kohort.fit(whole, X, Y, epochs=10, verbose=0, shuffle=False)
    for a, b in zip(split.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(a, b)
