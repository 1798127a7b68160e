"""Saved cohorts whose members differ by more than their seeds: values, folds, bootstrap samples come back with them."""

import copy
import json

import keras
import numpy as np
import pytest
from keras import layers
from oracle import differences

import kohort
from kohort import files, saving

RNG = np.random.default_rng(5)
X = RNG.normal(size=(23, 2)).astype("float32")
Y = (X[:, 0] * X[:, 1] > 0).astype("float32")

pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def network():
    stack = [layers.Dense(4, "tanh", kernel_regularizer="l2", name="first"), layers.Dropout(0.5, name="drop")]
    model = keras.Sequential([keras.Input((2,)), *stack, layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.BinaryCrossentropy(), metrics=["accuracy"])
    return model


RATES = {"optimizer.learning_rate": [0.001, 0.1]}
KINDS = {"drop.rate": [0.0, 0.4, 0.0, 0.2], "first.kernel_regularizer.l2": [0.1, 0.1, 0.0, 0.2]}
WAYS = {
    "rates in a grid": ({"seeds": 3, "vary": RATES, "grid": True}, {}),
    "rates one by one": ({"seeds": 2, "vary": RATES, "exact": True}, {}),
    "members of several kinds": ({"seeds": 4, "vary": KINDS}, {}),
    "several kinds one by one": ({"seeds": 4, "vary": KINDS, "exact": True}, {}),
    "folds": ({"seeds": [7, 3]}, {"folds": 4}),
    "kinds and folds": ({"seeds": 4, "vary": KINDS}, {"folds": 3}),
    "bootstrap": ({"seeds": 3}, {"bootstrap": True}),
    "weights": ({"seeds": 2}, {"sample_weight": RNG.uniform(size=(2, 23))}),
}


def fitted(way, epochs=2):
    options, rows = WAYS[way]
    mapping = {} if "exact" in options else {"mapping": "vectorized"}
    cohort = kohort.Cohort(network(), **options, **mapping)
    cohort.fit(X, Y, epochs=epochs, batch_size=8, verbose=0, **rows)
    return cohort


def left(cohort):
    """All that a fit leaves in the members."""
    members, trained = cohort._members, cohort._members.trained
    states = [members.states(trained, members.of_kind(kind)) for kind in range(len(members.templates))]
    arrays = [np.asarray(array) for state in states for part in state for array in part]
    return [arrays, trained.generators.states, dict(trained.history), trained.history.epoch, members.roster]


@pytest.mark.many
@pytest.mark.parametrize("rows", [{}, {"folds": 4}, {"bootstrap": True}], ids=["alone", "folds", "bootstrap"])
@pytest.mark.parametrize("options", [{}, {"vary": RATES, "grid": True}], ids=["alike", "rates"])
def test_five_epochs_and_five_more_are_ten(options, rows):
    whole, halves = (kohort.Cohort(network(), seeds=2, exact=True, **options) for _ in range(2))
    history = whole.fit(X, Y, epochs=10, batch_size=8, verbose=0, **rows)
    parts = [halves.fit(X, Y, epochs=5, batch_size=8, verbose=0, **rows) for _ in range(2)]

    (arrays, generators, *_, roster), ours = left(whole), left(halves)
    assert differences([arrays, generators, roster], [*ours[:2], ours[-1]]) == []
    joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in history}
    assert differences(dict(history), joined) == []


def test_the_history_tells_members_apart():
    """Its labels are the seeds; what else differs stands beside them, in a loaded cohort, too."""
    pytest.importorskip("pandas")
    pytest.importorskip("xarray")
    cohort = kohort.Cohort(network(), seeds=[7, 3], vary=RATES, grid=True)
    history = cohort.fit(X, Y, epochs=2, batch_size=8, verbose=0, folds=3)
    rates, folds = "optimizer.learning_rate", "fold"

    arrays, table = history.to_xarray(), history.to_pandas()
    assert arrays.sizes["member"] == 12
    for name in (rates, folds):
        np.testing.assert_array_equal(arrays[name], cohort.parameters[name])
        assert arrays[name].dims == ("member",)
    chosen = arrays.loss.where((arrays[rates] == 0.1) & (arrays[folds] == 2) & (arrays.member == 3), drop=True)
    row = cohort.history["loss"][cohort._members.roster.find(3, **{rates: 0.1}, fold=2)]
    np.testing.assert_array_equal(chosen[0], row)
    assert table.index.names == ["member", rates, folds, "epoch"]
    assert table.index.is_unique
    np.testing.assert_array_equal(table.sort_index().loc[(3, 0.1, 2), "loss"], row)


@pytest.mark.many
@pytest.mark.parametrize("way", WAYS)
def test_members_come_back_as_they_were_and_go_on(way, tmp_path):
    cohort = fitted(way)
    cohort.save(tmp_path / "a.kohort")
    loaded = kohort.Cohort.load(tmp_path / "a.kohort")

    assert differences(left(cohort), left(loaded)) == []
    assert differences(cohort.parameters, loaded.parameters) == []
    assert differences(cohort.history.differences, loaded.history.differences) == []
    np.testing.assert_array_equal(cohort.predict(X), loaded.predict(X))
    if "folds" in WAYS[way][1] or "bootstrap" in WAYS[way][1]:
        np.testing.assert_array_equal(cohort.predict_out_of_fold(X), loaded.predict_out_of_fold(X))
        with pytest.raises(ValueError, match=r"`x` must hold the 23 samples with which the last fit trained"):
            loaded.predict_out_of_fold(X[:9])
    for index in (0, len(cohort) - 1):
        ours, theirs = (each.member(index=index) for each in (cohort, loaded))
        assert differences(ours.get_config(), theirs.get_config()) == []
        assert differences(ours.optimizer.get_config(), theirs.optimizer.get_config()) == []
        assert differences(ours.get_weights(), theirs.get_weights()) == []
    for each in (cohort, loaded):
        each.fit(X, Y, epochs=3, batch_size=8, verbose=0, **WAYS[way][1])
    assert differences(left(cohort), left(loaded)) == []


def test_a_cohort_of_seeds_holds_nothing_held_out(tmp_path):
    cohort = kohort.Cohort(network(), 2)
    cohort.fit(X, Y, verbose=0)
    cohort.save(tmp_path / "a.kohort")
    with pytest.raises(RuntimeError, match=r"`cohort\.predict_out_of_fold` must come after a fit with folds"):
        kohort.Cohort.load(tmp_path / "a.kohort").predict_out_of_fold(X)


def test_members_that_were_made_for_folds_stay_so(tmp_path):
    cohort = kohort.Cohort(network(), [7, 3])
    cohort.fit(X, Y, folds=3, verbose=0)
    cohort.fit(X, Y, verbose=0, bootstrap=True)
    cohort.save(tmp_path / "a.kohort")
    loaded = kohort.Cohort.load(tmp_path / "a.kohort")

    assert loaded.parameters["fold"].tolist() == [0, 1, 2, 0, 1, 2]
    assert differences(left(cohort), left(loaded)) == []
    for each in (cohort, loaded):
        each.fit(X, Y, folds=3, verbose=0)
        with pytest.raises(RuntimeError, match=r"must leave out the same rows"):
            each.predict_out_of_fold(X)
    assert differences(left(cohort), left(loaded)) == []


def test_what_keras_leaves_out_of_a_configuration_is_kept(tmp_path):
    model = network()
    model.compile("sgd", keras.losses.Huber(0.05))
    cohort = kohort.Cohort(model, 2)
    cohort.fit(X, Y, verbose=0)
    cohort.save(tmp_path / "a.kohort")
    loaded = kohort.Cohort.load(tmp_path / "a.kohort")
    assert differences(cohort.evaluate(X, Y), loaded.evaluate(X, Y)) == []


def test_a_file_of_version_1_is_read(tmp_path):
    """It holds nothing of values and rows."""
    cohort = kohort.Cohort(network(), 2)
    cohort.fit(X, Y, verbose=0)
    files.write(tmp_path / "a.kohort", saving.KIND, 1, saving.contents_of(cohort._members, cohort._members.trained))
    np.testing.assert_array_equal(kohort.Cohort.load(tmp_path / "a.kohort").predict(X), cohort.predict(X))


# Files that somebody else made.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a.kohort"
    fitted("kinds and folds", epochs=1).save(path)
    return path


@pytest.mark.slow
def test_a_loaded_cohort_knows_its_folds(saved):
    with pytest.raises(ValueError, match=r"`folds` must be those of the first fit of a cohort"):
        kohort.Cohort.load(saved).fit(X, Y, folds=5, verbose=0)


def other_path(about, arrays):
    about["varied"] = ["first.units", "first.kernel_regularizer.l2"]


def path_beyond_numbers(about, arrays):
    about["varied"] = ["first.__class__", "first.kernel_regularizer.l2"]


def fewer_values(about, arrays):
    arrays["varied/0"] = arrays["varied/0"][:5]


def values_that_are_none(about, arrays):
    arrays["varied/1"] = arrays["varied/1"] * np.nan


def another_kind(about, arrays):
    arrays["varied/0"] = arrays["varied/0"] + 0.1


def rows_beyond(about, arrays):
    arrays["fold/1/validation"] = arrays["fold/1/validation"] + 9


def negative_rows(about, arrays):
    arrays["fold/1/training"] = arrays["fold/1/training"] - 9


def another_number_of_folds(about, arrays):
    about["splits"] = 2


def more_folds(about, arrays):
    about["splits"] = 10**12


def other_sizes(about, arrays):
    about["fold_sizes"] = about["fold_sizes"][:2]


def no_rows_of_members(about, arrays):
    about["splits"], arrays["bootstrap"] = 0, np.zeros((0, 23), np.uint8)


def bytes_as_generators(about, arrays):
    arrays["generators"] = arrays["generators"].astype("uint8")


def a_position_beyond(about, arrays):
    arrays["generators"] = np.where(np.arange(625) == 624, 2**31 - 1, arrays["generators"]).astype("uint32")


def debts_without_end(about, arrays):
    about["owed"] = [[24, 10**13]]


def no_pattern(about, arrays):
    about["decay_exclusions"] = {"weights": [False] * 4, "pattern": "("}


def values_that_differ_between_folds(about, arrays):
    arrays["varied/0"] = np.where(arrays["varied/0"] > 0, np.linspace(0.1, 0.3, 12), 0)


CHANGES = [
    other_path, path_beyond_numbers, fewer_values, values_that_are_none, another_kind, rows_beyond, negative_rows,
    another_number_of_folds, more_folds, values_that_differ_between_folds, other_sizes, no_rows_of_members,
    bytes_as_generators, a_position_beyond, debts_without_end, no_pattern,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_values_and_rows_that_cannot_be_are_refused(change, saved, tmp_path):
    contents = files.read(saved, saving.KIND, saving.VERSION)
    about, arrays = json.loads(json.dumps(contents.about)), copy.copy(contents.arrays)
    change(about, arrays)
    files.write(tmp_path / "b.kohort", saving.KIND, saving.VERSION, files.Contents(about, arrays))
    with pytest.raises(ValueError, match=r"`path` must be a file of which this process can make the cohort again"):
        kohort.Cohort.load(tmp_path / "b.kohort")
