"""Models that Keras trains operation by operation: same bits compiled, and only if no other code is lost."""

import functools
import types
from unittest import mock

import keras
import numpy as np
import pytest
from keras import layers
from oracle import assert_same_fit, by_keras, by_kohort, differences, run

import kohort
from kohort import keras_internals, programs, python_code

RNG = np.random.default_rng(5)
X = RNG.normal(size=(44, 6)).astype("float32")
Y = RNG.normal(size=(44, 2)).astype("float32")
LABELS = RNG.integers(0, 3, 44)
IMAGES = RNG.normal(size=(20, 7, 7, 2)).astype("float32")
WORDS = RNG.integers(0, 9, (44, 5))
FIT = {"x": X, "y": Y, "epochs": 3, "batch_size": 16}
CLASSES = FIT | {"y": LABELS}


def build(*stack, loss="mse", optimizer="adam", shape=(6,), **options):
    model = keras.Sequential([keras.Input(shape), *(layer() for layer in stack)])
    optimizer = optimizer() if callable(optimizer) else optimizer
    model.compile(keras.optimizers.get(optimizer), loss, **{"jit_compile": False, **options})
    return model


def dense(*args, **options):
    return functools.partial(layers.Dense, *args, **options)


def regression(*stack, **options):
    return functools.partial(build, *stack, dense(2), **options)


def classification(*stack, **options):
    return functools.partial(
        build, *stack, dense(3, "softmax"), loss="sparse_categorical_crossentropy", metrics=["accuracy"], **options
    )


def fit_alike(make, fit):
    with kohort.install(strict=True):  # so that a fall back is no way out
        assert_same_fit(make, fit)


ADAM = functools.partial(keras.optimizers.Adam, 0.01)
CASES = {
    "batch normalisation": (
        classification(dense(8, "gelu"), layers.BatchNormalization),
        CLASSES | {"validation_split": 0.25, "epochs": 2},
    ),
    "clipped, with averages": (
        regression(dense(8, "relu"), optimizer=functools.partial(ADAM, clipnorm=0.5, use_ema=True)),
        FIT | {"sample_weight": np.linspace(0, 1, 44), "epochs": 2},
    ),
}
SLOW = {
    "activations": (regression(dense(8, "gelu"), dense(8, "tanh"), dense(8, "softplus")), FIT),
    "validation": (classification(dense(8, "relu")), CLASSES | {"validation_split": 0.25}),
    "dropout": (regression(dense(8, "relu"), functools.partial(layers.Dropout, 0.3)), FIT),
    "weights": (classification(dense(8, "relu")), CLASSES | {"class_weight": {0: 1.0, 1: 2.0, 2: 0.3}}),
    "several steps": (regression(dense(8, "relu", kernel_regularizer="l2"), steps_per_execution=2), FIT),
    "layer normalisation": (regression(dense(8), layers.LayerNormalization), FIT),
    "half precision": (
        regression(
            dense(8, "relu", dtype="mixed_float16"),
            optimizer=lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
        ),
        FIT,
    ),
    "accumulated": (regression(dense(8), optimizer=functools.partial(ADAM, gradient_accumulation_steps=2)), FIT),
    "metrics": (regression(dense(8), metrics=["mae", "r2_score", "root_mean_squared_error"]), FIT),
    "convolution": (
        classification(
            functools.partial(layers.Conv2D, 4, 3, activation="relu"),
            layers.MaxPooling2D,
            layers.Flatten,
            shape=(7, 7, 2),
        ),
        CLASSES | {"x": IMAGES, "y": LABELS[:20]},
    ),
    "transposed convolution": (
        classification(functools.partial(layers.Conv2DTranspose, 3, 3, strides=2), layers.Flatten, shape=(7, 7, 2)),
        CLASSES | {"x": IMAGES, "y": LABELS[:20]},
    ),
    "recurrence": (
        classification(functools.partial(layers.Embedding, 9, 4), functools.partial(layers.LSTM, 4), shape=(5,)),
        CLASSES | {"x": WORDS, "epochs": 1},
    ),
    **{name: (regression(dense(8, "relu"), optimizer=name), FIT) for name in ("rmsprop", "nadam", "lion", "adafactor")},
    **{
        name: (regression(dense(8, "sigmoid"), loss=name), FIT | {"y": abs(Y)})
        for name in ("huber", "log_cosh", "kl_divergence", "cosine_similarity")
    },
}


@pytest.mark.many
@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_compiled_they_round_as_operation_by_operation(name):
    fit_alike(*(CASES | SLOW)[name])


@pytest.mark.slow
def test_attention():
    def make():
        inputs = keras.Input((3, 2))
        attended = layers.LayerNormalization()(layers.MultiHeadAttention(2, 2)(inputs, inputs) + inputs)
        model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(attended)))
        model.compile("adam", "mse", jit_compile=False)
        return model

    fit_alike(make, FIT | {"x": X.reshape(-1, 3, 2)})


@pytest.mark.slow
def test_members_are_trained_so_too():
    model = regression(dense(8, "tanh"))()
    cohort = kohort.Cohort(model, seeds=[3], exact=True)
    cohort.fit(**FIT)

    def clone():
        copy = keras.models.clone_model(model)
        copy.compile("adam", "mse", jit_compile=False)
        return copy

    theirs = run(by_keras, clone, 3, [FIT])
    assert differences([*theirs.weights], [np.asarray(w) for w in cohort.member(3).trainable_weights]) == []


# Compiled once, as long as nothing is set otherwise.


@pytest.mark.slow
def test_programs_last_as_long_as_the_settings():
    make = regression(dense(8, "relu"), functools.partial(layers.Dropout, 0.3, seed=1))

    def change_and_fit(train):
        def fit(model, **arguments):
            train(model, **arguments)
            model.layers[1].rate = 0.8  # which a jitted step of Keras's would not see
            return train(model, **arguments)

        return fit

    theirs = run(change_and_fit(by_keras), make, 1, [FIT])
    assert differences(theirs, run(change_and_fit(by_kohort), make, 1, [FIT])) == []

    model = make()
    kohort.fit(model, **FIT, verbose=0)
    kept = programs.local_programs_of(model)
    kohort.fit(model, **FIT | {"epochs": 5}, verbose=0)
    assert programs.local_programs_of(model) is kept
    epsilon = keras.config.epsilon()
    try:
        keras.config.set_epsilon(1e-3)
        assert programs.local_programs_of(model) is not kept
    finally:
        keras.config.set_epsilon(epsilon)


def test_a_jitted_model_has_no_settings_to_watch():
    assert programs.settings_of(regression(dense(8), jit_compile=True)()) == []


# What runs code of somebody else.


def own_activation(x):
    return x * 2


class OwnLayer(layers.Dense):
    def call(self, inputs):
        return super().call(inputs)


class OwnLoss(keras.losses.MeanSquaredError):
    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred)


class OwnRate(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1


class OwnCallback(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.layers[0].activation = None


class OwnProperty(layers.Dense):
    units_again = property(lambda self: 3)


class Helper:
    def help(self):
        return self


class OwnUnits(layers.Dense):
    """Runs no code of its own at a step."""

    kind = "own"

    def __init__(self, units, **options):
        super().__init__(2 * units, **options)

    def get_config(self):
        return super().get_config() | {"units": self.units // 2}


def with_method():
    model = build(dense(2))
    layer = model.layers[0]
    layer.call = types.MethodType(lambda self, inputs, **options: inputs, layer)
    return model


def with_helper():
    model = build(dense(2))
    model.layers[0].helpers = {"one": (Helper(),)}
    return model


class OwnPartial(layers.Dense):
    call = functools.partialmethod(lambda self, inputs, times: times * inputs, times=2)


class OwnCached(layers.Dense):
    @functools.cached_property
    def units_again(self):
        return self.units


def scanned():
    """Keras's own operation, which is told to run somebody else's function."""
    inputs = keras.Input((6,))
    return keras.Model(inputs, keras.ops.associative_scan(lambda a, b: a + b, inputs))


def get_config(y, prediction):
    """By its name it would be no step."""
    return keras.ops.mean((y - prediction) ** 2, -1)


def own_call(layer, inputs, training=None):
    return inputs


def test_a_method_of_keras_that_somebody_replaced(monkeypatch):
    """The quick way to look into a layer: it must be seen at each step, as Keras would run it."""
    model = build(dense(2))
    assert python_code.somebody_elses(model) is None
    monkeypatch.setattr(layers.Dense, "call", own_call)
    assert python_code.somebody_elses(model) == "`Dense.call`"
    monkeypatch.setattr(layers.Dense, "call", mock.MagicMock())
    assert python_code.somebody_elses(model) == "`Dense.call`"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: build(dense(2, own_activation)), "`own_activation`"),
        (lambda: build(dense(2, functools.wraps(keras.activations.relu)(lambda x: 2 * x))), "`relu`"),
        (lambda: build(dense(2, functools.partial(own_activation))), "`own_activation`"),
        (lambda: build(dense(2), loss=get_config), "`get_config`"),
        (lambda: build(lambda: OwnLayer(2)), "`OwnLayer.call`"),
        (lambda: build(lambda: OwnProperty(2)), "`OwnProperty.units_again`"),
        (lambda: build(lambda: layers.Lambda(own_activation)), "`own_activation`"),
        (lambda: build(dense(2), loss=OwnLoss()), "`OwnLoss.call`"),
        (lambda: build(dense(2), loss=lambda y, out: out), "<lambda>"),
        (lambda: build(dense(2), metrics=[lambda y, out: out]), "<lambda>"),
        (lambda: build(dense(2), optimizer=lambda: keras.optimizers.SGD(OwnRate())), "`OwnRate.__call__`"),
        (lambda: build(layers.Normalization, dense(2)), "`Normalization`"),
        (lambda: build(lambda: keras.Sequential([OwnLayer(2)])), "`OwnLayer.call`"),
        (lambda: build(lambda: OwnPartial(2)), "`OwnPartial.call`"),
        (lambda: build(lambda: OwnCached(2)), "`OwnCached.units_again`"),
        (scanned, "<lambda>"),
        (with_method, "<lambda>"),
        (with_helper, "`Helper.help`"),
    ],
)
def test_code_of_somebody_else(make, code):
    assert code in str(python_code.somebody_elses(make()))


def test_callbacks_that_may_change_a_setting():
    with pytest.warns(kohort.FallBackWarning, match=r"and `OwnCallback.on_epoch_end` is not Keras's own"):
        kohort.fit(build(dense(2)), X, Y, verbose=0, callbacks=[OwnCallback()])


def test_classes_that_run_nothing_of_their_own():
    assert python_code.somebody_elses(build(lambda: OwnUnits(1)), keras.callbacks.EarlyStopping("loss")) is None
    fit_alike(functools.partial(build, lambda: OwnUnits(1)), FIT)


def test_a_metric_that_has_an_enumeration_is_all_of_keras():
    """Python's `enum` writes methods into it."""
    assert python_code.somebody_elses(keras.metrics.AUC()) is None


def test_streams_run_code_between_the_steps():
    with pytest.warns(kohort.FallBackWarning, match="`jit_compile=False`, and its data are a generator"):
        kohort.fit(build(dense(2)), ((X, Y) for _ in range(2)), verbose=0, shuffle=False, steps_per_epoch=2)


def test_a_dataset_of_tensorflow_runs_no_python_unless_it_says_so(monkeypatch):
    """Then nothing is there between the steps that could see or change them, and they run compiled, the same bits."""
    tf = pytest.importorskip("tensorflow")
    data = (
        tf.data.Dataset.from_tensor_slices((X, Y))
        .shuffle(45, 1, reshuffle_each_iteration=False)
        .map(lambda x, y: (2 * x, y))
        .batch(8)
    )
    spec = (tf.TensorSpec((None, X.shape[1])), tf.TensorSpec((None, Y.shape[1])))
    read = tf.data.Dataset.from_generator(lambda: iter([(X, Y)]), output_signature=spec)
    called = tf.data.Dataset.range(3).map(lambda i: tf.py_function(lambda i: 1.0 * i, [i], tf.float32))

    assert not python_code.runs_to_read(data)
    assert python_code.runs_to_read(read)
    assert python_code.runs_to_read(called)
    with monkeypatch.context() as patch:
        patch.setattr(tf.raw_ops, "DatasetToGraphV2", None)  # which takes long where there are many data
        assert not python_code.runs_to_read(data)
    for make in (lambda: build(dense(2)), lambda: build(dense(2), run_eagerly=True)):
        fit_alike(make, {"x": data, "validation_data": data.take(2), "epochs": 2, "shuffle": False})
    with pytest.warns(kohort.FallBackWarning, match="`jit_compile=False`, and its data are a tf.data.Dataset"):
        kohort.fit(build(dense(2)), read, steps_per_epoch=1, verbose=0, shuffle=False)


def test_tests_of_keras_are_not_keras():
    assert python_code.is_kerass("keras.layers.core")
    assert not python_code.is_kerass("keras.layers.core.dense_test")
    assert not python_code.is_kerass("kerastuner")


def test_layers_that_do_not_support_it():
    model = build(lambda: layers.Dense(2))
    model.layers[0].supports_jit = False

    assert keras_internals.why_keras_must_run(model) == "a layer of the model does not support `jit_compile`"


def test_code_near_by_is_found_before_all_layers_are_walked_through():
    def own_loss(y, prediction):
        return keras.ops.mean(y - prediction)

    near, whole = python_code.Survey(), python_code.Survey()
    stack = [dense(2)] * 60

    assert near.foreign(build(*stack, loss=own_loss)) == f"`{own_loss.__qualname__}`"
    assert whole.foreign(build(*stack)) is None
    assert 10 * len(near.settings) < len(whole.settings)


def test_settings_that_change_places_are_others():
    def held(*values):
        return python_code.settings([list(value) for value in values])

    assert held("ab", "c") == held("ab", "c")
    assert held("ab", "c") != held("a", "bc")
