"""Callbacks where members differ by more than their seeds: each is guided as in its own `model.fit` on its own rows."""

import os
import subprocess
import sys

import jax
import keras
import numpy as np
import pytest
import sklearn.model_selection as splitters
from keras import layers
from keras.callbacks import EarlyStopping, LearningRateScheduler, ReduceLROnPlateau
from oracle import by_keras, differences
from test_wrong_input import refused

import kohort
from kohort import lanes, mapping, rounds
from kohort.lots import Lot

RNG = np.random.default_rng(5)
X = RNG.normal(size=(43, 2)).astype("float32")
Y = (X[:, 0] * X[:, 1] > 0).astype("float32")
WEIGHTS = RNG.uniform(0.2, 2, size=(2, 43)).astype("float32")
FIT = {"epochs": 12, "batch_size": 8}


def build(rate=0.05, dropout=0.2):
    stack = [layers.Dense(6, "tanh"), layers.BatchNormalization(), layers.Dropout(dropout, name="dropout")]
    model = keras.Sequential([keras.Input((2,)), *stack, layers.Dense(1)])
    model.compile(keras.optimizers.Adam(rate), "mse")
    return model


def stops():
    return [
        ReduceLROnPlateau("loss", factor=0.5, patience=1),
        EarlyStopping("loss", patience=2, min_delta=0.004, restore_best_weights=True),
    ]


def scheduled():
    return [LearningRateScheduler(lambda epoch, rate: rate * 0.9), EarlyStopping("loss", patience=2, min_delta=0.004)]


def keras_run(seed, *fits, rate=0.05, dropout=0.2):
    """The definition of a member."""
    model = build(rate, dropout)
    keras.utils.set_random_seed(seed)
    clone = keras.models.clone_model(model)
    clone.compile(keras.optimizers.Adam(rate), "mse")
    return clone, [by_keras(clone, verbose=0, **(FIT | fit | {"callbacks": fit["callbacks"]()})) for fit in fits][-1]


def values(model):
    return [np.asarray(v.value) for v in [*model.variables, *model.optimizer.variables, *model.metrics_variables]]


def assert_member_is(cohort, index, model, history):
    assert differences(values(model), values(cohort.member(index=index))) == []
    for metric, column in history.history.items():
        own = cohort.history[metric][index]
        np.testing.assert_array_equal(np.float32(column), own[: len(column)])
        assert np.isnan(own[len(column) :]).all()


@pytest.mark.many
@pytest.mark.parametrize("callbacks", [stops, scheduled])
def test_exact_members_of_folds_are_guided_as_by_keras(callbacks):
    """Of 43 rows three folds are of two sizes."""
    cohort = kohort.Cohort(build(), [3, 8], exact=True)
    for _ in range(2):
        history = cohort.fit(X, Y, verbose=0, folds=3, callbacks=callbacks(), **FIT)
    assert len(set(history.stopped_epoch)) > 2
    splits = list(splitters.KFold(3).split(X))
    for index in (0, 1, 5):
        training, validation = splits[index % 3]
        own = {"x": X[training], "y": Y[training], "validation_data": (X[validation], Y[validation])}
        fit = own | {"callbacks": callbacks}
        assert_member_is(cohort, index, *keras_run(cohort.seeds[index], fit, fit))


@pytest.mark.many
@pytest.mark.parametrize("callbacks", [stops, scheduled])
def test_exact_members_that_vary_are_guided_as_by_keras(callbacks):
    """Where nothing is dropped, the network holds no state of dropout: weights have other places."""
    vary = {"dropout.rate": [0.0, 0.3], "optimizer.learning_rate": [0.02, 0.1]}
    cohort = kohort.Cohort(build(), [3, 8], vary=vary, exact=True)
    cohort.fit(X, Y, verbose=0, callbacks=callbacks(), **FIT)
    for index, (seed, dropout, rate) in enumerate([(3, 0.0, 0.02), (8, 0.3, 0.1)]):
        fit = {"x": X, "y": Y, "callbacks": callbacks}
        assert_member_is(cohort, index, *keras_run(seed, fit, rate=rate, dropout=dropout))


RATES = {"optimizer.learning_rate": [0.02, 0.1]}
TOGETHER = {
    "folds": (stops, RATES | {"dropout.rate": [0.0, 0.3]}, {"folds": 3}),
    "scheduled folds": (scheduled, RATES, {"folds": 3}),
    "bootstrap": (stops, RATES, {"bootstrap": True, "validation_data": (X, Y)}),
    "weights": (scheduled, RATES, {"sample_weight": WEIGHTS}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_members_together_are_guided_as_those_alone(name):
    callbacks, vary, options = TOGETHER[name]
    both = []
    for exact in (False, True):
        cohort = kohort.Cohort(build(), [3, 8], vary=vary, exact=exact)
        both.append(cohort.fit(X, Y, verbose=0, callbacks=callbacks(), **(FIT | {"epochs": 6} | options)))
    assert both[0].stopped_epoch.tolist() == both[1].stopped_epoch.tolist()
    for metric in both[1]:
        np.testing.assert_allclose(both[0][metric], both[1][metric], rtol=1e-3, atol=1e-5)


def grid():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(4, "tanh"), layers.Dropout(0.0, name="drop")])
    model.add(layers.Dense(1))
    model.compile(keras.optimizers.SGD(0.05), "mse")
    cohort = kohort.Cohort(model, 12, vary={"drop.rate": [0.0, 0.1, 0.2]}, grid=True)
    callbacks = [EarlyStopping("loss", patience=1, min_delta=0.002)]
    return cohort, cohort.fit(X, Y, verbose=0, folds=3, epochs=30, batch_size=16, callbacks=callbacks)


@pytest.mark.slow
def test_stopped_members_leave_the_lanes_of_their_lot_and_change_no_bit(monkeypatch):
    stayed, history = grid()
    moves = []
    move = rounds.Lanes.move
    monkeypatch.setattr(rounds.Lanes, "move", lambda lanes, width: (moves.append(width), move(lanes, width)))
    cost = lambda fit, packings, now: sum(p.blocks * p.width for p in packings)  # noqa: E731
    monkeypatch.setattr(rounds.Rounds, "_seconds", cost)
    monkeypatch.setattr(rounds.Rounds, "_first_call", lambda fit, lot, width: fit.pace)
    monkeypatch.setattr(rounds, "STOPPING_ROUND_SECONDS", 1e-6)
    moved, again = grid()
    assert len(moves) > 3
    for metric in history:
        np.testing.assert_array_equal(history[metric], again[metric])
    for index in (0, 50, 107):
        assert differences(values(stayed.member(index=index)), values(moved.member(index=index))) == []


@pytest.mark.slow
def test_other_callbacks_see_the_members_of_all_folds():
    seen = []
    told = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs))
    cohort = kohort.Cohort(build(), [3, 8])
    history = cohort.fit(X, Y, verbose=0, folds=3, callbacks=[told], **(FIT | {"epochs": 3}))
    assert told.params == {"epochs": 3, "steps": 4, "verbose": 0}
    for epoch, logs in enumerate(seen):
        assert {*logs} == {*history}
        for metric, column in logs.items():
            np.testing.assert_array_equal(column, history[metric][:, epoch])


# What a seed alone does not name.


@pytest.fixture(scope="module")
def swept():
    cohort = kohort.Cohort(build(), 2, vary={"optimizer.learning_rate": [1e-6, 0.1]}, grid=True)
    cohort.fit(X, Y, verbose=0, epochs=30)
    return cohort


def test_the_best_and_an_ensemble_of_members_that_share_seeds(swept):
    last = swept.history.last("loss")
    ranked = np.argsort(last)
    assert set(ranked[:2]) == {2, 3}
    assert differences(values(swept.best()), values(swept.member(index=int(ranked[0])))) == []
    ensemble = swept.ensemble(top=2)
    assert {layer.name for layer in ensemble.layers} > {"member_2", "member_3"}
    answers = swept.predict(X)[[2, 3]].mean(axis=0)
    np.testing.assert_allclose(ensemble.predict(X, verbose=0), answers, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(swept.predict(X, aggregate="mean"), swept.predict(X).mean(axis=0), rtol=1e-5)


def test_what_needs_seeds_that_name_members(swept):
    with refused(ValueError, r"`best_seed` .* Received: a cohort of 4 members with 2 seeds", swept):
        swept.best_seed()
    with refused(ValueError, r"`compare` .* Received: .*, of 2 seeds\. ", swept):
        swept.compare(swept, loss=0.1)


@pytest.mark.many
@pytest.mark.parametrize("make", [stops, list, scheduled])
def test_a_block_that_is_halved_trains_as_one_that_is_not(make, monkeypatch):
    monkeypatch.setattr(mapping.Form, "width", 8)
    monkeypatch.setattr("kohort.members.cores", lambda: 1)  # three blocks, which two cores share
    orders = []
    monkeypatch.setattr(rounds, "parts", lambda *given: orders.append(lanes.parts(*given)) or orders[-1])
    fitted = []
    for cores in (1, 2):
        monkeypatch.setattr(rounds, "cores", lambda cores=cores: cores)
        cohort = kohort.Cohort(build(), 20)
        for epochs in (30, 10):  # the second fit goes on with the generators that the first has left
            cohort.fit(X, Y, 8, epochs, verbose=0, callbacks=make())
        fitted.append([cohort.history, *(value for member in (0, 19) for value in values(cohort.member(member)))])
    halves = [order for order in orders if len(order) > 3]
    assert bool(halves) == (make is not scheduled)  # rates are told from the first epoch of a round on
    (alone, *states), (beside, *others) = fitted
    assert differences(states, others) == []
    for name in alone:
        np.testing.assert_array_equal(alone[name], beside[name])


@pytest.mark.many
@pytest.mark.parametrize("exact", [False, True])
def test_all_members_of_all_folds_read_one_copy_of_the_data(exact, monkeypatch):
    """Whatever their number, a call is given the rows once; with a member axis come their numbers alone."""
    rows, features, given = 90, 500, []  # so large that it is put where the programs read it, once
    x = RNG.normal(size=(rows, features)).astype("float32")

    def call(lot, mapping, block, arguments, interrupt, real=Lot.call):
        given.append((len(block.members), arguments))
        return real(lot, mapping, block, arguments, interrupt)

    monkeypatch.setattr(Lot, "call", call)
    for seeds, folds in ((2, 3), (2, 9), (20, 9)):
        model = keras.Sequential([keras.Input((features,)), layers.Dense(2), layers.Dense(1)])
        model.compile("sgd", "mse")
        given.clear()
        kohort.Cohort(model, seeds, exact=exact).fit(x, x[:, 0], epochs=2, verbose=0, folds=folds)
        assert sum(width for width, _ in given) >= seeds * folds
        for width, (_, training, validation, schedule, *rest) in given:
            assert [leaf.shape for leaf in jax.tree.leaves(training)] == [(rows, features), (rows,)]
            is_one_copy = validation is training
            assert is_one_copy
            members, trained_on = () if exact else (width,), rows - rows // folds
            assert schedule.rows.shape in [(*members, n, trained_on) for n in range(1, 1 + schedule.rows.shape[-2])]
            assert schedule.validation_rows.shape == (*members, rows // folds)
            assert all(np.ndim(leaf) == 0 for leaf in jax.tree.leaves(rest))
        assert len({arguments[1][0].unsafe_buffer_pointer() for _, arguments in given}) == 1


def test_members_take_no_memory_for_data(monkeypatch):
    """What XLA says that a call takes grows with the members by less than a tenth of the data for each of them."""
    x, taken = np.zeros((300, 4000), "float32"), {}

    def call(lot, mapping, block, arguments, interrupt, real=Lot.call):
        taken[len(block.members)] = lot.program(mapping).memory(*arguments) - arguments[3].rows.nbytes
        return real(lot, mapping, block, arguments, interrupt)

    monkeypatch.setattr(Lot, "call", call)
    monkeypatch.setattr("kohort.members.cores", lambda: 1)
    monkeypatch.setattr(mapping.Form, "width", 64)
    model = keras.Sequential([keras.Input((4000,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    for seeds in (4, 12):
        kohort.Cohort(model, seeds).fit(x, x[:, 0], 2, epochs=1, verbose=0, folds=[(range(200), range(200, 300))] * 2)
    (few, first), (many, second) = sorted(taken.items())
    assert (few, many) == (8, 24)
    assert x.nbytes < first < 3 * x.nbytes  # they count twice: members validate on other rows of the same array
    assert second - first < 16 * x.nbytes / 10


FORKS = """
import os, kohort.cores
assert kohort.cores.threads(1).submit(int).result() == 0
child = os.fork()
if not child:
    os._exit(kohort.cores.threads(1).submit(int, 7).result(timeout=60))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_has_threads_of_its_own():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "7"


def test_a_block_that_fails_is_told_when_no_other_trains_any_more(monkeypatch):
    running, real = [], Lot.call

    def call(lot, mapping, block, arguments, interrupt):
        if arguments[4] > 2 and block.members[0] == 0:
            raise RuntimeError("no more memory")
        running.append(id(block))
        try:
            return real(lot, mapping, block, arguments, interrupt)
        finally:
            running.remove(id(block))

    monkeypatch.setattr(Lot, "call", call)
    cohort = kohort.Cohort(build(), 64)
    with pytest.raises(RuntimeError, match="no more memory"):
        cohort.fit(X, Y, epochs=200, verbose=0)
    assert running == []
