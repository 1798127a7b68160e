"""Streams of batches, of every kind that Keras reads, and models to train on them."""

import jax.numpy as jnp
import keras
import numpy as np
import scipy.sparse
from keras import layers

RNG = np.random.default_rng(5)
X = RNG.normal(size=(45, 3)).astype("float32")
Y = (X[:, :1] * X[:, 1:2] > 0).astype("float32")
W = np.linspace(0.2, 2, 45).astype("float32")
CLASSES = (2.9 * (Y[:, 0] + 1) / 2).astype("int64")  # 1 and 2


# --- streams ----------------------------------------------------------------------------------------------------------


class Stream(keras.utils.PyDataset):
    """Batches of arrays; writes down how it is read."""

    def __init__(self, *arrays, batch_size=8, form=tuple, **options):
        super().__init__(**options)
        self.arrays, self.batch_size, self.form = arrays or (X[:40], Y[:40]), batch_size, form
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


class Sparse(Stream):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return scipy.sparse.csr_matrix(np.where(np.abs(x) > 0.7, x, 0)), y


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
        steps = (3, 5, 5, 3, 3, 5)[index]
        return np.tile(X[:4, None, :], (1, steps, 1)) * (index + 1), Y[:4]


# --- models -----------------------------------------------------------------------------------------------------------


def build(hidden=layers.Dropout, optimizer="adam", **options):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(6, "relu"), hidden(0.2), layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.get(optimizer), "binary_crossentropy", metrics=["accuracy"], **options)
    return model


def build_normalized():
    return build(hidden=lambda rate: layers.BatchNormalization(momentum=rate))


def build_weighted():
    return build(weighted_metrics=["mae"])


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


def build_sparse():
    inputs = keras.Input((3,), sparse=True)
    model = keras.Model(inputs, layers.Dense(1, "sigmoid")(layers.Dense(3, "tanh")(inputs)))
    model.compile("adam", "mse")
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
