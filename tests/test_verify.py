"""`kohort.install(verify=True)`: both ways, Keras's result, and where they part."""

import re

import keras
import numpy as np
import pytest
from keras import callbacks, layers
from oracle import by_keras, differences, run

import kohort
from kohort import verify
from kohort.fit import Request
from kohort.report import KERAS, PARTED, VERIFIED
from kohort.training import Training
from kohort.verify import Outcome, parting, why_not_twice

RNG = np.random.default_rng(4)
X = RNG.normal(size=(40, 3)).astype("float32")
Y = (X[:, :1] * X[:, 1:2] > 0).astype("float32")
FIT = {"x": X, "y": Y, "epochs": 4, "batch_size": 16, "validation_split": 0.25}


@pytest.fixture(autouse=True)
def counted_anew():
    kohort.report(clear=True)
    yield
    kohort.report(clear=True)


def build():
    """Not built yet: the first fit draws initial weights and reads a batch more."""
    model = keras.Sequential(
        [layers.Dense(6, "relu"), layers.BatchNormalization(), layers.Dropout(0.2), layers.Dense(1, "sigmoid")]
    )
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model


def verified(model, **arguments):
    with kohort.install(verify=True):
        return by_keras(model, **arguments)


def counts():
    return {row[:4] for row in kohort.report()}


def test_both_ways_leave_what_keras_leaves():
    """In a second fit, too, which goes on from the first."""
    theirs, ours = (run(train, build, 1, [FIT, FIT]) for train in (by_keras, verified))

    assert differences(theirs, ours) == []
    assert counts() == {(VERIFIED, "", 2, 8)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: [
            callbacks.EarlyStopping("val_loss", patience=1, min_delta=0.5, restore_best_weights=True),
            callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=1.0),
            callbacks.TerminateOnNaN(),
        ],
        lambda: callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5),
    ],
    ids=["several", "one"],
)
def test_callbacks_that_act_on_the_model_alone(make):
    def watched(train):
        def fit(model, **arguments):
            own = make()
            history = train(model, callbacks=own, **arguments)
            seen.append([getattr(own[0], "wait", None), own[0].best] if isinstance(own, list) else own.model is model)
            return history

        return fit

    seen = []
    theirs, ours = (run(watched(train), build, 1, [FIT]) for train in (by_keras, verified))
    assert differences(theirs, ours) == []
    assert seen[0] == seen[1]
    assert counts() == {(VERIFIED, "", 1, len(theirs.epoch))}


@pytest.fixture
def faulty(monkeypatch):
    """Makes compiled fits leave a weight wrong, and lose the validation of the second epoch."""
    train = Training.train

    def wrong(self):
        history = train(self)
        self.model.layers[0].kernel.assign_add(np.eye(3, 6) / 4)
        history.history["val_loss"][1] = -1.0
        np.random.random()
        return history

    monkeypatch.setattr(Training, "train", wrong)


@pytest.mark.usefixtures("faulty")
def test_where_they_part():
    theirs = run(by_keras, build, 1, [FIT])
    with pytest.warns(kohort.DifferenceWarning) as caught:
        ours = run(verified, build, 1, [FIT])

    told = str(caught.pop().message)
    assert differences(theirs, ours) == []
    assert told == (
        "kohort: the compiled fit parted from Keras's: "
        f"first in epoch 2, where `val_loss` is -1.0 instead of {theirs.history['val_loss'][1]}; "
        "at the end in 1 of 27 variables, most in `sequential/dense/kernel`, by up to 0.25; "
        "the random generators end in other states. The model holds Keras's result."
    )
    assert counts() == {(PARTED, "", 1, 4)}


class Own(callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.begun = 0

    def on_train_begin(self, logs=None):
        self.begun += 1


def test_what_may_act_elsewhere_runs_once():
    own = Own()
    reason = "`verify` runs each fit two times, and the callback Own may act elsewhere"
    with pytest.warns(kohort.FallBackWarning, match=re.escape(reason)):
        run(verified, build, 1, [FIT | {"callbacks": [own]}])

    assert own.begun == 1
    assert counts() == {(KERAS, reason, 1, 4)}


def test_a_compiled_fit_that_fails_leaves_the_model_as_it_was(monkeypatch):
    train = Training.train

    def failing(self):
        train(self)
        raise ZeroDivisionError

    def left(fit):
        keras.utils.set_random_seed(1)
        model = build()
        model.fit(**FIT, verbose=0)  # builds it
        fit(model)
        return model.get_weights(), [np.asarray(v.value) for v in model.optimizer.variables], np.random.get_state()[1:3]

    def failed(model):
        with pytest.raises(ZeroDivisionError):
            verified(model, **FIT, verbose=0)

    monkeypatch.setattr(Training, "train", failing)
    assert differences(left(lambda model: None), left(failed)) == []


def test_strict_and_verify_together():
    with kohort.install(strict=True, verify=True), pytest.raises(kohort.FallBackError, match="Own may act elsewhere"):
        build().fit(**FIT, verbose=0, callbacks=[Own()])
    assert counts() == set()


def test_what_can_run_twice():
    assert why_not_twice(Request(X, Y)) is None
    assert why_not_twice(Request(X, Y, callbacks=[callbacks.EarlyStopping()])) is None
    assert "may act elsewhere" in why_not_twice(Request(X, Y, callbacks=callbacks.CSVLogger("log.csv")))
    assert "can be read two times" in why_not_twice(Request(i for i in range(3)))
    assert "can be read two times" in why_not_twice(Request(X, Y, validation_data=(i for i in range(3))))


# Outcomes.


GENERATORS = verify._generators()  # those of now: other tests draw from them


def outcome(weight=1.0, loss=(1.0, 0.5), epochs=(0, 1), **others):
    values = {"w": np.array([0.0, weight], "float32"), "n": np.array(3)}
    return Outcome(values, {"loss": list(loss), **others}, list(epochs), GENERATORS)


def test_the_same_outcome_parts_nowhere():
    nan = outcome(weight=np.nan, loss=(np.nan, np.inf))

    assert parting(outcome(), outcome()) is None
    assert parting(nan, outcome(weight=np.nan, loss=(np.nan, np.inf))) is None


@pytest.mark.parametrize(
    ("ours", "told"),
    [
        (outcome(weight=1.5), "at the end in 1 of 2 variables, most in `w`, by up to 0.5"),
        (outcome(weight=np.nan), "at the end in 1 of 2 variables, most in `w`, by up to nan"),
        (outcome(weight=-np.inf), "at the end in 1 of 2 variables, most in `w`, by up to inf"),
        (outcome(loss=(1.0, 0.25)), "first in epoch 2, where `loss` is 0.25 instead of 0.5"),
        (outcome(loss=(2.0, 0.25)), "first in epoch 1, where `loss` is 2.0 instead of 1.0"),
        (outcome(loss=(np.nan, 0.5)), "first in epoch 1, where `loss` is nan instead of 1.0"),
        (outcome(loss=(1.0,), epochs=(0,)), "1 epochs of loss instead of 2 of loss"),
        (outcome(val_loss=[1.0]), "2 epochs of loss, val_loss instead of 2 of loss"),
        (outcome()._replace(values={}), "other variables"),
        (outcome()._replace(generators=((), ())), "the random generators end in other states"),
    ],
)
def test_each_way_to_part(ours, told):
    assert parting(ours, outcome()) == told


def test_validation_that_is_not_in_every_epoch():
    assert parting(outcome(val_loss=[2.0]), outcome(val_loss=[1.0])) == (
        "first in value 1, where `val_loss` is 2.0 instead of 1.0"
    )
