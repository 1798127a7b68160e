"""Networks by their words, and functions that stand beside a file."""

import re
import sys

import keras
import numpy as np
import pytest
from refusals import refused

from kohort import networks

pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def shapes(model):
    return [(layer.name.split("_")[0], layer.output.shape[-1]) for layer in model.layers]


def test_dense_networks_have_the_layers_of_their_words():
    network = networks.dense(3, 1, "regression")
    assert shapes(network()) == [("dense", 8), ("dense", 1)]
    assert shapes(network(hidden=4, depth=2)) == [("dense", 4), ("dense", 4), ("dense", 1)]
    assert shapes(network(hidden=[5, 2], dropout=0.5)) == [
        *(("dense", 5), ("dropout", 5), ("dense", 2), ("dropout", 2), ("dense", 1))
    ]
    made = network(activation="tanh", optimizer="SGD", learning_rate=0.5)
    assert made.layers[0].activation is keras.activations.tanh
    assert isinstance(made.optimizer, keras.optimizers.SGD)
    assert float(made.optimizer.learning_rate) == 0.5
    assert float(network(learning_rate=1).optimizer.learning_rate) == 1.0  # as TOML has whole numbers
    assert (made.loss, made.layers[-1].activation) == ("mse", keras.activations.linear)


@pytest.mark.parametrize(
    ("classes", "units", "end", "loss"),
    [(2, 1, "sigmoid", "binary_crossentropy"), (3, 3, "softmax", "sparse_categorical_crossentropy")],
)
def test_classes_end_in_their_probabilities(classes, units, end, loss):
    made = networks.dense(2, classes, "classification")()
    assert (made.output_shape[-1], made.layers[-1].activation.__name__, made.loss) == (units, end, loss)
    made.evaluate(np.zeros((4, 2)), np.arange(4) % classes, verbose=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"activation": "rely"}, r"`activation` must be one of Keras's: .*'rely'\. Write 'relu'\."),
        ({"optimizer": "adm"}, r"`optimizer` must be one of Keras's: .*Write 'adam'\."),
        ({"activation": 3}, r"`activation` must be one of Keras's"),
        ({"optimizer": "MultiOptimizer"}, r"`optimizer` must be one of Keras's: ((?!multi|map).)* Received"),
        (
            {"hidden": 10**9},
            r"`hidden` must be such that a network has room .* which is .* weights of 16 b",
        ),
        ({"hidden": 10**6, "depth": 2}, r"`hidden` must .* depth=2, which is 1,000,\d{3},000,000 weights"),
        ({"hidden": 0}, r"`hidden` must be the units of each layer"),
        ({"hidden": 2.5}, r"`hidden` must be the units of each layer"),
        ({"hidden": [4, 2], "depth": 2}, r"`hidden` .* Received: hidden=\[4, 2\], depth=2"),
        ({"depth": 0}, r"`hidden` .* depth=0"),
        (
            {"learning_rate": 0},
            r"`learning_rate` must be a number above 0\. Received: learning_rate=0\. Write for ex.* 0\.001",
        ),
        ({"learning_rate": "x"}, r"`learning_rate` must be a number above 0\. Received: learning_rate='x'"),
        ({"learning_rate": float("inf")}, r"`learning_rate` must be a number above 0\."),
        ({"dropout": 2.0}, r"`dropout` must be a number from 0 to below 1\. Received: dropout=2\.0\."),
        ({"dropout": True}, r"`dropout` must be a number from 0 to below 1\."),
    ],
)
def test_words_that_are_none(words, message):
    with refused(ValueError, message):
        networks.dense(2, 1, "regression")(**words)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own_networks.py").write_text("def small(): return 'made'\nsize = 3\n")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "inner.py").write_text("from own_networks import small\n")
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')\n")
    (tmp_path / "wanting.py").write_text("import missing_altogether\n")
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("argument", "module", "some"),
    [
        ("optimizer", keras.optimizers, {"adam", "lamb", "muon", "sgd"}),
        ("activation", keras.activations, {"relu", "tanh", "swish"}),
    ],
)
def test_every_name_that_is_offered_makes_a_network(argument, module, some):
    with pytest.raises(ValueError, match="must be one of Keras's") as refusal:
        networks.check_known(argument, "?", module)
    named = re.search(r"must be one of Keras's: (.*?)\. Received", str(refusal.value))[1].split(", ")
    assert some <= set(named)
    network = networks.dense(2, 1, "regression")
    for name in named:
        made = network(hidden=4, **{argument: name})
        assert made(np.zeros((3, 2))).shape == (3, 1)
        assert argument != "optimizer" or type(made.optimizer).__name__.lower() == name


def test_functions_beside_the_file(folder):
    assert networks.function_in(folder, "own_networks:small")() == "made"
    assert networks.function_in(folder, "own_package.inner:small")() == "made"
    with pytest.raises(ModuleNotFoundError, match="missing_altogether"):  # the module's own mistake is told as it is
        networks.function_in(folder, "wanting:small")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "none:small",
            r"`function` must be module:function, of a module in the folder .*'none:small', which is not th",
        ),
        ("own_package.none:small", r"which is not there"),
        ("own_networks", r"Received: 'own_networks', which is not there"),
        (3, r"Received: 3, which is not there"),
        (
            "subprocess:getoutput",
            r"Received: 'subprocess:getoutput', which is not there",
        ),  # what is installed is not run
        ("json:loads", r"but another module 'json' is imported already"),
        ("own_networks:smal", r"a function of the module 'own_networks': small\. Received: .*Write 'small'\."),
        ("own_networks:size", r"a function of the module 'own_networks'"),
    ],
)
def test_functions_that_are_not_there(name, message, folder):
    with refused(ValueError, message):
        networks.function_in(folder, name)
