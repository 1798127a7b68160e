"""What the tests of pictures share: small networks, stand-ins that count their calls, a look at text."""

import itertools
import unittest.mock

import keras
import matplotlib.text
import numpy as np

import kohort
from kohort.history import CohortHistory, success_rate

LIMITS = {"xlim": (-0.5, 1.5), "ylim": (-1, 2)}
X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "float32")
Y = np.array([0.0, 1.0, 1.0, 0.0])


def network(units=1, activation=None, features=2, hidden=(6,)):
    """Returns a network of the same weights each time, not compiled."""
    keras.utils.set_random_seed(7)
    layers = [keras.layers.Dense(n, "tanh", bias_initializer="normal") for n in hidden]
    last = keras.layers.Dense(units, activation, bias_initializer="normal")
    return keras.Sequential([keras.Input((features,)), *layers, last])


def points(record):
    """Returns the points of a record's grid, for records of two features."""
    return np.column_stack((record.xx0.ravel(), record.xx1.ravel())).astype("float32")


def boundaries(ax):
    """Returns the points of the lines on axes that are drawn where a class's lead is zero, one array a line."""
    lines = [each for each in ax.collections if hasattr(each, "levels") and not each.filled]
    assert all(list(line.levels) == [0] and line.get_visible() and np.all(line.get_linewidths()) for line in lines)
    return [np.concatenate([path.vertices for path in line.get_paths()]) for line in lines]


class Model:
    """Answers like a Keras model and counts how often it is asked."""

    def __init__(self, answer):
        self.answer, self.calls = answer, 0

    def predict(self, x):
        self.calls += 1
        return self.answer(x)


class Cohort:
    """Answers like a cohort whose member with seed s says `s * x[:, 0]`, and counts how often it is asked."""

    def __init__(self, seeds=(5, 2, 9), history=None, answer=None):
        self.seeds, self.history, self.calls = tuple(seeds), history, 0
        self.answer = answer or (lambda x: np.stack([seed * x[:, :1] for seed in self.seeds]))

    def predict(self, x, batch_size=None, verbose=0):
        self.calls += 1
        return self.answer(x)

    def direction(self, metric):
        return "down" if metric.endswith("loss") else "up"


def recorded(seeds=(5, 2, 9), **metrics):
    """Returns the history of some members."""
    values = {name: np.asarray(rows, float) for name, rows in metrics.items()}
    return CohortHistory(values, seeds=list(seeds), epoch=list(range(len(next(iter(values.values()))[0]))))


def compiled(optimizer="adam", **options):
    """Returns the network, compiled."""
    model = network(**options)
    model.compile(optimizer, "mse")
    return model


def trained_cohort(seeds=(4, 0, 7), epochs=3, x=X, **options):
    """Returns a cohort of the network, trained on XOR, or on other samples of these classes."""
    cohort = kohort.Cohort(compiled(**options), seeds=list(seeds))
    cohort.fit(x, Y, epochs=epochs, verbose=0)
    return cohort


class Trial:
    """Answers like a trial of a study, of which k members solved it."""

    def __init__(self, parameters, k, members):
        self.parameters, self.k, self.members = parameters, k, members

    def __len__(self):
        return self.members

    def direction(self, metric):
        return "down"

    def success_rate(self, criterion=None, *, confidence=0.95, **bounds):
        return success_rate(np.arange(self.members) < self.k, confidence)


class Study:
    """Answers like a study of every combination, of whose members as many solved it as `k` says, or half of them."""

    def __init__(self, grid, k=None, members=20):
        settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        self.trials = [Trial(each, k(**each) if k else members // 2, members) for each in settings]

    def trial(self, **parameters):
        raise NotImplementedError


class Member:
    """One of several networks that share a compiled model, which has its weights whenever it is asked."""

    def __init__(self, model, history):
        self.model, self.weights, self.history = model, model.get_weights(), history

    def predict(self, x, verbose=0):
        self.model.set_weights(self.weights)
        return self.model.predict(x, verbose=verbose)


def one_by_one(model, seeds, epochs, x=X, y=Y, **options):
    """Trains the member of each seed by plain Keras, one after the other in one model, which is compiled once."""
    shared, members = keras.models.clone_model(model), []
    shared.compile_from_config(model.get_compile_config())
    shared.optimizer.build(shared.trainable_variables)
    untrained = [np.array(variable.value) for variable in shared.optimizer.variables]
    for seed in seeds:
        keras.utils.set_random_seed(seed)
        shared.set_weights(keras.models.clone_model(model).get_weights())
        for variable, value in zip(shared.optimizer.variables, untrained, strict=True):
            variable.assign(value)
        members.append(Member(shared, shared.fit(x, y, epochs=epochs, verbose=0, **options).history))
    return members


def text_boxes(figure):
    """Draws a figure and returns the texts that are to be seen in it, each with its place in pixels."""
    drawn, draw = {}, matplotlib.text.Text.draw

    def noted(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn[id(text)] = text
        return draw(text, renderer)

    with unittest.mock.patch.object(matplotlib.text.Text, "draw", noted):
        figure.canvas.draw()
    return [(text.get_text(), text.get_window_extent()) for text in drawn.values()]


def overlaps(figure):
    """Returns the pairs of texts of a figure of which one stands on the other, and texts that leave the figure."""
    boxes, (width, height) = text_boxes(figure), figure.canvas.get_width_height()
    crossed = [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[:i] if box.overlaps(other)]
    outside = [a for a, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
    return crossed + outside
