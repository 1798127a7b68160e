"""P7: a wrong argument raises at once, says what is accepted, what came and what to do, and leaves all as it was."""

import random
import re
import warnings
from contextlib import contextmanager

import jaxtyping
import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from oracle import by_keras, differences, outcome

import kohort

RNG = np.random.default_rng(3)
X = RNG.normal(size=(12, 2)).astype("float32")
Y = (X[:, 0] > 0).astype("float32")
CLASSES = np.arange(12) % 3
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]


@pytest.fixture(autouse=True)
def annotations_unchecked():
    """Turns the checks of kohort's annotations off: whoever uses kohort has none, and must be told by kohort itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# `argument` must be <accepted>. Received: <what came>. <one next step>.
TEMPLATE = re.compile(r"`[^`]+` must .+[^.]\. Received: .+[^.]\. [A-Z].+[^.]\.", re.DOTALL)


def left(thing):
    """All that a refused call could have changed."""
    if isinstance(thing, kohort.Cohort):
        trained = thing._members.trained
        return [trained and id(trained), left(thing._template.network)]
    if isinstance(thing, keras.Model):
        parts = [getattr(thing, name, None) for name in ("_compile_metrics", "_compile_loss", "optimizer")]
        parts = [part for part in [*thing._flatten_layers(), *parts] if part is not None]
        variables = [variable for part in parts for variable in part.variables]
        return [[np.asarray(v.value) for v in variables], [bool(part.built) for part in parts]]
    return id(thing)


@contextmanager
def untouched(*things):
    generators = [np.random.get_state(), random.getstate()]
    before = [*map(left, things), generators]
    yield
    assert differences(before, [*map(left, things), [np.random.get_state(), random.getstate()]]) == []


@contextmanager
def refused(error, match, *things):
    """Expects an error of the template that matches, and that nothing is changed."""
    with untouched(*things), pytest.raises(error, match=match) as caught:
        yield
    assert type(caught.value) is error
    assert TEMPLATE.fullmatch(str(caught.value)), str(caught.value)


def classifier(*middle, units=1, activation="sigmoid", loss="binary_crossentropy", **options):
    middle = middle or (layers.Dense(4, "relu"),)
    model = keras.Sequential([keras.Input((2,), name="points"), *middle, layers.Dense(units, activation)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, **options)
    return model


def mean_prediction(y, p):
    return keras.ops.mean(p)


@pytest.fixture(scope="module")
def trained_model():
    keras.utils.set_random_seed(0)
    model = classifier()
    kohort.fit(model, X, Y, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def trained_cohort():
    keras.utils.set_random_seed(0)
    model = classifier(metrics=["accuracy", mean_prediction, keras.metrics.F1Score(threshold=0.5)])
    cohort = kohort.Cohort(model, [3, 17, 5])
    cohort.fit(X, Y[:, None], epochs=2, verbose=0)
    return cohort


DOORS = ["fit", "fit again", "Cohort.fit", "Cohort.fit again"]


@pytest.fixture(params=DOORS)
def door(request, trained_model, trained_cohort):
    """A way to train, and what must be left as it is when it is refused."""
    if request.param.startswith("Cohort"):
        cohort = trained_cohort if request.param.endswith("again") else kohort.Cohort(classifier(), 2)
        return cohort.fit, cohort
    model = trained_model if request.param.endswith("again") else classifier()
    return lambda *args, **options: kohort.fit(model, *args, **options), model


def spoiled(array, value, place):
    array = np.array(array)
    array[place] = value
    return array


NAN_X = spoiled(X, np.nan, (3, 1))
TEXT = pd.DataFrame({"a": X[:, 0], "b": ["red", "blue"] * 6})

DATA = {
    "no x": ({"x": None}, TypeError, r"`x` must be an array of samples\. Received: x=None"),
    "x of nothing": ({"x": []}, TypeError, r"`x` must be an array of samples\. Received: x=\[\]"),
    "shorter y": ({"y": Y[:-1]}, ValueError, r"`y` must have one row per sample of `x` \(12\)\. .*shape=\(11,\)"),
    "longer x": ({"x": np.zeros((13, 2))}, ValueError, r"`y` must have one row per sample of `x` \(13\)"),
    "shorter sample_weight": (
        {"sample_weight": np.ones(3)},
        ValueError,
        r"`sample_weight` must have one row per sample of `x` \(12\)\. .*shape=\(3,\)",
    ),
    "empty x": ({"x": X[:0], "y": Y[:0]}, ValueError, r"`x` must have at least one sample\. .*shape=\(0, 2\)"),
    "scalar x": ({"x": np.float32(3)}, ValueError, r"`x` must have an axis of samples\. .*shape=\(\)"),
    "wider x": ({"x": np.zeros((12, 3))}, ValueError, r"`x` must have samples of shape \(2,\), .*`points`.*\(12, 3\)"),
    "narrower x": ({"x": X[:, 0]}, ValueError, r"`x` must have samples of shape \(2,\), .*shape=\(12,\)"),
    "two arrays": ({"x": [X, X]}, ValueError, r"`x` must have 1 array\(s\), one per input.* x of 2 array\(s\)"),
    "a dict without the input": ({"x": {"a": X}}, ValueError, r"`x` must have the keys 'points'.* keys 'a'\."),
    "a dict of wider x": ({"x": {"points": ONE_HOT}}, ValueError, r"`x\['points'\]` must have samples of shape \(2,\)"),
    "NaN in x": (
        {"x": NAN_X},
        ValueError,
        r"`x` must hold finite numbers .*x\[3, 1\]=nan, shape=\(12, 2\), dtype=float32",
    ),
    "NaN in a table": ({"x": pd.DataFrame(NAN_X)}, ValueError, r"`x` must hold finite numbers .*x\[3, 1\]=nan"),
    "infinity in x": ({"x": spoiled(X, -np.inf, (0, 0))}, ValueError, r"`x` must hold finite .*x\[0, 0\]=-inf"),
    "too large for float32": ({"x": spoiled(X.astype(float), 1e39, (2, 0))}, ValueError, r"at most 3\.4e\+38.*=1e\+39"),
    "NaN in y": ({"y": spoiled(Y, np.nan, 7)}, ValueError, r"`y` must hold finite numbers .*y\[7\]=nan"),
    "infinity in y": ({"y": spoiled(Y, np.inf, 7)}, ValueError, r"`y` must hold finite numbers .*y\[7\]=inf"),
    "NaN in sample_weight": (
        {"sample_weight": spoiled(Y, np.nan, 1)},
        ValueError,
        r"`sample_weight` must hold finite numbers .*sample_weight\[1\]=nan",
    ),
    "text": ({"x": X.astype(str)}, TypeError, r"`x` must hold numbers, .*shape=\(12, 2\), dtype=<U\d+"),
    "objects": ({"x": X.astype(object)}, TypeError, r"`x` must hold numbers, .*dtype=object\. .*astype\(\"float32\"\)"),
    "a string": ({"x": "iris"}, TypeError, r"`x` must be an array of numbers .*x='iris' of type str\. Encode text"),
    "a list of strings": (
        {"x": ["red"] * 12},
        TypeError,
        r"`x\[0\]` must be an array of numbers .*x\[0\]='red' of type str\. Encode text as numbers first",
    ),
    "a list of lists": (
        {"x": X.tolist()},
        TypeError,
        r"`x\[0\]\[0\]` must be an array .*float\. .*asarray\(x\)` first",
    ),
    "a column of text": (
        {"x": TEXT},
        TypeError,
        r"`x` must hold numbers, .*DataFrame.*shape=\(12, 2\), dtype=.*Ordinal",
    ),
    "a column of truth values": (
        {"x": pd.DataFrame({"a": X[:, 0], "b": X[:, 1] > 0})},
        TypeError,
        r"`x` must hold numbers of one type\. .*dtype=object",
    ),
    "pandas's own numbers": (
        {"x": pd.DataFrame(X).astype("Float32")},
        TypeError,
        r"of NumPy's types\. .*dtype=Float32",
    ),
    "categories in y": (
        {"y": pd.Series(["a", "b"] * 6, dtype="category")},
        TypeError,
        r"`y` must hold numbers, .*sklearn.preprocessing.LabelEncoder",
    ),
    "dates": ({"x": np.zeros((12, 2), "datetime64[s]")}, TypeError, r"`x` must hold numbers, .*dtype=datetime64\[s\]"),
    "complex numbers": ({"x": X + 1j}, TypeError, r"`x` must hold numbers, .*dtype=complex64"),
    "int64 beyond int32": (
        {"x": spoiled(np.zeros((12, 2), "int64"), 2**40, (5, 1))},
        ValueError,
        rf"`x` must hold integers of at most {2**31 - 1} in size .* is {2**40} in size",
    ),
    "the least int64": (
        {"x": spoiled(np.zeros((12, 2), "int64"), -(2**63), (5, 1))},
        ValueError,
        rf"`x` must hold integers of at most {2**31 - 1} in size .* is {2**63} in size",
    ),
    "no y": (
        {"y": None},
        ValueError,
        r"`y` must be given, because the model was compiled with a loss\. Received: y=None",
    ),
    "targets below 0": (
        {"y": 2 * Y - 1},
        ValueError,
        r"`y` must hold numbers from 0 to 1, as the loss binary_crossentropy .*y\[\d+\]=-1\.0, shape=\(12,\)",
    ),
    "targets above 1": ({"y": 2 * Y}, ValueError, r"`y` must hold numbers from 0 to 1, .*y\[\d+\]=2\.0"),
}
VALIDATION_DATA = {
    "an array": (
        X,
        TypeError,
        r"`validation_data` must be a tuple \(x, y\) or .*validation_data=<ndarray>, shape=\(12, 2\)",
    ),
    "a dict": ({"x": X, "y": Y}, TypeError, r"`validation_data` must be a tuple .*validation_data=\{'x': "),
    "one array": ((X,), TypeError, r"`validation_data` must be a tuple"),
    "four arrays": ((X, Y, Y, Y), TypeError, r"`validation_data` must be a tuple"),
    "no x": ((None, Y), TypeError, r"`validation_data\[0\]` must be an array of samples"),
    "no y": ((X, None), ValueError, r"`validation_data\[1\]` must be given"),
    "no rows": ((X[:0], Y[:0]), ValueError, r"`validation_data\[0\]` must have at least one sample"),
    "shorter y": (
        (X, Y[:3]),
        ValueError,
        r"`validation_data\[1\]` must have one row per sample of `validation_data\[0\]`",
    ),
    "wider x": ((ONE_HOT, Y), ValueError, r"`validation_data\[0\]` must have samples of shape \(2,\)"),
    "NaN in x": ((NAN_X, Y), ValueError, r"`validation_data\[0\]` must hold finite .*validation_data\[0\]\[3, 1\]=nan"),
    "NaN in y": ((X, spoiled(Y, np.nan, 4)), ValueError, r"`validation_data\[1\]` must hold finite numbers"),
    "NaN in weights": ((X, Y, spoiled(Y, np.nan, 4)), ValueError, r"`validation_data\[2\]` must hold finite numbers"),
    "text": ((X.astype(str), Y), TypeError, r"`validation_data\[0\]` must hold numbers"),
    "labels out of range": ((X, Y + 1), ValueError, r"`validation_data\[1\]` must hold numbers from 0 to 1"),
}
WHOLE = r"must be an integer of at least 1\. Received: "
RECIPE = {
    "epochs 0": ({"epochs": 0}, ValueError, rf"`epochs` {WHOLE}epochs=0\. Pass a whole number such as 10\."),
    "epochs negative": ({"epochs": -3}, ValueError, rf"`epochs` {WHOLE}epochs=-3"),
    "epochs fractional": ({"epochs": 2.5}, ValueError, rf"`epochs` {WHOLE}epochs=2\.5"),
    "epochs a whole float": ({"epochs": 3.0}, ValueError, rf"`epochs` {WHOLE}epochs=3\.0"),
    "epochs NaN": ({"epochs": float("nan")}, ValueError, rf"`epochs` {WHOLE}epochs=nan"),
    "epochs a string": ({"epochs": "10"}, TypeError, rf"`epochs` {WHOLE}epochs='10'"),
    "epochs True": ({"epochs": True}, TypeError, rf"`epochs` {WHOLE}epochs=True"),
    "epochs None": ({"epochs": None}, TypeError, rf"`epochs` {WHOLE}epochs=None"),
    "batch_size 0": ({"batch_size": 0}, ValueError, rf"`batch_size` {WHOLE}batch_size=0"),
    "batch_size negative": ({"batch_size": -1}, ValueError, rf"`batch_size` {WHOLE}batch_size=-1"),
    "batch_size fractional": ({"batch_size": 0.5}, ValueError, rf"`batch_size` {WHOLE}batch_size=0\.5"),
    "batch_size a string": ({"batch_size": "all"}, TypeError, rf"`batch_size` {WHOLE}batch_size='all'"),
    "initial_epoch negative": ({"initial_epoch": -1}, ValueError, r"`initial_epoch` must be an integer of at least 0"),
    "steps_per_epoch 0": ({"steps_per_epoch": 0}, ValueError, rf"`steps_per_epoch` {WHOLE}steps_per_epoch=0"),
    "validation_steps 0": ({"validation_steps": 0}, ValueError, rf"`validation_steps` {WHOLE}validation_steps=0"),
    "validation_batch_size 0": ({"validation_batch_size": 0}, ValueError, rf"`validation_batch_size` {WHOLE}"),
    "validation_freq 0": ({"validation_freq": 0}, ValueError, rf"`validation_freq` {WHOLE}validation_freq=0"),
    "validation_freq a list with 0": ({"validation_freq": [1, 0]}, ValueError, rf"`validation_freq` {WHOLE}"),
    "validation_freq a tuple": ({"validation_freq": (1, 2)}, TypeError, rf"`validation_freq` {WHOLE}.*=\(1, 2\)"),
    "validation_split 1": ({"validation_split": 1.0}, ValueError, r"`validation_split` must be a number from 0 up to"),
    "validation_split negative": ({"validation_split": -0.1}, ValueError, r"Received: validation_split=-0\.1\."),
    "validation_split NaN": ({"validation_split": float("nan")}, ValueError, r"Received: validation_split=nan\."),
    "validation_split a string": ({"validation_split": "0.2"}, TypeError, r"Received: validation_split='0\.2'\."),
    "validation_split True": ({"validation_split": True}, TypeError, r"Received: validation_split=True\."),
    "validation_split of nothing": (
        {"validation_split": 0.01, "x": X[:1], "y": Y[:1]},
        ValueError,
        r"`validation_split` must leave at least one of the 1 sample\(s\) on each side\. .*validation_split=0\.01",
    ),
    "validation_split of all": (
        {"validation_split": 0.95},
        ValueError,
        r"`validation_split` must leave at least one of the 12 sample\(s\) on each side",
    ),
    "shuffle a word": ({"shuffle": "yes"}, ValueError, r"`shuffle` must be True, False or 'batch'\. .*shuffle='yes'"),
    "shuffle None": ({"shuffle": None}, ValueError, r"`shuffle` must be True, False or 'batch'\. .*shuffle=None"),
    "shuffle an array": ({"shuffle": X}, ValueError, r"`shuffle` must be True, False or 'batch'"),
    "verbose a word": ({"verbose": "yes"}, ValueError, r"`verbose` must be 'auto', 0, 1 or 2\. .*verbose='yes'"),
    "class_weight an array": (
        {"class_weight": np.ones(2)},
        TypeError,
        r"`class_weight` must be a dict .*class_weight=<ndarray>, shape=\(2,\), .*dict\(enumerate\(weights\)\)",
    ),
    "class_weight by name": ({"class_weight": {"red": 1.0}}, ValueError, r"`class_weight` must map .*\['red'\]=1\.0"),
    "class_weight by half": ({"class_weight": {0.5: 1.0}}, ValueError, r"`class_weight` must map .*\[0\.5\]=1\.0"),
    "class_weight of infinity": ({"class_weight": {float("inf"): 1.0}}, ValueError, r"must map .*\[inf\]=1\.0"),
    "class_weight of NaN": ({"class_weight": {float("nan"): 1.0}}, ValueError, r"must map .*\[nan\]=1\.0"),
    "class_weight negative": ({"class_weight": {0: 1, 1: -2}}, ValueError, r"`class_weight` must map .*\[1\]=-2"),
    "class_weight NaN": ({"class_weight": {0: float("nan")}}, ValueError, r"`class_weight` must map .*\[0\]=nan"),
    "class_weight infinite": ({"class_weight": {0: float("inf")}}, ValueError, r"`class_weight` must map .*\[0\]=inf"),
    "class_weight a string": ({"class_weight": {0: "2"}}, ValueError, r"`class_weight` must map .*\[0\]='2'"),
    "class_weight and sample_weight": (
        {"class_weight": {0: 1.0, 1: 2.0}, "sample_weight": np.ones(12)},
        ValueError,
        r"`class_weight` must be left out where `sample_weight` is given\. .*class_weight=\{0: 1\.0, 1: 2\.0\}",
    ),
    "class_weight for several targets": (
        {"class_weight": {0: 1.0}, "y": [Y]},
        ValueError,
        r"`class_weight` must be left out unless `y` is one array\. .* 1 arrays as y",
    ),
}


@pytest.mark.parametrize("name", [*DATA, *RECIPE])
def test_a_wrong_argument_of_fit(name, door):
    train, thing = door
    arguments, error, match = (DATA | RECIPE)[name]
    with refused(error, match, thing):
        train(**{"x": X, "y": Y, "verbose": 0} | arguments)


@pytest.mark.parametrize("name", VALIDATION_DATA)
def test_wrong_validation_data(name, door):
    train, thing = door
    validation_data, error, match = VALIDATION_DATA[name]
    with refused(error, match, thing):
        train(X, Y, verbose=0, validation_data=validation_data)


# What Keras runs itself is checked as well.


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": False}])
def test_a_fit_that_keras_runs_is_checked_too(options):
    model = classifier(metrics=[mean_prediction], **options)
    with refused(ValueError, "`x` must hold finite numbers", model):
        kohort.fit(model, NAN_X, Y, verbose=0)
    with refused(ValueError, "`batch_size` must be", model):
        kohort.fit(model, X, Y, batch_size=0, verbose=0)


def test_a_fit_with_callbacks_that_keras_runs_is_checked_too():
    model = classifier()
    with refused(ValueError, "`y` must hold numbers from 0 to 1", model):
        kohort.fit(model, X, 3 * Y, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()])


@pytest.mark.parametrize("callbacks", [3, "stop", keras.callbacks.History, [None], [[]], 0])
def test_callbacks_that_are_none(callbacks):
    model = classifier()
    with refused(
        TypeError, "`callbacks` must hold instances of keras.callbacks.Callback. Received: callbacks with", model
    ):
        kohort.fit(model, X, Y, verbose=0, callbacks=callbacks)


# Targets and losses.


def three_classes(loss, **options):
    return classifier(units=3, activation="softmax", loss=loss, **options)


SPARSE = {
    "name": "sparse_categorical_crossentropy",
    "class name": "SparseCategoricalCrossentropy",
    "function": keras.losses.sparse_categorical_crossentropy,
    "object": keras.losses.SparseCategoricalCrossentropy(),
    "list": ["sparse_categorical_crossentropy"],
}
LABELS = {
    "too large": (CLASSES + 1, r"`y` must hold class numbers from 0 to 2, .*y\[2\]=3, shape=\(12,\), dtype=int64"),
    "negative": (CLASSES - 1, r"`y` must hold class numbers from 0 to 2, .*y\[0\]=-1"),
    "fractional": (CLASSES + 0.5, r"`y` must hold class numbers from 0 to 2, .*y\[0\]=0\.5"),
    "a column": (CLASSES[:, None] + 1, r"`y` must hold class numbers from 0 to 2, .*y\[2, 0\]=3"),
    "one-hot": (ONE_HOT, r"`y` must hold one class number per sample, .*shape=\(12, 3\).* `y\.argmax\(axis=-1\)`"),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("loss", SPARSE)
def test_labels_out_of_range(loss, labels):
    y, match = LABELS[labels]
    model = three_classes(SPARSE[loss])
    with refused(ValueError, match, model):
        kohort.fit(model, X, y, verbose=0)
    cohort = kohort.Cohort(model, 2)
    with refused(ValueError, match, cohort, model):
        cohort.fit(X, y, verbose=0)


def test_labels_out_of_range_for_one_of_two_outputs():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, {"p": layers.Dense(3)(inputs), "q": layers.Dense(1)(inputs)})
    model.compile("sgd", {"p": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "q": "mse"})
    with refused(ValueError, r"`y\['p'\]` must hold class numbers from 0 to 2, .*y\['p'\]\[2\]=3", model):
        kohort.fit(model, X, {"p": CLASSES + 1, "q": Y + 7}, verbose=0)


def test_labels_out_of_range_for_a_model_that_the_fit_builds():
    model = keras.Sequential([layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with refused(ValueError, "`y` must hold class numbers from 0 to 2", model):
        kohort.fit(model, X, CLASSES + 1, verbose=0)


def test_labels_that_only_look_out_of_range():
    ignoring = three_classes(keras.losses.SparseCategoricalCrossentropy(ignore_class=-1))
    kohort.fit(ignoring, X, CLASSES - 1, verbose=0)

    def binary_crossentropy(y, p):
        return keras.ops.mean(keras.ops.square(y - p), axis=-1)

    kohort.fit(classifier(loss=binary_crossentropy), X, 5 * Y, verbose=0)  # the user's own loss takes what it takes


@pytest.mark.parametrize("loss", ["bce", "BinaryCrossentropy", keras.losses.BinaryCrossentropy(from_logits=True)])
def test_targets_of_binary_crossentropy(loss):
    model = classifier(loss=loss)
    with refused(ValueError, "`y` must hold numbers from 0 to 1", model):
        kohort.fit(model, X, 2 * Y - 1, verbose=0)


def test_a_loss_that_does_not_fit_y_loses_nothing():
    model = three_classes("categorical_crossentropy", metrics=["accuracy"])
    fresh = keras.models.clone_model(model)
    fresh.set_weights(model.get_weights())
    fresh.compile(keras.optimizers.SGD(0.1, momentum=0.9), "categorical_crossentropy", metrics=["accuracy"])
    np.random.seed(0)
    with untouched(model), pytest.raises(ValueError, match="must have the same shape"):
        kohort.fit(model, X, CLASSES, verbose=0)
    # "accuracy" is chosen by the shape of `y`: the refused one must not have chosen it.
    ours = outcome(model, kohort.fit(model, X, ONE_HOT, epochs=3, verbose=0))
    np.random.seed(0)
    assert differences(outcome(fresh, by_keras(fresh, x=X, y=ONE_HOT, epochs=3, verbose=0)), ours) == []


def test_a_sample_weight_that_does_not_fit_y_loses_nothing(door):
    train, thing = door
    before = [np.array(w) for w in thing.get_weights()] if isinstance(thing, keras.Model) else thing._members.trained
    with pytest.raises(ValueError, match="Incompatible shapes for broadcasting"):
        train(X, Y, sample_weight=np.ones((12, 3)), verbose=0)
    after = thing.get_weights() if isinstance(thing, keras.Model) else thing._members.trained
    assert after is before or differences(before, after) == []


def test_a_loss_that_does_not_fit_y_loses_nothing_of_a_cohort():
    model = three_classes("categorical_crossentropy", metrics=["accuracy"])
    cohort, twin = kohort.Cohort(model, 3), kohort.Cohort(keras.models.clone_model(model), 3)
    with untouched(cohort, model), pytest.raises(ValueError, match="must have the same shape"):
        cohort.fit(X, CLASSES, verbose=0)
    with pytest.raises(RuntimeError, match=r"`cohort\.history` must come after `cohort\.fit`"):
        ASKED["history"](cohort)
    ours, theirs = (c.fit(X, ONE_HOT, epochs=3, verbose=0) for c in (cohort, twin))
    assert differences(dict(theirs), dict(ours)) == []


# Models.


class WithoutCall(keras.Model):
    pass


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(1)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


def compiled(model, **options):
    model.compile(**{"optimizer": "sgd", "loss": "mse"} | options)
    return model


def functional(units=1):
    inputs = keras.Input((2,))
    return keras.Model(inputs, layers.Dense(units)(inputs))


def estimator():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression()


NO_MODELS = {
    "scikit-learn's": (
        estimator,
        r"`model` must be a keras\.Model\. .*LogisticRegression\(\) of type LogisticRegression",
    ),
    "a string": (lambda: "model.keras", r"`model` must be a keras\.Model\. .*model='model\.keras' of type str"),
    "None": (lambda: None, r"`model` must be a keras\.Model\. Received: model=None of type NoneType"),
    "a layer": (lambda: layers.Dense(1), r"`model` must be a keras\.Model\. .*<Dense name=.* of type Dense"),
    "a class": (lambda: keras.Sequential, r"`model` must be a keras\.Model\. .*Sequential.* of type type"),
    "an array": (lambda: X, r"`model` must be a keras\.Model\. .*model=<ndarray>, shape=\(12, 2\)"),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_a_model_that_is_not_keras(name):
    make, match = NO_MODELS[name]
    model = make()
    with refused(TypeError, match):
        kohort.fit(model, X, Y)
    with refused(TypeError, match):
        kohort.Cohort(model, 3)


def with_learning_rate(value):
    model = compiled(functional())
    model.optimizer.learning_rate = value
    return model


MODELS = {
    "not compiled": (functional, r"`model` must be compiled\. Received: model='functional.*`model\.compile\("),
    "without layers": (
        lambda: compiled(keras.Sequential([])),
        r"`model` must have at least one layer\. .*='sequential",
    ),
    "without call": (
        lambda: compiled(WithoutCall()),
        r"`model` must say how outputs .*WithoutCall, which has no `call`",
    ),
    "a negative learning rate": (lambda: with_learning_rate(-1.0), r"`model` must have a learning rate .*rate=-1\.0"),
    "a learning rate of NaN": (lambda: with_learning_rate(np.nan), r"`model` must have a learning rate .*rate=nan"),
    "an infinite learning rate": (lambda: with_learning_rate(np.inf), r"`model` must have a learning rate .*rate=inf"),
    "a learning rate below a loss scale": (
        lambda: compiled(
            functional(), optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(learning_rate=-2.0))
        ),
        r"`model` must have a learning rate .*learning_rate=-2\.0",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_trained(name):
    make, match = MODELS[name]
    model = make()
    with refused(ValueError, match, model):
        kohort.fit(model, X, Y)
    with refused(ValueError, match, model):
        kohort.Cohort(model, 3)


def test_a_model_that_keras_cannot_build_draws_nothing():
    class NeedsMore(keras.Model):
        def call(self, x, other):
            return x + other

    model = compiled(NeedsMore())
    with untouched(model), pytest.raises(RuntimeError, match="Unable to automatically build the model"):
        kohort.fit(model, X, Y, verbose=0)


NOT_FOR_COHORTS = {
    "subclassed": (lambda: compiled(Subclassed()), r"`model` must be a sequential or functional .*class Subclassed"),
    "unbuilt": (
        lambda: compiled(keras.Sequential([layers.Dense(1)])),
        r"`model` must be built, .*`keras\.Input\(shape",
    ),
}


@pytest.mark.parametrize("name", NOT_FOR_COHORTS)
def test_a_model_that_a_cohort_does_not_take(name):
    make, match = NOT_FOR_COHORTS[name]
    model = make()
    with refused(ValueError, match, model):
        kohort.Cohort(model, 3)


# Cohorts.


def seeds_of(start):
    while True:
        yield start
        start += 1


SEEDS = {
    "0": (0, ValueError, r"`seeds` must be a number of members from 1 to 1000000, .*Received: seeds=0\."),
    "negative": (-1, ValueError, r"`seeds` must be a number of members .*seeds=-1\."),
    "huge": (2**32, ValueError, r"`seeds` must be a number of members .*seeds=4294967296"),
    "one too many": (1_000_001, ValueError, r"`seeds` must be a number of members .*seeds=1000001"),
    "fractional": (2.5, TypeError, r"`seeds` must be an integer or an iterable of integers\. Received: seeds=2\.5"),
    "a string": ("123", TypeError, r"`seeds` must be an integer or an iterable .*seeds='123'"),
    "bytes": (b"123", TypeError, r"`seeds` must be an integer or an iterable .*seeds=b'123'"),
    "True": (True, TypeError, r"`seeds` must be an integer or an iterable .*seeds=True"),
    "None": (None, TypeError, r"`seeds` must be an integer or an iterable .*seeds=None"),
    "none": ([], ValueError, r"`seeds` must hold at least one seed and at most 1000000\. Received: none"),
    "endless": (seeds_of(0), ValueError, r"`seeds` must hold at least one seed and at most 1000000\. Received: more"),
    "one negative": ([3, -1], ValueError, r"`seeds` must hold integers from 0 to 4294967295 .*seeds with -1"),
    "one huge": ([3, 2**32], ValueError, r"`seeds` must hold integers from 0 to 4294967295 .*seeds with 4294967296"),
    "one fractional": ([3, 0.5], TypeError, r"`seeds` must hold integers\. Received: seeds with an element=0\.5"),
    "one a string": (["3"], TypeError, r"`seeds` must hold integers\. Received: seeds with an element='3'"),
    "one True": ([0, True], TypeError, r"`seeds` must hold integers\. Received: seeds with an element=True"),
    "repeated": ([3, 5, 3], ValueError, r"`seeds` must differ, .*Received: seeds with 3 2 times"),
    "repeated as NumPy's": ([np.int64(7), 7], ValueError, r"`seeds` must differ, .*Received: seeds with 7 2 times"),
}


@pytest.mark.parametrize("name", SEEDS)
def test_wrong_seeds(name, trained_model):
    seeds, error, match = SEEDS[name]
    with refused(error, match, trained_model):
        kohort.Cohort(trained_model, seeds)


def test_seeds_that_are_right():
    model = compiled(functional())
    assert kohort.Cohort(model, np.int64(2)).seeds == (0, 1)
    assert kohort.Cohort(model, np.array([5, 2**32 - 1])).seeds == (5, 2**32 - 1)
    assert kohort.Cohort(model, (s for s in (4, 0))).seeds == (4, 0)


@pytest.mark.parametrize("exact", [None, 1, "yes"])
def test_exact_must_be_a_truth_value(exact, trained_model):
    with refused(TypeError, "`exact` must be True or False. Received: exact=", trained_model):
        kohort.Cohort(trained_model, 2, exact=exact)


def test_a_fixed_seed_is_warned_of():
    model = classifier(
        layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(seed=4), name="fixed"),
        layers.Dropout(0.1, seed=0, name="dropped"),
        layers.Dropout(0.1, name="free"),
    )
    with untouched(model), warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="kohort")
        cohort = kohort.Cohort(model, 3)
    assert [str(w.message) for w in caught] == [
        "kohort: these layers hold a fixed seed, so all members are equal there: fixed, dropped. "
        "Leave `seed` out of the layer or its initializer to let each member have its own."
    ]
    cohort.fit(X, Y, epochs=1, verbose=0)
    kernels = np.array([cohort.member(seed).layers[0].get_weights()[0] for seed in cohort.seeds])
    others = np.array([cohort.member(seed).layers[-1].get_weights()[0] for seed in cohort.seeds])
    assert np.ptp(kernels, axis=0).max() < 0.2 < np.ptp(others, axis=0).max()


def batches():
    yield X, Y


class Stream(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return X, Y


def sparse_array():
    import scipy.sparse

    return scipy.sparse.csr_matrix(X)


STREAMS = {
    "a generator": (
        lambda: {"x": batches()},
        r"`x` must be dense arrays in memory, .*<generator object .*, a generator",
    ),
    "a PyDataset": (lambda: {"x": Stream()}, r"`x` must be dense arrays in memory, .*a PyDataset"),
    "a sparse array": (
        lambda: {"x": sparse_array(), "y": Y},
        r"`x` must be dense arrays .*shape \(12, 2\)>, a sparse arr",
    ),
    "validation by a generator": (
        lambda: {"x": X, "y": Y, "validation_data": batches()},
        r"`validation_data` must be dense arrays in memory, .*a generator",
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_cohort_takes_no_stream(name, trained_cohort):
    make, match = STREAMS[name]
    for cohort in (trained_cohort, kohort.Cohort(classifier(), 2)):
        with refused(TypeError, match, cohort):
            cohort.fit(verbose=0, **make())


def test_a_cohort_takes_no_model_that_only_keras_can_train():
    cohort = kohort.Cohort(classifier(run_eagerly=True, metrics=[mean_prediction]), 2)
    with refused(TypeError, "`model` must be one whose training can be compiled. .*`run_eagerly=True`", cohort):
        cohort.fit(X, Y, verbose=0)


ASKED = {
    "predict": lambda cohort: cohort.predict(X),
    "evaluate": lambda cohort: cohort.evaluate(X, Y),
    "member": lambda cohort: cohort.member(0),
    "best": lambda cohort: cohort.best(),
    "success_rate": lambda cohort: cohort.success_rate(loss=0.1),
    "history": lambda cohort: cohort.history,
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_comes_only_after_fit(asked):
    cohort = kohort.Cohort(classifier(), 2)
    with refused(
        RuntimeError, rf"`cohort\.{asked}` must come after `cohort\.fit`\. Received: a cohort that is not", cohort
    ):
        ASKED[asked](cohort)


WRONG_QUESTIONS = {
    "member of another seed": (
        lambda c: c.member(4),
        ValueError,
        r"`seed` must be one of the cohort's seeds \(3, 17, 5\)\. Received: seed=4\.",
    ),
    "member by a string": (lambda c: c.member("3"), ValueError, r"`seed` must be one of .*Received: seed='3'"),
    "member by a fraction": (lambda c: c.member(3.0), ValueError, r"`seed` must be one of .*Received: seed=3\.0"),
    "member by a truth value": (lambda c: c.member(True), ValueError, r"`seed` must be one of .*Received: seed=True"),
    "member by a negative number": (lambda c: c.member(-1), ValueError, r"`seed` must be one of .*Received: seed=-1"),
    "best by an unknown metric": (
        lambda c: c.best("val_loss"),
        ValueError,
        r"`metric` must be a metric of the history .*: accuracy, loss\. Received: metric='val_loss'",
    ),
    "best by a metric without direction": (
        lambda c: c.best("mean_prediction"),
        ValueError,
        r"metric='mean_prediction'",
    ),
    "best by a vector": (lambda c: c.best("f1_score"), ValueError, r"`metric` must be .*metric='f1_score'"),
    "best by a number": (lambda c: c.best(3), ValueError, r"`metric` must be .*Received: metric=3\."),
    "rate of an unknown metric": (
        lambda c: c.success_rate(acc=0.9),
        ValueError,
        r"`acc` must be a metric of the history: accuracy, .*, loss.* Received: acc=0\.9",
    ),
    "rate of nothing": (
        lambda c: c.success_rate(),
        ValueError,
        r"`success_rate` must be given a criterion.*none\. Write",
    ),
    "rate by a number": (
        lambda c: c.success_rate(0.01),
        TypeError,
        r"`criterion` must be a callable .*criterion=0\.01",
    ),
    "rate by another shape": (
        lambda c: c.success_rate(lambda h: h["loss"] < 1),
        ValueError,
        r"`criterion` must return a bool array of shape \(3,\), .*shape=\(3, 2\), dtype=bool",
    ),
    "rate by numbers": (
        lambda c: c.success_rate(lambda h: h["loss"][:, -1]),
        ValueError,
        r"`criterion` must return a bool array of shape \(3,\), .*dtype=float32",
    ),
    "rate by one truth value": (lambda c: c.success_rate(lambda h: True), ValueError, r"`criterion` must .*shape=\(\)"),
    "rate of a metric without direction": (
        lambda c: c.success_rate(mean_prediction=0.5),
        ValueError,
        r"`mean_prediction` must be a metric of one number per epoch that says whether .*lambda history",
    ),
    "rate of a vector": (
        lambda c: c.success_rate(f1_score=0.5),
        ValueError,
        r"`f1_score` must be a metric of one number",
    ),
    "rate of a word": (lambda c: c.success_rate(loss="low"), ValueError, r"`loss` must be the bound .*loss='low'"),
    "rate of NaN": (lambda c: c.success_rate(loss=float("nan")), ValueError, r"`loss` must be the bound .*loss=nan"),
    "confidence 0": (
        lambda c: c.success_rate(loss=1, confidence=0),
        ValueError,
        r"`confidence` must be between 0 and 1\.",
    ),
    "confidence 1": (lambda c: c.success_rate(loss=1, confidence=1), ValueError, r"Received: confidence=1\."),
    "confidence a word": (lambda c: c.success_rate(loss=1, confidence="95%"), ValueError, r"confidence='95%'"),
    "predict of nothing": (lambda c: c.predict(None), TypeError, r"`x` must be an array of samples"),
    "predict of wider x": (lambda c: c.predict(ONE_HOT), ValueError, r"`x` must have samples of shape \(2,\)"),
    "predict of NaN": (lambda c: c.predict(NAN_X), ValueError, r"`x` must hold finite numbers"),
    "predict of text": (lambda c: c.predict(X.astype(str)), TypeError, r"`x` must hold numbers"),
    "predict of no rows": (lambda c: c.predict(X[:0]), ValueError, r"`x` must have at least one sample"),
    "predict by batches of 0": (lambda c: c.predict(X, batch_size=0), ValueError, r"`batch_size` must be an integer"),
    "evaluate without y": (lambda c: c.evaluate(X), ValueError, r"`y` must be given"),
    "evaluate on a shorter y": (lambda c: c.evaluate(X, Y[:3]), ValueError, r"`y` must have one row per sample of `x`"),
    "evaluate on wider x": (lambda c: c.evaluate(ONE_HOT, Y), ValueError, r"`x` must have samples of shape \(2,\)"),
    "evaluate on labels out of range": (
        lambda c: c.evaluate(X, Y - 1),
        ValueError,
        r"`y` must hold numbers from 0 to 1",
    ),
}


@pytest.mark.parametrize("name", WRONG_QUESTIONS)
def test_a_wrong_question_to_a_trained_cohort(name, trained_cohort):
    ask, error, match = WRONG_QUESTIONS[name]
    with refused(error, match, trained_cohort):
        ask(trained_cohort)


def test_best_when_all_diverged():
    cohort = kohort.Cohort(compiled(functional(), optimizer=keras.optimizers.SGD(1e30)), 2)
    cohort.fit(X, Y, epochs=5, verbose=0)
    with refused(ValueError, "`metric` must be finite for at least one member. Received: metric='loss', all", cohort):
        cohort.best()


def test_an_unknown_metric_of_the_history(trained_cohort):
    with pytest.raises(KeyError, match=r"`metric` must be one of 'accuracy', .*'loss'.* Received: metric='acc'\."):
        trained_cohort.history["acc"]


# The checks themselves must be cheap and right.


def test_arrays_of_several_inputs_are_named():
    a, b = keras.Input((2,), name="a"), keras.Input((1,), name="b")
    model = compiled(keras.Model({"a": a, "b": b}, layers.Dense(1)(layers.Concatenate()([a, b]))))
    column = X[:, :1]
    with refused(ValueError, r"`x\['b'\]` must have one row per sample of `x\['a'\]` \(12\)", model):
        kohort.fit(model, {"a": X, "b": column[:5]}, Y)
    with refused(ValueError, r"`x\['b'\]` must have samples of shape \(1,\)", model):
        kohort.fit(model, {"a": X, "b": X}, Y)
    with refused(ValueError, r"`x\[1\]` must hold finite numbers", model):
        kohort.fit(model, [X, spoiled(column, np.inf, (0, 0))], Y)
    with refused(ValueError, r"`x` must have the keys 'a', 'b', .*keys 'a'\. Add 'b'", model):
        kohort.fit(model, {"a": X}, Y)
    kohort.fit(model, {"a": X, "b": column[:, 0]}, Y, verbose=0)  # Keras adds the axis of length 1


def test_what_is_unusual_but_right(trained_model):
    kohort.fit(trained_model, X, Y.astype(bool), epochs=np.int64(1), verbose=False, shuffle=np.True_)
    kohort.fit(trained_model, pd.DataFrame(X), pd.Series(Y), verbose=0, class_weight={0.0: np.float32(1), 1.0: 2})
    mixed = pd.DataFrame({"a": X[:, 0].astype("float64"), "b": X[:, 1] > 0})
    kohort.fit(trained_model, mixed, Y, verbose=0)  # Keras converts it, though not one of float32 and truth values
    kohort.fit(trained_model, X.astype("float16"), Y.astype("uint8"), verbose=0, validation_data=[X, Y])
