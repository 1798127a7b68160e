"""What all cohorts of a model share: its members are compiled as it was, whatever its recipe holds."""

import concurrent.futures
import threading

import jax
import keras
import numpy as np
import pytest
from keras import layers
from oracle import by_keras, differences
from test_promises import compilations

import kohort
from kohort import blueprint
from kohort.template import Template

RNG = np.random.default_rng(5)
POINTS = RNG.normal(size=(40, 2)).astype("float32")
SIGNS = (POINTS[:, 0] * POINTS[:, 1] > 0).astype("float32")
FIT = {"epochs": 4, "batch_size": 16, "verbose": 0}
SEED = 17


def network():
    return keras.Sequential([keras.Input((2,)), layers.Dense(6, "tanh"), layers.Dense(1, "sigmoid")])


def values(model):
    return [np.asarray(v.value) for v in [*model.variables, *model.optimizer.variables]]


def averaged(model):
    model.compile(keras.optimizers.Adam(0.02, use_ema=True, ema_momentum=0.9), "mse")


def averaged_in_half_precision(model):
    inner = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.8)
    model.compile(keras.optimizers.LossScaleOptimizer(inner), "mse")


def without_decay_by_name(model):
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, "mse")


def without_decay_by_variable(model):
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[model.layers[0].kernel])
    model.compile(optimizer, "mse")


def compiled_twice(model):
    model.compile("sgd", "mse", metrics=["mae"])
    model.compile(keras.optimizers.Adam(0.02))


RECIPES = [averaged, averaged_in_half_precision, without_decay_by_name, without_decay_by_variable, compiled_twice]


@pytest.mark.many
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_members_follow_the_recipe_of_the_model(recipe, exact):
    """Over two fits, but for averages: Keras itself fails to go on with them on JAX."""
    model, fits = network(), 1 if recipe in (averaged, averaged_in_half_precision) else 2
    recipe(model)
    cohort = kohort.Cohort(model, [3, SEED], exact=exact)
    ours = [cohort.fit(POINTS, SIGNS, **FIT)["loss"][1] for _ in range(fits)]

    plain = network()  # made before the seed is set: its own initializers draw seeds, too
    keras.utils.set_random_seed(SEED)
    theirs = keras.models.clone_model(plain)
    recipe(theirs)
    logs = [by_keras(theirs, x=POINTS, y=SIGNS, **FIT).history["loss"] for _ in range(fits)]

    if exact:
        assert differences(values(theirs), values(cohort.member(SEED))) == []
        np.testing.assert_array_equal(np.float32(logs), ours)
    for a, b in zip(values(theirs), values(cohort.member(SEED)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(logs, ours, rtol=1e-4)


def test_each_cohort_has_the_metric_that_its_own_targets_choose():
    """Keras's "accuracy" is another one for classes by number, one of two, or one of many."""

    def classifier():
        return keras.Sequential([keras.Input((2,)), layers.Dense(3, "softmax")])

    def recipe(model):
        model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["accuracy"])

    model, plain = classifier(), classifier()
    recipe(model)
    one_hot = np.eye(3, dtype="float32")[RNG.integers(0, 3, size=40)]
    for y in one_hot, SIGNS[:, None], one_hot[::-1].copy():
        ours = kohort.Cohort(model, [SEED], exact=True).fit(POINTS, y, **FIT)
        keras.utils.set_random_seed(SEED)
        theirs = keras.models.clone_model(plain)
        recipe(theirs)
        for metric, column in by_keras(theirs, x=POINTS, y=y, **FIT).history.items():
            np.testing.assert_array_equal(np.float32(column), ours[metric][0], err_msg=metric)


INITIALIZERS = {
    name: name
    for name in ("glorot_normal", "he_uniform", "lecun_normal", "orthogonal", "random_uniform", "truncated_normal")
}
INITIALIZERS |= {
    "wide normal": keras.initializers.RandomNormal(0.1, 3.0),
    "scaled": keras.initializers.VarianceScaling(2.0, "fan_avg", "uniform"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INITIALIZERS)
def test_large_layers_begin_as_by_keras_bit_for_bit(name):
    """The program of all members is compiled in another way than Keras's: vectors must hold what scalars do."""
    model = keras.Sequential([keras.Input((33,)), layers.Dense(257, kernel_initializer=INITIALIZERS[name])])
    model.compile("sgd", "mse")
    seeds = (0, 7, 2**32 - 1)
    state = Template(model).initial(seeds, {})
    for lane, seed in enumerate(seeds):
        keras.utils.set_random_seed(seed)
        theirs = keras.models.clone_model(model).variables
        assert (
            differences([np.asarray(v) for v in theirs], [np.asarray(v[lane]) for v in state.trainable_variables]) == []
        )


def test_how_few_begin_is_computed_by_the_program_of_many():
    """Blocks of a small cohort are of any width, and each would be compiled for by itself."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, "tanh"), layers.Dropout(0.5), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    template = Template(model)
    many = template.initial(tuple(range(60)), {})
    with compilations() as compiled:
        few = template.initial((3, 4, 5), {})
    assert compiled == []
    assert (
        differences([np.asarray(v)[3:6] for v in jax.tree.leaves(many)], [*map(np.asarray, jax.tree.leaves(few))]) == []
    )

    keras.utils.set_random_seed(4)
    theirs = keras.models.clone_model(model).get_weights()
    assert differences(theirs, [np.asarray(v[1]) for v in few.trainable_variables]) == []


@pytest.mark.parametrize("vary", [None, {"dense.kernel_regularizer.l2": [0.1, 0.2]}])
def test_narrow_blocks_begin_together_as_each_by_itself(monkeypatch, vary):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, "tanh", kernel_regularizer="l2", name="dense")])
    model.compile("adam", "mse", metrics=["mae"])
    cohorts = [kohort.Cohort(model, 50, vary=vary, grid=vary is not None) for _ in range(2)]
    states = []
    for cohort, most in zip(cohorts, (1024, 0), strict=True):
        monkeypatch.setattr(Template, "most_at_once", most)
        members = cohort._members
        members.cut_anew([8] * len(members.templates))
        assert len(members.blocks) > 6
        assert (len(list(members._together(members.wide_blocks))) == 1) == (most > 0)
        states.append(members.begin().states)
    for one, other in zip(*states, strict=True):
        assert differences([*map(np.asarray, jax.tree.leaves(one))], [*map(np.asarray, jax.tree.leaves(other))]) == []


@pytest.fixture
def half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("half_precision")
@pytest.mark.parametrize("scaled", [True, False])
def test_the_loss_is_scaled_where_that_of_the_model_is(scaled):
    """No configuration tells it: without more, what is compiled from one scales the loss in any case."""
    model = network()
    model.compile("sgd", "mse", auto_scale_loss=scaled)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == scaled

    cohort, described = kohort.Cohort(model, 2), blueprint.described(model, lambda *told: ValueError(told))
    cohort.fit(POINTS, SIGNS, epochs=2, verbose=0)
    for other in (Template(model).network, cohort.member(index=1), cohort.ensemble(2), blueprint.rebuilt(described)):
        assert type(other.optimizer) is type(model.optimizer)


@pytest.mark.parametrize("exact", [True, False])
def test_of_fits_of_one_model_one_at_a_time_traces_it(exact):
    """Also where one finds the network half built by another."""
    traced, met, never = threading.Lock(), [], threading.Event()

    class Watched(layers.Dense):
        def call(self, inputs):
            is_alone = traced.acquire(blocking=False)
            met.append(not is_alone)
            never.wait(0.02)  # long enough for another thread to come
            if is_alone:
                traced.release()
            return super().call(inputs)

    def fitted(cohort):
        return cohort.fit(POINTS, SIGNS, **FIT)["loss"]

    model = keras.Sequential([keras.Input((2,)), Watched(3, "tanh"), layers.Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy")
    cohorts = [kohort.Cohort(model, 3, exact=exact) for _ in range(3)]
    met.clear()
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        histories = list(threads.map(fitted, cohorts))

    assert met
    assert not any(met)
    assert differences(histories[1:], histories[:1] * 2) == []
