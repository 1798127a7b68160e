"""Models of other backends end as Keras leaves them on JAX, bit for bit, and as on their own backend to rounding.

NumPy's backend is there wherever Keras is; TensorFlow and PyTorch are not: `./run test --backends` brings TensorFlow.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from in_backend import CASES, OPTIMIZERS, called, left, with_optimizer
from oracle import differences

TESTS = Path(__file__).parent
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not here"))
    for name in ("numpy", "tensorflow", "torch")
]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_that_trains = pytest.mark.parametrize("backend", BACKENDS[1:])


def python(backend, *arguments, **environment):
    """Runs Python under a backend and returns what it printed."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def as_numbers(arrays):
    """Drops what only types tell apart: backends keep counters in integers of other widths."""
    history = json.loads(str(arrays["history"]))
    return {n: a.astype("float64") for n, a in arrays.items() if n != "history"} | {"epoch": history[0]}, history[1]


@pytest.mark.many
@each_backend
@pytest.mark.parametrize("case", CASES)
def test_it_ends_as_keras_leaves_it_on_jax(backend, case, tmp_path):
    assert python(backend, TESTS / "in_backend.py", case, tmp_path) == f"done {backend}\n"
    make, arguments, callbacks = CASES[case]
    keras.utils.clear_session()
    model = make()
    if case == "unbuilt":
        model.build((None, 3))
    for variable, value in zip(model.variables, arrays(tmp_path / "before.npz").values(), strict=True):
        variable.assign(value)
    np.random.seed(12)
    theirs = left(model, model.fit(verbose=0, **arguments, **called(callbacks)))

    assert differences(as_numbers(theirs), as_numbers(arrays(tmp_path / "after.npz"))) == []


@pytest.mark.slow
@each_backend
def test_each_optimizer_ends_as_keras_leaves_it_on_jax(backend, tmp_path):
    python(backend, TESTS / "in_backend.py", "optimizers", tmp_path)
    for name in OPTIMIZERS:
        model, arguments = with_optimizer(name)
        theirs = left(model, model.fit(**arguments))
        ours = arrays(tmp_path / f"{name}.npz")
        ours["generator"] = theirs["generator"]  # nothing is drawn

        assert differences(as_numbers(theirs), as_numbers(ours)) == [], name


@each_backend
def test_it_ends_as_on_its_own_backend_to_rounding(backend, tmp_path):
    if backend == "numpy":
        pytest.skip("Keras does not train on NumPy")
    python(backend, TESTS / "in_backend.py", "plain", tmp_path)
    (own, own_history), (ours, history) = (as_numbers(arrays(tmp_path / f"{name}.npz")) for name in ("own", "after"))

    assert own.keys() == ours.keys()
    assert own_history.keys() == history.keys()
    for name in own.keys() - {"generator"}:
        np.testing.assert_allclose(own[name], ours[name], rtol=2e-3, atol=2e-5, err_msg=name)
    for name in history:
        np.testing.assert_allclose(own_history[name], history[name], rtol=2e-3, atol=2e-5, err_msg=name)
    assert keras.models.load_model(tmp_path / "model.keras").predict(np.zeros((2, 3)), verbose=0).shape == (2, 1)


@each_backend
def test_kohort_imported_after_keras(backend):
    code = (
        "import keras, kohort, jax\n"
        "from jax._src import xla_bridge\n"
        "print(keras.backend.backend(), xla_bridge.backends_are_initialized(), len(kohort.data.xor()))"
    )
    assert python(backend, "-c", code) == f"{backend} False 2\n"


@each_backend
def test_a_backend_that_the_user_named_stays(backend):
    code = "import kohort, keras, os; print(keras.backend.backend(), os.environ['KERAS_BACKEND'])"

    assert python(backend, "-c", code) == f"{backend} {backend}\n"


def test_without_a_name_it_is_jax(tmp_path):
    code = "import kohort, keras; print(keras.backend.backend())"

    assert python("", "-c", code, KERAS_HOME=str(tmp_path)) == "jax\n"


REFUSALS = """
import re, warnings
import keras, kohort, numpy as np
x, y = kohort.data.xor()
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

def error(act):
    try:
        act()
    except (TypeError, ValueError, RuntimeError) as error:
        print(type(error).__name__, error)

error(lambda: kohort.fit(model, x, y))
model.compile("sgd", "mse")
error(lambda: kohort.fit(model, x[:3], y))
error(lambda: kohort.fit(model, x, y, epochs=0))
error(lambda: kohort.Cohort(model, 3))
error(lambda: kohort.plot.loss_landscape(model, x, y))
error(lambda: kohort.install(verify=True))
print("installed" if "fit" in vars(keras.Model) else "not installed")

class Mine(keras.layers.Layer):
    def call(self, inputs):
        return inputs

own = keras.Sequential([keras.Input((2,)), Mine(), keras.layers.Dense(1)])
own.compile("sgd", "mse")
error(lambda: kohort.fit(own, x, y))
"""


@each_backend
def test_wrong_use_is_told_in_the_caller(backend):
    lines = python(backend, "-c", REFUSALS, MPLBACKEND="Agg").splitlines()
    needs_jax = "must find Keras on JAX: only `kohort.fit` trains models of another backend."

    assert [line.split(" Received")[0] for line in lines] == [
        "ValueError `model` must be compiled.",
        "ValueError `y` must have one row per sample of `x` (3).",
        "ValueError `epochs` must be an integer of at least 1.",
        f"RuntimeError `kohort.Cohort` {needs_jax}",
        f"RuntimeError `kohort.plot.loss_landscape` {needs_jax}",
        f"RuntimeError `kohort.install(verify=True)` {needs_jax}",
        "not installed",
        "ValueError `model` must be made of parts that another process can import, because kohort trains a model of "
        f"the backend '{backend}' in a worker.",
    ]
    step = 'Import kohort before keras, or set the environment variable KERAS_BACKEND to "jax" before Python starts.'
    assert lines[3].endswith(f"Received: Keras on {backend!r}. {step}")
    assert "with 'Mine', defined in __main__. Move it to the top level of a module and import it" in lines[-1]


FALL_BACKS = """
import warnings
import keras, kohort, numpy as np
x, y = kohort.data.xor()

class Own(keras.Sequential):
    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)

def reason(model, **options):
    model.compile(keras.optimizers.AdamW(), "mse", **options)
    if excluded:
        model.optimizer.exclude_from_weight_decay(var_names=["bias"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", kohort.FallBackWarning)
        history = kohort.fit(model, x, y, verbose=0)
    said = [str(w.message) for w in caught if w.category is kohort.FallBackWarning]
    print(said, len(history.history["loss"]))

excluded = False
stack = lambda: [keras.Input((2,)), keras.layers.Dense(1)]
reason(Own(stack()))
reason(keras.Sequential(stack()), jit_compile=False)
reason(keras.Sequential(stack()), run_eagerly=True)
excluded = True
reason(keras.Sequential(stack()))
"""


@each_backend
def test_what_falls_back_runs_through_the_callers_keras(backend):
    if backend == "numpy":
        pytest.skip("Keras does not train on NumPy")
    runs = "kohort: Keras runs this fit itself, because"

    assert python(backend, "-c", FALL_BACKS).splitlines() == [
        f"['{runs} Own overrides `train_step`.'] 1",
        "[] 1",  # what Keras makes of "auto" looks the same
        f"['{runs} the model was compiled with `run_eagerly=True`.'] 1",
        f"['{runs} the optimizer excludes variables from weight decay, which its configuration does not tell.'] 1",
    ]


STREAMS = """
import warnings
import keras, kohort

class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return kohort.data.xor()

model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
for train in (lambda **fit: kohort.fit(model, **fit), lambda **fit: model.fit(**fit)):
    with warnings.catch_warnings(record=True) as caught, kohort.install():
        warnings.simplefilter("always", kohort.FallBackWarning)
        history = train(x=Batches(), epochs=2, verbose=0)
    print([str(w.message) for w in caught if w.category is kohort.FallBackWarning], len(history.epoch))
"""


@each_that_trains
def test_streams_are_read_by_the_callers_keras(backend):
    told = "['kohort: Keras runs this fit itself, because `x` is a PyDataset, and the worker takes arrays.'] 2"

    assert python(backend, "-c", STREAMS).splitlines() == [told, told]


OWN_OPERATIONS = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import keras, kohort, own_operations
x, y = kohort.data.xor()
model = keras.Sequential([keras.Input((2,)), own_operations.Squared(), keras.layers.Dense(1)])
model.compile("sgd", "mse")
with warnings.catch_warnings(record=True) as caught, kohort.install():
    warnings.simplefilter("always", kohort.FallBackWarning)
    history = model.fit(x, y, epochs=2, verbose=0)
print([str(w.message) for w in caught if w.category is kohort.FallBackWarning], len(history.epoch))
"""


@each_that_trains
def test_a_layer_of_the_backends_own_operations_is_left_to_it(backend, tmp_path):
    """Such a layer crosses to the worker, but JAX cannot run it: switched on, kohort refuses nothing."""
    square = {"tensorflow": "tensorflow.square", "torch": "torch.square"}[backend]
    (tmp_path / "own_operations.py").write_text(
        f"import keras, {backend}\n\n\nclass Squared(keras.layers.Layer):\n"
        f"    def call(self, inputs):\n        return {square}(inputs)\n"
    )
    (line,) = python(backend, "-c", OWN_OPERATIONS, tmp_path).splitlines()

    assert "kohort: Keras runs this fit itself, because the worker process, where Keras runs on JAX, cannot" in line
    assert line.endswith(" 2")


PICTURES = """
import keras, kohort, numpy as np
x, y = kohort.data.xor()
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
kohort.fit(model, x, y, verbose=0)
print(kohort.plot.decision_boundary(model, x, y).response.shape)
tensors = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)
print(len(kohort.fit(model, *tensors, epochs=3, verbose=0).epoch))
"""


@each_backend
def test_tensors_go_in_and_pictures_come_out(backend):
    assert python(backend, "-c", PICTURES, MPLBACKEND="Agg") == "(100, 100)\n3\n"
