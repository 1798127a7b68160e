"""What is shown while a fit runs, by a clock that the test winds; and what Ctrl-C says is left."""

import io
import re
import sys
import traceback
import types

import keras
import numpy as np
import pytest
from keras.src.utils import progbar
from test_promises import press_at

import kohort
from kohort import progress
from kohort.progress import HeldInterrupt, Progress, told

X = np.random.default_rng(0).normal(size=(12, 2)).astype("float32")
Y = X[:, :1]
LOGS = {"loss": 0.25, "outputs": np.zeros(3)}
CONTROL = re.compile("[\b\r\x1b]")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands: both kohort's and that of Keras's bar."""
    now = types.SimpleNamespace(seconds=100.0)
    stand_in = types.SimpleNamespace(time=lambda: now.seconds, perf_counter=lambda: now.seconds)
    monkeypatch.setattr(progress, "time", stand_in)
    monkeypatch.setattr(progbar, "time", stand_in)
    return now


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(progress, "shows_bars", lambda: True)


def shown(capsys):
    """Returns what was written since the last time, as one reads it: what each line was in the end."""
    written = re.sub("\x1b.*?m|\b", "", capsys.readouterr().out)
    return [line.rpartition("\r")[2].rstrip() for line in written.split("\n")]


def test_in_a_file_there_is_a_plain_line_now_and_then(clock, capsys):
    bar = Progress(1000, "auto")
    bar.begin(0)
    for epoch, seconds in ((0, 3.0), (1, 6.9), (2, 0.2), (3, 9.8), (4, 0.1)):
        clock.seconds += seconds
        bar.update(epoch, 1, LOGS)
    bar.finish()

    written = capsys.readouterr().out
    assert written == "".join(f"Epoch {n}/1000 - {s}s - loss: 0.25\n" for n, s in ((3, 10), (5, 20)))


@pytest.mark.parametrize("seconds", [0.0, 20.0])
def test_each_epoch_is_a_line(clock, capsys, seconds):
    lines = Progress(2, 2)
    lines.begin(0)
    for epoch in range(2):
        clock.seconds += seconds
        lines.update(epoch, 1, LOGS)
    lines.finish()

    assert lines.is_per_epoch
    assert shown(capsys) == [f"Epoch {n}/2 - {n * seconds:.0f}s - loss: 0.25" for n in (1, 2)] + [""]


def test_nothing_is_shown_unasked(terminal, capsys):
    silent = Progress(2, 0)
    silent.begin(0)
    silent.update(0, 2, LOGS)
    silent.finish()

    assert capsys.readouterr().out == ""


def test_the_bar_says_at_once_that_it_begins_and_tells_no_rate_of_compiling(clock, terminal, capsys):
    bar = Progress(100, 1)
    bar.begin(0)
    assert shown(capsys) == ["Epoch 1/100 ..."]
    clock.seconds += 0.9
    bar.update(0, 1, LOGS)
    assert shown(capsys) == [""]
    clock.seconds += 0.1
    bar.update(1, 10, LOGS)
    assert shown(capsys)[0].endswith(" 0s 10ms/epoch - loss: 0.2500")
    clock.seconds += 0.01  # too soon to draw it again
    bar.update(11, 1, LOGS)
    assert shown(capsys) == [""]
    bar.finish()
    assert shown(capsys)[0].startswith(" 12/100 ")


def test_a_first_epoch_that_takes_long_is_shown(clock, terminal, capsys):
    bar = Progress(3, 1)
    bar.begin(0)
    clock.seconds += 60
    bar.update(0, 1, LOGS)

    assert shown(capsys)[0].endswith(" 2:00 60s/epoch - loss: 0.2500")


def test_a_fit_that_goes_on_counts_its_own_epochs(clock, terminal, capsys):
    bar = Progress(1000, 1)
    bar.begin(900)
    assert shown(capsys) == ["Epoch 901/1000 ..."]
    clock.seconds += 1
    bar.update(900, 50, LOGS)

    assert re.fullmatch(" 50/100 ━+ 1s 20ms/epoch - loss: 0.2500", shown(capsys)[0])


def test_a_line_that_was_begun_is_ended(terminal, capsys):
    bar = Progress(3, 1)
    bar.begin(0)
    bar.finish()

    bar.finish()
    assert shown(capsys) == ["Epoch 1/3 ...", ""]


def test_a_cohort_that_fails_ends_the_line(terminal, capsys):
    failing = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: {}["mine"])
    with pytest.raises(KeyError, match="mine"):
        kohort.Cohort(build(), 2).fit(X, Y, epochs=3, verbose=1, callbacks=[failing])

    assert shown(capsys) == ["Epoch 1/3 ...", ""]


def test_where_keras_logs_nothing_is_printed(capsys):
    lines = Progress(1, 2)
    keras.config.disable_interactive_logging()
    try:
        lines.update(0, 1, LOGS)
    finally:
        keras.config.enable_interactive_logging()

    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_is_for_those_who_see_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.delenv("PYCHARM_HOSTED", raising=False)
    assert not progress.shows_bars()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert progress.shows_bars()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert progress.shows_bars()


def build():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    "fit",
    [
        lambda *data, **given: kohort.fit(build(), *data, **given),
        lambda *data, **given: kohort.Cohort(build(), 2).fit(*data, **given),
    ],
    ids=["model", "cohort"],
)
def test_fits_show_it(fit, capsys, terminal):
    fit(X, Y, epochs=7, verbose=1)

    begun, ended = capsys.readouterr().out.split(" ...", 1)
    assert begun == "Epoch 1/7"
    assert "7/7" in ended
    assert "loss" in ended


def test_a_cohort_shows_that_it_begins_before_it_compiles(capsys, terminal, monkeypatch):
    def refused(fit):
        assert capsys.readouterr().out == "Epoch 1/7 ..."
        raise ValueError("no room")

    monkeypatch.setattr("kohort.rounds.Rounds.prepare", refused)
    with pytest.raises(ValueError, match="no room"):
        kohort.Cohort(build(), 2).fit(X, Y, epochs=7, verbose=1)
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(("verbose", "shown"), [("auto", "4/4"), (1, "4/4"), (2, "\nEpoch 2/4 - "), (0, "")], ids=str)
def test_the_switch_shows_it(verbose, shown, capsys):
    with kohort.install(strict=True):
        build().fit(X, Y, epochs=4, verbose=verbose)

    printed = capsys.readouterr().out
    assert shown in printed
    assert ("loss" in printed) == (verbose != 0)


def test_ctrl_c_says_what_is_left(monkeypatch):
    """In few lines: the frames in which it was held back are of no use to anybody."""
    model, cohort = build(), kohort.Cohort(build(), 3)
    for fit, what, history in (
        (lambda **given: kohort.fit(model, **given), "the model", lambda: model.history),
        (cohort.fit, "each member", lambda: cohort.history),
    ):
        with monkeypatch.context() as patch:
            press_at(patch, 3)
            with pytest.raises(KeyboardInterrupt) as caught:
                fit(x=X, y=Y, epochs=10_000, verbose=0)
        done = len(history().epoch)
        assert str(caught.value) == (
            f"{what} holds its last finished epoch, {done} of 10000; `initial_epoch={done}` goes on from there"
        )
        assert "held_interrupt" not in {frame.name for frame in traceback.extract_tb(caught.value.__traceback__)}
        assert caught.value.__suppress_context__


def test_ctrl_c_before_the_end_of_an_epoch_says_so():
    class Press(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            raise KeyboardInterrupt

    for fit, what in (
        (lambda **given: kohort.fit(build(), **given), "the model"),
        (kohort.Cohort(build(), 2).fit, "each member"),
    ):
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(x=X, y=Y, epochs=3, verbose=0, callbacks=[Press()])
        assert caught.value.__notes__ == [f"kohort: no epoch had finished: {what} is as it was"]


def test_an_interrupt_of_the_users_own_keeps_its_place():
    own = KeyboardInterrupt("mine")

    assert told(own, "the model", 3, 5) is own
    assert own.__notes__ == [
        "kohort: the model holds its last finished epoch, 3 of 5; `initial_epoch=3` goes on from there"
    ]
    assert type(told(HeldInterrupt(), "the model", 3, 5)) is KeyboardInterrupt
