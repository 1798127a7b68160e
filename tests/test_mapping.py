"""The program of many members, against the program of one, which is the truth here."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers

import kohort
from kohort import data, engine, keras_internals, mapping
from kohort.checks import Recipe
from kohort.engine import Schedule
from kohort.rounding import inlined
from kohort.template import Template

RNG = np.random.default_rng(5)
MEMBERS = 8
KINDS = ("abreast", "vectorized", "loop")


def network(*middle):
    last = layers.Dense(1, "sigmoid", name="last")  # a number might be that of a layer in the middle
    model = keras.Sequential([keras.Input((2,)), *middle, last])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model


def of_one(block, member):
    return jax.tree.map(lambda a: a[member], block)


@pytest.mark.many
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("middle", [[layers.Dense(4, "relu")], [layers.Dense(3, "tanh"), layers.Dropout(0.3)]])
def test_many_members_train_as_each_by_itself(middle, shuffle, kind):
    x, y = data.moons(20)
    inputs = data.inputs(network(*middle), x, y, None, (x[:7], y[:7]), Recipe(batch_size=8))
    template = Template(network(*middle)).built_for(inputs)
    state = template.initial(tuple(range(MEMBERS)), {})
    functions = keras_internals.functions(template.network)
    rows = np.array([[RNG.permutation(20) for _ in range(4)] for _ in range(MEMBERS)], np.uint8)
    schedule = Schedule(rows, validation_rows=rows[:, 0, :7] % 7) if shuffle else Schedule()
    cuts, batches = (inputs.cut, inputs.validation_cut, 4), (inputs.training.batch, inputs.validation.batch)

    def make(functions, _):
        return engine.epochs_program(functions, *cuts)

    trained, logs = jax.jit(mapping.of_block(make, functions, kind))(state, *batches, schedule, 3)[:2]
    alone = jax.jit(make(functions, None))
    for member in range(MEMBERS):
        expected = alone(of_one(state, member), *batches, of_one(schedule, member), 3)
        found = of_one(trained, member), of_one(jax.tree.map(lambda log: log.swapaxes(0, 1), logs), member)
        jax.tree.map(lambda e, f: np.testing.assert_allclose(e, f, rtol=1e-4, atol=1e-5), expected, found)


@pytest.mark.many
@pytest.mark.parametrize("kind", ["vectorized", "loop"])
def test_guided_members_stop_alike_in_all_mappings(kind):
    x, y = data.moons(60)
    model = network(layers.Dense(4, "relu"))
    model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy")
    callbacks = [
        keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=0.01, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss", patience=1, factor=0.5),
        keras.callbacks.TerminateOnNaN(),
    ]

    def trained(kind):
        cohort = kohort.Cohort(model, 12, mapping=kind)
        history = cohort.fit(x, y, epochs=15, callbacks=callbacks, validation_split=0.25, verbose=0)
        return history, cohort.predict(x)

    expected, outputs = trained("abreast")
    assert len(set(expected.stopped_epoch.tolist())) > 2
    history, others = trained(kind)
    np.testing.assert_array_equal(history.stopped_epoch, expected.stopped_epoch)
    np.testing.assert_allclose(others, outputs, atol=1e-4)
    for name in expected:
        np.testing.assert_allclose(history[name], expected[name], atol=1e-4)


@pytest.mark.parametrize(("hidden", "is_small"), [((8, 8), True), ((32, 32), False)])
def test_small_networks_go_abreast_in_wide_blocks(hidden, is_small):
    x, y = data.moons(40)
    model = network(*(layers.Dense(units, "relu") for units in hidden))
    inputs = data.inputs(model, x, y, None, None, Recipe(batch_size=32))
    template = Template(model).built_for(inputs)
    form = template.programs.form(inputs, keras_internals.read_state(template.network))
    assert form.is_small == is_small
    assert form.largest_bytes == 4 * 32 * max(hidden)
    assert form.width == {8: 56, 32: 16}[hidden[0]]


SPREAD = """
import sys, keras, kohort, jax, numpy as np
from kohort import choice, rounds
devices, (x, y) = int(sys.argv[1]), kohort.data.moons(60)
assert len(jax.devices()) == devices
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1, "sigmoid")])
model.compile("adam", "binary_crossentropy")
stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=0.004)
slower = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.9 * rate)
betas = {"optimizer.beta_2": np.linspace(0.99, 0.9999, 41)}
weights = np.random.default_rng(0).uniform(size=(41, 60)).astype("float32")
for vary, options in (
    (None, {}), (None, {"callbacks": [stop]}), (None, {"callbacks": [slower]}), (betas, {}),
    (None, {"sample_weight": weights}), (None, {"folds": 3}),
):
    cohorts = [kohort.Cohort(model, 41, vary=vary, mapping=kind) for kind in ("auto", "sharded", "vectorized")]
    losses = [c.fit(x, y, epochs=5, batch_size=16, verbose=0, **options)["loss"] for c in cohorts]
    outputs = [c.predict(x) for c in cohorts]
    for one in (0, 1):
        np.testing.assert_allclose(losses[one], losses[2], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(outputs[one], outputs[2], rtol=1e-4, atol=1e-5)
    leaf = jax.tree.leaves(cohorts[1]._members.trained.states)[0]
    assert stop in options.get("callbacks", []) or len(leaf.sharding.device_set) == devices, leaf.sharding
    if vary:
        values = [cohort._members.trained.states[0].values for cohort in cohorts]
        assert {value.dtype for value in values} == {np.dtype("float64")}
        assert all((value == values[2]).all() for value in values)

class Measured(choice.Choice):
    def measure(self, seconds_of, width):
        tried = {}
        said = lambda mapping: tried.setdefault(mapping, seconds_of(mapping) and 2.0 - (mapping == faster))
        super().measure(said, width)
        assert ("sharded" in tried) == (width % devices == 0), (width, tried)

rounds.WORTH_MEASURING, rounds.ROUND_SECONDS, rounds.MEASURING_SECONDS, rounds.Choice = 0, 1e-9, 1e-9, Measured
for batch_size, faster, its_devices in ((16, "sharded", devices), (15, "abreast", 1)):
    cohorts = [kohort.Cohort(model, 41, mapping=kind) for kind in ("auto", "vectorized")]
    losses = [c.fit(x, y, epochs=6, batch_size=batch_size, verbose=0)["loss"] for c in cohorts]
    np.testing.assert_allclose(*losses, rtol=1e-5, atol=1e-6)
    leaf = jax.tree.leaves(cohorts[0]._members.trained.states)[0]
    assert len(leaf.sharding.device_set) == its_devices, leaf.sharding
narrow = kohort.Cohort(model, 41, memory=300_000)  # blocks so narrow that devices have no equal shares of them
narrow.fit(x, y, epochs=6, batch_size=14, verbose=0)
assert {block.width % devices != 0 for block in narrow._members.blocks} == {True}
print("same")
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [3, 16])
def test_members_are_spread_over_devices(devices, tmp_path):
    """Their number need not divide the members, nor be a power of two; threads are taken where they are faster."""
    spread_over = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": spread_over, "KOHORT_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SPREAD, str(devices)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


def _products(closed):
    """Returns which axes are summed by the products of a traced function, and of what it calls."""
    own = [e.params["dimension_numbers"][0] for e in closed.jaxpr.eqns if e.primitive.name == "dot_general"]
    return own + [axes for e in closed.jaxpr.eqns for called in inlined(e) for axes in _products(called)]


@pytest.mark.parametrize("shape", [(6, 5), (2, 6, 5)])
def test_no_gradient_of_a_kernel_is_computed_member_by_member(shape):
    """XLA calls a library for each member where a product is summed over the first axes of both."""
    random = np.random.default_rng(0)
    x, kernel = (random.standard_normal(own).astype("float32") for own in (shape, (5, 3)))

    @jax.jit
    def loss(kernel, x):
        return jnp.sum(jnp.tanh(x @ kernel) ** 2)

    gradient = jax.grad(loss)
    batched = mapping.batched_products(gradient)
    first = tuple(range(len(shape) - 1))
    assert (first, first) in _products(jax.make_jaxpr(gradient)(kernel, x))
    assert (first, first) not in _products(jax.make_jaxpr(batched)(kernel, x))
    np.testing.assert_allclose(batched(kernel, x), gradient(kernel, x), rtol=1e-5, atol=1e-6)


def test_products_that_are_summed_otherwise_stay_as_they_are():
    left, right = np.ones((4, 3), np.float32), np.ones((3, 2), np.float32)
    several = np.ones((7, 4, 3), np.float32)
    for function, *args in (
        (jnp.matmul, left, right),
        (jax.vmap(lambda a: a.T @ a), several),
        (jnp.outer, left, right),
    ):
        assert str(jax.make_jaxpr(mapping.batched_products(function))(*args)) == str(jax.make_jaxpr(function)(*args))
