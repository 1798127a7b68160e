"""`evaluate` and `predict` while kohort is installed: Keras's results, in one program where a loop asks often."""

import signal

import keras
import numpy as np
import pytest
from keras import layers
from oracle import differences

import kohort
from kohort import passes
from kohort.shapes import STEPS_OF_A_COMPILATION

RNG = np.random.default_rng(4)
X = RNG.normal(size=(43, 3)).astype("float32")
Y = RNG.integers(0, 3, 43)
WEIGHTS = RNG.uniform(0.5, 2, 43).astype("float32")


def build(*noise, **options):
    stack = [layers.Dense(5, "tanh"), *noise, layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((3,)), *stack])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return model


@pytest.fixture
def asked(monkeypatch):
    """The calls that ran compiled; they pay at once."""
    monkeypatch.setattr("kohort.shapes.STEPS_OF_A_COMPILATION", 0)
    calls = []
    waited = passes._waited
    monkeypatch.setattr(passes, "_waited", lambda compute: calls.append(1) or waited(compute))
    return calls


def values(model):
    return [np.asarray(v.value) for v in [*model.variables, *model.metrics_variables]]


CALLS = {
    "plain": lambda m: m.evaluate(X, Y, verbose=0),
    "dict": lambda m: m.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True),
    "weights": lambda m: m.evaluate(X, Y, 43, 0, WEIGHTS),
    "predict": lambda m: m.predict(X, verbose=0),
    "small batches": lambda m: m.predict(X, 7, 0),
}


@pytest.mark.many
@pytest.mark.parametrize("name", CALLS)
def test_a_pass_gives_what_keras_gives_and_leaves_what_it_leaves(name, asked):
    keras.utils.set_random_seed(2)
    model = build()
    expected = CALLS[name](model)
    left = values(model)
    model.evaluate(X[:5], Y[:5], verbose=0)
    with kohort.install():
        found = CALLS[name](model)
        again = CALLS[name](model)
    assert asked == [1, 1]
    assert type(found) is type(expected)
    if name in ("predict", "small batches"):
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == again == expected
        assert differences(left, values(model)) == []


def test_several_inputs_and_outputs(asked):
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    outputs = {"sum": layers.Dense(1)(left + right), "first": layers.Dense(2)(left)}
    model = keras.Model({"left": left, "right": right}, outputs)
    model.compile("sgd", {"sum": "mse", "first": "mae"})
    x, y = {"left": X, "right": X[::-1]}, {"sum": X[:, :1], "first": X[:, 1:]}
    expected = model.evaluate(x, y, verbose=0, return_dict=True), model.predict(x, verbose=0)
    with kohort.install():
        found = model.evaluate(x, y, verbose=0, return_dict=True), model.predict(x, verbose=0)
    assert asked == [1, 1]
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for output in outputs:
        np.testing.assert_array_equal(found[1][output], expected[1][output])


def test_predictions_can_be_written(asked):
    model = build()
    model.predict(X, verbose=0)
    with kohort.install():
        model.predict(X, verbose=0)[0] = 0  # as Keras's


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[8 * index : 8 * index + 8], Y[8 * index : 8 * index + 8]


LEFT_TO_KERAS = {
    "not silent": lambda m: m.evaluate(X, Y),
    "a callback": lambda m: m.evaluate(X, Y, verbose=0, callbacks=[keras.callbacks.Callback()]),
    "steps": lambda m: m.predict(X, verbose=0, steps=1),
    "a stream": lambda m: m.predict(Batches(), verbose=0),
    "not finite": lambda m: m.predict(X * np.nan, verbose=0),
    "a batch": lambda m: m.predict_on_batch(X),
}


@pytest.mark.parametrize("name", LEFT_TO_KERAS)
def test_what_keras_does_itself(name, asked, capsys):
    model = build()
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    expected = LEFT_TO_KERAS[name](model)
    with kohort.install():
        np.testing.assert_array_equal(LEFT_TO_KERAS[name](model), expected)
    assert asked == []


def test_layers_that_may_count_are_left_to_keras(asked):
    model = build(layers.Dropout(0.2))
    model.predict(X, verbose=0)
    model.evaluate(X, Y, verbose=0)
    with kohort.install():
        model.predict(X, verbose=0)
        assert asked == []
        model.evaluate(X, Y, verbose=0)  # which keeps the state
    assert asked == [1]


def test_keras_says_what_is_wrong(asked):
    model = build()
    model.evaluate(X, Y, verbose=0)
    with kohort.install():
        with pytest.raises(ValueError, match="Arguments not recognized"):
            model.evaluate(X, Y, verbose=0, rounds=3)
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            model.predict(X, rounds=3)
        with pytest.raises(TypeError):
            model.evaluate(X, Y, batch_size="8", verbose=0)
        with pytest.raises(ValueError, match="Data cardinality"):
            model.evaluate(X, Y[:4], verbose=0)
    assert asked == []


def test_ctrl_c_ends_the_waiting_and_leaves_the_state(asked, monkeypatch):
    model = build()
    model.evaluate(X, Y, verbose=0)
    left = values(model)
    monkeypatch.setattr(passes.engine, "wait", lambda *_: signal.raise_signal(signal.SIGINT))
    with kohort.install(), pytest.raises(KeyboardInterrupt):
        model.evaluate(X[:20], Y[:20], verbose=0)
    assert asked == [1]
    assert differences(left, values(model)) == []


def test_only_a_loop_that_asks_often_is_compiled(asked, monkeypatch):
    monkeypatch.setattr("kohort.shapes.STEPS_OF_A_COMPILATION", 5)
    assert STEPS_OF_A_COMPILATION > 1000  # what it is outside this test
    model = build()
    with kohort.install():
        counts = []
        for _ in range(5):  # two batches each
            model.evaluate(X, Y, verbose=0)
            counts.append(len(asked))
        assert counts == [0, 0, 0, 1, 2]  # not before Keras has evaluated the model once
        model.evaluate(X[:40], Y[:40], verbose=0)  # other data
        assert len(asked) == 2
        model.compile("adam", "sparse_categorical_crossentropy")
        model.evaluate(X, Y, verbose=0)
    assert len(asked) == 2


def test_training_does_not_go_on_with_stale_metrics(asked):
    """The state after a compiled pass is the one that the next fit begins with."""
    models = [build() for _ in range(2)]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.evaluate(X, Y, verbose=0)
    keras.utils.set_random_seed(1)
    models[0].evaluate(X, Y, verbose=0)
    expected = models[0].fit(X, Y, epochs=2, verbose=0).history
    keras.utils.set_random_seed(1)
    with kohort.install():
        models[1].evaluate(X, Y, verbose=0)
        found = models[1].fit(X, Y, epochs=2, verbose=0).history
    assert asked == [1]
    assert found == expected


class Counting(keras.Sequential):
    made = 0

    def make_predict_function(self, force=False):
        Counting.made += 1
        return super().make_predict_function(force)


def test_a_function_of_ones_own_is_called(asked):
    model = Counting([keras.Input((3,)), layers.Dense(3)])
    model.compile("sgd", "mse")
    with kohort.install():
        for _ in range(3):
            model.predict(X, verbose=0)

    assert Counting.made == 3
    assert asked == []
