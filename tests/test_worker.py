"""The other end of the worker, asked here without a process."""

import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from oracle import differences

from kohort import keras_internals
from kohort.blueprint import blueprint
from kohort.engine import Cut, Schedule
from kohort.programs import Programs
from kohort.structures import map_arrays
from kohort.wire import Channel
from kohort.worker import MOST_MODELS, Bench

X = np.random.default_rng(0).normal(size=(10, 2)).astype("float32")
Y = (X[:, 0] > 0).astype("float32")


@pytest.fixture
def bench():
    return Bench()


def build(units=3):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(units), layers.Dropout(0.4), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    keras_internals.build_like(model, (X, Y))
    return model


def asked(model, name="one", **others):
    program = ["epochs", Cut(4, 2, 2), None, 8]
    message = {"do": "run", "model": name, "program": program, "samples": 1, "validation": None, "count": 3}
    state = map_arrays(np.asarray, list(keras_internals.read_state(model)))
    return json.loads(json.dumps({**message, **others})), (state, (None, None, None, None))


def test_it_asks_for_the_blueprint_once(bench):
    model = build()
    assert bench.answer({"do": "keep", "token": 1}, (X, Y)) == ({}, None)
    assert bench.answer(*asked(model)) == ({"wants_blueprint": True}, None)
    first = bench.answer(*asked(model, blueprint=blueprint(model)))[1]
    compilations = bench.compilations

    assert compilations > 0
    assert differences(first, bench.answer(*asked(model))[1]) == []
    assert bench.compilations == compilations


def test_it_computes_what_the_program_computes_here(bench):
    model = build()
    bench.answer({"do": "keep", "token": 1}, (X, Y))
    state, logs = bench.answer(*asked(model, blueprint=blueprint(model)))[1]
    program = Programs(model).epochs(Cut(4, 2, 2), None, 8)
    expected = program(keras_internals.read_state(model), (X, Y), None, Schedule(), 3)

    assert differences(map_arrays(np.asarray, [list(expected[0]), expected[1]]), [state, logs]) == []


def test_it_goes_on_from_the_last_state_where_none_is_given(bench):
    model = build()
    bench.answer({"do": "keep", "token": 1}, (X, Y))
    state, _ = bench.answer(*asked(model, blueprint=blueprint(model)))[1]
    message, (_, schedule) = asked(model)
    onwards = bench.answer(message, (None, schedule))[1]
    bench.last = None
    given = bench.answer(message, (state, schedule))[1]

    assert differences(onwards, given) == []


def test_it_validates(bench):
    model = build()
    bench.answer({"do": "keep", "token": 1}, (X, Y))
    message, arrays = asked(model, blueprint=blueprint(model), program=["validation", Cut(4, 2, 2)], count=1)
    logs = bench.answer(message, arrays)[1][1]

    assert logs == pytest.approx(model.evaluate(X, Y, return_dict=True, verbose=0), rel=1e-5)


@pytest.mark.slow
def test_it_keeps_the_models_used_last(bench):
    bench.answer({"do": "keep", "token": 1}, (X, Y))
    models = [build(units) for units in range(1, MOST_MODELS + 2)]
    for i, model in enumerate(models[:-1]):
        bench.answer(*asked(model, str(i), blueprint=blueprint(model)))
    bench.answer(*asked(models[0], "0"))
    bench.answer(*asked(models[-1], "last", blueprint=blueprint(models[-1])))

    assert list(bench.models) == [*map(str, range(2, MOST_MODELS)), "0", "last"]


def test_it_forgets_samples(bench):
    bench.answer({"do": "keep", "token": 1}, (X, Y))
    bench.answer({"do": "start", "forget": [1, 7]}, None)

    assert bench.samples == {}


def test_an_error_is_an_answer(bench):
    answer, arrays = bench.answer({"do": "run", "samples": 3}, None)

    assert (answer["error"], answer["text"], arrays) == ("KeyError", "3", None)
    assert answer["trace"].endswith("KeyError: 3\n")


@pytest.mark.parametrize("parent", [os.getpid(), 1], ids=["socket", "parent"])
def test_it_ends_when_nobody_is_there(parent):
    """The second is told of a parent that is not its own, as one that was orphaned would see."""
    ours, theirs = socket.socketpair()
    code = "import sys, kohort.worker as worker; worker.serve(*map(int, sys.argv[1:]))"
    arguments = [sys.executable, "-c", code, str(theirs.fileno()), str(parent)]
    with ours, theirs, subprocess.Popen(arguments, pass_fds=[theirs.fileno()]) as process:
        if parent == os.getpid():
            channel = Channel(ours)
            channel.send({"do": "start"})
            assert channel.receive()[0]["python"] == sys.version
            ours.shutdown(socket.SHUT_RDWR)
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.slow
def test_a_parent_that_ends_as_ever_leaves_no_orphan():
    """It awaits its worker, also where the script never asked for that."""
    code = "import kohort; from kohort import remote; remote.always = True; print(remote.worker().process.pid)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_each_model_is_traced_with_the_settings_that_it_came_with(bench):
    """Of a loss Keras takes `epsilon` when it is traced, which may be long after the model came."""
    bench.answer({"do": "keep", "token": 1}, (X, Y))
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, "sigmoid")])
    model.compile("sgd", "binary_crossentropy")
    keras_internals.build_like(model, (X, Y))
    own, others = blueprint(model), blueprint(model) | {"epsilon": 0.4}
    narrow, wide = ["epochs", Cut(4, 2, 2), None, 8], ["epochs", Cut(5, 2, 0), None, 8]

    def answer(name, program, **others):
        return bench.answer(*asked(model, name, program=program, **others))[1]

    expected = Bench()
    expected.answer({"do": "keep", "token": 1}, (X, Y))
    expected = expected.answer(*asked(model, "one", program=wide, blueprint=own))[1]
    try:
        answer("one", narrow, blueprint=own)
        clipped = answer("two", wide, blueprint=others)
        assert differences(expected, answer("one", wide)) == []
        assert differences(expected, clipped) != []
    finally:
        keras.config.set_epsilon(own["epsilon"])
