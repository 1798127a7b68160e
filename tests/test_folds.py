"""P2 where members see rows of their own: a member is a Keras run on those rows."""

import keras
import numpy as np
import pytest
import sklearn.model_selection as splitters
from keras import layers
from oracle import by_keras, differences
from sklearn.utils import resample
from test_promises import compilations
from test_wrong_input import refused

import kohort
from kohort import keras_internals
from kohort.checks import NotFiniteError
from kohort.folds import check_folds

RNG = np.random.default_rng(5)
X = RNG.normal(size=(43, 2)).astype("float32")
Y = (X[:, 0] * X[:, 1] > 0).astype("float32")
GROUPS = np.arange(43) // 6
WEIGHTS = RNG.uniform(0.2, 2, size=43).astype("float32")
FIT = {"epochs": 3, "batch_size": 8}


def build(loss="mse", metrics=("mae",), weighted=()):
    stack = [layers.Dense(6, "tanh"), layers.Dropout(0.2, name="dropout"), layers.Dense(1, "sigmoid")]
    model = keras.Sequential([keras.Input((2,)), *stack])
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=list(metrics), weighted_metrics=list(weighted))
    return model


def keras_run(model, seed, *fits):
    """The definition of a member."""
    keras.utils.set_random_seed(seed)
    clone = keras_internals.clone(model)
    config = model.get_compile_config()
    clone.compile(keras.optimizers.Adam(0.02), **{k: config[k] for k in ("loss", "metrics", "weighted_metrics")})
    histories = [by_keras(clone, verbose=0, **fit) for fit in fits]
    return clone, histories[-1].history


def values(model):
    return [np.asarray(v.value) for v in [*model.variables, *model.optimizer.variables, *model.metrics_variables]]


def rows_of(split, **weights):
    training, validation = split
    w = weights.get("sample_weight")
    held_out = (X[validation], Y[validation], *([] if w is None else [w[validation]]))
    own = {} if w is None else {"sample_weight": w[training]}
    return {"x": X[training], "y": Y[training], "validation_data": held_out, **own}


def assert_member_is(cohort, index, model, logs):
    assert differences(values(model), values(cohort.member(index=index))) == []
    for metric, column in logs.items():
        own = cohort.history[metric][index]
        np.testing.assert_array_equal(np.float32(column), own[~np.isnan(own)])


FOLDS = {
    "number": (5, {}, splitters.KFold(5)),
    "as many as rows": (43, {}, splitters.KFold(43)),
    "shuffled": (splitters.KFold(3, shuffle=True, random_state=0), {}, None),
    "stratified": (splitters.StratifiedKFold(3), {}, None),
    "groups": (splitters.GroupKFold(3), {"groups": GROUPS}, None),
    "one": (splitters.ShuffleSplit(1, random_state=0), {}, None),
    "pairs": ([(np.arange(30), np.arange(30, 43)), (np.arange(20, 43), np.arange(5))], {}, None),
}


@pytest.mark.many
@pytest.mark.parametrize("name", FOLDS)
def test_exact_member_is_bit_for_bit_keras_on_its_rows(name):
    folds, options, same = FOLDS[name]
    model = build()
    cohort = kohort.Cohort(model, [3, 8], exact=True)
    cohort.fit(X, Y, verbose=0, folds=folds, **options, **FIT)
    splits = folds if isinstance(folds, list) else list((same or folds).split(X, Y, options.get("groups")))
    assert cohort.parameters["fold"].tolist() == [*range(len(splits))] * 2
    assert cohort.seeds == (3,) * len(splits) + (8,) * len(splits)
    for index in (0, len(splits), 2 * len(splits) - 1):
        seed, fold = cohort.seeds[index], cohort.parameters["fold"][index]
        assert_member_is(cohort, index, *keras_run(model, seed, FIT | rows_of(splits[fold])))
        by_name = cohort.member(seed, fold=int(fold))
        assert differences(values(by_name), values(cohort.member(index=index))) == []


ARGUMENTS = {
    "in-order": {"shuffle": False},
    "shuffled-in-batches": {"shuffle": "batch"},
    "steps": {"steps_per_epoch": 3},
    "one-batch": {"batch_size": 64},
    "class-weights": {"class_weight": {0: 0.3, 1: 2.0}},
    "sample-weights": {"sample_weight": WEIGHTS},
    "validation-steps": {"validation_steps": 1, "validation_batch_size": 4, "validation_freq": 2},
}


@pytest.mark.many
@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_arguments_of_fit_and_a_second_fit(name):
    arguments = FIT | ARGUMENTS[name]
    model = build(weighted=("mse",))
    cohort = kohort.Cohort(model, [3], exact=True)
    for _ in range(2):
        cohort.fit(X, Y, verbose=0, folds=2, **arguments)
    for fold, split in enumerate(splitters.KFold(2).split(X)):
        own = arguments | rows_of(split, sample_weight=arguments.get("sample_weight"))
        assert_member_is(cohort, fold, *keras_run(model, 3, own, own))


@pytest.mark.many
@pytest.mark.parametrize("folds", [5, 4])
def test_member_is_keras_to_rounding(folds):
    """Of 43 rows five folds are of two sizes, and so are four."""
    model = build()
    cohort = kohort.Cohort(model, 4)
    with compilations() as seen:
        cohort.fit(X, Y, verbose=0, folds=folds, **FIT)
    splits = list(splitters.KFold(folds).split(X))
    for index in (0, folds - 1, 3 * folds + 1):
        seed, fold = cohort.seeds[index], cohort.parameters["fold"][index]
        theirs, logs = keras_run(model, seed, FIT | rows_of(splits[fold]))
        for a, b in zip(values(theirs), values(cohort.member(index=index)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
        for metric, column in logs.items():
            np.testing.assert_allclose(column, cohort.history[metric][index], rtol=1e-5)
    assert seen
    with compilations() as seen:  # other folds of the same sizes
        kohort.Cohort(model, 4).fit(X, Y, verbose=0, folds=splitters.KFold(folds, shuffle=True, random_state=1), **FIT)
    assert seen == []


def test_a_network_that_is_blind_to_order_still_sees_its_own_rows():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(4, "tanh"), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.02), "mse")
    cohort = kohort.Cohort(model, 2)
    cohort.fit(X, Y, verbose=0, folds=2, epochs=3, batch_size=64)
    for fold, split in enumerate(splitters.KFold(2).split(X)):
        _, logs = keras_run(model, 1, {"epochs": 3, "batch_size": 64} | rows_of(split))
        np.testing.assert_allclose(logs["loss"], cohort.history["loss"][2 + fold], rtol=1e-5)


@pytest.mark.slow
def test_a_number_of_folds_is_stratified_for_classes():
    y = np.sort(Y)
    model = build("binary_crossentropy")
    cohort = kohort.Cohort(model, [3], exact=True)
    cohort.fit(X, y[:, None], verbose=0, folds=3, **FIT)
    for fold, (training, validation) in enumerate(splitters.StratifiedKFold(3).split(X, y)):
        held_out = X[validation], y[validation, None]
        own = {"x": X[training], "y": y[training, None], "validation_data": held_out}
        assert_member_is(cohort, fold, *keras_run(model, 3, FIT | own))


@pytest.mark.slow
def test_folds_cross_with_values_and_seeds():
    vary = {"optimizer.learning_rate": [1e-3, 1e-1], "dropout.rate": [0.0, 0.4]}
    cohort = kohort.Cohort(build(), [3, 8], vary=vary, grid=True)
    history = cohort.fit(X, Y, verbose=0, folds=3, **FIT)
    assert history["val_loss"].shape == (24, 3)
    assert list(cohort.parameters) == ["seed", *vary, "fold"]
    assert cohort.parameters["fold"].tolist() == [0, 1, 2] * 8
    alone = kohort.Cohort(build(), [8], vary={"optimizer.learning_rate": [1e-1], "dropout.rate": [0.4]})
    alone.fit(X, Y, verbose=0, folds=3, **FIT)
    np.testing.assert_allclose(history["val_loss"][-3:], alone.history["val_loss"], rtol=1e-5)
    assert cohort.predict_out_of_fold(X).shape == (8, 43, 1)


def test_out_of_fold_predictions_are_those_of_the_member_that_has_not_seen_the_sample():
    cohort = kohort.Cohort(build(), [3, 8])
    cohort.fit(X, Y, verbose=0, folds=splitters.KFold(4, shuffle=True, random_state=0), **FIT)
    held_out = cohort.predict_out_of_fold(X)
    for fold, (_, validation) in enumerate(splitters.KFold(4, shuffle=True, random_state=0).split(X)):
        for i, seed in enumerate([3, 8]):
            theirs = cohort.member(seed, fold=fold).predict(X[validation], verbose=0)
            np.testing.assert_allclose(held_out[i, validation], theirs, rtol=1e-5)


def test_bootstrap_is_keras_on_rows_drawn_by_the_seed():
    model = build()
    cohort = kohort.Cohort(model, [3, 8], exact=True)
    cohort.fit(X, Y, verbose=0, bootstrap=True, validation_data=(X[:9], Y[:9]), **FIT)
    held_out = cohort.predict_out_of_fold(X)
    for index, seed in enumerate([3, 8]):
        rows = resample(np.arange(43), random_state=seed)
        own = {"x": X[rows], "y": Y[rows], "validation_data": (X[:9], Y[:9])}
        theirs, logs = keras_run(model, seed, FIT | own)
        assert_member_is(cohort, index, theirs, logs)
        seen = np.isin(np.arange(43), rows)
        assert np.isnan(held_out[index, seen]).all()
        np.testing.assert_allclose(held_out[index, ~seen], theirs.predict(X[~seen], verbose=0), rtol=1e-6)


@pytest.mark.many
@pytest.mark.parametrize("folds", [None, 2])
@pytest.mark.parametrize("exact", [True, False])
def test_each_member_with_weights_of_its_own(folds, exact):
    model = build(weighted=("mse",))
    cohort = kohort.Cohort(model, [3, 8], exact=exact)
    count = 2 * (folds or 1)
    weights = RNG.uniform(0.2, 2, size=(count, 43)).astype("float32")
    cohort.fit(X, Y, verbose=0, sample_weight=weights, folds=folds, **FIT)
    splits = list(splitters.KFold(2).split(X)) * 2
    for index in range(count):
        own = {"x": X, "y": Y, "sample_weight": weights[index]}
        own = rows_of(splits[index], sample_weight=weights[index]) if folds else own
        theirs, logs = keras_run(model, cohort.seeds[index], FIT | own)
        if exact:
            assert_member_is(cohort, index, theirs, logs)
        else:
            np.testing.assert_allclose(logs["loss"], cohort.history["loss"][index], rtol=1e-5)


@pytest.mark.many
@pytest.mark.parametrize(
    "fits",
    [
        [
            {"folds": splitters.KFold(2, shuffle=True, random_state=0)},
            {"folds": splitters.KFold(2, shuffle=True, random_state=1)},
        ],
        [{"folds": 2}, {}, {"folds": 2}],
        [{}, {"bootstrap": True}],
        [{"bootstrap": True}, {}, {"bootstrap": True}],
    ],
)
def test_what_an_earlier_fit_has_trained_on_is_not_held_out(fits, tmp_path):
    """Members that have seen a sample once answer it as if they had learned."""
    cohort = kohort.Cohort(build(), [3, 8])
    for arguments in fits:
        cohort.fit(X, Y, verbose=0, **arguments, **FIT)
    cohort.save(tmp_path / "a.kohort")
    for asked in (cohort, kohort.Cohort.load(tmp_path / "a.kohort")):
        with pytest.raises(RuntimeError, match=r"all fits of the cohort must leave out the same rows"):
            asked.predict_out_of_fold(X)


@pytest.mark.many
@pytest.mark.parametrize(
    "arguments", [{"folds": 2}, {"folds": splitters.KFold(2, shuffle=True, random_state=0)}, {"bootstrap": True}]
)
def test_what_no_fit_has_trained_on_is_held_out(arguments):
    cohort = kohort.Cohort(build(), [3, 8])
    for _ in range(2):
        cohort.fit(X, Y, verbose=0, **arguments, **FIT)
    assert np.isfinite(cohort.predict_out_of_fold(X)).any()


def test_a_fit_without_folds_goes_on_with_all_rows():
    cohort = kohort.Cohort(build(), [3])
    cohort.fit(X, Y, verbose=0, folds=2, **FIT)
    history = cohort.fit(X, Y, verbose=0, **FIT)
    assert list(history) == ["loss", "mae"]
    with pytest.raises(
        RuntimeError, match=r"`cohort.predict_out_of_fold` must come after a fit with folds or with boo"
    ):
        cohort.predict_out_of_fold(X)


def test_folds_that_fail_leave_the_cohort_as_it_was():
    cohort = kohort.Cohort(build("binary_crossentropy"), [3, 8])
    with pytest.raises(ValueError, match="must have the same shape"):
        cohort.fit(X, np.zeros((43, 3)), verbose=0, folds=5)
    cohort.fit(X, Y, verbose=0, **FIT)
    assert len(cohort) == 2


class Halves:
    """A splitter of the user's own that gives what is no row number."""

    def get_n_splits(self, *_):
        return 1

    def split(self, x, y=None, groups=None):
        yield np.arange(43) < 20, np.arange(43) >= 20


WRONG = {
    "one": (
        {"folds": 1},
        ValueError,
        r"`folds` must be at least 2 and at most the number of samples \(43\)\. .*folds=1\.",
    ),
    "too many": ({"folds": 44}, ValueError, r"`folds` must be at least 2 and at most the number of samples \(43\)\."),
    "true": (
        {"folds": True},
        TypeError,
        r"`folds` must be a number of folds, a splitter of scikit-learn, or .*folds=True",
    ),
    "text": ({"folds": "5"}, TypeError, r"`folds` must be a number of folds, .*folds='5'"),
    "no pairs": ({"folds": []}, TypeError, r"`folds` must be a number of folds, .*folds=\[\]"),
    "rows beyond": ({"folds": [([0, 1], [43])]}, ValueError, r"`folds` must hold row numbers from 0 to 42, .*a part="),
    "masks": ({"folds": Halves()}, ValueError, r"`folds` must hold row numbers from 0 to 42, .*dtype=bool\."),
    "no groups": (
        {"folds": splitters.GroupKFold(3)},
        ValueError,
        r"`folds` must be able to split .*'groups' parameter",
    ),
    "groups alone": ({"groups": GROUPS}, ValueError, r"`groups` must be left out unless folds are given\."),
    "two validations": (
        {"folds": 5, "validation_split": 0.2},
        ValueError,
        r"`validation_split` must be left out where f",
    ),
    "validation data": (
        {"folds": 5, "validation_data": (X, Y)},
        ValueError,
        r"`validation_data` must be left out where ",
    ),
    "bootstrapped folds": (
        {"folds": 5, "bootstrap": True},
        ValueError,
        r"`bootstrap` must be True or False, .* beside fo",
    ),
    "weights of others": (
        {"sample_weight": np.ones((3, 43))},
        ValueError,
        r"`sample_weight` must have shape \(sample,\), or \(member, sample\): \(2, 43\)\. Received: .*\(3, 43\)",
    ),
    "weights and a split": (
        {"sample_weight": np.ones((2, 43)), "validation_split": 0.2},
        ValueError,
        r"`validation_split` must be left out where each member has its own weights\.",
    ),
    "infinite weights": (
        {"sample_weight": np.full((2, 43), np.inf)},
        NotFiniteError,
        r"`sample_weight` must hold finite",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_folds(name):
    arguments, error, match = WRONG[name]
    cohort = kohort.Cohort(build(), [3, 8])
    with refused(error, match, cohort):
        cohort.fit(X, Y, verbose=0, **arguments)


@pytest.mark.slow
def test_other_folds_than_those_of_the_first_fit():
    cohort, plain = kohort.Cohort(build(), 2), kohort.Cohort(build(), 2)
    cohort.fit(X, Y, verbose=0, folds=5)
    plain.fit(X, Y, verbose=0)
    for trained, folds in ((cohort, 4), (plain, 5)):
        with refused(ValueError, r"`folds` must be those of the first fit of a cohort, .*Received: folds=", trained):
            trained.fit(X, Y, verbose=0, folds=folds)
    with refused(
        ValueError,
        r"`x` must hold the 43 samples with which the last fit trained, in the same order\. Received: x=",
        cohort,
    ):
        cohort.predict_out_of_fold(X[:40])


def test_folds_that_are_no_partition():
    cohort = kohort.Cohort(build(), 2)
    cohort.fit(X, Y, verbose=0, folds=splitters.ShuffleSplit(2, random_state=0))
    with refused(
        RuntimeError, r"`predict_out_of_fold` must find each sample held out exactly once\. .* sample\(s\)", cohort
    ):
        cohort.predict_out_of_fold(X)


def test_as_many_folds_as_are_advised_there_can_be():
    with pytest.raises(ValueError, match=r"number of samples \(4\)\. Received: folds=5\. Pass for example 4\."):
        check_folds(5, 4)
