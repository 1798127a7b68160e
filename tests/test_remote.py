"""A model that trains in the worker ends as one that trains here, and the worker leaves nothing behind."""

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import custom_parts
import keras
import numpy as np
import pytest
from keras import layers, optimizers
from oracle import assert_same_fit, differences, outcome, run

import kohort
from kohort import remote
from kohort.programs import Programs, programs_of

RNG = np.random.default_rng(4)
X = RNG.normal(size=(40, 2)).astype("float32")
Y = (X[:, 0] * X[:, 1] > 0).astype("float32")
FIT = {"x": X, "y": Y, "epochs": 4, "batch_size": 16}


@pytest.fixture(autouse=True)
def in_the_worker(monkeypatch):
    monkeypatch.setattr(remote, "always", True)


@pytest.fixture(scope="module", autouse=True)
def nothing_left():
    """Holds for the whole file: no process is left by it, and no descriptor of shared memory."""
    OTHERS.extend(children())
    yield
    remote.end_worker()
    assert children() == []
    gc.collect()
    assert held("self") == mapped("self") == set()


OTHERS = []  # what other files of tests have started


def children():
    """Returns the processes that this file started and that are not gone, also as zombies."""
    started = [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
    return sorted(pid for pid in started if pid not in OTHERS)


def held(pid):
    """Returns the numbers of the shared memory that a process has a descriptor of."""
    with contextlib.suppress(OSError):  # of one that is gone, or somebody else's
        files = Path(f"/proc/{pid}/fd").iterdir()
        return {file.stat().st_ino for file in files if "memfd:kohort" in os.readlink(file)}
    return set()


def mapped(pid):
    """Returns the numbers of the shared memory that a process maps."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {int(line.split()[4]) for line in lines if "memfd:kohort" in line}
    return set()


def build():
    stack = [layers.Dense(8, activation="tanh"), layers.Dropout(0.2), layers.Dense(1, activation="sigmoid")]
    model = keras.Sequential([keras.Input((2,)), *stack])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy", "auc"])
    return model


def custom():
    inputs = {"plane": keras.Input((2,), name="plane")}
    hidden = custom_parts.Scaled(0.5)(layers.Dense(6, activation=custom_parts.soft)(inputs["plane"]))
    model = keras.Model(inputs, {"a": layers.Dense(1, name="a")(hidden), "b": layers.Dense(1, name="b")(hidden)})
    rate = optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)
    model.compile(optimizers.SGD(rate, momentum=0.9), {"a": custom_parts.cubed, "b": "mse"}, metrics={"b": "mae"})
    return model


def unbuilt(**options):
    model = keras.Sequential([layers.Dense(4), layers.BatchNormalization(), layers.Dense(1)])
    model.compile("rmsprop", "mse", **options)
    return model


def one_by_one():
    """Its operations run one by one, which rounds otherwise."""
    return unbuilt(jit_compile=False)


def eager():
    return unbuilt(run_eagerly=True)


# --- the same numbers -------------------------------------------------------------------------------------------------


def test_it_is_the_worker_that_trains():
    model = build()
    kohort.fit(model, verbose=0, **FIT)

    assert not isinstance(programs_of(model), Programs)
    assert [str(remote.worker().process.pid)] == children()


@pytest.mark.many
@pytest.mark.parametrize(
    ("make", "fits"),
    [
        (build, [{**FIT, "validation_split": 0.2}, {**FIT, "shuffle": False}]),
        (build, [{**FIT, "class_weight": {0: 1.0, 1: 2.5}, "steps_per_epoch": 2, "validation_data": (X, Y)}]),
        (build, [{**FIT, "epochs": 300, "validation_split": 0.5, "validation_freq": 3}]),
        (custom, [{**FIT, "x": {"plane": X}, "y": {"a": Y, "b": -Y}}]),
        (unbuilt, [FIT, FIT]),
        (one_by_one, [FIT]),
        (eager, [FIT]),
    ],
    ids=["dropout", "weights", "many-epochs", "custom", "unbuilt", "one-by-one", "eager"],
)
def test_same_bits_as_keras(make, fits):
    assert_same_fit(make, *fits)


class Note(keras.callbacks.Callback):
    """Writes down what callbacks see, and changes the learning rate."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 0.01 / (epoch + 1)

    def on_epoch_end(self, epoch, logs=None):
        weights = [np.asarray(w) for w in self.model.get_weights()]
        self.seen.append((epoch, dict(logs), weights, float(self.model.optimizer.learning_rate.value)))
        if epoch == 5:
            self.model.stop_training = True


def test_callbacks_see_the_model_between_epochs():
    def trained(train):
        note = Note()
        early = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
        left = run(train, build, 3, [{**FIT, "epochs": 9, "validation_split": 0.3, "callbacks": [note, early]}])
        return left, note.seen

    theirs = trained(lambda model, **arguments: model.fit(**arguments))
    ours = trained(kohort.fit)
    assert differences(theirs, ours) == []


def test_a_fit_inside_a_callback():
    inner = build()

    class Within(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kohort.fit(inner, -X, Y, epochs=1, verbose=0)

    def trained(train):
        keras.utils.set_random_seed(5)
        model = build()
        history = train(model, **FIT, verbose=0, shuffle=False, callbacks=[Within()])
        return model.get_weights(), history.history

    assert differences(trained(lambda model, **arguments: model.fit(**arguments)), trained(kohort.fit)) == []


def test_fits_of_several_threads():
    def trained(model):
        return kohort.fit(model, **FIT, verbose=0, shuffle=False).history

    def four():
        keras.utils.set_random_seed(8)
        return [build() for _ in range(4)]

    expected = [trained(model) for model in four()]
    again, found = four(), [{}] * 4
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, trained(again[i]))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [differences(a["loss"], b["loss"]) for a, b in zip(expected, found, strict=True)] == [[]] * 4


# --- started once, and re-used ----------------------------------------------------------------------------------------


def test_a_second_fit_starts_and_compiles_nothing():
    model = build()
    kohort.fit(model, verbose=0, **FIT)
    worker = remote.worker()
    before = worker.process.pid, worker.compilations
    kohort.fit(model, -X, Y, epochs=50, batch_size=16, verbose=0)

    assert before[1] > 0
    assert (remote.worker().process.pid, remote.worker().compilations) == before


@pytest.mark.slow
def test_more_models_than_the_worker_keeps():
    models = [build() for _ in range(10)]
    for layer in (layer for i, model in enumerate(models) for layer in model.layers[:1] if i % 2):
        layer.trainable = False
    for model in models * 2:
        model.compile("sgd", "mse")
        kohort.fit(model, verbose=0, **FIT)

    assert len({tuple(m.trainable for m in model.layers) for model in models}) == 2


def test_the_worker_forgets_what_is_gone_here():
    model = build()
    kohort.fit(model, verbose=0, **FIT)
    del model
    gc.collect()

    assert remote.worker()._tokens == {}


@pytest.mark.slow
def test_memory_of_the_worker_is_flat_over_refits():
    """And that of this process; the first fit compiles for all."""
    model, told = build(), []
    for _ in range(1000):
        kohort.fit(model, verbose=0, **FIT)
        statm = [Path(f"/proc/{pid}/statm").read_text() for pid in (remote.worker().process.pid, "self")]
        told.append((*(int(text.split()[1]) for text in statm), remote.worker().compilations))
    grown = np.subtract(told[-1], told[9])[:2] * os.sysconf("SC_PAGE_SIZE")
    assert grown.max() < 20e6, grown
    assert told[0][2] == told[-1][2]


# --- ends -------------------------------------------------------------------------------------------------------------


def when_asked(monkeypatch, number, act, stops=False):
    """Acts when the call of that number, counted from now, is made; the worker, if it `stops`, cannot answer before."""
    exchange, is_answered, runs = remote.Worker._exchange, remote.Worker._is_answered, []

    def _exchange(self, message, *others):
        runs.append(max(runs, default=0) + 1 if message["do"] == "run" else 0)
        if stops and runs[-1] == number:
            os.kill(self.process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
        return exchange(self, message, *others)

    def _is_answered(self, interrupt):
        if runs[-1] == number:
            act(self)
        return is_answered(self, interrupt)

    monkeypatch.setattr(remote.Worker, "_exchange", _exchange)
    monkeypatch.setattr(remote.Worker, "_is_answered", _is_answered)


def kill(worker):
    os.kill(worker.process.pid, signal.SIGKILL)


def begun():
    """Returns a model that the worker knows."""
    keras.utils.set_random_seed(1)
    model = build()
    kohort.fit(model, verbose=0, shuffle=False, **FIT)
    return model


def after(epochs):
    """Returns what is left of it after some epochs of a second fit."""
    model = begun()
    return outcome(model, model.fit(verbose=0, shuffle=False, **{**FIT, "epochs": epochs}))


def test_a_killed_worker_leaves_the_last_finished_epoch(monkeypatch):
    expected = after(2)
    model = begun()
    pid = remote.worker().process.pid
    when_asked(monkeypatch, 3, kill, stops=True)
    message = (
        "kohort's worker process is gone: it was killed by SIGKILL. The model holds its last finished epoch. "
        "Call fit again: it starts a new worker."
    )
    with pytest.raises(kohort.WorkerError, match=message) as caught:
        kohort.fit(model, shuffle=False, verbose=2, **{**FIT, "epochs": 9})
    assert caught.value.__suppress_context__
    assert differences(expected, outcome(model, model.history)) == []

    assert children() == []
    kohort.fit(model, verbose=0, **FIT)
    assert remote.worker().process.pid != pid


def test_a_killed_worker_loses_no_draws(monkeypatch):
    model = begun()
    when_asked(monkeypatch, 1, kill, stops=True)
    before = np.random.get_state()[1:3]
    with pytest.raises(kohort.WorkerError, match="it was killed by SIGKILL"):
        kohort.fit(model, verbose=0, **FIT)

    assert differences(before, np.random.get_state()[1:3]) == []


def test_a_worker_that_died_between_fits_is_replaced():
    model = build()
    kohort.fit(model, verbose=0, **FIT)
    process = remote.worker().process
    process.kill()
    process.wait()
    kohort.fit(model, verbose=0, **FIT)

    assert remote.worker().process.pid != process.pid


def test_ctrl_c_awaits_an_epoch_that_ends_soon(monkeypatch):
    expected = after(3)
    model = begun()
    pid = remote.worker().process.pid
    monkeypatch.setattr(remote, "GRACE_SECONDS", 60)
    when_asked(monkeypatch, 3, lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        kohort.fit(model, shuffle=False, verbose=2, **{**FIT, "epochs": 9})

    assert differences(expected, outcome(model, model.history)) == []
    assert remote.worker().process.pid == pid


def test_ctrl_c_ends_the_worker_of_a_long_epoch(monkeypatch):
    model = begun()
    before, generator = [np.asarray(v.value) for v in model.variables], np.random.get_state()[1:3]
    pid = remote.worker().process.pid
    monkeypatch.setattr(remote, "GRACE_SECONDS", 0)
    rows = np.tile(X, (50_000, 1))  # an epoch of minutes
    when_asked(monkeypatch, 1, lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        kohort.fit(model, rows, np.tile(Y, 50_000), batch_size=1, verbose=0)

    assert differences(before, [np.asarray(v.value) for v in model.variables]) == []
    assert differences(generator, np.random.get_state()[1:3]) == []
    assert model.history.history == {}
    assert str(pid) not in children()


def test_the_terminal_does_not_interrupt_the_worker():
    assert os.getsid(remote.worker().process.pid) != os.getsid(0)


PARENT = """
import os, subprocess, sys
import numpy as np
import keras, kohort
from kohort import remote
remote.always = True
worker = remote.worker()
{more}
original = remote.Worker._is_answered
def is_answered(self, interrupt):
    print(worker.process.pid, flush=True)
    return original(self, interrupt)
x = np.zeros((2_000_000, 2), "float32")
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
kohort.fit(model, x[:2], x[:2, 0], batch_size=1, verbose=0)
remote.Worker._is_answered = is_answered
kohort.fit(model, x, x[:, 0], batch_size=1, verbose=0)
"""


def started(more=""):
    """Starts a process that trains in its worker; returns it and the numbers it printed, once its worker computes."""
    code = textwrap.dedent(PARENT).format(more=more)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    # The worker's is printed as the samples are sent, and again as the call is made.
    return parent, [int(parent.stdout.readline()) for _ in range(2 + bool(more))]


def is_gone(pid, seconds):
    """Waits for the end of a process that may be anybody's child."""
    import select

    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_no_orphan(end):
    parent, [_, pid] = started()
    with parent:
        assert not is_gone(pid, 0)
        shared = mapped(pid) | mapped(parent.pid) | held(parent.pid)
        parent.send_signal(end)

    assert is_gone(pid, 20)
    assert shared
    processes = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    assert [each for each in processes if shared & (mapped(each) | held(each))] == []


HOLD = """
held = subprocess.Popen(["sleep", "60"], pass_fds=[worker.channel.socket.fileno()], stdout=subprocess.DEVNULL)
print(held.pid, flush=True)
"""


def test_a_killed_parent_whose_child_holds_the_channel_leaves_no_orphan():
    parent, [holder, _, pid] = started(HOLD)
    with parent:
        parent.kill()

    assert is_gone(pid, 20)
    os.kill(holder, signal.SIGKILL)


def test_a_fork_leaves_the_worker_to_its_parent():
    model = build()
    kohort.fit(model, verbose=0, **FIT)
    code = "import os; from kohort import remote; remote.always = True; a = remote.worker(); pid = os.fork()\n"
    code += "if pid == 0:\n    os._exit(7 if remote._worker is None else 1)\n"
    code += "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), a.is_alive, a.call({'do': 'start'}) is not None)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)

    assert done.stdout == "7 True True\n", done.stderr


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_in_the_worker_is_raised_here():
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3), custom_parts.Failing(), layers.Dense(1)])
    model.compile("sgd", "mse")
    before = model.get_weights()
    with pytest.raises(ZeroDivisionError, match="not here") as caught:
        kohort.fit(model, X, Y, batch_size=8, verbose=0)

    assert "raised in kohort's worker process" in caught.value.__notes__[0]
    assert "must compute with `keras.ops`" in caught.value.__notes__[0]
    assert differences(before, model.get_weights()) == []


def test_what_cannot_cross_is_refused_before_anything_is_touched():
    class Local(layers.Layer):
        def call(self, inputs):
            return inputs

    model = keras.Sequential([keras.Input((2,)), Local(), layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`model` must be made of parts that another process can import"):
        kohort.fit(model, X, Y, verbose=0)

    assert not model.optimizer.built


def test_the_checks_come_first():
    with pytest.raises(ValueError, match="`epochs` must be an integer of at least 1"):
        kohort.fit(build(), X, Y, epochs=0)


def test_a_worker_without_jax_says_so(monkeypatch, tmp_path):
    remote.end_worker()
    (tmp_path / "jax.py").write_text("raise ModuleNotFoundError(\"No module named 'jax'\")")
    monkeypatch.syspath_prepend(tmp_path)
    message = (
        "could not start: it ended with exit code 1: ModuleNotFoundError: No module named 'jax'. "
        f"Install it: `{sys.executable} -m pip install jax`."
    )
    with pytest.raises(kohort.WorkerError, match=re.escape(message)):
        kohort.fit(build(), X, Y, verbose=0)


def test_a_worker_that_cannot_be_started_says_so(monkeypatch):
    remote.end_worker()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(kohort.WorkerError, match=r"could not start: .*No such file or directory: '/no/such/python'"):
        kohort.fit(build(), X, Y, verbose=0)


def test_a_worker_that_ends_by_itself_tells_its_last_words(monkeypatch):
    remote.end_worker()
    monkeypatch.setattr(remote, "START", "import sys; sys.exit('no more')")
    with pytest.raises(kohort.WorkerError, match="could not start: it ended with exit code 1: no more"):
        remote.worker()
