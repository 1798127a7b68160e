"""P6: what cannot be compiled runs through Keras, with the same numbers and one line that says why.

Callbacks that act at epochs need no fall back: they are called as Keras calls them, between compiled epochs.
"""

import warnings

import keras
import numpy as np
import pytest
import scipy.sparse
from keras import callbacks, layers
from oracle import by_keras, by_kohort, differences, run

import kohort

RNG = np.random.default_rng(2)
X = RNG.normal(size=(40, 3)).astype("float32")
Y = (X[:, :1] * X[:, 1:2] > 0).astype("float32")
FIT = {"x": X, "y": Y, "epochs": 4, "batch_size": 16}


def build(optimizer="adam", **options):
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(6, "relu"), layers.Dropout(0.2), layers.Dense(1, "sigmoid")]
    )
    model.compile(keras.optimizers.get(optimizer), "binary_crossentropy", metrics=["accuracy"], **options)
    return model


def own_error(y, p):
    """A metric that is the user's own: where Keras runs each step as Python, it has to run this one, too."""
    return keras.ops.abs(y - p)


def both(arguments, make=build, *, fits=1, seed=1):
    """Fits by Keras and by kohort, asserts that both leave the same, and returns the reasons that kohort gives.

    Args:
        arguments: Callable that makes the arguments of the fit: generators and callbacks are used up by one run.
        make: Callable that makes the compiled model.
        fits: Number of fits, one after the other.
        seed: Seed of the run.
    """
    theirs = run(by_keras, make, seed, [arguments() for _ in range(fits)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", category=kohort.FallBackWarning)
        ours = run(by_kohort, make, seed, [arguments() for _ in range(fits)])
    assert differences(theirs, ours) == []
    assert {w.category for w in caught} <= {kohort.FallBackWarning}
    return [str(w.message) for w in caught]


def fallen_back(reason):
    return [f"kohort: Keras runs this fit itself, because {reason}."]


COMPILED = []


# Data. Streams of batches need no fall back: see test_stream.py.


def test_a_sparse_array():
    """Keras reads one with shuffling off only: it cannot gather rows of it in another order without sorted indices."""
    x = scipy.sparse.csr_matrix(np.where(np.abs(X) > 1, X, 0))

    assert both(lambda: FIT | {"x": x, "shuffle": False}) == fallen_back("an array is sparse")


# Models.


class Counted(layers.Layer):
    """Updates a metric of its own when it is called, which Keras cannot train on JAX: it raises a TypeError."""

    def __init__(self):
        super().__init__(name="counted")
        self.mean = keras.metrics.Mean(name="mean")

    def call(self, x):
        self.mean.update_state(1.0)
        return x


def test_a_layer_with_a_metric_of_its_own():
    def counted():
        model = keras.Sequential([keras.Input((3,)), Counted(), layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    with pytest.raises(TypeError, match="not callable") as theirs:
        counted().fit(**FIT, verbose=0)
    with (
        pytest.warns(kohort.FallBackWarning, match=r"because the layer 'counted' updates a metric of its own"),
        pytest.raises(TypeError, match="not callable") as ours,
    ):
        kohort.fit(counted(), **FIT, verbose=0)
    assert str(ours.value) == str(theirs.value)


def test_a_model_with_metrics_inside_a_model_is_compiled():
    def nested():
        inner = keras.Sequential([keras.Input((3,)), layers.Dense(4)])
        inner.compile("sgd", "mse", metrics=["mae"])
        model = keras.Sequential([keras.Input((3,)), inner, layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    assert both(lambda: FIT, nested) == COMPILED


def test_run_eagerly():
    """As with `jit_compile=False`: what is Keras's own alone runs compiled."""
    reasons = both(lambda: FIT | {"epochs": 1}, lambda: build(run_eagerly=True, weighted_metrics=[own_error]))

    assert reasons == fallen_back(
        "the model was compiled with `run_eagerly=True`, and `own_error` is not Keras's own: each step may run it, or "
        "see what it changed"
    )
    assert both(lambda: FIT, lambda: build(run_eagerly=True)) == COMPILED


def test_without_jit_compilation():
    """Keras's own code runs compiled, see test_python_code.py; where it is the user's, nothing that it does is lost."""

    class Counting(layers.Dense):
        calls = 0

        def call(self, inputs):
            Counting.calls += 1
            return super().call(inputs)

    def make():
        Counting.calls = 0
        model = keras.Sequential([keras.Input((3,)), Counting(1)])
        model.compile("adam", "mse", jit_compile=False)
        return model

    assert both(lambda: FIT | {"epochs": 1}, make) == fallen_back(
        "the model was compiled with `jit_compile=False`, and `test_without_jit_compilation.<locals>.Counting.call` "
        "is not Keras's own: each step may run it, or see what it changed"
    )
    assert Counting.calls >= 3


class OwnFit(keras.Sequential):
    def fit(self, *args, **options):
        return super().fit(*args, **options | {"epochs": 2})


class OwnEvaluate(keras.Sequential):
    def evaluate(self, *args, **options):
        return {"loss": 0.5, "other": 1.0}


@pytest.mark.parametrize(("kind", "method"), [(OwnFit, "fit"), (OwnEvaluate, "evaluate")])
def test_a_model_with_a_method_of_its_own(kind, method):
    def make():
        model = kind([keras.Input((3,)), layers.Dense(1, "sigmoid")])
        model.compile("adam", "mse")
        return model

    assert both(lambda: FIT | {"validation_split": 0.2}, make) == fallen_back(f"{kind.__name__} overrides `{method}`")


@pytest.fixture
def limited():
    yield keras.config
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)


@pytest.mark.filterwarnings("ignore:Limiting")
@pytest.mark.parametrize("limit", ["set_max_epochs", "set_max_steps_per_epoch"])
def test_a_limit_in_the_configuration(limited, limit):
    getattr(limited, limit)(2)

    assert both(lambda: FIT) == fallen_back("`keras.config` limits the epochs or the steps per epoch")


def test_a_second_fit_falls_back_by_itself():
    """The reason belongs to the fit, not to the model: before and after, the same model is compiled."""
    plan = [FIT, FIT | {"callbacks": [PerBatch()]}, FIT]
    theirs = run(by_keras, build, 1, plan)
    with pytest.warns(kohort.FallBackWarning) as caught:
        ours = run(by_kohort, build, 1, plan)

    assert differences(theirs, ours) == []
    assert len(caught) == 1


def test_arguments_reach_keras():
    """All of them, also those that Keras refuses beside a generator unless they are left out."""
    weights = np.linspace(0.1, 2, 40).astype("float32")
    arguments = FIT | {
        "sample_weight": weights, "validation_split": 0.25, "validation_freq": 2, "validation_batch_size": 3,
        "validation_steps": 2, "steps_per_epoch": 2, "shuffle": "batch", "initial_epoch": 1,
        "callbacks": AtBatches(),
    }  # fmt: skip
    assert len(both(lambda: arguments)) == 1
    unweighted = {name: value for name, value in arguments.items() if name != "sample_weight"}
    assert len(both(lambda: unweighted | {"class_weight": {0: 0.5, 1: 2.0}})) == 1


def test_the_warning_is_one_line_that_can_be_an_error():
    model = build(run_eagerly=True, weighted_metrics=[own_error])
    before = model.get_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error", kohort.FallBackWarning)
        with pytest.raises(
            kohort.FallBackWarning, match="because the model was compiled with `run_eagerly=True`"
        ) as caught:
            kohort.fit(model, X, Y, verbose=0)

    assert "\n" not in str(caught.value)
    assert differences(before, model.get_weights()) == []


# Callbacks that act inside an epoch.


class AtBatches(callbacks.Callback):
    """Acts at batches and leaves the model alone: Keras cannot always validate once one has looked at it there."""

    def on_train_batch_end(self, batch, logs=None):
        pass


class PerBatch(callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.model.optimizer.learning_rate = float(self.model.optimizer.learning_rate) / 2


INNER_HOOKS = [
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_batch_begin",
    "on_test_batch_end",
]


@pytest.mark.parametrize("hook", INNER_HOOKS)
def test_a_callback_that_acts_inside_an_epoch(hook):
    calls = []

    def arguments():
        acting = type("Acting", (callbacks.Callback,), {hook: lambda self, *args, **logs: calls.append(args)})
        return FIT | {"epochs": 1, "validation_split": 0.2, "callbacks": [acting()]}

    assert both(arguments) == fallen_back(f"the callback Acting acts inside an epoch (`{hook}`)")
    half = len(calls) // 2
    assert half > 0
    assert calls[:half] == calls[half:]


def test_a_callback_that_changes_the_training_inside_an_epoch():
    reasons = both(lambda: FIT | {"callbacks": [PerBatch()]})

    assert reasons == fallen_back("the callback PerBatch acts inside an epoch (`on_train_batch_end`)")


def test_a_lambda_inside_an_epoch():
    seen = []

    def arguments():
        return FIT | {
            "callbacks": [callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))]
        }

    assert both(arguments) == fallen_back("the callback LambdaCallback acts inside an epoch (`on_train_batch_end`)")
    assert seen == [0, 1, 2] * 4 * 2


class OwnList(callbacks.CallbackList):
    pass


def test_a_callback_list_of_another_class():
    def with_list(train):
        return lambda model, **arguments: train(model, callbacks=OwnList(add_history=True, model=model), **arguments)

    theirs = run(with_list(by_keras), build, 1, [FIT])
    with pytest.warns(kohort.FallBackWarning, match="because `callbacks` is a CallbackList of another class"):
        ours = run(with_list(by_kohort), build, 1, [FIT])
    assert differences(theirs, ours) == []


@pytest.mark.parametrize("others", [[callbacks.TerminateOnNaN()], []])
def test_checkpoints_inside_an_epoch(tmp_path, others):
    """On arrays an epoch is cut where they save, see test_training.py; not of streams, or beside `TerminateOnNaN`."""
    files = iter([str(tmp_path / "keras.{epoch}.weights.h5"), str(tmp_path / "kohort.{epoch}.weights.h5")])

    def arguments():
        saving = callbacks.ModelCheckpoint(next(files), save_weights_only=True, save_freq=2)
        data = FIT if others else {"x": ((X[:16], Y[:16]) for _ in range(12)), "steps_per_epoch": 3, "epochs": 4}
        return data | {"callbacks": [saving, *others], "shuffle": False}

    reasons = both(arguments)

    assert reasons == fallen_back("the callback ModelCheckpoint acts inside an epoch (`on_train_batch_end`)")
    assert len(list(tmp_path.iterdir())) == 8


# Callbacks that act at epochs run compiled.


class Witness(callbacks.Callback):
    """Writes down each call, what it was given, and the model as it then was."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def note(self, hook, epoch, logs):
        state = [np.array(v) for v in (*self.model.get_weights(), self.model.optimizer.learning_rate.value)]
        history = dict(self.model.history.history)
        self.calls.append([hook, epoch, dict(logs or {}), state, history, self.model.stop_training, dict(self.params)])

    def on_train_begin(self, logs=None):
        self.note("on_train_begin", None, logs)

    def on_epoch_begin(self, epoch, logs=None):
        self.note("on_epoch_begin", epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self.note("on_epoch_end", epoch, logs)

    def on_train_end(self, logs=None):
        self.note("on_train_end", None, logs)


def test_callbacks_see_what_keras_shows_them():
    calls = []

    def arguments():
        calls.append([])
        return FIT | {"validation_split": 0.3, "validation_freq": 2, "callbacks": [Witness(calls[-1])]}

    assert both(arguments, fits=2) == COMPILED
    theirs, ours = calls[:2], calls[2:]
    assert [call[:2] for call in ours[0]] == [
        ["on_train_begin", None],
        *([hook, epoch] for epoch in range(4) for hook in ("on_epoch_begin", "on_epoch_end")),
        ["on_train_end", None],
    ]
    assert differences(theirs, ours) == []


def test_a_lambda_at_epochs():
    seen = []
    reasons = both(
        lambda: (
            FIT | {"callbacks": [callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append((epoch, logs)))]}
        )
    )

    assert reasons == COMPILED
    assert differences(seen[:4], seen[4:]) == []
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3] * 2


class Noise(callbacks.Callback):
    """Changes weights, learning rate and the generators, as a callback may."""

    def on_epoch_begin(self, epoch, logs=None):
        np.random.permutation(3)
        weights = self.model.get_weights()
        self.model.set_weights([w + np.random.normal(scale=0.01, size=w.shape) for w in weights])

    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 0.01 / (epoch + 1)
        logs["extra"] = float(epoch)


class Stop(callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == 1


class StopBefore(callbacks.Callback):
    """Keras looks whether it shall stop after each batch: stopped before, it still trains the first one."""

    def __init__(self, stops):
        super().__init__()
        self.stops = stops

    def on_train_begin(self, logs=None):
        self.model.stop_training = self.stops is None

    def on_epoch_begin(self, epoch, logs=None):
        self.model.stop_training |= epoch == self.stops


EPOCH_CALLBACKS = {
    "schedule": lambda: [callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.7)],
    "early-stopping": lambda: [callbacks.EarlyStopping(monitor="val_loss", patience=1, min_delta=0.5)],
    "best-weights": lambda: [
        callbacks.EarlyStopping(
            monitor="val_loss", patience=2, mode="max", restore_best_weights=True, start_from_epoch=1
        )
    ],
    "plateau": lambda: [callbacks.ReduceLROnPlateau(monitor="loss", factor=0.3, patience=1, min_delta=1.0, cooldown=1)],
    "several": lambda: [Noise(), callbacks.EarlyStopping(monitor="loss", patience=3), callbacks.History()],
    "stop": lambda: [Stop()],
    "stop-before-an-epoch": lambda: [StopBefore(3)],
    "stop-before-training": lambda: [StopBefore(None)],
    "one": Noise,
    "tuple": lambda: (Noise(), Stop()),
    "none": list,
}


@pytest.mark.many
@pytest.mark.parametrize("name", EPOCH_CALLBACKS)
def test_callbacks_at_epochs_run_compiled(name, monkeypatch):
    """With the same numbers, also in a second fit that goes on from there."""

    def arguments():
        return FIT | {"epochs": 6, "validation_split": 0.3, "callbacks": EPOCH_CALLBACKS[name]()}

    assert both(arguments, fits=2) == COMPILED
    monkeypatch.setattr(keras.Model, "fit", None)  # it must not be needed
    run(by_kohort, build, 1, [arguments()])


def test_best_weights_are_restored():
    """So that the test above compares something: the last weights are not the best ones."""

    def weights(**options):
        stopping = callbacks.EarlyStopping(monitor="loss", mode="max", patience=2, **options)
        keras.utils.set_random_seed(4)
        model = build()
        kohort.fit(model, X, Y, epochs=9, verbose=0, callbacks=[stopping])
        return stopping.stopped_epoch - stopping.best_epoch, stopping.best_weights, model.get_weights()

    late, best, restored = weights(restore_best_weights=True)
    assert late == 2
    assert differences(best, restored) == []
    assert differences(restored, weights()[2]) != []


def test_a_log_of_epochs(tmp_path):
    files = iter([tmp_path / "keras.csv", tmp_path / "kohort.csv"])
    reasons = both(lambda: FIT | {"validation_split": 0.3, "callbacks": [callbacks.CSVLogger(next(files))]})

    assert reasons == COMPILED
    assert (tmp_path / "keras.csv").read_text() == (tmp_path / "kohort.csv").read_text()


@pytest.mark.many
@pytest.mark.parametrize("options", [{"batch_size": 64}, {"shuffle": False}, {"steps_per_epoch": 2}])
@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_stopped_before_an_epoch_with_other_batches(options, steps_per_execution):
    reasons = both(
        lambda: FIT | options | {"callbacks": [StopBefore(1)]}, lambda: build(steps_per_execution=steps_per_execution)
    )

    assert reasons == COMPILED
