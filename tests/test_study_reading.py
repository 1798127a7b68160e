"""A study is read by who has not its code, and what is damaged is no result."""

import importlib
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from oracle import differences
from test_study import X, Y, as_lists, left, network, trained

import kohort
from kohort import files, store, variants
from kohort.blocks import history_of

pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def test_a_study_is_read_without_its_code(tmp_path):
    made = trained(tmp_path, {"hidden": [2, 3], "activation": ["tanh"]}, 6, epochs=3)
    opened = kohort.open(tmp_path / "a.kohort")

    assert not isinstance(opened, kohort.Study)
    assert repr(opened) == repr(made)
    assert opened.table().rows == made.table().rows
    assert differences(as_lists(left(opened.trials[1].cohort())), as_lists(left(made.trials[1].cohort()))) == []
    told = opened.trial(hidden=2).specification
    assert told["parameters"] == {"hidden": 2, "activation": "tanh"}
    assert told["model"]["class_name"] == "Sequential"
    assert told["compiled"]["loss"] == "mse"
    assert told["fit"]["shuffle"] is True
    assert set(told["data"]) == {"x", "y", "sample_weight", "validation_data"}
    assert told["trained_with"][0]["versions"] == files.versions()
    assert told["trained_with"][0]["device"].startswith("cpu")


ELSEWHERE = """
import importlib.util, json, sys
import numpy as np
import kohort

assert importlib.util.find_spec("networks_of_its_own") is None
study = kohort.open(sys.argv[1])
trial = study.trial(hidden=3)
rows = [{name: value for name, value in row.items() if name != "seconds"} for row in study.table(loss=0.2).rows]
np.savez(sys.argv[2], loss=trial.history["loss"], outputs=trial.cohort().predict(kohort.data.xor()[0]))
print(json.dumps(rows))
"""
NETWORKS = """
import keras

def network(hidden):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(hidden, "tanh"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model
"""


def test_a_study_is_read_where_its_module_cannot_be_imported(tmp_path, monkeypatch):
    """In a process of its own, elsewhere: table, curves and predictions are those of here."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "networks_of_its_own.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path / "code")
    own = importlib.import_module("networks_of_its_own").network
    study = kohort.Study(tmp_path / "a", own, {"hidden": [2, 3]}, 4)
    study.run(X, Y, epochs=3, verbose=0)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "a"), str(tmp_path / "told.npz")], cwd=tmp_path,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in study.table(loss=0.2).rows]
    np.testing.assert_equal(json.loads(done.stdout), rows)
    told, trial = np.load(tmp_path / "told.npz"), study.trial(hidden=3)
    np.testing.assert_array_equal(told["loss"], trial.history["loss"])
    np.testing.assert_array_equal(told["outputs"], trial.cohort().predict(X))


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


def test_a_model_with_parts_of_ones_own_must_be_named(tmp_path):
    def own(hidden):
        model = keras.Sequential([keras.Input((2,)), layers.Dense(hidden), Doubled(), layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    named = {"Doubled": Doubled}
    study = kohort.Study(tmp_path / "a", own, {"hidden": [2]}, 2, custom_objects=named)
    study.run(X, Y, verbose=0)
    assert study.trial().cohort().predict(X).shape == (2, 4, 1)
    assert kohort.open(tmp_path / "a").table()["seeds"].tolist() == [2]
    with pytest.raises(ValueError, match=r"which holds 'Doubled' of the module"):
        kohort.open(tmp_path / "a").trial().cohort()
    assert len(kohort.open(tmp_path / "a", named).trial().cohort()) == 2


def test_a_damaged_block_is_no_result(tmp_path):
    study = trained(tmp_path, {"hidden": [2]}, 4)
    [path] = (tmp_path / "a.kohort" / "blocks").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    for act in (lambda: study.table(loss=1), lambda: study.trial().cohort(), lambda: study.trial().history):
        with pytest.raises(ValueError, match=r"`path` must be a whole file that kohort saved\. .* which is damaged"):
            act()


def test_a_parameter_that_is_named_like_a_column_keeps_its_own(tmp_path):
    def own(loss, seeds=1):
        model = keras.Sequential([keras.Input((2,)), layers.Dense(seeds)])
        model.compile("sgd", loss)
        return model

    study = kohort.Study(tmp_path / "a", own, {"loss": ["mse", "mae"], "seeds": [1]}, 2)
    study.run(X, Y, verbose=0)
    for table in (study.table(), study.table(loss=1e9)):
        assert table.parameters == ["network.loss", "network.seeds"]
        assert table["network.loss"].tolist() == ["mse", "mae"]
        assert table["seeds"].tolist() == [2, 2]
    assert study.table()["loss"].dtype.kind == "f"
    assert study.trial(loss="mae").parameters == {"loss": "mae", "seeds": 1}
    frame, arrays = study.to_pandas(), study.to_xarray()
    assert frame["network.loss"].unique().tolist() == ["mse", "mae"]
    assert arrays["network.loss"].values.tolist() == ["mse", "mae"]
    assert arrays["loss"].shape == (2, 2, 1)


def epochs_beyond(arrays):
    arrays["epoch"] = arrays["epoch"] + 2**16


def other_seeds(arrays):
    arrays["seeds"] = arrays["seeds"][::-1]


def fewer_curves(arrays):
    arrays["history/loss"] = arrays["history/loss"][:1]


@pytest.mark.parametrize("change", [epochs_beyond, other_seeds, fewer_curves])
def test_a_block_of_other_epochs_or_seeds_is_no_result(change, tmp_path):
    """A study from elsewhere may claim that it has been trained for ever: nothing is made for that many epochs."""
    study = trained(tmp_path, {"hidden": [2]}, 4)
    [path] = (tmp_path / "a.kohort" / "blocks").iterdir()
    kept = files.read(path, store.KIND, store.VERSION)
    arrays = dict(kept.arrays)
    change(arrays)
    files.write(path, store.KIND, store.VERSION, files.Contents(kept.about, arrays))
    with pytest.raises(ValueError, match=r"`path` must be a study whose blocks go on where others end\. .* or seeds\."):
        _ = study.trial().history


# --- which trial is meant ---------------------------------------------------------------------------------------------


def test_an_empty_mapping_is_one_trial_with_the_defaults(tmp_path):
    study = trained(tmp_path, {}, 3, epochs=2)

    assert [trial.parameters for trial in study.trials] == [{}]
    assert str(study.trials) == "[Trial(no parameters: 3 members)]"
    cohort = kohort.Cohort(network(), 3)
    cohort.fit(X, Y, epochs=2, verbose=0)
    assert differences(as_lists(left(study.trial().cohort())), as_lists(left(cohort))) == []
    with pytest.raises(ValueError, match=r"hidden=9, which none has\. Trials there are: no parameters\.$"):
        study.trial(hidden=9)


def test_parameters_that_are_not_named_are_at_their_defaults(tmp_path):
    study = trained(tmp_path, {"hidden": [2, 4], "activation": ["tanh", "relu"], "learning_rate": [1e-2]}, 2, epochs=1)

    assert study.trial(hidden=4).parameters == {"hidden": 4, "activation": "relu", "learning_rate": 1e-2}
    assert study.trial().parameters == {"hidden": 2, "activation": "relu", "learning_rate": 1e-2}
    assert study.trial(hidden=4, activation="tanh").parameters["activation"] == "tanh"
    assert study.compare({"hidden": 4}, {"hidden": 2}, loss=1e9).seeds == 2
    by_loss = study.compare({"hidden": 4}, {"hidden": 2})
    assert by_loss == study.compare({"hidden": 4}, {"hidden": 2}, by="loss")
    assert by_loss.what == "median of last loss"
    with pytest.raises(ValueError, match=r"of 4\. Received: hidden=4, which 2 have\. Trials like this: hidden=4, "):
        kohort.open(study.path).trial(hidden=4)  # which knows no function


def test_a_whole_number_names_a_trial_at_the_same_other_number(tmp_path):
    study = trained(tmp_path, {"dropout": [0.0, 0.5]}, 2, epochs=1)

    assert study.trial(dropout=0).parameters == {"dropout": 0.0}
    for other in (False, 10**400, "0.0"):
        with pytest.raises(ValueError, match="which none has"):
            study.trial(dropout=other)


def test_what_has_no_default_or_no_trial_at_it_must_be_named(tmp_path):
    def own(hidden, activation="relu"):
        return network(hidden, activation)

    study = kohort.Study(tmp_path / "a", own, {"hidden": [2, 3], "activation": ["tanh", "relu", "elu"]}, 2)
    study.run(X, Y, verbose=0)

    with pytest.raises(ValueError, match=r"Received: activation='relu', which 2 have\. "):
        study.trial(activation="relu")
    with pytest.raises(ValueError, match=r"Received: no parameters, which 6 have\. "):
        study.trial()
    study = kohort.Study(tmp_path / "b", own, {"hidden": [2], "activation": ["tanh", "elu"]}, 2)
    study.run(X, Y, verbose=0)
    with pytest.raises(ValueError, match=r"Received: hidden=2, which 2 have\. "):
        study.trial(hidden=2)


def test_a_block_that_was_too_short_to_validate():
    """The metrics of all blocks have as many epochs as the longest."""

    def read(block):
        epochs = np.arange(block.first_epoch, block.epochs)
        curves = {"history/loss": np.ones((2, len(epochs)), "float32")}
        curves |= {} if block.first_epoch else {"history/val_loss": np.ones((2, len(epochs)), "float32")}
        return files.Contents({}, {"seeds": np.array([3, 4]), "epoch": epochs, "stopped_epoch": [-1, -1], **curves})

    pair = [store.BlockRow(1, first, last, (3, 4), "", {}) for first, last in ((0, 3), (3, 5))]
    history = history_of(pair, read)
    assert {name: values.shape for name, values in history.items()} == {"loss": (2, 5), "val_loss": (2, 5)}
    assert np.isnan(history["val_loss"][:, 3:]).all()
    assert np.isfinite(history["loss"]).all()


def test_a_study_from_before_losses_told_their_arguments_goes_on(tmp_path, monkeypatch):
    described = variants.description_of

    def without(model):
        return {key: value for key, value in described(model).items() if key != "loss_arguments"}

    with monkeypatch.context() as patch:
        patch.setattr(variants, "description_of", without)
        trained(tmp_path, {"hidden": [2]}, 2, epochs=2)
    study = trained(tmp_path, {"hidden": [2]}, 2, epochs=4)
    assert study.trial().history["loss"].shape == (2, 4)
