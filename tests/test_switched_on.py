"""Switched on, kohort refuses nothing that Keras takes: of streams and workers, too, Keras runs what is refused."""

import contextlib
import re
import sys

import custom_parts
import keras
import numpy as np
import pytest
from keras import layers
from oracle import by_keras, by_kohort, differences, outcome, run
from streams import Stream, X, Y, build, generator

import kohort
from kohort import accelerate, remote
from kohort.checks import Recipe
from kohort.fit import Request


@pytest.fixture(autouse=True)
def counted_anew():
    kohort.report(clear=True)
    yield
    kohort.uninstall()


def switched_on(model, **arguments):
    with kohort.install():
        return by_keras(model, **arguments)


def both(make, arguments):
    """Asserts that a fit leaves with kohort installed what it leaves without, and returns its row of the report."""
    theirs = run(by_keras, make, 1, [arguments()])
    ours = run(switched_on, make, 1, [arguments()])
    assert differences(theirs, ours) == []
    (row,) = kohort.report()
    return row


# --- streams ----------------------------------------------------------------------------------------------------------


class Complex(Stream):
    """Batches of numbers that `kohort.fit` does not take as arrays."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x.astype("complex64"), y


class Magnitude(layers.Layer):
    def call(self, inputs):
        return keras.ops.abs(inputs)


def build_complex():
    model = keras.Sequential([keras.Input((3,), dtype="complex64"), Magnitude(), layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_batches_of_complex_numbers():
    assert both(build_complex, lambda: {"x": Complex(), "epochs": 3}).way == "compiled"


@pytest.mark.filterwarnings("default::kohort.FallBackWarning")
def test_validation_data_that_are_known_to_be_empty():
    """Keras validates on nothing, without a word."""
    row = both(build, lambda: {"x": X, "y": Y, "epochs": 2, "validation_data": Stream(X[:0], Y[:0])})

    assert row.reason == "`kohort.fit` would refuse it: `validation_data` must give at least one batch"


ON_STREAMS = {
    "finite": lambda folder: keras.callbacks.TerminateOnNaN(),
    "checkpoint": lambda folder: keras.callbacks.ModelCheckpoint(
        folder / "e{epoch}-{loss:.9f}.weights.h5", save_weights_only=True
    ),
    "backup": lambda folder: keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False),
    "csv": lambda folder: keras.callbacks.CSVLogger(folder / "log.csv"),
}


@pytest.mark.parametrize("name", ON_STREAMS)
def test_a_callback_on_a_stream(name, tmp_path):
    """It leaves what it leaves by Keras: numbers, and files by name; tables to the last digit."""
    folders = iter([tmp_path / "keras", tmp_path / "kohort"])

    def arguments():
        folder = next(folders)
        folder.mkdir()
        return {"x": Stream(), "epochs": 3, "callbacks": [ON_STREAMS[name](folder)]}

    assert both(build, arguments).way == "compiled"
    theirs, ours = (
        {f.name: f.read_text() if f.suffix == ".csv" else "" for f in (tmp_path / each).rglob("*")}
        for each in ("keras", "kohort")
    )
    assert theirs == ours
    assert (name == "finite") == (not ours)


# --- the worker -------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_the_worker(monkeypatch):
    monkeypatch.setattr(remote, "always", True)
    yield
    remote.end_worker()


def build_failing():
    """Runs in this process only, as a layer of TensorFlow's own operations does."""
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3), custom_parts.Failing(), layers.Dense(1)])
    model.compile("adam", "mse")
    return model


def build_local():
    class Local(layers.Layer):
        def call(self, inputs):
            return inputs

    model = keras.Sequential([keras.Input((3,)), Local(), layers.Dense(1)])
    model.compile("adam", "mse")
    return model


FIT = {"x": X, "y": Y, "epochs": 3, "validation_split": 0.2}


@pytest.mark.usefixtures("in_the_worker")
@pytest.mark.filterwarnings("default::kohort.FallBackWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (build_failing, "the worker process, where Keras runs on JAX, cannot run it: ZeroDivisionError: not here"),
        (
            build_local,
            "`kohort.fit` would refuse it: `model` must be made of parts that another process can import, .*"
            r" in a worker \('Local', defined in test_switched_on\)",
        ),
    ],
    ids=["cannot-run", "cannot-cross"],
)
def test_a_model_that_the_worker_cannot_train(make, reason):
    assert re.fullmatch(reason, both(make, lambda: FIT).reason)


@pytest.mark.usefixtures("in_the_worker")
@pytest.mark.filterwarnings("default::kohort.FallBackWarning")
def test_what_the_worker_cannot_run_it_is_asked_once(monkeypatch):
    model, asked = build_failing(), []
    ask = remote.Worker.ask
    monkeypatch.setattr(remote.Worker, "ask", lambda *args, **kw: asked.append(args[1]["do"]) or ask(*args, **kw))
    for _ in range(3):
        switched_on(model, **FIT, verbose=0)

    assert [row.calls for row in kohort.report()] == [3]
    assert asked.count("run") == 2  # the second time with the model, which it did not have


@pytest.mark.usefixtures("in_the_worker")
@pytest.mark.filterwarnings("default::kohort.FallBackWarning")
def test_a_worker_that_cannot_be_started(monkeypatch):
    remote.end_worker()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    row = both(build, lambda: FIT)

    assert row.reason.endswith("could not start: [Errno 2] No such file or directory: '/no/such/python'")


@pytest.mark.usefixtures("in_the_worker")
@pytest.mark.filterwarnings("default::kohort.FallBackWarning")
def test_a_system_without_what_the_worker_needs(monkeypatch):
    remote.end_worker()
    monkeypatch.delattr("socket.recv_fds")
    row = both(build, lambda: FIT)

    assert row.reason == "kohort's worker process needs Linux or macOS"


@pytest.mark.usefixtures("in_the_worker")
def test_a_rehearsal_between_two_calls_of_another_fit(monkeypatch):
    """As of another thread: the worker goes on from the state of the fit, not from that of the rehearsal."""
    wait, calls = remote.RemotePrograms.wait, []
    other, request = build(), Request(X, Y, recipe=Recipe())
    kohort.fit(other, X[:9], Y[:9], verbose=0)  # a fresh one reads a batch, as by Keras, and draws for it

    def waited(programs, *args):
        calls.append(1)
        if len(calls) == 2:
            assert accelerate._why_the_worker_cannot(other, request) is None
        return wait(programs, *args)

    fit = {"x": X, "y": Y, "epochs": 6}
    theirs = run(by_keras, build, 1, [fit])
    monkeypatch.setattr("kohort.engine.Pace.epochs", lambda pace, remaining, *others: min(remaining, 2))
    monkeypatch.setattr(remote.RemotePrograms, "wait", waited)
    ours = run(by_kohort, build, 1, [fit])

    assert len(calls) == 3
    assert differences(theirs, ours) == []


@pytest.mark.usefixtures("in_the_worker")
def test_what_the_worker_can_train_it_trains():
    """A rehearsal draws nothing, and the numbers are Keras's."""
    assert both(build, lambda: FIT).way == "compiled"


class InTheThirdEpoch(keras.callbacks.Callback):
    """Acts when the third epoch begins."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.act()


def fail():
    raise ZeroDivisionError("of the callback")


def kill():
    process = remote.worker().process
    process.kill()
    process.wait()


def kill_when_it_is_asked():
    exchange = remote.Worker._exchange

    def _exchange(worker, message, *others):
        remote.Worker._exchange = exchange
        kill()
        return exchange(worker, message, *others)

    remote.Worker._exchange = _exchange


def left(train, epochs=6, act=None, error=None):
    """Returns what a fit leaves in whose third epoch something happens."""
    keras.utils.set_random_seed(1)
    model = build()
    callbacks = [InTheThirdEpoch(act or (lambda: None))]
    fit = {**FIT, "epochs": epochs, "shuffle": False, "callbacks": callbacks, "verbose": 0}
    with pytest.raises(error) if error else contextlib.nullcontext():
        train(model, **fit)
    return outcome(model, model.history)


@pytest.mark.many
@pytest.mark.usefixtures("in_the_worker")
@pytest.mark.parametrize("train", [by_kohort, switched_on])
def test_ends_of_a_fit_with_callbacks_that_the_worker_trains(train):
    """An error of a callback's, a worker killed while it trains, and one killed while it waits: no epoch is lost."""
    theirs = left(by_keras, act=fail, error=ZeroDivisionError)
    assert differences(theirs, left(train, act=fail, error=ZeroDivisionError)) == []

    ours = left(train, act=kill_when_it_is_asked, error=kohort.WorkerError)
    assert differences(left(by_keras, epochs=2), ours) == []
    assert differences(left(by_keras), left(train, act=kill)) == []


@pytest.mark.usefixtures("in_the_worker")
@pytest.mark.filterwarnings("default::kohort.FallBackWarning")
def test_streams_are_read_in_this_process():
    row = both(build, lambda: {"x": generator(), "steps_per_epoch": 3, "epochs": 2, "shuffle": False})

    assert row.reason == "`x` is a generator, and the worker takes arrays"


class Paired(keras.Model):
    """Reads inputs and targets out of one array, as its own step may; its layers never see that array."""

    def train_step(self, state, data):
        pairs = data[0] if isinstance(data, tuple) else data
        return super().train_step(state, (pairs[:, 0], pairs[:, 1, :1]))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean((y - y_pred) ** 2)


def build_paired():
    inputs = keras.Input((3,))
    model = Paired(inputs, layers.Dense(1)(inputs))
    model.compile("sgd")
    return model


PAIRS = np.stack([X, -X], axis=1)


@pytest.mark.parametrize("data", [lambda: PAIRS, lambda: Stream(PAIRS)], ids=["arrays", "stream"])
def test_a_step_of_ones_own_may_read_other_shapes_than_the_inputs(data):
    assert both(build_paired, lambda: {"x": data(), "epochs": 3}).way == "compiled"


@pytest.mark.filterwarnings("default::kohort.FallBackWarning")
def test_what_is_refused_uses_up_no_free_shape():
    """Of those that are compiled without asking whether that pays."""
    model = build()
    with kohort.install():
        for rows in (10, 20, 30):
            model.fit(X[:rows], 2 * Y[:rows], verbose=0)
        kohort.report(clear=True)
        model.fit(X, Y, verbose=0)

    assert kohort.report().compiled_calls == 1


def test_a_script_that_is_run_unchanged_may_install_kohort_itself():
    accelerate.install_by_command(strict=False, verify=False)
    with kohort.install(strict=True):
        assert accelerate._settings[:2] == (True, False)
        with pytest.raises(RuntimeError, match="must be called where kohort is not installed"):
            kohort.install()
    assert accelerate._settings[:2] == (False, False)
    kohort.uninstall()
    assert accelerate._settings is None


# --- what belongs to the process --------------------------------------------------------------------------------------


@pytest.fixture
def build_distributed():
    """Makes a model under a distribution of Keras over the devices that are here."""

    def make():
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        return build()

    yield make
    keras.distribution.set_distribution(None)


@pytest.mark.filterwarnings("default::kohort.FallBackWarning")
def test_a_distribution(build_distributed):
    row = both(build_distributed, lambda: {"x": X[:40], "y": Y[:40], "epochs": 2, "batch_size": 8})

    assert row.reason == "a `keras.distribution` is set"


# --- masks ------------------------------------------------------------------------------------------------------------

LENGTHS = np.random.default_rng(1).integers(1, 7, 45)
SEQUENCES = np.where(np.arange(7)[:, None] < LENGTHS[:, None, None], X[:, None, :], 0.0).astype("float32")
STEPS = np.tile(Y[:, None, :], (1, 7, 1))


def build_masked(mask=0.0):
    """Predicts at each step: the mask of the steps that are none reaches the loss and the metrics."""
    stack = [keras.Input((7, 3)), layers.Masking(mask), layers.GRU(4, return_sequences=True), layers.Dense(1)]
    model = keras.Sequential(stack)
    model.compile("adam", "mse", weighted_metrics=["mae"])
    return model


@pytest.mark.slow
def test_masks_reach_the_loss():
    fit = {"x": SEQUENCES, "y": STEPS, "epochs": 3, "validation_split": 0.25}
    theirs, ours = (run(train, build_masked, 1, [fit]) for train in (by_keras, by_kohort))
    unmasked = run(by_kohort, lambda: build_masked(mask=99.0), 1, [fit])

    assert differences(theirs, ours) == []
    assert differences(ours, unmasked) != []
