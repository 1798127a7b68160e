"""P7: what cannot be made a cohort, or asked of one, is refused at once, and all is left as it was."""

import warnings

import keras
import numpy as np
import pytest
import refusals
from keras import layers
from refusals import NAN_X, ONE_HOT, X, Y, classifier, compiled, functional, mean_prediction, refused, untouched

import kohort

pytestmark = pytest.mark.usefixtures("annotations_unchecked")


@pytest.fixture(scope="module", name="trained_model")
def trained_model_of_this_file():
    return refusals.trained_model()


@pytest.fixture(scope="module", name="trained_cohort")
def trained_cohort_of_this_file():
    return refusals.trained_cohort()


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


@pytest.mark.parametrize("name", ["a.keras", "a.H5"])
def test_a_cohort_is_not_saved_as_if_it_were_one_network(name, trained_cohort, tmp_path):
    with refused(ValueError, rf"`path` must not end in \.\w+, .* Received: path='.*/{name}'\. Pass", trained_cohort):
        trained_cohort.save(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_the_folder_of_a_study_is_no_cohort(tmp_path):
    with refused(
        IsADirectoryError, r"`path` must be a file .* \(a folder; that of a study is read by `kohort\.open`\)"
    ):
        kohort.Cohort.load(tmp_path)


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
