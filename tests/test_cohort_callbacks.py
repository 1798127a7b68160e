"""Callbacks of a cohort: Keras's own act on each member as in its own `model.fit`, others see all members."""

import csv
import math
import signal
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras.callbacks import EarlyStopping, LearningRateScheduler, ReduceLROnPlateau, TerminateOnNaN
from oracle import by_keras, differences
from test_promises import compilations

import kohort
from kohort import rounds, rules
from kohort.cohort_callbacks import Guide
from kohort.history import Outcome

RNG = np.random.default_rng(1)
POINTS = RNG.normal(size=(40, 2)).astype("float32")
SIGNS = (POINTS[:, 0] * POINTS[:, 1] > 0).astype("float32")
SEEDS = [0, 3, 17]
FIT = {"x": POINTS, "y": SIGNS, "batch_size": 16, "epochs": 14, "validation_split": 0.25}


def compiled(model, optimizer=None, **options):
    """Compiles the model, or a clone of it, always alike."""
    model.compile(optimizer() if optimizer else keras.optimizers.Adam(0.1), "mse", metrics=["mae"], **options)
    return model


def dense():
    return keras.Sequential([keras.Input((2,)), layers.Dense(6, "tanh"), layers.Dense(1)])


def noisy():
    hidden = [layers.Dense(6, use_bias=False), layers.BatchNormalization(), layers.Dropout(0.3)]
    return keras.Sequential([keras.Input((2,)), *hidden, layers.Dense(1)])


def keras_run(model, seed, fits, **options):
    """The definition of a member."""
    keras.utils.set_random_seed(seed)
    clone = compiled(keras.models.clone_model(model), **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*conditioned on metric.*")
        histories = [by_keras(clone, verbose=0, **make()) for make in fits]
    return clone, histories


def values(model):
    return [np.asarray(v.value) for v in [*model.variables, *model.optimizer.variables, *model.metrics_variables]]


def halved(epoch, rate):
    return rate if epoch % 3 else rate * 0.7


def ema():
    return keras.optimizers.SGD(0.5, momentum=0.9, use_ema=True, ema_momentum=0.8)


def wild():
    return keras.optimizers.SGD(3.0)


MISSING = {"validation_freq": 3}
# name -> callbacks, arguments of fit, network, options of compile
CASES = {
    "patience": (lambda: [EarlyStopping(patience=2)], {}, dense, {}),
    "best-weights": (
        lambda: [EarlyStopping("val_mae", patience=3, restore_best_weights=True, mode="min")],
        {},
        noisy,
        {},
    ),
    "baseline": (lambda: [EarlyStopping("loss", baseline=0.22, patience=3, min_delta=0.01)], {}, dense, {}),
    "start": (
        lambda: [EarlyStopping(start_from_epoch=6, patience=1, restore_best_weights=True)],
        {"initial_epoch": 2},
        dense,
        {},
    ),
    "seldom-validated": (lambda: [EarlyStopping(patience=1), ReduceLROnPlateau(patience=1)], MISSING, dense, {}),
    "averages": (lambda: [EarlyStopping(patience=1, restore_best_weights=True)], {}, dense, {"optimizer": ema}),
    "averages-last": (lambda: [EarlyStopping(patience=1)], {}, dense, {"optimizer": ema}),
    "plateau": (
        lambda: [
            ReduceLROnPlateau("loss", factor=0.3, patience=1, min_delta=0.01, cooldown=1, min_lr=0.004),
            EarlyStopping("learning_rate", mode="min", patience=4),
        ],
        {},
        noisy,
        {},
    ),
    "scheduled": (lambda: [LearningRateScheduler(halved), EarlyStopping(patience=2)], {}, dense, {}),
    "scheduled-and-reduced": (
        lambda: [ReduceLROnPlateau("loss", factor=0.5, patience=1), LearningRateScheduler(halved)],
        {"epochs": 8},
        dense,
        {},
    ),
    "steps": (lambda: [EarlyStopping("loss", patience=1)], {"steps_per_epoch": 2}, dense, {}),
    "in-order": (lambda: [EarlyStopping("loss", patience=1)], {"shuffle": False}, dense, {}),
    "one-batch": (lambda: [EarlyStopping(patience=1)], {"batch_size": 40}, dense, {}),
    "not-finite": (lambda: [TerminateOnNaN()], {"epochs": 40}, dense, {"optimizer": wild}),
    "not-finite-unvalidated": (
        lambda: [TerminateOnNaN(), EarlyStopping("loss", patience=30)],
        {"epochs": 40, "validation_split": 0.0},
        dense,
        {"optimizer": wild},
    ),
}


@pytest.mark.many
@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_exact_members_are_guided_as_by_keras_bit_for_bit(case, monkeypatch):
    monkeypatch.setattr(rounds, "STOPPING_ROUND_SECONDS", 100.0)  # members stop in the middle of a round
    monkeypatch.setattr(rounds, "ROUND_SECONDS", 100.0)
    make, arguments, network, options = case
    fits = [lambda: FIT | arguments | {"callbacks": make()}, lambda: FIT | {"epochs": 2}]
    model = compiled(network(), **options)
    cohort = kohort.Cohort(model, SEEDS, exact=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ran out of data")
        histories = [cohort.fit(verbose=0, **fits[0]())]
        guided = [values(cohort.member(seed)) for seed in SEEDS]
        histories.append(cohort.fit(verbose=0, **fits[1]()))
    stops = any(isinstance(each, EarlyStopping | TerminateOnNaN) for each in make())
    assert (histories[0].stopped_epoch >= 0).any() == stops
    for i, seed in enumerate(SEEDS):
        theirs, (first,) = keras_run(model, seed, fits[:1], **options)
        assert differences(values(theirs), guided[i]) == [], seed
        assert_same_history(histories[0], i, first, theirs.stop_training)
        theirs.set_weights(theirs.get_weights())  # Keras's averages are the same arrays as the weights, and it fails
        again = by_keras(theirs, verbose=0, **fits[1]())  # goes on from where it has stopped
        assert differences(values(theirs), values(cohort.member(seed))) == [], seed
        assert_same_history(histories[1], i, again, False)


def assert_same_history(ours, member, theirs, is_stopped):
    """Asserts the same columns, of the same length, with NaN after the member's stop."""
    assert set(ours) == set(theirs.history)
    assert ours.stopped_epoch[member] == (theirs.epoch[-1] if is_stopped else -1)
    ran = ours.epoch.index(theirs.epoch[-1]) + 1
    for metric, column in theirs.history.items():
        recorded = ours[metric][member]
        assert np.isnan(recorded[ran:]).all()
        if len(column) < ran:  # Keras leaves out the epochs that did not validate
            recorded = recorded[:ran][~np.isnan(recorded[:ran])]
        np.testing.assert_array_equal(np.float32(column), recorded[: len(column)])


def smooth(seeds=20, **options):
    """A cohort that stops by a bound far above rounding."""
    cohort = kohort.Cohort(compiled(dense(), lambda: keras.optimizers.SGD(0.05)), seeds, **options)
    callbacks = [
        ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=0.004),
        EarlyStopping("loss", patience=4, min_delta=0.002, restore_best_weights=True),
    ]
    return cohort, cohort.fit(verbose=0, callbacks=callbacks, **FIT | {"epochs": 40})


def test_members_are_guided_as_by_keras_to_rounding():
    _, history = smooth()
    _, exact = smooth(exact=True)
    np.testing.assert_array_equal(history.stopped_epoch, exact.stopped_epoch)
    assert len(set(history.stopped_epoch)) > 5
    assert history["loss"].shape == exact["loss"].shape
    for metric in history:
        np.testing.assert_allclose(history[metric], exact[metric], rtol=1e-3, atol=1e-5)


def test_stopped_members_leave_their_lanes_and_change_no_bit(monkeypatch):
    stayed, history = smooth(40)
    moves = []
    move, drop = rounds.Lanes.move, rounds.Lanes.drop
    monkeypatch.setattr(rounds.Lanes, "move", lambda lanes, width: (moves.append(width), move(lanes, width)))
    monkeypatch.setattr(rounds.Lanes, "drop", lambda lanes: (moves.append("drop"), drop(lanes)))
    monkeypatch.setattr(rounds.Rounds, "_seconds", lambda fit, packings, now: sum(p.blocks * p.width for p in packings))
    monkeypatch.setattr(rounds.Rounds, "_first_call", lambda fit, lot, width: fit.pace)
    monkeypatch.setattr(rounds, "STOPPING_ROUND_SECONDS", 1e-6)
    moved, again = smooth(40)
    assert len(moves) > 3
    for metric in history:
        np.testing.assert_array_equal(history[metric], again[metric])
    for seed in (0, 7, 39):
        assert differences(values(stayed.member(seed)), values(moved.member(seed))) == []
    np.testing.assert_array_equal(
        stayed.fit(verbose=0, **FIT | {"epochs": 3})["loss"], moved.fit(verbose=0, **FIT | {"epochs": 3})["loss"]
    )


def test_the_first_round_ends_where_members_may_leave_their_lanes(monkeypatch):
    """Also where little is left then: who stops at the end of the patience shall not keep a lane to the last epoch."""
    counts = []
    advance = rounds.Rounds._round
    monkeypatch.setattr(rounds.Pace, "epochs", lambda pace, remaining, capacity, seconds: remaining)
    monkeypatch.setattr(rounds.Rounds, "_round", lambda fit, *of: counts.append(len(of[1])) or advance(fit, *of))
    callbacks = [EarlyStopping("loss", patience=10, min_delta=1e6)]
    history = kohort.Cohort(compiled(dense()), 3).fit(verbose=0, callbacks=callbacks, **FIT | {"epochs": 14})
    assert history.stopped_epoch.tolist() == [10] * 3
    assert counts == [11]


@pytest.mark.many
@pytest.mark.parametrize("exact", [True, False])
def test_a_poisoned_member_stops_alone(exact):
    """P3: the others keep every bit."""

    def cohort(poisoned):
        made = kohort.Cohort(compiled(dense()), 11, exact=exact)
        made.fit(verbose=0, **FIT | {"initial_epoch": 14})
        if poisoned:
            trained = made._members.trained
            block = trained.states[4 if exact else 0]
            kernel = np.array(block.trainable_variables[0])
            kernel[... if exact else 4] = np.nan
            block.trainable_variables[0] = kernel
        callbacks = [TerminateOnNaN(), EarlyStopping("loss", patience=2)]
        return made.fit(verbose=0, callbacks=callbacks, **FIT)

    healthy, ill = cohort(False), cohort(True)
    assert ill.outcome[4] is Outcome.DIVERGED
    assert ill.stopped_epoch[4] == 0
    assert np.isnan(ill["loss"][4]).all()
    others = [i for i in range(11) if i != 4]
    np.testing.assert_array_equal(healthy.stopped_epoch[others], ill.stopped_epoch[others])
    np.testing.assert_array_equal(healthy["loss"][others], ill["loss"][others, : healthy["loss"].shape[1]])


def test_outcomes_and_last_values():
    cohort, history = smooth()
    stopped = history.stopped_epoch >= 0
    assert [o.name for o in history.outcome[stopped]] == ["STOPPED_EARLY"] * stopped.sum()
    ran = np.where(stopped, history.stopped_epoch + 1, len(history.epoch))
    np.testing.assert_array_equal(history.last("loss"), [history["loss"][i, n - 1] for i, n in enumerate(ran)])
    assert np.isfinite(history.last("val_loss")).all()
    assert cohort.success_rate(loss=math.inf).k == 20
    assert kohort.history.CohortHistory.last(cohort.history, "loss").shape == (20,)


@pytest.mark.many
@pytest.mark.parametrize("exact", [True, False])
def test_other_numbers_compile_nothing(exact, monkeypatch):
    # A narrower block is a program of its own, and the clock says whether it pays.
    monkeypatch.setattr(rounds.Rounds, "_repack", lambda *_: None)
    model = compiled(dense())
    fit = FIT | {"verbose": 0, "epochs": 6}

    def callbacks(patience, delta):
        stop = EarlyStopping(patience=patience, min_delta=delta, restore_best_weights=True)
        return [stop, ReduceLROnPlateau(patience=patience, factor=0.4 + delta)]

    kohort.Cohort(model, 20, exact=exact).fit(callbacks=callbacks(2, 0.01), **fit)
    with compilations() as seen:
        cohort = kohort.Cohort(model, range(50, 70), exact=exact)
        cohort.fit(callbacks=callbacks(4, 0.1), **fit)
        cohort.fit(callbacks=callbacks(1, 0.0), **fit | {"epochs": 30})
    assert seen == []


# Others see all members.


class Notes(keras.callbacks.Callback):
    """Writes down what it is told."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_begin(self, logs=None):
        self.seen.append(("begin", dict(self.params)))

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(("epoch", epoch))

    def on_epoch_end(self, epoch, logs=None):
        trained = np.asarray(self.model.evaluate(POINTS[:30], SIGNS[:30])["loss"])
        self.seen.append((epoch, {name: value.copy() for name, value in logs.items()}, trained))

    def on_train_end(self, logs=None):
        self.seen.append(("end", logs))


def test_other_callbacks_see_all_members_between_epochs(tmp_path):
    notes, log = Notes(), keras.callbacks.CSVLogger(tmp_path / "log.csv")
    cohort = kohort.Cohort(compiled(dense()), 5)
    callbacks = [EarlyStopping(patience=1), notes, log]
    history = cohort.fit(verbose=0, callbacks=callbacks, **FIT | {"epochs": 5, "validation_freq": 2})
    epochs = len(history.epoch)
    assert notes.seen[0] == ("begin", {"epochs": 5, "steps": 2, "verbose": 0})
    assert [each[0] for each in notes.seen[1:-1]] == [part for e in range(epochs) for part in ("epoch", e)]
    for epoch, logs, trained in notes.seen[2:-1:2]:
        assert ("val_loss" in logs) == (epoch % 2 == 1)
        assert trained.shape == (5,)
        for name, column in logs.items():
            np.testing.assert_array_equal(column, history[name][:, epoch])
    assert notes.seen[-1][0] == "end"
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert len(rows) == epochs
    assert rows[0]["loss"].count(",") == 4


def test_a_callback_may_stop_all_members():
    def stop(epoch, logs):
        cohort.stop_training = epoch == 2

    cohort = kohort.Cohort(compiled(dense()), 3)
    history = cohort.fit(verbose=0, callbacks=keras.callbacks.LambdaCallback(on_epoch_end=stop), **FIT)
    assert history.epoch == [0, 1, 2]
    assert history.stopped_epoch.tolist() == [2, 2, 2]
    assert set(history.outcome) == {Outcome.STOPPED_EARLY}
    plain = kohort.Cohort(compiled(dense()), 3).fit(verbose=0, **FIT | {"epochs": 3})
    np.testing.assert_allclose(plain["loss"], history["loss"], rtol=1e-5)
    assert len(cohort.fit(verbose=0, **FIT).epoch) == 14  # the next fit begins anew


def test_stop_training_is_for_all_members():
    def stop(epoch, logs):
        cohort.stop_training = logs["loss"] < 1

    cohort = kohort.Cohort(compiled(dense()), 3)
    with pytest.raises(TypeError, match=r"`stop_training` of a cohort must be True or False, .* shape=\(3,\)"):
        cohort.fit(verbose=0, callbacks=keras.callbacks.LambdaCallback(on_epoch_end=stop), **FIT)
    assert cohort.history.epoch == [0]


def test_schedules_are_asked_once_for_each_rate():
    asked = []

    def schedule(epoch, rate):
        asked.append((epoch, round(rate, 4)))
        return 0.5 * rate

    cohort = kohort.Cohort(compiled(dense()), 9)
    history = cohort.fit(verbose=0, callbacks=LearningRateScheduler(schedule), **FIT | {"epochs": 3})
    assert asked == [(0, 0.1), (1, 0.05), (2, 0.025)]
    np.testing.assert_array_equal(history["learning_rate"], np.float32([[0.05, 0.025, 0.0125]] * 9))


def test_a_schedule_that_fails_leaves_the_finished_epochs():
    def schedule(epoch, rate):
        return rate if epoch < 2 else 1

    cohort = kohort.Cohort(compiled(dense()), 2)
    notes = Notes()
    with pytest.raises(ValueError, match="The output of the `schedule` function should be a float"):
        cohort.fit(verbose=0, callbacks=[LearningRateScheduler(schedule), notes], **FIT)
    assert cohort.history.epoch == [0, 1]


@pytest.mark.parametrize("exact", [True, False])
def test_interrupt_keeps_what_is_finished(exact):
    def press(epoch, logs):
        if (cohort.history.stopped_epoch >= 0).any():
            signal.raise_signal(signal.SIGINT)

    callbacks = [EarlyStopping(patience=1), keras.callbacks.LambdaCallback(on_epoch_end=press)]
    cohort = kohort.Cohort(compiled(dense()), 9, exact=exact)
    with pytest.raises(KeyboardInterrupt):
        cohort.fit(verbose=0, callbacks=callbacks, **FIT)
    history = cohort.history
    assert history.epoch == list(range(max(history.stopped_epoch) + 1))
    assert (history.stopped_epoch < 0).any()
    assert np.isfinite(cohort.fit(verbose=0, **FIT | {"epochs": 2})["loss"]).all()


# Wrong input.


class Inside(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        pass


class Between(keras.callbacks.Callback):
    def on_test_begin(self, logs=None):
        pass


class Mine(EarlyStopping):
    """Somebody's own kind."""


NOT_ONE = r"`callbacks` must hold instances of keras\.callbacks\.Callback\. Received: callbacks with an element="
LOGS = r"must monitor what an epoch logs: loss, mae, val_loss, val_mae\. Received: "
RATE_ABOVE = [EarlyStopping("learning_rate", mode="min"), ReduceLROnPlateau()]
NO_DIRECTION = [ReduceLROnPlateau(), EarlyStopping("learning_rate")]
REFUSED = {
    "no-callback": ("callbacks", TypeError, NOT_ONE + "'c"),
    "class": ([EarlyStopping], TypeError, NOT_ONE + "<class"),
    "list": (
        keras.callbacks.CallbackList(),
        TypeError,
        r"`callbacks` must be a callback or a list of them\. Received: ",
    ),
    "batch": ([Inside()], ValueError, r"with Inside, which acts inside an epoch \(`on_train_batch_end`\)\. Use"),
    "validation": ([Between()], ValueError, r"with Between, which acts inside an epoch \(`on_test_begin`\)"),
    "one-model": (
        [keras.callbacks.ModelCheckpoint("a.keras")],
        ValueError,
        "with ModelCheckpoint, a ModelCheckpoint, wh",
    ),
    "subclass": (
        [Mine()],
        ValueError,
        "be Keras's EarlyStopping, .* with Mine, a EarlyStopping, which acts on one model",
    ),
    "history": ([keras.callbacks.History()], ValueError, "with History, a History, which acts on one model"),
    "raises": ([TerminateOnNaN(raise_error=True)], ValueError, r"must let a member that diverges stop by itself\. "),
    "metric": (
        [EarlyStopping("acc")],
        ValueError,
        LOGS + r"EarlyStopping\(monitor='acc'\)\. Pass one of .* `monitor`\.",
    ),
    "rate": (RATE_ABOVE, ValueError, LOGS + r"EarlyStopping\(monitor='learning_rate'\)"),
    "direction": (NO_DIRECTION, ValueError, r"must say in which direction .* Received: .*, mode='auto'\)\. Pass mode="),
    "number": (
        [EarlyStopping(patience="3")],
        ValueError,
        r"must hold numbers\. Received: EarlyStopping\(patience='3'\)",
    ),
    "nan": ([EarlyStopping(min_delta=math.nan)], ValueError, r"Received: EarlyStopping\(min_delta=nan\)"),
}


@pytest.mark.parametrize(("callbacks", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_callbacks(callbacks, error, message):
    cohort = COHORT
    with pytest.raises(error, match=message):
        cohort.fit(verbose=0, callbacks=callbacks, **FIT)
    with pytest.raises(RuntimeError, match=r"`cohort\.history` must come after"):
        _ = cohort.history


COHORT = kohort.Cohort(compiled(dense()), 2)


def test_validation_data_are_asked_for():
    with pytest.raises(ValueError, match=r"Received: EarlyStopping\(monitor='val_loss'\)\. .*, or validation data\."):
        kohort.Cohort(compiled(dense()), 2).fit(POINTS, SIGNS, verbose=0, callbacks=EarlyStopping())


@pytest.mark.parametrize("callback", [ReduceLROnPlateau(), LearningRateScheduler(halved)], ids=["reduce", "schedule"])
def test_a_rate_that_cannot_be_set(callback):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    cohort = kohort.Cohort(compiled(dense(), lambda: keras.optimizers.SGD(schedule)), 2)
    with pytest.raises(
        ValueError, match=r"must leave the learning rate alone .* beside SGD with a schedule of its own\."
    ):
        cohort.fit(verbose=0, callbacks=callback, **FIT)


def test_several_steps_in_one_execution():
    cohort = kohort.Cohort(compiled(dense(), steps_per_execution=2), 2)
    with pytest.raises(ValueError, match=r"must not hold TerminateOnNaN .* Received: steps_per_execution=2\."):
        cohort.fit(verbose=0, callbacks=TerminateOnNaN(), **FIT)


def test_functions_are_called_as_by_keras():
    """Each with all its arguments by position, as `LambdaCallback` hands them on."""
    told = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: told.append(("epoch begins", epoch, logs)),
        on_epoch_end=lambda epoch, logs: told.append(("epoch ends", epoch, sorted(logs))),
        on_train_begin=lambda logs: told.append(("begins", logs)),
        on_train_end=lambda logs: told.append(("ends", sorted(logs))),
    )
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    for fit in (kohort.Cohort(model, 2).fit, model.fit):
        fit(np.ones((4, 2)), np.ones(4), verbose=0, callbacks=[watch])

    expected = [("begins", {}), ("epoch begins", 0, {}), ("epoch ends", 0, ["loss"]), ("ends", ["loss"])]
    assert told == expected * 2


def test_a_round_may_end_where_patience_ends():
    stop = rules.EarlyStop(rules.Monitor("loss", True), False, False, ())
    numbers = [{"start_from_epoch": 7, "patience": 2}, {"start_from_epoch": 0, "patience": 14}]
    guide = Guide((stop, rules.Terminate(), stop), (numbers[0], {}, numbers[1]))
    assert [guide.end_of_patience(epoch) for epoch in (0, 3, 20)] == [10, 10, 23]
    assert Guide((rules.Terminate(),), ({},)).end_of_patience(5) == 5  # who may stop at once is not waited for
