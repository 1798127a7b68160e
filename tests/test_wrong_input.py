"""P7: a wrong argument raises at once, says what is accepted, what came and what to do, and leaves all as it was."""

import keras
import numpy as np
import pandas as pd
import pytest
import refusals
from keras import layers
from oracle import by_keras, differences, outcome
from refusals import CLASSES, NAN_X, ONE_HOT, X, Y, classifier, compiled, mean_prediction, refused, spoiled, untouched

import kohort

pytestmark = pytest.mark.usefixtures("annotations_unchecked")


@pytest.fixture(scope="module", name="trained_model")
def trained_model_of_this_file():
    return refusals.trained_model()


@pytest.fixture(scope="module", name="trained_cohort")
def trained_cohort_of_this_file():
    return refusals.trained_cohort()


DOORS = ["fit", "fit again", "Cohort.fit", "Cohort.fit again"]


@pytest.fixture(params=DOORS)
def door(request, trained_model, trained_cohort):
    """A way to train, and what must be left as it is when it is refused."""
    if request.param.startswith("Cohort"):
        cohort = trained_cohort if request.param.endswith("again") else kohort.Cohort(classifier(), 2)
        return cohort.fit, cohort
    model = trained_model if request.param.endswith("again") else classifier()
    return lambda *args, **options: kohort.fit(model, *args, **options), model


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
        _ = cohort.history
    ours, theirs = (c.fit(X, ONE_HOT, epochs=3, verbose=0) for c in (cohort, twin))
    assert differences(dict(theirs), dict(ours)) == []


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
