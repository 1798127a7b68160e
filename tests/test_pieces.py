"""Programs of one piece of machine code: which are, and that they compute the same."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers

import kohort
from kohort import data, pieces

pytestmark = pytest.mark.skipif(not pieces.are_compiled(), reason="seen with other versions of JAX, on a CPU")


def network(*hidden, optimizer="adam", **options):
    model = keras.Sequential([keras.Input((2,)), *hidden, layers.Dense(1, "sigmoid")])
    model.compile(optimizer, "binary_crossentropy", **options)
    return model


@pytest.fixture
def marks(monkeypatch):
    """The marks that are set."""
    found, mark = [], pieces.set_xla_metadata
    monkeypatch.setattr(pieces, "set_xla_metadata", lambda **names: found.append(names) or mark(**names))
    return found


def test_the_version_with_which_pieces_were_seen_is_the_one_of_the_lock():
    assert pieces.VERSION == "0.10.2"
    assert {"0.10.2"} == pieces.SEEN_WITH


def test_another_version_makes_no_pieces(marks, monkeypatch):
    monkeypatch.setattr(pieces, "SEEN_WITH", {"0.9.9"})
    x, y = data.xor()
    kohort.Cohort(network(layers.Dense(3, "relu")), 8).fit(x, y, epochs=2, verbose=0)
    assert not marks


@pytest.mark.parametrize("with_product", [False, True])
def test_what_needs_no_library_is_one_piece_of_machine_code(with_product):
    def step(a):
        return (a @ jnp.eye(8) if with_product else a) + a.mean()

    def loop(a):
        return (jax.lax.fori_loop(0, 9, lambda _, a: jnp.sin(step(a)), a),)

    a = jnp.linspace(0, 1, 2**12).reshape(-1, 8)
    piece = jax.jit(pieces.in_one_piece(loop), compiler_options=pieces.OPTIONS).lower(a).compile()

    assert ('xla_cpu_small_call="true"' in piece.as_text()) == (not with_product)
    assert "while(" in piece.as_text()
    np.testing.assert_allclose(piece(a)[0], loop(a)[0], rtol=1e-4)


def scheduled():
    return [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9)]


def stopping():
    return [keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)]


def plateau():
    return [keras.callbacks.ReduceLROnPlateau("val_loss", patience=1), keras.callbacks.TerminateOnNaN()]


MODELS = {
    "adam": lambda: network(layers.Dense(5, "relu"), layers.Dense(3, "tanh"), metrics=["accuracy"]),
    "schedule": lambda: network(
        layers.Dense(3, "swish"), optimizer=keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 30))
    ),
    "averages": lambda: network(
        layers.Dense(3, "elu"), optimizer=keras.optimizers.AdamW(0.01, use_ema=True, clipnorm=1.0)
    ),
    "normalized": lambda: network(layers.BatchNormalization(), layers.Dense(3, "softplus"), metrics=["mae"]),
}


@pytest.mark.many
@pytest.mark.parametrize(
    ("name", "callbacks"),
    [
        ("adam", None),
        ("adam", scheduled),
        ("adam", plateau),
        ("averages", stopping),
        ("schedule", None),
        ("normalized", None),
    ],
)
def test_members_train_in_one_piece_as_they_do_otherwise(name, callbacks, marks):
    x, y = data.moons(41)
    fit = {"epochs": 4, "batch_size": 16, "validation_split": 0.2, "verbose": 0}
    options = [{"callbacks": callbacks()} if callbacks else {} for _ in range(2)]
    piece, other = (kohort.Cohort(MODELS[name](), 8, mapping=mapping) for mapping in ("abreast", "vectorized"))
    ours = piece.fit(x, y, **fit, **options[0])
    assert marks
    theirs = other.fit(x, y, **fit, **options[1])
    for metric in theirs:
        np.testing.assert_allclose(ours[metric], theirs[metric], rtol=2e-3, atol=1e-4)


SCHEDULED = """
import kohort, keras
x, y = kohort.data.moons(200)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(1, "sigmoid")])
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.9 * rate)
kohort.Cohort(model, 64).fit(x, y, epochs=5, verbose=0, callbacks=[schedule])
print("whole")
"""


def test_xla_takes_what_is_overwritten_before_it_is_read():
    """A learning rate that a schedule sets; in a process of its own, which XLA would end."""
    done = subprocess.run([sys.executable, "-c", SCHEDULED], capture_output=True, text=True)
    assert done.stdout == "whole\n", done.stderr[-2000:]
