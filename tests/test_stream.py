"""Data that come batch by batch leave exactly what `model.fit` leaves, and are read exactly as Keras reads them."""

import random
import threading
import warnings

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import scipy.sparse
from keras import callbacks, layers
from oracle import assert_same_fit, by_keras, by_kohort, differences, outcome, run

import kohort
from kohort import keras_internals, stream
from kohort.stream import epochs_of

RNG = np.random.default_rng(5)
X = RNG.normal(size=(45, 3)).astype("float32")
Y = (X[:, :1] * X[:, 1:2] > 0).astype("float32")
W = np.linspace(0.2, 2, 45).astype("float32")
CLASSES = (2.9 * (Y[:, 0] + 1) / 2).astype("int64")  # 1 and 2

pytestmark = [
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed"),
    pytest.mark.filterwarnings("error::kohort.FallBackWarning"),
]


# --- streams ----------------------------------------------------------------------------------------------------------


class Stream(keras.utils.PyDataset):
    """Batches of arrays; writes down how it is read."""

    def __init__(self, *arrays, batch_size=8, form=tuple, **options):
        super().__init__(**options)
        self.arrays, self.batch_size, self.form = arrays or (X, Y), batch_size, form
        self.calls = []

    def __len__(self):
        return -(-len(self.arrays[0]) // self.batch_size)

    def __getitem__(self, index):
        self.calls.append(index)
        rows = slice(self.batch_size * index, self.batch_size * (index + 1))
        return self.form(a[rows] for a in self.arrays)

    def on_epoch_begin(self):
        self.calls.append("begin")

    def on_epoch_end(self):
        self.calls.append("end")


class Endless(Stream):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return super().__getitem__(index % len(self))


class Noisy(Stream):
    """Draws from NumPy's generator, and goes on to other data at each epoch's end."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + np.random.normal(size=x.shape).astype("float32"), y

    def on_epoch_end(self):
        super().on_epoch_end()
        self.arrays = tuple(a[::-1] for a in self.arrays)


def generator(batches=None, batch_size=8):
    """Yields so many batches, going round and round; None never ends."""
    count = 0
    while batches is None or count < batches:
        start = count * batch_size % 40
        yield X[start : start + batch_size], Y[start : start + batch_size]
        count += 1


class Growing(Stream):
    """Batches of sequences, each of another length."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        steps = (3, 5, 5, 2, 3, 3)[index]
        return np.tile(X[:4, None, :], (1, steps, 1)) * (index + 1), Y[:4]


# --- models -----------------------------------------------------------------------------------------------------------


def build(optimizer="adam", loss="binary_crossentropy", metrics=("accuracy",), inputs=(3,), **options):
    model = keras.Sequential(
        [
            keras.Input(inputs),
            layers.Dense(6, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(1, "sigmoid"),
        ]
    )
    weighted = ["mae"] if options.pop("is_weighted", False) else None
    model.compile(keras.optimizers.get(optimizer), loss, metrics=list(metrics), weighted_metrics=weighted, **options)
    return model


def build_weighted():
    return build(is_weighted=True)


def build_unbuilt():
    model = keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(1, "sigmoid")])
    model.compile("rmsprop", "mse", metrics=[keras.metrics.AUC()])
    return model


def build_classes():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def build_sequences():
    model = keras.Sequential([keras.Input((None, 3)), layers.LSTM(4), layers.Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy")
    return model


def build_images():
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(3, 3), layers.MaxPooling2D(), layers.Flatten(), layers.Dense(1)]
    )
    model.compile("adam", "mse")
    return model


def build_named():
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    joined = layers.Concatenate()([layers.Dense(3, "relu")(left), right])
    outputs = {"first": layers.Dense(1, name="first")(joined), "second": layers.Dense(2, name="second")(joined)}
    model = keras.Model({"left": left, "right": right}, outputs)
    model.compile("adam", {"first": "mse", "second": "mae"}, loss_weights={"first": 1.0, "second": 0.3})
    return model


class Autoencoder(keras.Model):
    """Has a step and logs of its own."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)

    def train_step(self, state, data):
        logs, state = super().train_step(state, (data[0], data[0]))
        return {"own": logs["loss"] * 2, "last": jnp.max(data[0])}, state


def build_own_step():
    model = Autoencoder()
    model.compile("sgd", "mse")
    return model


IMAGES = RNG.normal(size=(20, 6, 6, 1)).astype("float32")


def named(left, right, y):
    return {"left": left, "right": right}, {"first": y, "second": np.tile(y, (1, 2))}


def named_form(parts):
    return named(*parts)


# name: (fit arguments made anew for each run, model)
STREAMS = {
    "dataset": (lambda: {"x": Stream()}, build),
    "without-shuffling": (lambda: {"x": Stream(), "shuffle": False}, build),
    "one-batch": (lambda: {"x": Stream(batch_size=64)}, build),
    "whole-batches": (lambda: {"x": Stream(X[:40], Y[:40])}, build),
    "batches-of-one": (lambda: {"x": Stream(batch_size=1)}, build),
    "lists": (lambda: {"x": Stream(form=list)}, build),
    "weights": (lambda: {"x": Stream(X, Y, W)}, build_weighted),
    "class-weights": (lambda: {"x": Stream(), "class_weight": {0: 0.3, 1: 2.0}}, build_weighted),
    "classes": (lambda: {"x": Stream(X, CLASSES), "class_weight": {1: 0.5}}, build_classes),
    "doubles": (lambda: {"x": Stream(X.astype("float64") / 3, Y.astype("int64"))}, build),
    "jax-arrays": (lambda: {"x": Stream(jnp.asarray(X), jnp.asarray(Y))}, build),
    "one-pass-of-endless": (lambda: {"x": Endless(), "steps_per_epoch": 4}, build),
    "steps-beyond-an-epoch": (lambda: {"x": Stream(), "steps_per_epoch": 8, "shuffle": False}, build),
    "steps-within-an-epoch": (lambda: {"x": Stream(), "steps_per_epoch": 4}, build),
    "noisy": (lambda: {"x": Noisy()}, build),
    "unbuilt": (lambda: {"x": Stream()}, build_unbuilt),
    "images": (lambda: {"x": Stream(IMAGES, Y[:20])}, build_images),
    "sequences": (lambda: {"x": Growing()}, build_sequences),
    "names": (lambda: {"x": Stream(X, X[::-1], Y, form=named_form)}, build_named),
    "own-step": (lambda: {"x": Stream(X, X)}, build_own_step),
    "generator": (lambda: {"x": generator(), "steps_per_epoch": 5}, build),
    "generator-with-shorter-batches": (lambda: {"x": generator(batch_size=7), "steps_per_epoch": 5}, build),
    "generator-that-ends": (lambda: {"x": generator(7)}, build),
    "generator-that-ends-within-an-epoch": (lambda: {"x": generator(7), "steps_per_epoch": 5}, build),
    "several-steps-per-execution": (lambda: {"x": Stream()}, lambda: build(steps_per_execution=4)),
    "generator-and-executions": (
        lambda: {"x": generator(7), "steps_per_epoch": 3}, lambda: build(steps_per_execution=2),
    ),
    "validation-by-a-stream": (lambda: {"x": Stream(), "validation_data": Stream(X[::2], Y[::2])}, build),
    "validation-by-arrays": (
        lambda: {"x": Stream(), "validation_data": (X[:20], Y[:20], W[:20]), "validation_batch_size": 6}, build_weighted,
    ),
    "validation-of-arrays-by-a-stream": (
        lambda: {"x": X, "y": Y, "batch_size": 16, "validation_split": 0.5, "validation_data": Stream(X, Y, W)},
        build_weighted,
    ),
    "validation-steps": (
        lambda: {"x": generator(), "steps_per_epoch": 3, "validation_data": generator(), "validation_steps": 2}, build,
    ),
    "validation-frequency": (
        lambda: {"x": Stream(), "validation_data": Stream(), "validation_steps": 2, "validation_freq": [2, 3]}, build,
    ),
    "validation-by-a-generator-that-ends": (lambda: {"x": X, "y": Y, "validation_data": generator(5)}, build),
    "validation-by-noise": (lambda: {"x": Noisy(), "validation_data": Noisy(), "validation_freq": 2}, build),
    "initial-epoch": (lambda: {"x": Stream(), "initial_epoch": 2, "epochs": 4}, build),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_leaves_what_keras_leaves(name):
    """All bits of two fits, and each call of the data's methods, in their order."""
    arguments, make = STREAMS[name]
    read = []

    def fits():
        made = [{"epochs": 3} | arguments() for _ in range(2)]
        read.append([data for fit in made for data in (fit["x"], fit.get("validation_data")) if hasattr(data, "calls")])
        return made

    theirs, ours = run(by_keras, make, 3, fits()), run(by_kohort, make, 3, fits())

    assert differences(theirs, ours) == []
    assert [data.calls for data in read[0]] == [data.calls for data in read[1]]


def test_warnings_are_keras_own():
    def fit(train):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(build(), x=generator(7), steps_per_epoch=5, epochs=3, verbose=0)
        return [(w.category, str(w.message)) for w in caught]

    theirs = fit(keras.Model.fit)

    assert fit(kohort.fit) == theirs
    assert sum("ran out of data" in text for _, text in theirs) >= 1
