"""Saved cohorts: the same members again, to the bit, and no code but Keras's and the caller's."""

import copy
import json
import random
import subprocess
import sys

import keras
import numpy as np
import pytest
from custom_parts import Scaled, cubed
from keras import layers
from keras.src.backend.common import global_state
from oracle import differences
from test_files import Killed

import kohort
from kohort import files, saving
from kohort.engine import State
from kohort.members import Trained

RNG = np.random.default_rng(4)
X = RNG.normal(size=(24, 2)).astype("float32")
Y = (X[:, 0] * X[:, 1] > 0).astype("float32")


pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def sequential(*stack, optimizer="adam", loss="mse", **options):
    model = keras.Sequential([keras.Input((2,)), *stack])
    model.compile(optimizer, loss, **options)
    return model


def dense():
    return sequential(layers.Dense(3, "tanh"), layers.Dense(1))


def noisy():
    stack = [layers.Dense(4, use_bias=False), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(1)]
    rate = keras.optimizers.schedules.ExponentialDecay(0.01, 3, 0.9)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    metrics = ["accuracy", keras.metrics.AUC(from_logits=True), keras.metrics.AUC(from_logits=True)]
    return sequential(*stack, optimizer=keras.optimizers.AdamW(rate, use_ema=True), loss=loss, metrics=metrics)


def several():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    outputs = {"p": layers.Dense(1, name="p")(a), "q": layers.Dense(2, name="q")(layers.Add()([a, b]))}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile("sgd", {"p": "mse", "q": "mae"}, metrics={"q": ["mse"]})
    return model


def undecayed():
    model = dense()
    model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.5), "mse")
    model.optimizer.exclude_from_weight_decay(var_list=[model.layers[0].kernel], var_names=["bias"])
    return model


def frozen():
    first = layers.Dense(3, "tanh", kernel_regularizer=keras.regularizers.L2(0.01), dtype="bfloat16")
    first.trainable = False
    return sequential(first, layers.Dense(1, kernel_constraint="max_norm"), loss=["mse"])


MODELS = {"dense": dense, "noisy": noisy, "several": several, "undecayed": undecayed, "frozen": frozen}
DATA = {"several": {"x": {"a": X, "b": X[::-1]}, "y": {"p": Y, "q": X}}}
FITS = {"small": {"batch_size": 10, "validation_split": 0.25}, "whole": {"batch_size": 24}, "steps": {"shuffle": False}}


def fitted(cohort, name, fit, epochs):
    history = cohort.fit(**DATA.get(name, {"x": X, "y": Y}), verbose=0, epochs=epochs, **FITS[fit])
    return {metric: history[metric] for metric in history}


def left(cohort):
    """All that a fit leaves in a cohort."""
    trained = cohort._members.trained
    return [
        cohort.seeds,
        cohort.exact,
        [np.asarray(value) for part in cohort._members.join(trained.states) for value in part],
        trained.generators.states,
        dict(trained.history),
        trained.history.epoch,
    ]


@pytest.mark.many
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("name", "fit"), [(name, "small") for name in MODELS] + [("dense", "whole"), ("dense", "steps")]
)
def test_a_fit_goes_on_where_it_stopped(name, fit, exact, tmp_path):
    """fit(3), save, load, fit(3) is fit(3), fit(3), and without averages at the end of a fit, it is fit(6)."""
    seeds = [5, 2**32 - 1, 0]
    model = MODELS[name]()
    # Chosen by measurement, the mapping, and with it the last bits, could be another in a longer fit.
    options = {"exact": exact} if exact else {"mapping": "vectorized"}
    halves, whole = (kohort.Cohort(model, seeds, **options) for _ in range(2))
    first = fitted(halves, name, fit, 3)
    halves.save(tmp_path / "a.kohort")
    loaded = kohort.Cohort.load(tmp_path / "a.kohort")

    assert differences(left(halves), left(loaded)) == []
    assert differences(fitted(halves, name, fit, 3), fitted(loaded, name, fit, 3)) == []
    assert differences(left(halves), left(loaded)) == []
    if name != "noisy":
        at_once = fitted(whole, name, fit, 6)
        both = {metric: np.hstack([first[metric], loaded.history[metric]]) for metric in first}
        assert differences(at_once, both) == []
        assert differences(left(whole)[2:4], left(loaded)[2:4]) == []


@pytest.mark.many
@pytest.mark.parametrize("options", [{"jit_compile": False}, {"run_eagerly": True}, {"steps_per_execution": 2}])
def test_a_loaded_cohort_runs_its_steps_as_it_did(options, tmp_path):
    """Operation by operation, to the bit, where the model was compiled so; each member is a model compiled so, too."""

    def compiled_as(model):
        return model.jit_compile, model.run_eagerly, model.steps_per_execution

    stack = [layers.Dense(7, "tanh"), layers.BatchNormalization(), layers.Dense(1)]
    model = sequential(*stack, **options)
    cohort = kohort.Cohort(model, [5, 7], exact=True)
    fitted(cohort, "dense", "small", 2)
    cohort.save(tmp_path / "a.kohort")
    loaded = kohort.Cohort.load(tmp_path / "a.kohort")

    assert compiled_as(loaded.member(7)) == compiled_as(cohort.member(7)) == compiled_as(model)
    assert differences(fitted(cohort, "dense", "small", 3), fitted(loaded, "dense", "small", 3)) == []
    assert differences(left(cohort), left(loaded)) == []


def test_what_is_loaded_answers_as_what_was_saved(tmp_path):
    cohort = kohort.Cohort(noisy(), 10)
    fitted(cohort, "noisy", "small", 2)
    cohort.save(tmp_path / "a.kohort")
    loaded = kohort.Cohort.load(str(tmp_path / "a.kohort"))

    np.testing.assert_array_equal(cohort.predict(X), loaded.predict(X))
    assert differences(cohort.evaluate(X, Y), loaded.evaluate(X, Y)) == []
    assert list(loaded.evaluate(X, Y)) == [name for name in cohort.history if not name.startswith("val_")]
    assert repr(loaded) == repr(cohort)
    ours, theirs = cohort.member(3), loaded.member(3)
    assert differences(ours.get_config(), theirs.get_config()) == []
    assert differences(ours.optimizer.get_config(), theirs.optimizer.get_config()) == []
    assert cohort.success_rate(accuracy=0.5) == loaded.success_rate(accuracy=0.5)


def test_saving_and_loading_leave_the_generators_and_the_cohort(tmp_path):
    cohort = kohort.Cohort(dense(), 3)
    fitted(cohort, "dense", "small", 1)
    cohort.save(tmp_path / "a.kohort")
    before = [np.random.get_state(), random.getstate(), left(cohort)]
    cohort.save(tmp_path / "b.kohort")
    kohort.Cohort.load(tmp_path / "b.kohort")

    assert differences(before, [np.random.get_state(), random.getstate(), left(cohort)]) == []
    assert (tmp_path / "a.kohort").read_bytes() == (tmp_path / "b.kohort").read_bytes()


def test_of_the_data_nothing_is_kept(tmp_path):
    cohort = kohort.Cohort(dense(), 2)
    cohort.fit(X, Y + 7.25, batch_size=24, epochs=2, verbose=0)
    contents = saving.contents_of(cohort._members, cohort._members.trained)

    assert all(not contents.arrays[name].any() for name in contents.arrays if name.startswith("batch/"))
    assert "generators" not in contents.arrays  # what they owe is told, not drawn
    assert contents.about["owed"] == [[24, 3]]


def test_neighbours_are_not_copied_and_others_are_in_their_order():
    """A study takes the members of each trial out of a cohort of several; curves are most of what it keeps."""
    cohort = kohort.Cohort(dense(), 4)
    loss = cohort.fit(X, Y, epochs=3, verbose=0)["loss"]

    def kept(which):
        return saving.contents_of(cohort._members, cohort._members.trained, which).arrays

    for which in ([1, 2], [3], [2, 0, 1], [0, 2]):
        np.testing.assert_array_equal(kept(which)["history/loss"], loss[which])
        np.testing.assert_array_equal(kept(which)["seeds"], which)
    assert np.shares_memory(kept([1, 2])["history/loss"], loss)


def test_all_that_training_leaves_is_kept():
    """Who adds a field to one of these adds it to `saving`, and to this list."""
    cohort = kohort.Cohort(dense(), 2)
    fitted(cohort, "dense", "small", 1)
    history = cohort.history

    assert Trained._fields == ("states", "generators", "history")
    assert State._fields == (
        "trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables",
    )  # fmt: skip
    # What members differ in follows from the roster, too.
    assert vars(history).keys() == {"history", "seeds", "epoch", "stopped_epoch", "differences"}
    # Blocks and places follow from the roster.
    assert vars(cohort._members).keys() - {"_places"} == {
        "templates", "roster", "exact", "settings", "_lots", "wide_blocks", "blocks", "trained", "single", "fold_sizes",
    }  # fmt: skip
    assert cohort._members.settings._fields == ("exact", "mapping", "memory")  # of which memory is the machine's
    assert cohort._members.roster._fields == ("seeds", "varied", "kinds", "folds")


def test_the_mapping_that_was_set_is_kept(tmp_path):
    x, y = kohort.data.xor()
    for mapping in ("auto", "loop"):
        cohort = kohort.Cohort(dense(), 2, mapping=mapping)
        cohort.fit(x, y, epochs=2, verbose=0)
        cohort.save(tmp_path / "mapped.kohort")
        assert kohort.Cohort.load(tmp_path / "mapped.kohort")._members.settings.mapping == mapping


def test_where_members_have_stopped_is_kept(tmp_path):
    cohort = kohort.Cohort(dense(), 5)
    stop = keras.callbacks.EarlyStopping("loss", patience=2, min_delta=0.01)
    x, y = kohort.data.xor()
    cohort.fit(x, y, epochs=40, verbose=0, callbacks=[stop])
    cohort.save(tmp_path / "stopped.kohort")
    loaded = kohort.Cohort.load(tmp_path / "stopped.kohort")
    assert (cohort.history.stopped_epoch >= 0).any()
    np.testing.assert_array_equal(loaded.history.stopped_epoch, cohort.history.stopped_epoch)
    assert loaded.history.outcome.tolist() == cohort.history.outcome.tolist()
    again = [each.fit(x, y, epochs=3, verbose=0)["loss"] for each in (cohort, loaded)]
    np.testing.assert_array_equal(*again)


CONTINUES = """
import sys, kohort
x, y = kohort.data.xor()
cohort = kohort.Cohort.load(sys.argv[1])
cohort.fit(x, y, batch_size=2, epochs=4, verbose=0)
cohort.save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_fit_goes_on_in_another_process(tmp_path):
    x, y = kohort.data.xor()
    saved, whole = (kohort.Cohort(dense(), 9, exact=True) for _ in range(2))
    saved.fit(x, y, batch_size=2, epochs=3, verbose=0)
    saved.save(tmp_path / "a.kohort")
    subprocess.run([sys.executable, "-c", CONTINUES, tmp_path / "a.kohort"], check=True)
    whole.fit(x, y, batch_size=2, epochs=7, verbose=0)

    assert differences(left(whole)[:4], left(kohort.Cohort.load(tmp_path / "a.kohort"))[:4]) == []


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_during_saves_leave_a_cohort(kills, tmp_path):
    paths, states = (tmp_path / "a.kohort", tmp_path / "b.kohort"), []
    cohort = kohort.Cohort(dense(), 64)
    for path in paths:
        fitted(cohort, "dense", "small", 2)
        cohort.save(path)
        states.append(left(cohort))
    found = []
    with Killed(*paths, saving.VERSION) as saves:
        for _ in range(kills):
            assert saves.once() == -14
            kept = left(kohort.Cohort.load(paths[0]))
            found.append(tuple(differences(state, kept) == [] for state in states))
    assert set(found) == {(True, False), (False, True)}


# Parts of the user's own.


def test_parts_that_are_registered_or_named(tmp_path):
    cohort = kohort.Cohort(sequential(Scaled(2.0), layers.Dense(1), loss=cubed, metrics=[cubed]), 2, exact=True)
    cohort.fit(X, Y, epochs=1, verbose=0)
    cohort.save(tmp_path / "a.kohort")
    loaded = kohort.Cohort.load(tmp_path / "a.kohort")

    assert differences(dict(cohort.fit(X, Y, verbose=0)), dict(loaded.fit(X, Y, verbose=0))) == []


class Local(layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def local_loss(y, p):
    return keras.ops.mean((y - p) ** 4, axis=-1)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: sequential(Local(), layers.Dense(1)), {"Local": Local}),
        (lambda: sequential(layers.Dense(1), loss=local_loss), {"local_loss": local_loss}),
    ],
)
def test_parts_that_nobody_named(model, named, tmp_path):
    cohort = kohort.Cohort(model(), 2)
    cohort.fit(X, Y, epochs=1, verbose=0)
    cohort.save(tmp_path / "a.kohort")
    [(name, part)] = named.items()
    match = (
        rf"`path` must be a file of which this process can make the cohort again\. Received: path='.*', which holds "
        rf"'{name}' of the module '{part.__module__}'\. Import .* `custom_objects=\{{'{name}': \.\.\.\}}`, if you trust"
    )
    if name == "local_loss":
        match = match.replace(f"'{part.__module__}'", ".*")
    with pytest.raises(ValueError, match=match):
        kohort.Cohort.load(tmp_path / "a.kohort")
    loaded = kohort.Cohort.load(tmp_path / "a.kohort", custom_objects=named)
    np.testing.assert_array_equal(cohort.predict(X), loaded.predict(X))


def test_a_model_without_a_configuration(tmp_path):
    cohort = kohort.Cohort(sequential(layers.Dense(1), loss=lambda y, p: keras.ops.mean((y - p) ** 2)), 2)
    cohort.fit(X, Y, epochs=1, verbose=0)
    with pytest.raises(
        ValueError, match=r"`cohort\.save` must be called on a cohort whose model Keras can write down .*"
    ):
        cohort.save(tmp_path / "a.kohort")
    assert not list(tmp_path.iterdir())


# Files that somebody else made.


@pytest.fixture(scope="module")
def contents():
    keras.utils.set_random_seed(0)
    cohort = kohort.Cohort(dense(), 3)
    fitted(cohort, "dense", "small", 2)
    made = saving.contents_of(cohort._members, cohort._members.trained)
    return made._replace(about=json.loads(json.dumps(made.about)))


def forged(contents, tmp_path, change):
    about, arrays = copy.deepcopy(contents.about), dict(contents.arrays)
    change(about, arrays)
    files.write(tmp_path / "a.kohort", saving.KIND, saving.VERSION, files.Contents(about, arrays))
    return tmp_path / "a.kohort"


def layer(about):
    return about["model"]["config"]["layers"][1]


HARMFUL = {
    "a function of Keras that is no part": {"module": "keras.utils", "class_name": "function", "config": "get_file"},
    "another one": {"module": "keras.saving", "class_name": "function", "config": "load_model"},
    "one of Python": {"module": "os", "class_name": "function", "config": "system"},
    "one of Python's own": {"module": "builtins", "class_name": "function", "config": "eval"},
    "a class of Keras that is no part": {"module": "keras.utils", "class_name": "PyDataset", "config": {}},
    "a class of Python": {"module": "subprocess", "class_name": "Popen", "config": {"args": ["true"]}},
    "a lambda": {"class_name": "__lambda__", "config": {"value": "4wEAAAA="}},
    "a type": {"module": "os", "class_name": "__typespec__", "config": [], "spec_name": "system"},
    "a module that is not loaded": {"module": "keras_hub.models", "class_name": "Backbone", "config": {}},
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_model_of_other_parts_is_not_built(name, contents, tmp_path):
    def change(about, arrays):
        layer(about)["config"]["kernel_initializer"] = {"registered_name": None, **HARMFUL[name]}

    keras.config.enable_unsafe_deserialization()
    try:
        with pytest.raises(ValueError, match=r"`path` must be a file of which this .*, which holds '.*' of the m"):
            kohort.Cohort.load(forged(contents, tmp_path, change))
    finally:
        global_state.set_global_attribute("safe_mode_saving", None)


def huge(about, arrays):
    layer(about)["config"]["units"] = 10**12
    del about["model"]["build_config"], about["model"]["config"]["build_input_shape"]
    about["model"]["config"]["layers"] = about["model"]["config"]["layers"][:2]
    about["decay_exclusions"]["weights"] = [False] * 2


def other_type(about, arrays):
    arrays["state/trainable_variables/0"] = arrays["state/trainable_variables/0"].astype("float64")


def fewer_seeds(about, arrays):
    arrays["seeds"] = arrays["seeds"][:2]


def shorter_history(about, arrays):
    arrays["history/loss"] = arrays["history/loss"][:, :1]


def other_generators(about, arrays):
    arrays["generators"] = arrays["generators"][:, :9]


@pytest.mark.parametrize("change", [huge, other_type, fewer_seeds, shorter_history, other_generators])
def test_arrays_that_are_not_those_of_the_model(change, contents, tmp_path):
    with pytest.raises(
        ValueError, match=r"whose arrays are not those that its model has under keras 3\S+ and jax \S+\."
    ):
        kohort.Cohort.load(forged(contents, tmp_path, change))


def no_array(about, arrays):
    del arrays["history/loss"]


def no_layers(about, arrays):
    about["model"]["config"] = {}


def no_model(about, arrays):
    del about["model"]


def repeated_batch(about, arrays):
    about["batch"] = {"array": 99}


@pytest.mark.parametrize("change", [no_array, no_layers, no_model, repeated_batch])
def test_contents_of_which_no_model_can_be_built(change, contents, tmp_path):
    with pytest.raises(ValueError, match=r"from which no model can be built \(.*\)\. Load it under the versions"):
        kohort.Cohort.load(forged(contents, tmp_path, change))


@pytest.mark.parametrize(
    ("setting", "value"), [("floatx", "float16"), ("epsilon", 0.5), ("image_data_format", "channels_first")]
)
def test_other_settings_of_keras(setting, value, contents, tmp_path):
    def change(about, arrays):
        about[setting] = value

    match = (
        rf"trained with keras\.config\.{setting}\(\) {value!r}, which here is .*\. Call `keras\.config\.set_{setting}"
    )
    with pytest.raises(ValueError, match=match):
        kohort.Cohort.load(forged(contents, tmp_path, change))


def test_a_damaged_file_and_one_of_a_newer_version(contents, tmp_path):
    files.write(tmp_path / "a.kohort", saving.KIND, saving.VERSION + 1, contents)
    with pytest.raises(ValueError, match=rf"of version {saving.VERSION + 1}, written by kohort .*\. Upgrade kohort"):
        kohort.Cohort.load(tmp_path / "a.kohort")
    (tmp_path / "a.kohort").write_bytes((tmp_path / "a.kohort").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"which is cut off"):
        kohort.Cohort.load(tmp_path / "a.kohort")
    with pytest.raises(TypeError, match=r"`path` must be a path\. Received: path=7 of type int"):
        kohort.Cohort.load(7)


def test_what_is_not_trained_cannot_be_saved(tmp_path):
    with pytest.raises(RuntimeError, match=r"`cohort\.save` must come after `cohort\.fit`"):
        kohort.Cohort(dense(), 2).save(tmp_path / "a.kohort")
