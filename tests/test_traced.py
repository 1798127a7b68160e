"""Programs that an earlier process traced: the next one runs the same, and no other, and traces nothing."""

import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers
from test_promises import fresh_process

import kohort
from kohort import disk, python_code, traced
from kohort.programs import Programs

X, Y = kohort.data.xor()

COHORT = """
    import hashlib, sys
    import kohort, keras
    from kohort import traced

    anew, trace = [], traced._traced
    traced._traced = lambda key, *others: anew.append(key) or trace(key, *others)
    x, y = kohort.data.xor()
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
    model.compile("rmsprop", "mse", metrics=["mae"])
    cohort = kohort.Cohort(model, 12, mapping="abreast")
    history = cohort.fit(x, y, epochs=40, validation_data=(x, y), verbose=0)
    digest = hashlib.sha256(b"".join(curves.tobytes() for curves in history.values()))
    print(len(anew), digest.hexdigest())
"""


@pytest.mark.usefixtures("annotations_unchecked")
def test_the_next_process_traces_nothing_and_computes_the_same(tmp_path):
    first, second = (fresh_process(COHORT, KOHORT_CACHE_DIR=str(tmp_path)).stdout.split() for _ in range(2))

    assert (first[0], second[0]) == ("2", "0")  # how members begin, and how they train
    assert first[1] == second[1]


@pytest.fixture
def notes(monkeypatch):
    """What is kept, in a dict instead of on the disk."""
    kept = {}
    monkeypatch.setattr(disk, "kept", kept.get)
    monkeypatch.setattr(disk, "keep", kept.__setitem__)
    return kept


def doubled(identity="doubled", array=X, factor=2.0):
    return traced.program(identity, lambda a: {"twice": [factor * a]}, (array,))


def test_a_program_is_the_one_that_was_kept(notes):
    first = doubled()(X)["twice"]
    again = doubled(factor=3.0)(X)["twice"]  # which nobody traces: it goes under the same name

    np.testing.assert_array_equal(first[0], 2 * X)
    np.testing.assert_array_equal(again[0], 2 * X)
    assert len(notes) == 1


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data + b"0", lambda data: b"", lambda _: b"x"])
def test_one_that_is_damaged_is_traced_anew(notes, spoil):
    doubled()
    (name,) = notes
    notes[name] = spoil(notes[name])

    np.testing.assert_array_equal(doubled(factor=3.0)(X)["twice"][0], 3 * X)
    assert traced._opened(notes[name]) is not None


def test_what_a_trace_depends_on_is_in_its_name(notes, monkeypatch):
    doubled()
    doubled("another")
    doubled(array=X[:2])
    doubled(array=X.astype("int32"))
    monkeypatch.setattr(traced, "_sources", lambda: "another kohort")
    doubled()
    assert len(notes) == 5
    monkeypatch.setattr(traced, "_sources", lambda: "yet another")
    jax.config.update("jax_default_matmul_precision", "float32")
    try:
        doubled()
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    doubled()
    with jax.default_matmul_precision("bfloat16"):
        doubled()
    assert len(notes) == 8


def test_what_is_named_by_its_place_in_memory_is_not_kept(notes):
    """The next process has another thing there."""
    assert doubled(f"{object()}") is None
    assert notes == {}


@pytest.mark.slow
def test_a_step_that_was_traced_before_something_was_set_is_not_kept(tmp_path):
    """Steps are traced once, and new programs are made of them: by the name of what is set now, they would be wrong."""
    code = """
        import sys
        import kohort, keras
        from kohort import traced

        anew, trace = [], traced._traced
        traced._traced = lambda key, *others: anew.append(key) or trace(key, *others)
        x, y = kohort.data.moons(24)
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "sigmoid")])
        model.compile(keras.optimizers.SGD(1.0), "binary_crossentropy")
        cohort = kohort.Cohort(model, 3, mapping="vectorized")
        if EARLY:
            cohort.fit(x[:16], y[:16], batch_size=8, epochs=3, verbose=0)
        keras.config.set_epsilon(0.3)
        cohort = kohort.Cohort(model, 3, mapping="vectorized")
        print(cohort.fit(x, y, batch_size=8, epochs=3, verbose=0)["loss"].tolist())
    """
    early, late, alone = (
        fresh_process(code.replace("EARLY", is_early), KOHORT_CACHE_DIR=str(tmp_path / folder)).stdout
        for is_early, folder in (("True", "one"), ("False", "one"), ("False", "another"))
    )
    assert early != late == alone != ""


def test_what_jax_cannot_write_down_is_not_kept(notes):
    def through_python(a):
        return [jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct(a.shape, a.dtype), a)]

    assert traced.program("python", through_python, (jnp.asarray(X),)) is None
    assert notes == {}


class OwnBuild(layers.Dense):
    def build(self, shape):
        self.kernel_initializer = keras.initializers.Constant(0.5)
        super().build(shape)


def told(layer=layers.Dense, loss="mse", optimizer="sgd", **options):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)  # an initializer draws its seed when it is made
    model = keras.Sequential([keras.Input((2,)), layer(3, **options), layers.Dense(1)])
    model.compile(optimizer, loss)
    return python_code.told(model)


def test_models_tell_all_that_they_do():
    assert told() == told()
    others = [
        told(activation="tanh"), told(use_bias=False), told(loss="mae"), told(optimizer="adam"),
        told(optimizer=keras.optimizers.SGD(momentum=0.5)), told(kernel_regularizer=keras.regularizers.L2(0.5)),
        told(kernel_regularizer=keras.regularizers.L2(0.25)), told(name="another"),
    ]  # fmt: skip
    assert all(one != other for place, one in enumerate([told(), *others]) for other in others[place:])


def build(y, prediction):
    return keras.ops.mean(keras.ops.abs(y - prediction), -1)


def test_code_of_somebody_else_tells_nothing():
    assert told(loss=build) is None  # by its name it is no step
    assert told(activation=lambda x: x) is None
    assert told(OwnBuild) is None
    assert told(loss=lambda y, prediction: keras.ops.mean(y - prediction)) is None


def test_models_tell_what_their_variables_begin_with():
    assert told(optimizer=keras.optimizers.SGD(0.1)) != told(optimizer=keras.optimizers.SGD(0.2))


def test_programs_tell_what_does_not_decay():
    def excluding(part):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), layers.Dense(3), layers.Dense(1)])
        model.compile(keras.optimizers.AdamW(), "mse")
        model.optimizer.exclude_from_weight_decay(var_list=[getattr(layer, part) for layer in model.layers])
        return Programs(model)._identity("epochs")

    assert excluding("kernel") == excluding("kernel")
    assert excluding("kernel") != excluding("bias")


def test_models_tell_how_their_layers_are_connected():
    def connected(order):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        inputs = keras.Input((2,))
        outputs, parts = inputs, [layers.Dense(2, name=name) for name in "ab"]
        for place in order:
            outputs = parts[place](outputs)
        model = keras.Model(inputs, outputs)
        model.compile("sgd", "mse")
        return python_code.told(model)

    assert connected([0, 1]) == connected([0, 1])
    assert connected([0, 1, 0]) != connected([0, 1, 1])


def test_variables_that_are_no_part_of_the_state_tell_nothing():
    """Their values would be part of the program."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    assert python_code.told(model) is not None
    vars(model.layers[0])["slope"] = keras.Variable(0.5)
    assert python_code.told(model) is None


def test_what_has_no_configuration_tells_nothing():
    assert told(activation=keras.activations.elu) is not None
    assert told(activation=functools.partial(keras.activations.elu, alpha=0.5)) is None


@pytest.mark.slow
def test_members_begin_with_the_learning_rate_of_their_own_process(tmp_path):
    def digest(rate, folder):
        code = COHORT.replace('"rmsprop"', f"keras.optimizers.RMSprop({rate})")
        return fresh_process(code, KOHORT_CACHE_DIR=str(tmp_path / folder)).stdout.split()[1]

    before, other, alone = digest(0.1, "one"), digest(0.01, "one"), digest(0.01, "another")
    assert before != other == alone


def test_models_tell_the_same_in_every_process():
    """Whatever the numbers by which Python knows things there, and the order of texts in a set."""
    code = """
        import hashlib, test_traced
        told = test_traced.told(optimizer="adam", activation="relu")
        print(hashlib.sha256(repr(told).encode()).hexdigest())
    """
    found = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.path.dirname(__file__), "KERAS_BACKEND": "jax"},
            capture_output=True, text=True, timeout=300, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


def test_programs_of_several_devices_are_not_kept(monkeypatch):
    assert traced.are_kept()
    monkeypatch.setattr(jax, "local_devices", lambda: [None, None])
    assert not traced.are_kept()


def test_states_are_copied_to_the_device():
    """A program uses up what it is given; what it returns belongs to the device, as what it is given then has to."""
    arrays = {"as JAX has it": jnp.ones(3), "as NumPy has it": np.ones(2, np.float32)}
    copies = traced.bound(arrays)
    for name, copy in copies.items():
        assert copy.committed == traced.are_kept()
        copy.delete()
        np.testing.assert_array_equal(arrays[name], np.ones_like(arrays[name]))
