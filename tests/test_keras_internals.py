"""Keras's private parts that kohort relies on: what each must be and do.

`keras_internals.SEEN_WITH` names the Keras that they were seen with. On any other Keras these tests say what changed:
begin here when a new release comes out.
"""

import inspect
import random
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers
from oracle import differences

from kohort import keras_internals as internals
from kohort import keras_parts
from kohort.engine import State

LOCK = Path(__file__).parents[1] / "requirements.lock"
SEEN = f"kohort was written against Keras {internals.SEEN_WITH}, and this is {keras.__version__}"
RNG = np.random.default_rng(5)
X = RNG.normal(size=(10, 2)).astype("float32")
Y = (X[:, :1] > 0).astype("float32")


def compiled(model=None, loss="mse", **options):
    model = model or keras.Sequential([keras.Input((2,)), layers.Dense(3), layers.Dropout(0.5), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, **options)
    return model


def test_seen_with_is_the_locked_keras():
    assert f"\nkeras=={internals.SEEN_WITH} " in LOCK.read_text()


# Attributes and signatures, as they are used.

PRIVATE = {
    "Model._symbolic_build": lambda m: (
        list(inspect.signature(m._symbolic_build).parameters) == ["iterator", "data_batch"]
    ),
    "Model._flatten_layers": lambda m: {*m.layers} < {*m._flatten_layers()} and m in {*m._flatten_layers()},
    "Model._flatten_layers(include_self)": lambda m: m not in {*m._flatten_layers(include_self=False)},
    "Model._compile_metrics": lambda m: m._compile_metrics.built is False and m._compile_metrics.metrics == [],
    "Model._compile_loss": lambda m: m._compile_loss.built is False and m._compile_loss.metrics == [],
    "Model._compile_config": lambda m: m._compile_config.config["loss"] == "mse",
    "Model._loss_tracker": lambda m: isinstance(m._loss_tracker, keras.metrics.Mean),
    "Model._get_metrics_result_or_logs": lambda m: callable(m._get_metrics_result_or_logs),
    "Model._should_eval": lambda m: list(inspect.signature(m._should_eval).parameters) == ["epoch", "validation_freq"],
    "Model._flatten_metrics_in_order": lambda m: m._flatten_metrics_in_order({"loss": 1.0, "mae": 2.0}) == [1.0, 2.0],
    "Model._initial_epoch": lambda m: m._initial_epoch is None,
    "MonitorCallback._set_monitor_op": lambda m: (
        hasattr(keras.callbacks.EarlyStopping(), "monitor_op")
        and callable(keras.callbacks.EarlyStopping()._set_monitor_op)
    ),
    "Optimizer._learning_rate": lambda m: isinstance(m.optimizer._learning_rate, keras.Variable),
    "backend.is_nnx_enabled": lambda m: internals.is_nnx_enabled() is False,
    "random.make_default_seed": lambda m: all(callable(part.make_default_seed) for part in seed_modules()),
}


def seed_modules():
    return internals.seed_generator, internals.keras_backend.random


@pytest.mark.parametrize("part", PRIVATE)
def test_a_private_part_is_what_it_was(part):
    assert PRIVATE[part](compiled(metrics=["mae"])), SEEN


def test_metrics_have_a_direction():
    directions = {"accuracy": "up", "auc": "up", "mean_squared_error": "down"}
    metrics = [keras.metrics.BinaryAccuracy(name="accuracy"), keras.metrics.AUC(name="auc")]
    metrics.append(keras.metrics.MeanSquaredError(name="mean_squared_error"))
    model = compiled(metrics=[*metrics, lambda y, p: keras.ops.mean(p)])
    internals.build_like(model, (X, Y))

    assert {name: internals.metric_direction(model, name) for name in directions} == directions, SEEN
    assert internals.metric_direction(model, "val_accuracy") == "up"
    assert internals.metric_direction(model, "loss") == internals.metric_direction(model, "val_loss") == "down"
    assert internals.metric_direction(model, "<lambda>") is None
    assert internals.metric_direction(model, "unknown") is None


def test_losses_of_several_outputs_have_a_direction():
    inputs = keras.Input((2,))
    model = compiled(keras.Model(inputs, {"p": layers.Dense(1, name="p")(inputs), "q": layers.Dense(1)(inputs)}))
    internals.build_like(model, (X, {"p": Y, "q": Y}))

    assert internals.metric_direction(model, "p_loss") == "down", SEEN


# Data.


def test_what_is_an_array():
    assert internals.is_array_like(X)
    assert internals.is_array_like(jnp.asarray(X))
    assert internals.is_array_like({"a": [X, None]})
    assert not internals.is_array_like([1.0, 2.0])
    assert not internals.is_array_like("text")


def test_what_is_sparse():
    import scipy.sparse
    from jax.experimental import sparse

    assert internals.is_sparse(scipy.sparse.csr_matrix(X))
    assert internals.is_sparse(sparse.BCOO.fromdense(X))
    assert not internals.is_sparse(X)


def test_what_is_a_stream():
    assert internals.stream_kind(batch for batch in [(X, Y)]) == "a generator"
    assert internals.stream_kind(keras.utils.PyDataset()) == "a PyDataset"
    for array in (None, X, [X], jnp.asarray(X), "text"):
        assert internals.stream_kind(array) is None


def test_the_last_rows_validate():
    training, validation = internals.validation_split((X, Y, None), 0.3)

    assert differences([X[:7], Y[:7]], [*training[:2]]) == []
    assert differences([X[7:], Y[7:]], [*validation[:2]]) == []
    assert training[2] is None


def test_a_whole_batch_is_packed_and_converted_as_by_the_adapter():
    x, y, weights = internals.whole_batch(X.astype("float64"), Y[:, 0].astype("int64"), None, {0: 0.5, 1: 2.0}, 10)

    assert (x.dtype, y.dtype, weights.dtype) == (np.float32, np.int64, np.float32)
    np.testing.assert_array_equal(weights, np.where(Y[:, 0] > 0, 2.0, 0.5))
    assert isinstance(internals.whole_batch(X, None, None, None, 10), np.ndarray), "x alone is no tuple"


def test_epochs_are_read_as_by_the_trainer():
    iterator = internals.epoch_iterator(np.arange(10), batch_size=4, steps_per_execution=2)

    for _ in range(2):
        assert [batch.tolist() for batch in internals.epoch_batches(iterator, 2)] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9],
        ]


def test_the_order_is_numpys():
    before = np.random.get_state()
    internals.shuffles_like_numpy.cache_clear()

    assert internals.shuffles_like_numpy() is True, SEEN
    assert differences(before, np.random.get_state()) == []


# The model as pure functions.


def test_a_symbolic_build_builds_all_and_reads_one_batch():
    model = compiled(keras.Sequential([layers.Dense(3), layers.Dense(1)]), metrics=["mae"])
    iterator = internals.epoch_iterator(X, Y, batch_size=4, shuffle=True)
    np.random.seed(0)

    assert internals.symbolic_build(model, lambda: iterator) is True
    after = np.random.get_state()
    np.random.seed(0)
    np.random.permutation(10)
    assert differences(after, np.random.get_state()) == [], SEEN
    assert model.built
    assert model.optimizer.built
    assert [part.built for part in (model._compile_metrics, model._compile_loss)] == [True, True]
    assert internals.symbolic_build(model, lambda: iterator) is False
    assert differences(after, np.random.get_state()) == []


def test_a_symbolic_build_that_fails_is_undone():
    inputs = keras.Input((2,))
    outputs = {"p": layers.Dense(3, "softmax")(inputs), "q": layers.Dense(1)(inputs)}
    model = compiled(
        keras.Model(inputs, outputs), {"p": "categorical_crossentropy", "q": "mse"}, metrics={"p": ["accuracy"]}
    )
    iterator = internals.epoch_iterator(X, {"p": np.arange(10) % 3, "q": Y}, batch_size=4, shuffle=True)
    before = np.random.get_state()
    with pytest.raises(ValueError, match="same shape"):
        internals.symbolic_build(model, lambda: iterator)

    assert differences(before, np.random.get_state()) == []
    assert [part.built for part in (model._compile_metrics, model._compile_loss)] == [False, False], SEEN
    internals.build_like(model, (X, {"p": np.eye(3, dtype="float32")[np.arange(10) % 3], "q": Y}))
    assert [type(metric).__name__ for metric in model._compile_metrics.metrics] == ["CategoricalAccuracy"]
    assert [metric.name for metric in model._compile_loss.metrics] == ["p_loss", "q_loss"]


def test_the_first_fit_reads_a_batch():
    no_loss = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    no_loss.compile("sgd")

    assert internals.fresh_fit_reads_a_batch(compiled())
    assert not internals.fresh_fit_reads_a_batch(no_loss)


def test_a_state_is_read_and_written():
    model = compiled(metrics=["mae"])
    model.fit(X, Y, verbose=0)
    state = [[np.array(value) for value in values] for values in internals.read_state(model)]
    internals.write_state(model, State(*([value + 1 for value in values] for values in state)))

    assert [len(values) for values in state] == [4, 1, 6, 4], SEEN  # a dropout's seed; iterations, rate, momenta; means
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(internals.read_state(model)), strict=True):
        np.testing.assert_array_equal(before + 1, after)


def test_arrays_are_attached_as_they_are():
    """Keras's `_direct_assign` puts an array into a variable, its `_value`, with no copy and no check."""
    model = compiled()
    model.fit(X, Y, verbose=0)
    variables = internals.variables_of(model)
    state = jax.tree.map(lambda a: a + 1, internals.values_of(variables))
    internals.attach(variables, state)

    assert all(
        v._value is a for part, arrays in zip(variables, state, strict=True) for v, a in zip(part, arrays, strict=True)
    ), SEEN
    assert model.trainable_variables[0].value is state.trainable_variables[0]


def test_steps_are_pure_and_those_of_keras():
    model = compiled(metrics=["mae"])
    internals.build_like(model, (X, Y))
    functions, before = internals.functions(model), internals.read_state(model)
    logs, after = jax.jit(functions.train_step)(before, (X, Y))

    assert isinstance(after, State)
    assert internals.read_state(model).trainable_variables[0] is before.trainable_variables[0]
    model.fit(X, Y, batch_size=10, shuffle=False, verbose=0)
    theirs = internals.read_state(model)
    for ours, their in zip(jax.tree.leaves(after), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(ours, their, rtol=1e-6)
    assert logs.keys() == functions.results(after, logs).keys() == {"loss", "mae"}, SEEN
    assert not any(np.any(v) for v in functions.reset_metrics(after).metrics_variables)


def test_test_and_predict_steps_are_those_of_keras():
    model = compiled(metrics=["mae"])
    internals.build_like(model, (X, Y))
    functions, state = internals.functions(model), internals.read_state(model)
    logs, after = functions.test_step(state, (X, Y))
    results = {name: float(value) for name, value in functions.results(after, logs).items()}
    outputs = np.array(functions.predict_step(state, X))

    assert after.optimizer_variables is state.optimizer_variables
    np.testing.assert_allclose(outputs, model.predict(X, verbose=0), rtol=1e-6)
    assert results == pytest.approx(model.evaluate(X, Y, batch_size=10, verbose=0, return_dict=True)), SEEN


def test_compiling_anew_changes_the_marker():
    model = compiled()
    first = internals.compile_marker(model)
    model.fit(X, Y, verbose=0)

    assert internals.compile_marker(model) is first
    assert internals.compile_marker(compiled(model)) is not first, SEEN


def test_when_keras_validates():
    assert [internals.validates_at(epoch, 2) for epoch in range(4)] == [False, True, False, True], SEEN
    assert [internals.validates_at(epoch, [1, 4]) for epoch in range(4)] == [True, False, False, True]


def test_the_first_epoch_is_that_of_a_backup():
    model = compiled()

    assert internals.first_epoch(model, 3) == 3
    model._initial_epoch = 5  # as `keras.callbacks.BackupAndRestore` does
    assert internals.first_epoch(model, 3) == 5


def test_learning_rates():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    model = compiled()

    assert internals.learning_rate(model) == pytest.approx(0.1)
    model.compile(keras.optimizers.SGD(schedule))
    assert internals.learning_rate(model) is None
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.3)))
    assert internals.learning_rate(model) == pytest.approx(0.3)


# Clones and seeds.


def test_default_seeds_come_from_the_block_and_are_restored():
    originals = [module.make_default_seed for module in seed_modules()]
    with internals.default_seeds(iter(range(100, 110)).__next__):
        initializer, dropout = keras.initializers.GlorotUniform(), layers.Dropout(0.5)

    assert [module.make_default_seed for module in seed_modules()] == originals
    np.testing.assert_array_equal(initializer((2, 3)), keras.initializers.GlorotUniform(seed=100)((2, 3)))
    np.testing.assert_array_equal(
        dropout.seed_generator.state.value, keras.random.SeedGenerator(101).state.value, err_msg=SEEN
    )


def test_default_seeds_are_restored_after_an_error():
    originals = [module.make_default_seed for module in seed_modules()]
    with pytest.raises(KeyError), internals.default_seeds(lambda: 1):
        raise KeyError

    assert [module.make_default_seed for module in seed_modules()] == originals


def test_default_seeds_are_those_that_keras_draws():
    for seed in (0, 5, 2**32 - 1):
        keras.utils.set_random_seed(seed)
        theirs = [module.make_default_seed() for module in (*seed_modules(), *seed_modules())]
        generator = random.Random(seed)

        assert [internals.default_seed(generator) for _ in theirs] == theirs, SEEN


def test_a_traced_seed_is_an_integer_to_keras():
    assert isinstance(internals.TracedSeed(jnp.int32(7)), int)


INITIALIZERS = ["glorot_uniform", "he_normal", "truncated_normal", "random_uniform", "orthogonal", "variance_scaling"]


@pytest.mark.parametrize("name", INITIALIZERS)
def test_a_traced_seed_goes_through_a_jitted_initializer(name):
    kind = type(keras.initializers.get(name))
    traced = jax.jit(lambda seed: kind(seed=internals.TracedSeed(seed))((3, 4)))

    for seed in (1, 123_456_789, 10**9):
        np.testing.assert_allclose(traced(np.uint32(seed)), kind(seed=seed)((3, 4)), rtol=2e-6, atol=1e-7, err_msg=SEEN)


def test_a_traced_seed_goes_through_a_seed_generator():
    traced = jax.jit(lambda seed: keras.random.SeedGenerator(internals.TracedSeed(seed)).state.value)

    for seed in (1, 10**9):
        np.testing.assert_array_equal(traced(np.uint32(seed)), keras.random.SeedGenerator(seed).state.value)


def test_a_clone_is_that_of_keras_and_not_compiled():
    model = compiled(loss=lambda y, p: keras.ops.mean(y - p))
    keras.utils.set_random_seed(3)
    ours, state = internals.clone(model), random.getstate()
    keras.utils.set_random_seed(3)
    model_again = keras.models.clone_model(keras.Sequential.from_config(model.get_config()))

    assert not ours.compiled
    assert model.compiled
    assert [w.shape for w in ours.get_weights()] == [w.shape for w in model_again.get_weights()]
    assert state != random.getstate()


def test_a_clone_that_fails_leaves_the_model_compiled(monkeypatch):
    model = compiled()
    monkeypatch.setattr(keras.models, "clone_model", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        internals.clone(model)

    assert model.compiled


def test_what_can_be_cloned():
    class Subclassed(keras.Model):
        pass

    class MyFunctional(keras.Model):
        def __init__(self):
            inputs = keras.Input((2,))
            super().__init__(inputs, layers.Dense(1)(inputs))

    inputs = keras.Input((2,))
    assert internals.is_cloneable(keras.Model(inputs, layers.Dense(1)(inputs)))
    assert internals.is_cloneable(keras.Sequential([keras.Input((2,)), layers.Dense(1)]))
    assert not internals.is_cloneable(Subclassed())


def test_compiled_alike_but_with_an_optimizer_and_metrics_of_its_own():
    loss = keras.losses.Huber(0.3)
    model = compiled(loss=loss, metrics=[keras.metrics.AUC(name="area")], steps_per_execution=2)
    clone = internals.clone(model)
    keras_parts.compile_like(clone, model)

    assert clone.loss is not loss
    truth, answer = np.zeros((1, 2), "float32"), np.full((1, 2), 2.0, "float32")
    np.testing.assert_array_equal(clone.loss(truth, answer), loss(truth, answer))  # its delta, too
    assert clone.steps_per_execution == 2
    assert clone.optimizer is not model.optimizer
    assert clone.optimizer.get_config() == model.optimizer.get_config()
    ours, theirs = (m._compile_config.config["metrics"][0] for m in (clone, model))
    assert (ours is not theirs, ours.name) == (True, "area")


def test_layers_with_a_fixed_seed_are_named():
    inner = keras.Sequential([keras.Input((3,)), layers.Dropout(0.1, seed=0, name="deep")], name="inner")
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(3, kernel_initializer=keras.initializers.HeNormal(seed=1), name="fixed"),
            layers.Dense(3, kernel_initializer=keras.initializers.HeNormal(), name="free"),
            inner,
            layers.GaussianNoise(0.1, name="noise"),
        ]
    )
    named = internals.fixed_seed_layers(model)

    assert {"fixed", "deep"} <= {*named} <= {"fixed", "deep", "inner"}, SEEN


# Why Keras must run.


def test_a_plain_model_can_be_compiled():
    assert internals.why_keras_must_run(compiled()) is None


def test_options_that_keras_must_run():
    keras.config.set_max_epochs(3)
    try:
        assert "`keras.config` limits the epochs" in internals.why_keras_must_run(compiled())
    finally:
        keras.config.set_max_epochs(None)


def test_who_runs_operation_by_operation():
    assert internals.runs_op_by_op(compiled(jit_compile=False))
    assert internals.runs_op_by_op(compiled(run_eagerly=True))
    assert not internals.runs_op_by_op(compiled())


@pytest.mark.parametrize("method", ["evaluate", "make_train_function", "make_test_function"])
def test_methods_that_keras_must_run(method):
    own = types.new_class("Own", (keras.Sequential,), {}, lambda body: body.update({method: lambda self: None}))
    model = compiled(own([keras.Input((2,)), layers.Dense(1)]))

    assert internals.why_keras_must_run(model) == f"Own overrides `{method}`"


def test_limits_of_the_configuration(monkeypatch):
    monkeypatch.setattr(keras.config, "max_epochs", lambda: 3)

    assert "`keras.config` limits" in internals.why_keras_must_run(compiled())


def test_a_distribution(monkeypatch):
    monkeypatch.setattr(keras.distribution, "distribution", lambda: object())

    assert "`keras.distribution` is set" in internals.why_keras_must_run(compiled())


def test_all_private_parts_are_tested():
    """What `keras_internals` uses of Keras's private parts stands in this file, too."""
    source, tests = (Path(file).read_text() for file in (internals.__file__, __file__))
    own = re.compile(r"^(?:def|class) (_\w+)|self\.(_\w+) =", re.MULTILINE)
    ours = {name for pair in own.findall(source) for name in pair}
    used = {*re.findall(r"\.(_[a-z]\w*)", source)} - ours - {"_replace"}

    assert {name for name in used if name not in tests} == set()
