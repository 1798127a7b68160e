"""The loop of a fit: callbacks see what Keras shows them and leave what Keras leaves, with epochs compiled."""

import signal

import jax
import keras
import numpy as np
import pytest
from keras import callbacks, layers
from oracle import by_keras, by_kohort, differences, outcome, run

import kohort
from kohort import remote
from kohort.epochs import ArrayEpochs

RNG = np.random.default_rng(2)
X = RNG.normal(size=(40, 3)).astype("float32")
Y = (X[:, :1] * X[:, 1:2] > 0).astype("float32")
FIT = {"x": X, "y": Y, "epochs": 5, "batch_size": 16, "validation_split": 0.3}


def build(optimizer="adam", **options):
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(6, "relu"), layers.Dropout(0.2), layers.Dense(1, "sigmoid")]
    )
    model.compile(keras.optimizers.get(optimizer), "binary_crossentropy", metrics=["accuracy"], **options)
    return model


class Witness(callbacks.Callback):
    """Writes down each call, what it was given, and the model as it then was: all of it."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def note(self, hook, *given):
        model = self.model
        variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
        state = [np.array(v.value) for v in variables]
        self.calls.append([hook, *given, state, dict(model.history.history), model.stop_training, dict(self.params)])

    def on_train_begin(self, logs=None):
        self.note("on_train_begin", logs)

    def on_epoch_begin(self, epoch, logs=None):
        self.note("on_epoch_begin", epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self.note("on_epoch_end", epoch, dict(logs))

    def on_train_end(self, logs=None):
        self.note("on_train_end", dict(logs))


class WitnessOfValidation(Witness):
    def on_test_begin(self, logs=None):
        self.note("on_test_begin", logs)

    def on_test_end(self, logs=None):
        self.note("on_test_end", dict(logs))


@pytest.fixture
def same(tmp_path):
    """Returns a function that fits by Keras and by kohort, each in a folder of its own, and compares all they leave."""

    def fit_both(made, make=build, fits=1, witness=Witness, fit=FIT):
        results = []
        for name, train in (("keras", by_keras), ("kohort", by_kohort)):
            folder, calls = tmp_path / name, []
            folder.mkdir()

            def arguments(folder=folder, calls=calls):
                return fit | {"callbacks": [witness(calls), *made(folder), witness(calls)]}

            with pytest.MonkeyPatch.context() as patch:
                if train is by_kohort:
                    patch.setattr(keras.Model, "fit", None)  # it must not be needed
                left = run(train, make, 1, [arguments() for _ in range(fits)])
            results.append((left, calls, {f.name: read(f) for f in sorted(folder.iterdir())}))
        assert differences(*results) == []
        return results[1]

    return fit_both


def read(file):
    if file.suffix == ".csv":
        return file.read_text()
    return keras.saving.load_model(file).get_weights() if file.suffix == ".keras" else file.name


class Noise(callbacks.Callback):
    """Changes weights, learning rate and the generators, as a callback may."""

    def on_epoch_begin(self, epoch, logs=None):
        np.random.permutation(3)
        self.model.set_weights([w + np.random.normal(scale=0.01, size=w.shape) for w in self.model.get_weights()])

    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 0.01 / (epoch + 1)
        self.model.optimizer.iterations.assign(7)
        logs["extra"] = float(epoch)


class StopInValidation(callbacks.Callback):
    def on_test_end(self, logs=None):
        self.model.stop_training = True


def checkpoint(folder, name="e{epoch}.keras", **options):
    return callbacks.ModelCheckpoint(folder / name, **options)


CALLBACKS = {
    "early-stopping": lambda folder: [callbacks.EarlyStopping("val_loss", patience=1, min_delta=0.5)],
    "best-weights": lambda folder: [
        callbacks.EarlyStopping("loss", patience=2, mode="max", restore_best_weights=True, start_from_epoch=1)
    ],
    "baseline": lambda folder: [callbacks.EarlyStopping("accuracy", patience=2, mode="max", baseline=2.0)],
    "plateau": lambda folder: [callbacks.ReduceLROnPlateau("loss", factor=0.3, patience=1, min_delta=1.0, cooldown=1)],
    "schedule": lambda folder: [callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.7)],
    "checkpoint": lambda folder: [checkpoint(folder)],
    "checkpoint-best": lambda folder: [checkpoint(folder, monitor="loss", save_best_only=True)],
    "checkpoint-weights": lambda folder: [checkpoint(folder, "e{epoch}.weights.h5", save_weights_only=True)],
    "backup": lambda folder: [callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False)],
    "csv": lambda folder: [callbacks.CSVLogger(folder / "log.csv")],
    "finite": lambda folder: [callbacks.TerminateOnNaN()],
    "lambda": lambda folder: [callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(more=1.0))],
    "history": lambda folder: [callbacks.History()],
    "noise": lambda folder: [Noise()],
    "stop-in-validation": lambda folder: [StopInValidation()],
    "several": lambda folder: [Noise(), callbacks.EarlyStopping("loss", patience=3), checkpoint(folder)],
}


@pytest.mark.many
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback(name, same):
    same(CALLBACKS[name], fits=2)


@pytest.fixture
def in_the_worker(monkeypatch):
    monkeypatch.setattr(remote, "always", True)
    yield
    remote.end_worker()


@pytest.mark.slow
@pytest.mark.usefixtures("in_the_worker")
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_in_this_process_of_a_model_that_trains_in_the_worker(name, same):
    same(CALLBACKS[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save_freq", "fit", "options"),
    [
        (1, FIT, {"jit_compile": False}),
        (3, FIT | {"batch_size": 8}, {}),
        (2, FIT | {"batch_size": 8, "shuffle": False, "validation_freq": 2}, {"steps_per_execution": 3}),
        (3, FIT | {"batch_size": 8, "steps_per_epoch": 2}, {}),
    ],
    ids=["each", "shuffled", "several-steps", "fewer-steps"],
)
def test_saving_after_so_many_batches(same, save_freq, fit, options):
    """The epoch is cut where a callback saves, and the numbers in the names are those of the step that was last."""

    def made(folder):
        backup = callbacks.BackupAndRestore(folder / "backup", save_freq=save_freq + 1, delete_checkpoint=False)
        return [checkpoint(folder, "{epoch}-{batch}-{loss:.9f}-{accuracy:.9f}.keras", save_freq=save_freq), backup]

    is_jitted = options.get("jit_compile", True)
    _, _, saved = same(made, lambda: build(**options), 2 if is_jitted else 1, Witness if is_jitted else NoWitness, fit)
    assert len(saved) > 3


class NoWitness(callbacks.History):
    """Stands where a callback of the user's would keep a model without `jit_compile` from being compiled."""

    def __new__(cls, calls):
        return callbacks.History()


def test_training_in_pieces_compiles_once(caplog):
    model = build()
    saving = callbacks.ModelCheckpoint("never.keras", save_freq=10**6)
    kohort.fit(model, **FIT, verbose=0, callbacks=[saving])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        kohort.fit(model, **FIT, verbose=0, callbacks=[saving])
    assert [r.message for r in caplog.records if "Compiling" in r.message] == []


def test_callbacks_that_look_at_validation(same):
    _, calls, _ = same(lambda folder: [], witness=WitnessOfValidation, fits=2, fit=FIT | {"validation_freq": 2})

    hooks = [call[0] for call in calls[::2]]
    assert hooks[:8] == [
        "on_train_begin", "on_epoch_begin", "on_epoch_end", "on_epoch_begin", "on_test_begin", "on_test_end",
        "on_epoch_end", "on_epoch_begin",
    ]  # fmt: skip


@pytest.mark.parametrize("swaps_at_epochs", [True, False])
def test_averaged_weights_are_swapped(same, swaps_at_epochs):
    same(
        lambda folder: [callbacks.SwapEMAWeights(swap_on_epoch=swaps_at_epochs)],
        lambda: build(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.7)),
    )


def test_a_backup_goes_on_where_it_was(same):
    def interrupted(folder):
        return [callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False), *stops.pop(0)]

    class Stop(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    stops = [[Stop()], [], [Stop()], []]
    left, _, _ = same(interrupted, fits=2)

    assert left.epoch == [2, 3, 4]


# A loss that is not finite.


class Poison(keras.losses.Loss):
    """The mean of the targets, which are what the test wants them to be; NaN from some target on."""

    def call(self, y, prediction):
        return keras.ops.mean(keras.ops.where(y > 0.5, np.nan, 0.01) * prediction)


@pytest.mark.many
@pytest.mark.parametrize("steps_per_execution", [1, 2])
@pytest.mark.parametrize("bad", [0, 4, 9, 21, 27])
@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_terminate_on_nan_stops_at_its_batch(same, capsys, bad, steps_per_execution, validation):
    def make():
        model = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dropout(0.3), layers.Dense(1)])
        model.compile("adam", Poison(), metrics=["mae"], steps_per_execution=steps_per_execution)
        return model

    y = np.zeros((40, 1), "float32")
    y[bad] = 1
    fit = FIT | {"y": y, "batch_size": 4, "validation_split": validation, "shuffle": False}
    same(lambda folder: [callbacks.TerminateOnNaN()], make, fit=fit)

    theirs, ours = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Batch"))
    last = (bad // 4 // steps_per_execution + 1) * steps_per_execution - 1
    assert theirs == ours == f"Batch {last}: Invalid loss, terminating training"


def diverging():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1.5), "mse")
    return model


def test_terminate_on_nan_in_a_later_epoch_with_shuffling(same):
    left, _, _ = same(lambda folder: [callbacks.TerminateOnNaN()], diverging, fit=FIT | {"epochs": 30})

    assert 1 < len(left.epoch) < 30
    assert not np.isfinite(left.history["loss"][-1])


def test_terminate_on_nan_that_raises():
    def failing(train):
        def fit(model, **arguments):
            with pytest.raises(RuntimeError, match="NaN or Inf loss encountered at batch"):
                train(model, callbacks=[callbacks.TerminateOnNaN(raise_error=True)], **arguments)
            return model.history

        return fit

    theirs, ours = (run(failing(train), diverging, 1, [FIT | {"epochs": 30}]) for train in (by_keras, by_kohort))
    assert differences(theirs, ours) == []


# Lists, errors, interrupts.


def test_a_callback_list_is_used_as_it_is():
    def with_list(train):
        def fit(model, **arguments):
            own = callbacks.CallbackList([callbacks.EarlyStopping("loss", patience=1)], add_history=True, model=model)
            return train(model, callbacks=own, **arguments)

        return fit

    theirs, ours = (run(with_list(train), build, 1, [FIT, FIT]) for train in (by_keras, by_kohort))
    assert differences(theirs, ours) == []


class Failing(callbacks.Callback):
    """Changes the weights and then fails."""

    def __init__(self, hook):
        super().__init__()
        for name in ("on_epoch_begin", "on_epoch_end", "on_test_begin", "on_test_end"):
            if name == hook:
                setattr(self, name, self.fail)

    def fail(self, epoch=None, logs=None):
        if epoch == 2 or not isinstance(epoch, int):
            self.model.set_weights([w + 1 for w in self.model.get_weights()])
            raise KeyError("mine")


def build_with_ema():
    """Keras puts the averages into the weights after an error, too."""
    return build(keras.optimizers.Adam(use_ema=True, ema_momentum=0.8))


@pytest.mark.many
@pytest.mark.parametrize("make", [build, build_with_ema])
@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_epoch_end", "on_test_begin", "on_test_end"])
def test_an_error_in_a_callback_leaves_what_keras_leaves(hook, make):
    def failing(train):
        def fit(model, **arguments):
            with pytest.raises(KeyError, match="mine"):
                train(model, callbacks=[Failing(hook)], **arguments)
            return model.history

        return fit

    theirs, ours = (run(failing(train), make, 1, [FIT | {"validation_freq": 3}]) for train in (by_keras, by_kohort))
    assert differences(theirs, ours) == []


class Waiting(callbacks.Callback):
    """One that would wait for ever when Ctrl-C is pressed."""

    def __init__(self, hook):
        super().__init__()
        self.pressed = 0
        setattr(self, hook, self.wait)

    def wait(self, epoch, logs=None):
        if epoch == 3:
            for _ in range(5):
                signal.raise_signal(signal.SIGINT)
                self.pressed += 1


@pytest.mark.parametrize(("hook", "finished"), [("on_epoch_begin", 3), ("on_epoch_end", 4)])
def test_ctrl_c_ends_a_callback_that_waits(hook, finished):
    """Pressed once, it lets the callback come to its end; the second time it does not."""
    waiting = Waiting(hook)

    def interrupted(model, **arguments):
        with pytest.raises(KeyboardInterrupt) as caught:
            kohort.fit(model, callbacks=[waiting], **arguments)
        assert f"the model holds its last finished epoch, {finished} of 5" in caught.value.__notes__[0]
        return model.history

    ours = run(interrupted, build, 1, [FIT])
    assert waiting.pressed == 1
    theirs = run(by_keras, build, 1, [FIT | {"epochs": finished}])
    assert differences([*theirs[:4], theirs.numpy_state], [*ours[:4], ours.numpy_state]) == []


@pytest.mark.parametrize("waits", [True, False])
def test_ctrl_c_leaves_the_last_finished_epoch(monkeypatch, waits):
    """Pressed inside an epoch that takes long, it gives that epoch up; a short one is finished first."""

    advance = ArrayEpochs.advance

    def pressed(source, state, epochs, interrupt):
        if epochs[0] == 3:
            signal.raise_signal(signal.SIGINT)
        return advance(source, state, epochs, interrupt)

    def interrupted(model, **arguments):
        with pytest.raises(KeyboardInterrupt):
            kohort.fit(model, callbacks=[callbacks.Callback()], **arguments)
        return model.history

    monkeypatch.setattr(ArrayEpochs, "advance", pressed)
    if waits:
        monkeypatch.setattr("kohort.engine.CALL_SECONDS", 0.0)  # every epoch counts as long
        monkeypatch.setattr("jax.Array.is_ready", lambda array: False, raising=False)
        monkeypatch.setattr("kohort.engine.wait", lambda results, interrupt: not interrupt)
    ours = run(interrupted, build, 1, [FIT])
    theirs = run(by_keras, build, 1, [FIT | {"epochs": 3 if waits else 4}])
    assert differences(theirs, ours) == []


@pytest.mark.parametrize(
    ("piece", "validation", "finished"),
    [(14, 0.0, 3), (16, 0.0, 4), (16, 0.3, 3)],
    ids=["after-the-second", "after-the-last", "before-validation"],
)
def test_ctrl_c_between_pieces_leaves_the_last_finished_epoch(monkeypatch, tmp_path, piece, validation, finished):
    """An epoch that is cut where a callback saves is given up whole, and the model goes on from the one before."""
    train_piece, pieces = ArrayEpochs.train_piece, []

    def pressing(*arguments):
        done = train_piece(*arguments)
        pieces.append(done)
        if len(pieces) == piece:
            signal.raise_signal(signal.SIGINT)
        return done

    def interrupted(model, **arguments):
        with pytest.raises(KeyboardInterrupt, match=f"the model holds its last finished epoch, {finished} of 5"):
            kohort.fit(model, callbacks=[checkpoint(tmp_path, save_freq=1)], **arguments)
        assert len(pieces) == piece
        lefts.append(outcome(model, model.history))
        return kohort.fit(model, **arguments)

    def shortened(model, **arguments):
        lefts.append(outcome(model, by_keras(model, **arguments | {"epochs": finished})))
        return by_keras(model, **arguments)

    monkeypatch.setattr(ArrayEpochs, "train_piece", pressing)
    monkeypatch.setattr("kohort.engine.wait", lambda results, interrupt: not interrupt)
    fit = FIT | {"validation_split": validation, "batch_size": 7 if validation else 10}  # four batches
    lefts = []
    ours, theirs = (run(train, build, 1, [fit]) for train in (interrupted, shortened))
    assert differences(*lefts) == []
    assert differences(theirs, ours) == []


class Compile(callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.compile("sgd", "mse")


def test_a_model_that_a_callback_compiles_anew_is_an_error():
    """Keras's own error here is that None is not callable."""
    for train, message in ((by_keras, "not callable"), (by_kohort, "must stay compiled as it is until its fit ends")):
        with pytest.raises(TypeError, match=message):
            train(build(), callbacks=[Compile()], verbose=0, **FIT)


class Freeze(callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.layers[0].trainable = False


def test_a_layer_that_a_callback_freezes_is_an_error_as_in_keras():
    for train in (by_keras, by_kohort):
        with pytest.raises(ValueError, match="optimizer"):
            train(build(), callbacks=[Freeze()], verbose=0, **FIT)


def test_arrays_that_a_callback_keeps_stay_what_they_were():
    """Short epochs use up the state; views of it, such as EarlyStopping keeps of the best weights, do not change."""
    kept = []
    model = build()
    keep = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kept.append(model.get_weights()))
    kohort.fit(model, X, Y, epochs=20, verbose=0, callbacks=[keep])
    first = [np.array(w) for w in kept[0]]
    kohort.fit(model, X, Y, epochs=20, verbose=0, callbacks=[keep])

    assert differences(first, kept[0]) == []
    assert differences(kept[0], kept[-1]) != []
