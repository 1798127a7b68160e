"""One model of many: it answers the average, means what a member means, and stands alone."""

import functools
import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.special
from keras import layers

import kohort

RNG = np.random.default_rng(6)
X = RNG.normal(size=(30, 2)).astype("float32")
Y = (X[:, 0] * X[:, 1] > 0).astype("float32")
CLASSES = RNG.integers(0, 3, size=30)
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]


pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def network(units=1, activation=None, loss="mse", **options):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(5, "tanh"), layers.Dense(units, activation)])
    model.compile(keras.optimizers.Adam(0.02), loss, **options)
    return model


def noisy():
    stack = [layers.Dense(5, "tanh"), layers.BatchNormalization(), layers.Dropout(0.2), layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,)), *stack])
    model.compile("adam", "mse")
    return model


def cohort_of(model, y=Y, seeds=(4, 8, 15, 16), **fit):
    cohort = kohort.Cohort(model, seeds)
    cohort.fit(X, y, epochs=4, verbose=0, **fit)
    return cohort


def answers(cohort, seeds=None):
    """What the members say, one plain Keras model at a time."""
    return np.stack([np.asarray(cohort.member(seed)(X)) for seed in seeds or cohort.seeds])


LOSSES = keras.losses
SIGMOID = {
    "object": LOSSES.BinaryCrossentropy(from_logits=True),
    "focal": LOSSES.BinaryFocalCrossentropy(from_logits=True),
    "function": functools.partial(LOSSES.binary_crossentropy, from_logits=True),
    "in a list": [LOSSES.BinaryCrossentropy(from_logits=True)],
}
SOFTMAX = {
    "one-hot": (LOSSES.CategoricalCrossentropy(from_logits=True), ONE_HOT),
    "numbers": (LOSSES.SparseCategoricalCrossentropy(from_logits=True), CLASSES),
    "focal": (LOSSES.CategoricalFocalCrossentropy(from_logits=True), ONE_HOT),
}
AVERAGED = {
    "a regression": (noisy, Y),
    "probabilities": (lambda: network(1, "sigmoid", "binary_crossentropy"), Y),
    "probabilities of classes": (lambda: network(3, "softmax", "sparse_categorical_crossentropy"), CLASSES),
    "a loss of one's own": (lambda: network(1, None, lambda y, p: keras.ops.mean((y - p) ** 2, axis=-1)), Y),
}


@pytest.mark.many
@pytest.mark.parametrize("name", AVERAGED)
def test_outputs_are_averaged(name):
    build, y = AVERAGED[name]
    cohort = cohort_of(build(), y)

    ensemble = cohort.ensemble(top=4)

    np.testing.assert_allclose(ensemble.predict(X, verbose=0), answers(cohort).mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cohort.predict(X, aggregate="mean"), answers(cohort).mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cohort.predict(X, aggregate="std"), answers(cohort).std(axis=0), rtol=1e-4, atol=1e-6)


def test_fewer_than_ten_members_are_all_in_an_ensemble():
    cohort = cohort_of(network())

    np.testing.assert_array_equal(cohort.ensemble().predict(X, verbose=0), cohort.ensemble(4).predict(X, verbose=0))


@pytest.mark.many
@pytest.mark.parametrize("name", SIGMOID)
def test_of_logits_the_probabilities_are_averaged(name):
    cohort = cohort_of(network(loss=SIGMOID[name]))
    probabilities = scipy.special.expit(answers(cohort))

    ensemble = cohort.ensemble(top=4)

    said = scipy.special.expit(ensemble.predict(X, verbose=0))
    np.testing.assert_allclose(said, probabilities.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(cohort.predict(X, aggregate="mean"), probabilities.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(cohort.predict(X, aggregate="std"), probabilities.std(axis=0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", SOFTMAX)
def test_of_logits_of_classes_the_probabilities_are_averaged(name):
    loss, y = SOFTMAX[name]
    cohort = cohort_of(network(3, None, loss), y)
    probabilities = scipy.special.softmax(answers(cohort), axis=-1)

    said = scipy.special.softmax(cohort.ensemble(top=4).predict(X, verbose=0), axis=-1)

    np.testing.assert_allclose(said, probabilities.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(cohort.predict(X, aggregate="mean"), probabilities.mean(axis=0), rtol=1e-5)


def test_logits_stay_finite_and_right_where_probabilities_round_to_one():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    cohort = kohort.Cohort(model, 3)
    cohort.fit(X, Y, initial_epoch=1, epochs=1, verbose=0)  # no epoch: all members are alike
    history = cohort._members.trained.history
    history.history["loss"], history.epoch[:] = np.zeros((3, 1), "float32"), [0]
    far = np.array([[60, 0], [-60, 0], [20, 10]], "float32")

    np.testing.assert_allclose(cohort.ensemble(top=3).predict(far, verbose=0), [[60], [-60], [30]], rtol=1e-6)


@pytest.mark.slow
def test_it_is_scored_as_a_member_is():
    metrics = ["accuracy", keras.metrics.AUC(from_logits=True), keras.metrics.BinaryAccuracy(name="at0", threshold=0.0)]
    cohort = cohort_of(network(loss=keras.losses.BinaryCrossentropy(from_logits=True), metrics=metrics))
    ensemble = cohort.ensemble(top=4)

    scores = ensemble.evaluate(X, Y, verbose=0, return_dict=True)

    mean = scipy.special.expit(answers(cohort)).mean(axis=0)[:, 0]
    assert scores["loss"] == pytest.approx(-np.mean(np.log(np.where(Y > 0, mean, 1 - mean))), rel=1e-5)
    assert scores["at0"] == pytest.approx(np.mean((mean > 0.5) == Y))
    assert scores["loss"] <= cohort.evaluate(X, Y)["loss"].mean()  # the average of a convex loss is no better


def test_the_best_members_are_taken():
    cohort = cohort_of(network(metrics=["mae"]), validation_split=0.3)
    cohort.history["val_loss"][1] = np.nan
    last = cohort.history.last("val_loss")
    best = [cohort.seeds[i] for i in np.argsort(last)[:2]]

    ensemble = cohort.ensemble(top=2)

    assert [layer.name for layer in ensemble.layers[1:3]] == [f"seed_{seed}" for seed in best]
    np.testing.assert_allclose(ensemble.predict(X, verbose=0), answers(cohort, best).mean(axis=0), rtol=1e-5, atol=1e-6)
    assert cohort.ensemble(1, by="mae").layers[1].name == f"seed_{cohort.best_seed('mae')}"
    np.testing.assert_array_equal(cohort.ensemble(1, by="mae")(X), cohort.best("mae")(X))


@pytest.mark.slow
def test_several_inputs_and_outputs():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b", dtype="int32")
    joined = layers.Concatenate()([a, layers.Embedding(5, 2)(b)[:, 0]])
    outputs = {"p": layers.Dense(1, name="p")(a), "q": layers.Dense(3, name="q")(joined)}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile("sgd", {"p": "mse", "q": keras.losses.SparseCategoricalCrossentropy(from_logits=True)})
    x, cohort = {"a": X, "b": CLASSES[:, None].repeat(2, axis=1)}, kohort.Cohort(model, 3)
    cohort.fit(x, {"p": Y, "q": CLASSES}, epochs=2, verbose=0)

    ensemble = cohort.ensemble(top=3)

    said, members = ensemble.predict(x, verbose=0), [cohort.member(seed)(x) for seed in cohort.seeds]
    assert list(said) == ["p", "q"]
    mean = np.mean([scipy.special.softmax(each["q"], axis=-1) for each in members], axis=0)
    np.testing.assert_allclose(said["p"], np.mean([each["p"] for each in members], axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scipy.special.softmax(said["q"], axis=-1), mean, rtol=1e-5)
    np.testing.assert_allclose(cohort.predict(x, aggregate="mean")["q"], mean, rtol=1e-5)
    scores = ensemble.evaluate(x, {"p": Y, "q": CLASSES}, verbose=0, return_dict=True)
    assert scores["q_loss"] == pytest.approx(-np.log(mean[np.arange(30), CLASSES]).mean(), rel=1e-5)


ALONE = """
import sys
sys.modules["kohort"] = None
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
x, said = np.load(sys.argv[2]), np.load(sys.argv[3])
np.testing.assert_allclose(model.predict(x, verbose=0), said, rtol=1e-5)
model.fit(x, x[:, 0] > 0, epochs=1, verbose=0)
"""


def test_it_stands_alone(tmp_path):
    cohort = cohort_of(network(loss=keras.losses.BinaryCrossentropy(from_logits=True), metrics=["accuracy"]))
    ensemble = cohort.ensemble(top=3)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "said.npy", ensemble.predict(X, verbose=0))
    ensemble.save(tmp_path / "ensemble.keras")

    arguments = [tmp_path / name for name in ("ensemble.keras", "x.npy", "said.npy")]
    subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True)


EXPORTED = """
import sys
sys.modules["kohort"] = sys.modules["keras"] = sys.modules["jax"] = None
import numpy as np, tensorflow as tf
x, said = np.load(sys.argv[2]), np.load(sys.argv[3])
ensemble = tf.saved_model.load(sys.argv[1])
np.testing.assert_allclose(ensemble.serve(x), said, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Keras asks of JAX
@pytest.mark.parametrize("units", [1, 3])
def test_it_is_exported_to_where_neither_kohort_nor_keras_is(units, tmp_path):
    """As Keras exports any model: of logits, and of several classes."""
    pytest.importorskip("tensorflow")
    binary, several = keras.losses.BinaryCrossentropy, keras.losses.SparseCategoricalCrossentropy
    loss, y = (binary(from_logits=True), Y) if units == 1 else (several(from_logits=True), CLASSES)
    cohort = cohort_of(network(units, loss=loss), y)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "said.npy", cohort.ensemble(top=3).predict(X, verbose=0))
    cohort.ensemble(top=3).export(tmp_path / "exported", verbose=False)

    arguments = [tmp_path / name for name in ("exported", "x.npy", "said.npy")]
    subprocess.run([sys.executable, "-c", EXPORTED, *arguments], check=True)


def test_members_that_diverged_do_not_count_in_means():
    cohort = cohort_of(network())
    state = cohort._members.trained.states[0]
    kernel = np.array(state.trainable_variables[0])
    kernel[2] = np.nan
    state.trainable_variables[0] = kernel
    others = answers(cohort, [4, 8, 16])

    np.testing.assert_allclose(cohort.predict(X, aggregate="mean"), others.mean(axis=0), rtol=1e-5, atol=1e-6)
    state.trainable_variables[0] = np.full_like(kernel, np.nan)
    with pytest.raises(
        ValueError, match=r"`cohort` must have at least one member whose outputs are finite\. Received: 4"
    ):
        cohort.predict(X, aggregate="mean")


@pytest.fixture(scope="module")
def one_diverged():
    keras.utils.set_random_seed(0)
    cohort = cohort_of(network(metrics=["mae"]))
    cohort.history["loss"][1, -1] = np.nan
    return cohort


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"top": 0},
            ValueError,
            r"`top` must be an integer from 1 to 3, the members there are \(1 of 4 ended with a los",
        ),
        (
            {"top": 4},
            ValueError,
            r"`top` must be an integer from 1 to 3, .* not finite\)\. Received: top=4\. Pass for ex",
        ),
        (
            {"top": 2.5},
            TypeError,
            r"`top` must be an integer from 1 to 3.* Received: top=2\.5\. Pass for example top=3",
        ),
        ({"top": True}, TypeError, r"`top` must be an integer from 1 to 3.* Received: top=True\."),
        (
            {"top": 2, "by": "val_loss"},
            ValueError,
            r"`by` must be a metric of the history of which .*: loss, mae\. Rec",
        ),
        ({"top": 2, "by": 3}, ValueError, r"`by` must be a metric of the history .*Received: by=3\."),
    ],
)
def test_what_no_ensemble_can_be_made_of(arguments, error, message, one_diverged):
    with pytest.raises(error, match=message):
        one_diverged.ensemble(**arguments)


def test_members_whose_weights_are_not_finite_have_diverged():
    """A loss is that of the weights before the last step: it may still be finite."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(3e38), "mse")
    x, y = kohort.data.xor()
    for exact in (False, True):
        cohort = kohort.Cohort(model, 2, exact=exact)
        assert np.isfinite(cohort.fit(x, 1e3 * y, epochs=1, verbose=0)["loss"]).all()
        with pytest.raises(ValueError, match=r"`by` must be finite for at least one member\. .* all of them diverged"):
            cohort.ensemble(top=1)
        with pytest.raises(ValueError, match="`metric` must be finite for at least one member"):
            cohort.best()


def test_an_ensemble_of_members_that_all_diverged():
    cohort = cohort_of(network())
    cohort.history["loss"][:] = np.nan
    with pytest.raises(ValueError, match=r"`by` must be finite for at least one member\. Received: by='loss', all of"):
        cohort.ensemble(top=1)


def test_an_aggregate_that_there_is_not(one_diverged):
    with pytest.raises(
        ValueError, match=r"`aggregate` must be None or one of 'mean', 'std'\. Received: aggregate='max'\."
    ):
        one_diverged.predict(X, aggregate="max")
