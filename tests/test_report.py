"""What `kohort.report` tells."""

import threading
import time

import keras
import pytest
from keras import layers

import kohort
from kohort.report import COMPILED, KERAS, PARTED, Report, Row, recorded

X, Y = kohort.data.xor()


@pytest.fixture(autouse=True)
def counted_anew():
    kohort.report(clear=True)
    yield
    kohort.report(clear=True)


def build(**options):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse", **options)
    return model


def own_error(y, p):
    """A metric that is the user's own: where Keras runs each step as Python, it has to run this one, too."""
    return keras.ops.abs(y - p)


def counts():
    return {row[:4] for row in kohort.report()}


class Model:
    """Stands for a model: all that the record looks at is its history."""

    def __init__(self, epochs):
        self.history = type("History", (), {"epoch": list(range(epochs))})


def test_nothing_ran():
    assert kohort.report() == ()
    assert str(kohort.report()) == "kohort: no fit ran"


def test_fits_are_counted_by_way_and_reason():
    model = build()
    kohort.fit(model, X, Y, epochs=3, verbose=0)
    kohort.fit(model, X, Y, epochs=2, verbose=0)
    with pytest.warns(kohort.FallBackWarning):
        kohort.fit(build(run_eagerly=True, metrics=[own_error]), X, Y, epochs=4, verbose=0)

    counted = {way: row for way, *row in counts()}
    reason, *times = counted.pop(KERAS)
    assert reason.startswith("the model was compiled with `run_eagerly=True`, and `own_error` is not Keras's own")
    assert times == [1, 4]
    assert counted == {COMPILED: ["", 2, 5]}
    assert all(row.seconds > 0 for row in kohort.report())


def test_a_report_may_begin_a_new_count():
    kohort.fit(build(), X, Y, verbose=0)

    assert kohort.report().calls == kohort.report(clear=True).calls == 1
    assert kohort.report().calls == 0


def test_a_fit_that_is_refused_is_no_fit():
    with pytest.raises(ValueError, match="`epochs` must be"):
        kohort.fit(build(), X, Y, epochs=0)

    assert kohort.report() == ()


def test_a_fit_that_fails_counts_the_epochs_that_it_finished():
    class Failing(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyError("mine")

    model = build()
    kohort.fit(model, X, Y, epochs=5, verbose=0)
    with pytest.raises(KeyError, match="mine"):
        kohort.fit(model, X, Y, epochs=5, verbose=0, callbacks=[Failing()])

    assert counts() == {(COMPILED, "", 2, 7)}


def test_a_fit_that_fails_as_it_begins_has_no_epochs():
    """What the callback raised comes out, though Keras's history has nothing to tell yet."""
    failing = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: {}["mine"])
    with pytest.raises(KeyError, match="mine"):
        kohort.fit(build(), X, Y, verbose=0, callbacks=[failing])

    assert [(row.calls, row.epochs) for row in kohort.report()] == [(1, 0)]


def test_the_epochs_of_an_earlier_fit_are_not_counted_again():
    model = Model(3)
    with pytest.raises(KeyError, match="mine"), recorded(model, KERAS):
        raise KeyError("mine")
    with recorded(model, KERAS):
        model.history = Model(2).history

    assert counts() == {(KERAS, "", 2, 2)}


def test_the_way_may_be_told_during_the_fit():
    with recorded(Model(1), COMPILED) as call:
        call.way = PARTED

    assert counts() == {(PARTED, "", 1, 1)}


def test_threads_count_together():
    def many():
        for _ in range(500):
            with recorded(Model(1), COMPILED):
                pass

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert counts() == {(COMPILED, "", 2000, 2000)}


def test_a_report_prints_as_a_table():
    report = Report([Row(KERAS, "`x` is a generator", 1, 20, 12.5), Row(COMPILED, "", 100, 30000, 1.25)])

    assert (report.compiled_calls, report.calls) == (100, 101)
    assert str(report) == (
        "kohort: 100 of 101 fits ran compiled\n"
        "  calls   epochs   seconds\n"
        "      1       20     12.50  Keras, because `x` is a generator\n"
        "    100    30000      1.25  compiled"
    )


def test_compiled_comes_first_and_then_the_longest_time(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    for reason in ("short", "long"):
        with recorded(Model(1), KERAS, reason):
            pass
    with recorded(Model(1), COMPILED):
        pass

    assert [(row.reason, row.seconds) for row in kohort.report()] == [("", 3.0), ("long", 2.0), ("short", 1.0)]
