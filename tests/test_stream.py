"""Data that come batch by batch leave exactly what `model.fit` leaves, and are read exactly as Keras reads them."""

import signal
import threading
import warnings

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import callbacks, layers
from oracle import by_keras, by_kohort, differences, outcome, run
from streams import (
    CLASSES,
    IMAGES,
    Endless,
    Growing,
    Noisy,
    Sparse,
    Stream,
    W,
    X,
    Y,
    build,
    build_classes,
    build_images,
    build_named,
    build_normalized,
    build_own_step,
    build_sequences,
    build_sparse,
    build_unbuilt,
    build_weighted,
    generator,
    named_form,
)

import kohort
from kohort import keras_internals, stream
from kohort.checks import Recipe
from kohort.progress import Interrupt

pytestmark = [
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed"),
    pytest.mark.filterwarnings("error::kohort.FallBackWarning"),
]


# name: (fit arguments made anew for each run, model)
STREAMS = {
    "dataset": (lambda: {"x": Stream(X, Y)}, build_normalized),
    "without-shuffling": (lambda: {"x": Stream(), "shuffle": False}, build),
    "one-batch": (lambda: {"x": Stream(batch_size=64)}, build),
    "batches-of-one": (lambda: {"x": Stream(batch_size=1)}, build),
    "lists": (lambda: {"x": Stream(form=list)}, build),
    "weights": (lambda: {"x": Stream(X[:40], Y[:40], W[:40])}, build_weighted),
    "class-weights": (lambda: {"x": Stream(), "class_weight": {0: 0.3, 1: 2.0}}, build_weighted),
    "classes": (lambda: {"x": Stream(X[:40], CLASSES[:40]), "class_weight": {1: 0.5}}, build_classes),
    "doubles": (lambda: {"x": Stream(X[:40].astype("float64") / 3, Y[:40].astype("int64"))}, build),
    "jax-arrays": (lambda: {"x": Stream(jnp.asarray(X[:40]), jnp.asarray(Y[:40]))}, build),
    "one-pass-of-endless": (lambda: {"x": Endless(), "steps_per_epoch": 4}, build),
    "steps-beyond-an-epoch": (lambda: {"x": Stream(), "steps_per_epoch": 8, "shuffle": False}, build),
    "steps-within-an-epoch": (lambda: {"x": Stream(), "steps_per_epoch": 4}, build),
    "noisy": (lambda: {"x": Noisy()}, build),
    "unbuilt": (lambda: {"x": Stream()}, build_unbuilt),
    "images": (lambda: {"x": Stream(IMAGES, Y[:20])}, build_images),
    "sequences": (lambda: {"x": Growing()}, build_sequences),
    "names": (lambda: {"x": Stream(X[:40], X[:40], Y[:40], form=named_form)}, build_named),
    "sparse": (lambda: {"x": Sparse()}, build_sparse),
    "own-step": (lambda: {"x": Stream(X[:40], X[:40])}, build_own_step),
    "generator": (lambda: {"x": generator(), "steps_per_epoch": 5}, build_normalized),
    "generator-with-shorter-batches": (lambda: {"x": generator(batch_size=7), "steps_per_epoch": 5}, build),
    "generator-that-ends": (lambda: {"x": generator(7)}, build),
    "generator-that-ends-within-an-epoch": (lambda: {"x": generator(7), "steps_per_epoch": 5}, build),
    "several-steps-per-execution": (lambda: {"x": Stream()}, lambda: build(steps_per_execution=4)),
    "generator-and-executions": (
        lambda: {"x": generator(7), "steps_per_epoch": 3}, lambda: build(steps_per_execution=2),
    ),
    "validation-by-a-stream": (lambda: {"x": Stream(), "validation_data": Stream(X[:16], Y[:16])}, build),
    "validation-by-arrays": (
        lambda: {"x": Stream(), "validation_data": (X[:20], Y[:20], W[:20]), "validation_batch_size": 10},
        build_weighted,
    ),
    "validation-of-arrays-by-a-stream": (
        lambda: {"x": X[:32], "y": Y[:32], "validation_split": 0.5, "validation_data": Stream(X[:40], Y[:40], W[:40])},
        build_weighted,
    ),
    "validation-steps": (
        lambda: {"x": generator(), "steps_per_epoch": 3, "validation_data": generator(), "validation_steps": 2}, build,
    ),
    "validation-frequency": (
        lambda: {"x": Stream(), "validation_data": Stream(), "validation_steps": 2, "validation_freq": [2, 3]}, build,
    ),
    "validation-by-a-generator-that-ends": (lambda: {"x": X[:32], "y": Y[:32], "validation_data": generator(5)}, build),
    "validation-by-noise": (lambda: {"x": Noisy(), "validation_data": Noisy(), "validation_freq": 2}, build),
    "initial-epoch": (lambda: {"x": Stream(), "initial_epoch": 2, "epochs": 4}, build),
}  # fmt: skip


@pytest.mark.many
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_leaves_what_keras_leaves(name):
    """All bits of two fits, and each call of the data's methods, in their order."""
    arguments, make = STREAMS[name]
    read = []

    def fits():
        made = [{"epochs": 3} | arguments() for _ in range(2)]
        read.append([data for fit in made for data in (fit["x"], fit.get("validation_data")) if hasattr(data, "calls")])
        return made

    theirs, ours = run(by_keras, make, 3, fits()), run(by_kohort, make, 3, fits())

    assert differences(theirs, ours) == []
    assert [data.calls for data in read[0]] == [data.calls for data in read[1]]


def test_warnings_are_keras_own():
    def fit(train):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(build(), x=generator(7), steps_per_epoch=5, epochs=3, verbose=0)
        return [(w.category, str(w.message)) for w in caught]

    theirs = fit(keras.Model.fit)

    assert fit(kohort.fit) == theirs
    assert sum("ran out of data" in text for _, text in theirs) >= 1


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 3, "max_queue_size": 2}])
def test_a_dataset_with_workers(options):
    """A model that is built before: while Keras builds one, it throws away as many batches as its threads have read."""

    def fits():
        data = {"x": Stream(**options), "validation_data": Stream(**options), "epochs": 2}
        endless = {"x": Endless(**options), "steps_per_epoch": 4, "epochs": 2}
        return [{"x": X[:40], "y": Y[:40], "batch_size": 8}, data, endless]

    theirs, ours = run(by_keras, build, 3, fits()), run(by_kohort, build, 3, fits())

    assert differences(theirs, ours) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_dataset_with_processes():
    def fits():
        return [
            {"x": X[:40], "y": Y[:40], "batch_size": 8},
            {"x": Stream(workers=1, use_multiprocessing=True), "epochs": 2},
        ]

    assert differences(run(by_keras, build, 3, fits()), run(by_kohort, build, 3, fits())) == []


# --- other makers of streams ------------------------------------------------------------------------------------------


def test_a_torch_loader():
    data = pytest.importorskip("torch.utils.data")
    torch = pytest.importorskip("torch")

    def loader(**options):
        return data.DataLoader(data.TensorDataset(*map(torch.from_numpy, (X, Y))), batch_size=8, **options)

    def fits():
        torch.manual_seed(0)
        return [{"x": loader(shuffle=True), "validation_data": loader(drop_last=True), "epochs": 2} for _ in range(2)]

    assert differences(run(by_keras, build, 3, fits()), run(by_kohort, build, 3, fits())) == []


def test_a_tensorflow_dataset():
    tf = pytest.importorskip("tensorflow")

    def fits():
        tf.random.set_seed(0)  # which a dataset reads when it is made
        data = tf.data.Dataset.from_tensor_slices((X, Y))
        known = {"x": data.shuffle(45, seed=1).batch(8), "class_weight": {1: 0.5}}
        unknown = {"x": data.filter(lambda x, y: x[0] > 0).batch(8), "validation_data": data.batch(10)}
        return [arguments | {"epochs": 2} for arguments in (known, unknown)]

    assert differences(run(by_keras, build, 3, fits()), run(by_kohort, build, 3, fits())) == []


def test_a_grain_dataset():
    grain = pytest.importorskip("grain")

    def fits():
        data = grain.MapDataset.source(list(zip(X, Y, strict=True))).shuffle(seed=1).batch(8)
        return [{"x": data, "epochs": 2}, {"x": data.to_iter_dataset(), "epochs": 2}]

    assert differences(run(by_keras, build, 3, fits()), run(by_kohort, build, 3, fits())) == []


# --- calls ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def unhurried(monkeypatch):
    """Fills every stack, whatever the clock says."""
    monkeypatch.setattr(stream, "IDLE_SECONDS", np.inf)
    monkeypatch.setattr(stream.Pace, "epochs", lambda self, remaining, capacity: capacity)


@pytest.fixture
def stacks(monkeypatch):
    """Lists the batches of each call."""
    counts = []
    start = stream.Stack.run

    def run_stack(stack, state):
        counts.append(stack.count)
        return start(stack, state)

    monkeypatch.setattr(stream.Stack, "run", run_stack)
    return counts


def test_several_batches_go_into_one_call(unhurried, stacks):
    kohort.fit(build(), Stream(X, Y, batch_size=4), shuffle=False, verbose=0, epochs=2)

    assert stacks == [11, 1] * 2  # 11 batches of 4 rows, and one of 1 row


def test_a_stack_is_bounded(unhurried, stacks, monkeypatch):
    """By batches, and by bytes: what fits is the same whatever comes later."""
    monkeypatch.setattr(stream, "STACK_BATCHES", 5)
    kohort.fit(build(), Stream(X[:44], Y[:44], batch_size=4), verbose=0)
    monkeypatch.setattr(stream, "STACK_BYTES", 3 * 4 * (3 + 1) * 4)
    kohort.fit(build(), Stream(X[:44], Y[:44], batch_size=4), verbose=0)
    monkeypatch.setattr(stream, "STACK_BYTES", 1)
    kohort.fit(build(), Stream(X[:8], Y[:8], batch_size=4), verbose=0)

    assert stacks == [5, 5, 1, 3, 3, 3, 2, 1, 1]


def test_the_next_batches_are_read_while_a_call_is_at_work(unhurried, monkeypatch):
    """At most two calls are at work, and nothing is waited for before the next stack is read."""
    monkeypatch.setattr(stream, "STACK_BATCHES", 2)
    events = []

    class Watched(Stream):
        def __getitem__(self, index):
            events.append(index)
            return super().__getitem__(index)

    def noted(name, method):
        def call(self, *args):
            events.append(name)
            return method(self, *args)

        return call

    monkeypatch.setattr(stream.Stack, "run", noted("run", stream.Stack.run))
    monkeypatch.setattr(stream.Work, "_wait", noted("wait", stream.Work._wait))
    model = build()
    kohort.fit(model, X, Y, verbose=0)
    kohort.fit(model, Watched(X[:40], Y[:40]), shuffle=False, verbose=0)

    assert events == [0, 1, "run", 2, 3, "run", "wait", 4, "run", "wait", "wait"]


class Reusing(Stream):
    """Fills the same arrays again and again."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        self.same = getattr(self, "same", (np.empty_like(x), np.empty_like(y)))
        for array, values in zip(self.same, (x, y), strict=True):
            array[:] = values
        return self.same


def test_batches_may_be_overwritten_after_they_were_given(unhurried):
    arguments = {"shuffle": False, "epochs": 2}
    own, reused = (run(by_kohort, build, 3, [{"x": kind(X[:40], Y[:40])} | arguments]) for kind in (Stream, Reusing))

    assert differences(own, reused) == []


@pytest.fixture
def compilations():
    """Counts what XLA compiles."""
    events = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_second_fit_compiles_nothing(compilations):
    """Neither more epochs, nor more or fewer batches, nor another kind of stream of the same shapes."""
    model = build()
    kohort.fit(model, Stream(X, Y), validation_data=Stream(X, Y), epochs=2, verbose=0)
    assert compilations
    compilations.clear()

    kohort.fit(model, Stream(X, Y), validation_data=Stream(X, Y), epochs=5, verbose=0)
    kohort.fit(model, Stream(X[:29], Y[:29]), validation_data=Stream(X[:13], Y[:13]), epochs=2, verbose=0)
    kohort.fit(model, generator(), steps_per_epoch=300, verbose=0)

    assert compilations == []


# --- callbacks --------------------------------------------------------------------------------------------------------


class Noted(callbacks.Callback):
    """Writes down what it sees, changes the learning rate, and stops before an epoch."""

    def __init__(self, stops_before):
        super().__init__()
        self.seen, self.stops_before = [], stops_before

    def on_epoch_begin(self, epoch, logs=None):
        self.model.stop_training = epoch == self.stops_before

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, dict(logs), self.model.get_weights(), dict(self.params)))
        self.model.optimizer.learning_rate = 0.01 / (epoch + 1)


@pytest.mark.parametrize("steps_per_execution", [1, 2])
@pytest.mark.parametrize("stops_before", [None, 1])
def test_callbacks_see_what_keras_shows_them(stops_before, steps_per_execution):
    seen = []

    def arguments():
        seen.append((noted := Noted(stops_before)).seen)
        streams = {"x": Stream(), "validation_data": Stream(X[:16], Y[:16])}
        return streams | {"epochs": 3, "callbacks": [noted, callbacks.EarlyStopping(monitor="val_loss", patience=1)]}

    def make():
        return build(steps_per_execution=steps_per_execution)

    theirs, ours = run(by_keras, make, 3, [arguments()]), run(by_kohort, make, 3, [arguments()])

    assert differences(theirs, ours) == []
    assert differences(*seen) == []
    assert other_threads() == []


@pytest.mark.parametrize(("steps_per_execution", "last"), [(1, 2), (2, 3)])
def test_a_watched_epoch_ends_where_its_loss_is_not_finite(steps_per_execution, last):
    """After the execution that holds the third batch, as `TerminateOnNaN` ends it; no batch is read beyond."""
    x = X[:40].copy()
    x[16] = np.nan
    data = Stream(x, Y[:40])
    model = build(steps_per_execution=steps_per_execution)
    recipe = Recipe(shuffle=False)
    source = stream.epochs_of(model, data, None, None, None, recipe)
    data.calls.clear()

    trained = source.train(keras_internals.read_state(model), 0, Interrupt(), watched=True)

    assert trained.stopped_at == last
    assert np.isnan(trained.logs["loss"])
    assert data.calls == ["begin", *range(last + 1)]


# --- what goes wrong --------------------------------------------------------------------------------------------------


class Failing(Stream):
    """Fails, or is interrupted, at its so manieth batch."""

    def __init__(self, error, at, **options):
        super().__init__(**options)
        self.error, self.at, self.given = error, at, 0

    def __getitem__(self, index):
        self.given += 1
        if self.given == self.at:
            self.error()
            raise AssertionError("It went on.")
        return super().__getitem__(index)


def broken():
    raise OSError("the disk is gone")


def interrupted():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("error", "kind"), [(broken, OSError), (interrupted, KeyboardInterrupt)])
@pytest.mark.parametrize("with_callbacks", [False, True])
def test_an_error_of_the_data_leaves_the_last_finished_epoch(error, kind, with_callbacks):
    """5 batches an epoch, one more to build the model: the third epoch fails."""

    def fit(model, x, epochs):
        extra = {"callbacks": [callbacks.History()]} if with_callbacks else {}
        return kohort.fit(model, x, epochs=epochs, shuffle=False, verbose=0, **extra)

    keras.utils.set_random_seed(3)
    model = build()
    with pytest.raises(kind, match="the disk is gone" if kind is OSError else None):
        fit(model, Failing(error, at=1 + 5 + 5 + 3), 5)
    keras.utils.set_random_seed(3)
    whole = build()
    fit(whole, Stream(), 2)

    assert differences(outcome(whole, whole.history)[:3], outcome(model, model.history)[:3]) == []
    assert differences(whole.history.history, model.history.history) == []
    kohort.fit(model, Stream(), verbose=0)  # and it can go on


def other_threads():
    """Returns all threads but this one and those in which a cohort's blocks train, which stay."""
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    return [thread for thread in others if not thread.name.startswith("kohort-block")]


def joined_threads():
    """Waits for other threads to end, and returns how many did not."""
    for thread in other_threads():
        thread.join(timeout=20)
    return len(other_threads())


def test_no_thread_is_left_when_an_epoch_is_given_up(monkeypatch):
    """With a queue so short that the workers wait for somebody to read: an error, Ctrl-C, a stop before the epoch."""
    options = {"workers": 2, "max_queue_size": 1, "batch_size": 4}
    model = build()
    kohort.fit(model, X[:40], Y[:40], batch_size=4, verbose=0)

    with pytest.raises(OSError, match="the disk is gone"):
        kohort.fit(model, Failing(broken, at=4, **options), verbose=0)
    assert joined_threads() == 0
    kohort.fit(model, Stream(**options), epochs=2, callbacks=[Noted(stops_before=0)], verbose=0)
    assert joined_threads() == 0
    monkeypatch.setattr(stream.Stack, "add", lambda *_: interrupted())
    with pytest.raises(KeyboardInterrupt):
        kohort.fit(model, Stream(**options), verbose=0)
    assert joined_threads() == 0


EMPTY = "`{}` must give at least one batch. Received: {} that ends before its first batch. Check"


@pytest.mark.parametrize("make", [build, lambda: keras.Sequential([layers.Dense(1)])])
def test_a_stream_without_a_batch(make):
    def empty():
        yield from ()

    model = make()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=EMPTY.format("x", "x")):
        kohort.fit(model, Stream(X[:0], Y[:0]), verbose=0)
    with pytest.raises(ValueError, match=EMPTY.format("validation_data", "validation_data")):
        kohort.fit(model, X, Y, validation_data=Stream(X[:0], Y[:0]), verbose=0)
    with pytest.raises(ValueError, match="the generator must yield at least one batch"):
        kohort.fit(model, empty(), verbose=0)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (lambda: Stream(X[:, :2], Y), ValueError, r"`x` must have samples of shape \(3,\), as the model's input"),
        (
            lambda: Stream(X.astype(str), Y),
            TypeError,
            "`x` must give batches of numbers. Received: an array=<nd",
        ),
        (lambda: Stream(X, Y, W, W), ValueError, r"must return a tuple or a dict"),
    ],
)
def test_batches_that_do_not_fit(data, error, message):
    model = build()
    kohort.fit(model, X, Y, verbose=0)
    before = model.get_weights()

    with pytest.raises(error, match=message):
        kohort.fit(model, data(), verbose=0)
    assert differences(before, model.get_weights()) == []
    with pytest.raises(error, match=message.replace("`x`", "`validation_data`")):
        kohort.fit(model, X, Y, validation_data=data(), verbose=0)
    assert differences(before, model.get_weights()) == []


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"y": Y}, "`y` must be left out where `x` is a PyDataset. Received: y=<ndarray>, shape="),
        ({"sample_weight": W}, "`sample_weight` must be left out where `x` is a PyDataset."),
        ({"validation_split": 0.2}, "`validation_split` must be left out where `x` is a PyDataset."),
        ({"x": generator(), "class_weight": {0: 2.0}}, "`class_weight` must be left out where `x` is a generator."),
    ],
)
def test_arguments_that_have_no_place_beside_a_stream(beside, message):
    with pytest.raises(ValueError, match=message):
        kohort.fit(build(), **{"x": Stream(), "verbose": 0} | beside)
