"""What kohort does on a GPU, as far as a machine without one can show it.

The rooms that ask for the kind of device are told that it is a GPU, while the CPU's devices do the work: so members are
mapped, spread and kept as there. And the program of many members is made for CUDA and for ROCm, which needs neither.
"""

import os
import subprocess
import sys

import jax
import keras
import numpy as np
import pytest
from keras import layers

from kohort import data, engine, keras_internals, mapping
from kohort.checks import Recipe
from kohort.engine import Schedule
from kohort.template import Template

MEMBERS, DEVICES = 6, {1: "vectorized", 2: "sharded"}

AS_THERE = """
import sys
import jax
jax.default_backend = lambda: "gpu"
import keras, kohort, numpy as np
from kohort import choice

devices, kind, (x, y) = int(sys.argv[1]), sys.argv[2], kohort.data.moons(60)
mapped, mapping_of = set(), choice.Choice._candidates
choice.Choice._candidates = lambda self: mapped.add(mapping_of(self)) or mapping_of(self)

def network():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dropout(0.2),
                              keras.layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    return model

stop = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=0.03, restore_best_weights=True)
for arguments in ({"validation_split": 0.25}, {"callbacks": [stop]}):
    arguments |= {"epochs": 4, "batch_size": 16, "verbose": 0}
    cohort = kohort.Cohort(network(), 7)
    history = cohort.fit(x, y, **arguments)
    leaf = jax.tree.leaves(cohort._members.trained.states)[0]
    is_whole = "callbacks" not in arguments  # those that stopped are taken out of their block
    assert not is_whole or len(leaf.sharding.device_set) == devices, leaf.sharding
    for place in (0, 6):
        keras.utils.set_random_seed(cohort.seeds[place])
        model = network()
        alone = model.fit(x, y, **arguments).history
        for name, values in alone.items():
            np.testing.assert_allclose(history[name][place, :len(values)], values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(cohort.predict(x)[place], model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
assert {own[0] for own in mapped} == {kind}, mapped
print("same")
"""


@pytest.mark.parametrize("devices", DEVICES)
def test_members_train_as_keras_does_where_the_device_is_a_gpu(devices, tmp_path):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "KOHORT_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", AS_THERE, str(devices), DEVICES[devices]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


@pytest.mark.parametrize("platform", ["cuda", "rocm"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_program_of_many_members_is_made_for_a_gpu(monkeypatch, platform, shuffle):
    """None of what is special to the CPU is in it: neither calls of its libraries nor marks of its passes."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = keras.Sequential([keras.Input((2,)), layers.Dense(4, "relu"), layers.Dropout(0.2), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    x, y = data.moons(20)
    inputs = data.inputs(model, x, y, None, (x[:7], y[:7]), Recipe(batch_size=8))
    template = Template(model).built_for(inputs)
    state = template.initial(tuple(range(MEMBERS)), {})
    functions = keras_internals.functions(template.network)
    rows = np.tile(np.arange(20, dtype=np.uint8), (MEMBERS, 4, 1))
    schedule = Schedule(rows) if shuffle else Schedule()
    cuts, batches = (inputs.cut, inputs.validation_cut, 4), (inputs.training.batch, inputs.validation.batch)
    program = mapping.of_block(lambda own, _: engine.epochs_program(own, *cuts), functions, "vectorized")

    traced = jax.jit(program).trace(state, *batches, schedule, 3)
    text = traced.lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.while" in text
    assert "xla_cpu" not in text
    assert "inlineable" not in text
