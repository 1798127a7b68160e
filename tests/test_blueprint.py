"""Of a model, all crosses that makes it the same model again; what cannot cross is refused beforehand."""

import json
import random
import re
from pathlib import Path

import custom_parts
import keras
import numpy as np
import pytest
from in_backend import OPTIMIZERS, optimizer
from keras import layers

from kohort import keras_internals, keras_parts
from kohort.blueprint import blueprint, build, check_crossing

KERAS = Path(keras.__file__).parent
OF_PYTORCH = {file.stem[6:] for file in KERAS.glob("src/backend/torch/optimizers/torch_*.py")}
X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = (X[:, 0] > 0).astype("float32")


def compiled(*middle, **options):
    model = keras.Sequential([keras.Input((3,)), *middle, layers.Dense(1, "sigmoid")])
    model.compile(**{"optimizer": "adam", "loss": "binary_crossentropy", **options})
    keras_internals.build_like(model, (X, Y))
    return model


def crossed(model):
    """Builds a model again from its blueprint, as JSON brings it over."""
    keras.utils.clear_session()
    return build(json.loads(json.dumps(blueprint(model))), (X[:1], Y[:1]))


def shapes(model):
    return [[tuple(array.shape) for array in arrays] for arrays in keras_internals.read_state(model)]


def frozen(layer):
    layer.trainable = False
    return layer


MODELS = {
    "plain": lambda: compiled(layers.Dense(4, "relu"), layers.BatchNormalization(), layers.Dropout(0.5)),
    "frozen": lambda: compiled(frozen(layers.Dense(4)), layers.Dense(2)),
    "metrics": lambda: compiled(metrics=["auc", "accuracy", keras.metrics.AUC()], weighted_metrics=["mae"]),
    "schedule": lambda: compiled(
        optimizer=keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 5), momentum=0.9)
    ),
    "registered": lambda: compiled(custom_parts.Scaled(3.0), loss=custom_parts.cubed, metrics=[custom_parts.cubed]),
    "functions-of-keras": lambda: compiled(
        loss=keras.losses.mean_squared_error, metrics=[keras.metrics.binary_accuracy]
    ),
    "not-registered": lambda: compiled(custom_parts.Doubled(), layers.Dense(2, activation=custom_parts.soft)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_built_again(name):
    model = MODELS[name]()
    check_crossing(model)
    again = crossed(model)

    assert shapes(again) == shapes(model)
    assert [v.name for v in again.variables] == [v.name for v in model.variables]
    assert keras_parts.metric_names(again) == keras_parts.metric_names(model)
    state = keras_internals.like_variables(again, keras_internals.read_state(model))
    keras_internals.write_state(again, state)
    assert np.array_equal(again(X), model(X))


def test_a_frozen_model_stays_frozen():
    model = compiled(layers.Dense(4))
    model.trainable = False
    model.compile("adam", "mse")
    keras_internals.build_like(model, (X, Y))

    assert crossed(model).trainable_variables == []


@pytest.mark.parametrize(("backend_is_jax", "kept"), [(True, False), (False, True)])
def test_what_another_backend_does_not_jit_jax_does(monkeypatch, backend_is_jax, kept):
    """On JAX `jit_compile=False` changes last bits; what another backend made of "auto" says nothing here."""
    model = compiled(jit_compile=False)
    with monkeypatch.context() as patch:
        patch.setattr(keras_internals, "on_jax", lambda: backend_is_jax)
        described = json.loads(json.dumps(blueprint(model)))

    assert build(described, (X[:1], Y[:1])).jit_compile is kept
    assert crossed(compiled(run_eagerly=True)).run_eagerly


def test_a_subclassed_model_is_built_again():
    model = custom_parts.Net(units=5)
    model.compile("sgd", "mse")
    keras_internals.build_like(model, (X, Y))

    assert shapes(crossed(model)) == shapes(model)


def test_metrics_keep_the_names_that_they_have_here():
    keras.utils.clear_session()
    keras.metrics.AUC()
    model = compiled(metrics=["auc", keras.metrics.AUC()])
    names = keras_parts.metric_names(model)

    assert names[1] == "auc_1"
    assert keras_parts.metric_names(crossed(model)) == names


def test_looking_draws_nothing():
    model = compiled(custom_parts.Scaled(2.0), layers.Dropout(0.1))
    before = random.getstate(), np.random.get_state()[1].tolist()
    check_crossing(model)
    blueprint(model)

    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


class InTheTest(layers.Layer):
    """Of a module that can be imported: it crosses."""

    def call(self, inputs):
        return inputs


def local_layer():
    class Local(layers.Layer):
        def call(self, inputs):
            return inputs

    return Local()


def of_main():
    kind = type("Main", (layers.Layer,), {"call": lambda self, inputs: inputs, "__module__": "__main__"})
    return kind()


def of_a_module_without_a_file(monkeypatch):
    import sys
    import types

    module = types.ModuleType("made_up")
    module.Made = type("Made", (layers.Layer,), {"call": lambda self, inputs: inputs, "__module__": "made_up"})
    monkeypatch.setitem(sys.modules, "made_up", module)
    return module.Made()


def refused(model, received, step):
    with pytest.raises(ValueError, match="`model` must be made of parts that another process can import") as caught:
        check_crossing(model)
    assert re.search(received, str(caught.value)), caught.value
    assert re.search(step, str(caught.value)), caught.value
    assert 'import kohort before keras, or set the environment variable KERAS_BACKEND to "jax"' in str(caught.value)


def test_what_was_refused_is_not_looked_at_again_until_it_is_compiled_anew(monkeypatch):
    """A fall back is to cost less than a millisecond, and Keras takes longer to tell what a few layers are."""
    looks, serialise = [], keras.saving.serialize_keras_object
    monkeypatch.setattr(keras.saving, "serialize_keras_object", lambda *of: looks.append(of) or serialise(*of))
    model = compiled(local_layer())
    for _ in range(3):
        refused(model, "with 'Local', defined in test_blueprint", "Move it to the top level")
    once = len(looks)
    model.compile("sgd", "mse")
    refused(model, "with 'Local', defined in test_blueprint", "Move it to the top level")

    assert len(looks) == 2 * once > 0


def test_a_class_of_any_module_crosses():
    check_crossing(compiled(InTheTest()))


def test_what_cannot_be_imported_is_refused(monkeypatch):
    move = "Move it to the top level of a module and import it"
    refused(compiled(local_layer()), "with 'Local', defined in test_blueprint", move)
    refused(compiled(of_main()), "with 'Main', defined in __main__", move)
    refused(compiled(of_a_module_without_a_file(monkeypatch)), "with 'Made', defined in made_up", move)
    refused(compiled(custom_parts.Namespace.Inner()), "with 'Inner', defined in custom_parts", move)


def test_functions_without_a_name_are_refused():
    name = "Make it a function with a name, in a module of its own"
    refused(compiled(layers.Dense(2, activation=lambda x: x)), "with a lambda", name)
    refused(compiled(layers.Lambda(lambda x: x)), "with a lambda", name)
    refused(compiled(loss=lambda y, p: keras.ops.mean(y - p)), "with a lambda", name)


def test_what_does_not_tell_its_configuration_is_refused():
    refused(
        compiled(custom_parts.Secretive(object())), "does not tell its configuration", "Give that class a `get_conf"
    )
    refused(compiled(custom_parts.Stubborn()), "does not build it again .*unexpected keyword", r"`\*\*kwargs` included")
    refused(compiled(custom_parts.Forgetful()), "does not build it again .*'forgotten'", r"`\*\*kwargs` included")
    refused(
        compiled(custom_parts.Failed()), r"does not tell its configuration \(not now\)", "Give that class a `get_conf"
    )


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")  # by JAX, which is here, too
def test_what_the_worker_would_round_is_refused(monkeypatch):
    wide = "with numbers of the type float64. Take float32, the widest that the worker computes in"
    refused(compiled(layers.Dense(2, dtype="float64")), wide, "float32")
    model = compiled()
    monkeypatch.setattr(keras.config, "floatx", lambda: "float64")
    refused(model, wide, "float32")


def test_a_compile_of_ones_own_is_refused():
    class Own(keras.Sequential):
        def compile(self, *args, **kwargs):
            super().compile(*args, **kwargs)

    model = Own([keras.Input((3,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    refused(model, "with Own, which overrides `compile`", "Compile with Keras's own `compile`")


def test_a_state_of_another_model_is_refused():
    with pytest.raises(ValueError, match="`model` must be the same when it is built from its configuration"):
        keras_internals.like_variables(compiled(), keras_internals.read_state(compiled(layers.Dense(2))))


def test_optimizers_of_one_backend_are_named_as_on_all():
    own = {"module": "keras.src.backend.torch.optimizers.torch_adam", "class_name": "Adam", "config": {"beta_1": 0.9}}
    told = keras_parts.on_any_backend({"a": [own, None, 1], "module": "keras"})

    assert told == {"a": [{**own, "module": "keras.optimizers"}, None, 1], "module": "keras"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_crosses(name):
    """Where Keras has one of its own for PyTorch, as that one, which is named by its module."""
    model = compiled(layers.Dense(2), optimizer=optimizer(name))
    told = json.loads(json.dumps(keras.saving.serialize_keras_object(model.optimizer)))
    if name.lower() in OF_PYTORCH:
        told["module"] = f"keras.src.backend.torch.optimizers.torch_{name.lower()}"
    again = keras.saving.deserialize_keras_object(keras_parts.on_any_backend(told))

    assert type(again) is type(model.optimizer)
    assert again.get_config() == model.optimizer.get_config()
    assert shapes(crossed(model)) == shapes(model)


def test_the_optimizers_of_pytorch_are_known():
    assert {"adam", "adamw", "rmsprop", "sgd"} <= OF_PYTORCH
    assert OF_PYTORCH - {"optimizer", "parallel_optimizer"} <= {name.lower() for name in OPTIMIZERS}


def test_loss_and_metrics_of_an_earlier_compile_are_kept():
    model = compiled(metrics=["mae"])
    model.compile("sgd")
    keras_internals.build_like(model, (X, Y))
    again = crossed(model)

    assert again.loss == "binary_crossentropy"
    assert keras_parts.metric_names(again) == ["mae"]
    assert shapes(again) == shapes(model)
