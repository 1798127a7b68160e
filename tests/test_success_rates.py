"""Success rates: what a study counts is what networks in plain NumPy do, which nobody of kohort has a hand in."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy.stats import binomtest

import kohort

X, Y = kohort.data.xor()
EPOCHS, BOUND, RATE = 600, 0.01, 1e-2
SIMULATED, SEEDS = 2000, 8000

pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def network(hidden, activation):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(hidden, activation), layers.Dense(1)])
    model.compile(keras.optimizers.RMSprop(RATE), "mse")
    return model


def simulated(hidden, activation, seeds, epochs, rate=1e-2, bound=0.01):
    """Trains networks on XOR in plain NumPy, each from weights of its own; returns which of them solved it.

    Glorot-uniform kernels, zero biases, RMSprop as Keras has it (rho 0.9, epsilon 1e-7 beside the root), mean squared
    error over the four rows in one batch.
    """
    random = np.random.default_rng(99)
    act, slope = {
        "relu": (lambda z: np.maximum(z, 0), lambda z, a: (z > 0) * 1.0),
        "tanh": (np.tanh, lambda z, a: 1 - a**2),
        "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z, a: a * (1 - a)),
    }[activation]

    def glorot(a, b):
        limit = np.sqrt(6 / (a + b))
        return random.uniform(-limit, limit, (seeds, a, b))

    weights = [glorot(2, hidden), np.zeros((seeds, 1, hidden)), glorot(hidden, 1), np.zeros((seeds, 1, 1))]
    squares = [np.zeros_like(w) for w in weights]
    x, y = X.astype(float), Y.reshape(-1, 1).astype(float)
    for _ in range(epochs):
        z = x @ weights[0] + weights[1]
        a = act(z)
        error = a @ weights[2] + weights[3] - y
        loss = (error**2).mean(axis=(1, 2))
        d = 2 * error / len(x)
        dz = d @ weights[2].transpose(0, 2, 1) * slope(z, a)
        gradients = [x.T @ dz, dz.sum(1, keepdims=True), a.transpose(0, 2, 1) @ d, d.sum(1, keepdims=True)]
        for w, s, g in zip(weights, squares, gradients, strict=True):
            s[:] = 0.9 * s + 0.1 * g**2
            w -= rate * g / np.sqrt(s + 1e-7)
    return loss <= bound


def test_success_rates_agree_with_an_independent_simulation(tmp_path):
    """Each lies within the 99 % interval that the 2,000 networks of the simulation give by themselves.

    It does so in every run of the test, as both begin from fixed seeds. Chance has its part in kohort's members, too:
    with as many of them, one rate in fifteen would lie outside were all well; so there are four times as many.
    """
    grid = {"hidden": [2, 4], "activation": ["relu", "tanh", "sigmoid"]}
    study = kohort.Study(tmp_path / "a.kohort", network, grid, SEEDS)
    study.run(X, Y, epochs=EPOCHS, verbose=0)
    table = study.table(loss=BOUND)

    assert table["seeds"].tolist() == [SEEDS] * 6
    assert np.ptp(table["rate"]) > 0.3  # there is something to agree about
    for row in table.rows:
        solved = simulated(row["hidden"], row["activation"], SIMULATED, EPOCHS, RATE, BOUND)
        theirs = binomtest(int(solved.sum()), SIMULATED).proportion_ci(0.99, method="wilson")
        assert theirs.low <= row["rate"] <= theirs.high, (row, theirs)
