"""P7: what is wrong with a study, a run of it, or a question to it, is said at once."""

import gc
import select
import time

import keras
import killed_study
import numpy as np
import pytest
from keras import layers
from refusals import refused
from test_crash import driver
from test_study import X, Y, network, study_of, trained

import kohort
from kohort import executors

pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def uncompiled(hidden=2):
    return keras.Sequential([keras.Input((2,)), layers.Dense(hidden)])


def subclassed(hidden=2):
    class Own(keras.Model):
        def call(self, x):
            return x

    model = Own()
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"network": network()}, TypeError, r"`network` must be a function that returns a compiled Keras model\."),
        ({"network": None}, TypeError, r"`network` must be a function .* Received: network=None of type NoneType"),
        (
            {"grid": {"depth": [1]}},
            ValueError,
            r"`grid` must name parameters that `network` takes: 'hid.*'depth'",
        ),
        ({"grid": {3: [1]}}, ValueError, r"`grid` must name parameters that `network` takes"),
        ({"grid": {"hidden": []}}, ValueError, r"`grid` must hold at least one value for each parameter, in a list\."),
        ({"grid": {"hidden": 4}}, TypeError, r"`grid` must hold at least one value .*'hidden': values=4"),
        ({"grid": []}, ValueError, r"`grid` must map each parameter of `network` to its values, or list"),
        ({"grid": "hidden"}, TypeError, r"`grid` must map each parameter .* Received: grid='hidden'"),
        ({"grid": [{"hidden": 2}, 3]}, TypeError, r"`grid` must map each parameter"),
        ({"grid": 7}, TypeError, r"`grid` must map each parameter"),
        ({"grid": {"hidden": [network]}}, TypeError, r"`grid` must hold numbers, texts, True, False, None, or lists"),
        ({"grid": {"hidden": [float("nan")]}}, TypeError, r"`grid` must hold numbers, .* Pass a name"),
        ({"grid": {"hidden": range(1000), "dropout": np.arange(1000)}}, ValueError, r"at most 100000 trials\."),
        ({"grid": ({"hidden": i} for i in range(100_001))}, ValueError, r"at most 100000 trials\. Received: more"),
        ({"network": lambda units, hidden: None}, ValueError, r"has no default\. Received: a grid without 'units'"),
        ({"seeds": 0}, ValueError, r"`seeds` must be a number of members from 1"),
        ({"exact": 3}, TypeError, r"`exact` must be True or False"),
        ({"path": 3}, TypeError, r"`path` must be a path"),
    ],
)
def test_a_wrong_study_is_refused(arguments, error, message, tmp_path):
    right = {"path": tmp_path / "a", "network": network, "grid": {"hidden": [2]}, "seeds": 4}
    with pytest.raises(error, match=message):
        kohort.Study(**{**right, **arguments})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (lambda hidden: None, {}, TypeError, r"`network` must return a compiled Keras model\. Received: network=None"),
        (
            uncompiled,
            {},
            ValueError,
            r"`network` must return a compiled .*, which is not compiled, for hidden=2\.",
        ),
        (subclassed, {}, ValueError, r"`model` must be a sequential or functional model"),
        (network, {"epochs": 0}, ValueError, r"`epochs` must be an integer of at least 1"),
        (network, {"verbose": 5}, ValueError, r"`verbose` must be 'auto', 0, 1 or 2"),
        (network, {"block_size": 0}, ValueError, r"`block_size` must be an integer of at least 1"),
        (network, {"x": X[:3]}, ValueError, r"`y` must have one row per sample of `x`"),
        (network, {"x": None}, TypeError, r"`x` must be an array of samples"),
        (network, {"sample_weight": np.ones((4, 4))}, ValueError, r"`sample_weight` must be of shape \(sample,\), the"),
        (network, {"callbacks": keras.callbacks.CSVLogger("a")}, ValueError, r"`callbacks` of a study must be Keras's"),
        (network, {"callbacks": 3}, TypeError, r"`callbacks` must "),
        (network, {"bootstrap": 3}, ValueError, r"`bootstrap` must be True or False"),
        (network, {"x": (each for each in [(X, Y)])}, TypeError, r"`x` must be dense arrays in memory"),
    ],
)
def test_a_wrong_run_is_refused_before_anything_is_made(function, arguments, error, message, tmp_path):
    study = kohort.Study(tmp_path / "a", function, {"hidden": [2]}, 4)
    with pytest.raises(error, match=message):
        study.run(**{"x": X, "y": Y, "epochs": 1, "verbose": 0, **arguments})
    assert not (tmp_path / "a").exists()


def test_other_arguments_data_and_networks_under_the_same_name(tmp_path):
    trained(tmp_path, {"hidden": [2]}, epochs=2)
    same = study_of(tmp_path, {"hidden": [2]})
    with pytest.raises(ValueError, match=r"`batch_size` must be None, with which the study was begun, .*batch_size=2,"):
        same.run(X, Y, epochs=2, batch_size=2, verbose=0)
    with pytest.raises(
        ValueError, match=r"`y` must be the data with which .* Received: other numbers, shapes or types"
    ):
        same.run(X, 1 - Y, epochs=2, verbose=0)
    with pytest.raises(ValueError, match=r"`x` must be the data with which the study was begun"):
        same.run(X.astype("float64"), Y, epochs=2, verbose=0)
    with pytest.raises(ValueError, match=r"`exact` must be False, with which the study was begun"):
        study_of(tmp_path, {"hidden": [2]}, exact=True).run(X, Y, epochs=2, verbose=0)
    callback = keras.callbacks.TerminateOnNaN()
    with pytest.raises(ValueError, match=r"`callbacks` must be \[\], with which the study was begun"):
        same.run(X, Y, epochs=2, verbose=0, callbacks=callback)

    def changed(hidden):
        return network(hidden, activation="tanh")

    other = kohort.Study(tmp_path / "a.kohort", changed, {"hidden": [2]}, 9)
    message = (
        r"`network` must return the model that it returned when the study was begun\. Received: for hidden=2 in "
        r"'.*' one that differs in model\.layers\.1\.activation \('tanh', and before 'relu'\)\. Begin another"
    )
    with pytest.raises(ValueError, match=message):
        other.run(X, Y, epochs=2, verbose=0)
    same.run(X, Y, epochs=2, verbose=0)
    assert [len(trial) for trial in same.trials] == [8]


def test_with_callbacks_members_do_not_go_on(tmp_path):
    stop = keras.callbacks.EarlyStopping("loss", patience=2)
    study = trained(tmp_path, {"hidden": [2]}, epochs=2, callbacks=stop)
    with pytest.raises(
        ValueError, match=r"`epochs` must be 2, which the members have reached, because callbacks would"
    ):
        study.run(X, Y, epochs=3, verbose=0, callbacks=stop)
    with pytest.raises(ValueError, match=r"`patience` must be|`callbacks` must be"):
        study.run(X, Y, epochs=2, verbose=0, callbacks=keras.callbacks.EarlyStopping("loss", patience=3))


def test_extend_comes_after_run(tmp_path):
    study = study_of(tmp_path, {"hidden": [2]})
    with pytest.raises(RuntimeError, match=r"`study\.extend` must come after `study\.run`"):
        study.extend(seeds=9)
    study.run(X, Y, verbose=0)
    with pytest.raises(ValueError, match=r"`grid` must name parameters that `network` takes"):
        study.extend(depth=[3])


def test_questions_that_have_no_answer(tmp_path):
    study = study_of(tmp_path, {"hidden": [2, 3]}, 2)
    assert "not begun" in study._repr_html_()
    study.run(X, Y, verbose=0)
    with pytest.raises(
        ValueError, match=r"`val_loss` must be a metric of the history: loss, mae\. Received: val_loss=1"
    ):
        study.table(val_loss=1)
    with pytest.raises(ValueError, match=r"`confidence` must be between 0 and 1"):
        study.table(loss=1, confidence=2)
    with pytest.raises(
        ValueError, match=r"`parameters` must be those of one trial of 2\. Received: hidden=9, which none"
    ):
        study.trial(hidden=9)
    with pytest.raises(ValueError, match=r"no parameters, which 2 have\. Trials like this: hidden=2; hidden=3"):
        kohort.open(study.path).trial()
    with pytest.raises(ValueError, match=r"`compare` must be given a metric as `by`"):
        study.compare({"hidden": 2}, {"hidden": 3}, by="loss", mae=1)
    with pytest.raises(
        ValueError, match=r"`by` must be a metric of the history of both .*loss, mae\. Received: by='auc'"
    ):
        study.compare({"hidden": 2}, {"hidden": 3}, by="auc")
    with pytest.raises(ValueError, match=r"`by` must be a metric of the history"):
        study.halve(X, Y, epochs=3, by="auc", verbose=0)
    with pytest.raises(ValueError, match=r"`callbacks` must be left out, because a fit that is cut into rungs"):
        study.halve(X, Y, epochs=3, callbacks=keras.callbacks.TerminateOnNaN())
    with pytest.raises(ValueError, match=r"`factor` must be an integer of at least 2"):
        study.halve(X, Y, epochs=3, factor=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"trials": [{"hidden": 2}]}, ValueError, r"`trials` must be left out, because members of all .*=\[{'hidden'"),
        (
            {"batchsize": 2},
            TypeError,
            r"`arguments` must be some of those of `run`: batch_size, .*: batchsize=2",
        ),
        ({"initial_epoch": 2}, TypeError, r"`arguments` must be some of those of `run`: .* Received: initial_epoch=2"),
        ({"bootstrap": 3}, ValueError, r"`bootstrap` must be True or False"),
    ],
)
def test_a_wrong_halving_is_refused_before_anything_is_made(arguments, error, message, tmp_path):
    study = study_of(tmp_path, {"hidden": [2]}, 4)
    with refused(error, message):
        study.halve(X, Y, epochs=3, verbose=0, **arguments)
    assert not (tmp_path / "a.kohort").exists()


def test_members_do_not_end_before_an_epoch_that_others_have_reached(tmp_path):
    study = trained(tmp_path, {"hidden": [2]}, 4, epochs=5)
    study.run(X, Y, epochs=3, verbose=0)  # nothing is to be trained
    message = r"`epochs` must be at least 5, .* Received: epochs=3, where members are to be trained\. Pass epochs=5, or"
    for longer in ({"hidden": [3]}, {"seeds": 5}):
        with refused(ValueError, message):
            study.extend(**longer)
    with refused(ValueError, message):
        study_of(tmp_path, {"hidden": [3]}, 4).halve(X, Y, epochs=3, rungs=2, verbose=0)
    study_of(tmp_path, {"hidden": [3]}, 4).halve(X, Y, epochs=9, rungs=2, verbose=0)
    assert [len(trial.history.epoch) for trial in kohort.open(study.path).trials] == [5, 9]  # and no trial without any


def test_a_network_function_that_fails_says_for_which_trial(tmp_path):
    study = study_of(tmp_path, {"hidden": [2], "activation": ["relu", "nonsense"]}, 4)
    with pytest.raises(ValueError, match=r"nonsense") as caught:
        study.run(X, Y, verbose=0)
    assert caught.value.__notes__ == ["`network` raised this for hidden=2, activation='nonsense'."]
    assert not (tmp_path / "a.kohort").exists()


def test_a_study_that_was_not_run_says_so(tmp_path):
    study = study_of(tmp_path, {"hidden": [2]}, 4)
    for ask in (study.table, study.trial, study.to_pandas, lambda: study.trials, lambda: study.compare({}, {})):
        with refused(
            RuntimeError, r"`study` must be run before it is asked\. Received: a study at '.*' that is not begun"
        ):
            ask()
    assert repr(study).endswith("not begun)")


def test_a_study_that_is_opened_to_be_read_is_not_trained(tmp_path):
    trained(tmp_path, {"hidden": [2]}, 4, epochs=1)
    study = kohort.open(tmp_path / "a.kohort")
    for name in ("run", "extend", "halve"):
        with refused(
            AttributeError, rf"`study` must be made with the function .*: `study\.{name}` of one that was opened"
        ):
            getattr(study, name)
    with pytest.raises(AttributeError, match=r"^'StoredStudy' object has no attribute 'tables'$"):
        _ = study.tables


def test_two_runs_of_one_study(tmp_path):
    study = study_of(tmp_path, {"hidden": [2]}, 4)

    def nested(lanes, train, interrupt, workers):
        with pytest.raises(BlockingIOError, match=r"`path` must be a study that nobody else is training"):
            study_of(tmp_path, {"hidden": [2]}, 4).run(X, Y, verbose=0)
        assert sum(map(len, kohort.open(tmp_path / "a.kohort").trials)) == 0  # and it can be read meanwhile
        return executors.in_threads(lanes, train, interrupt, workers)

    study.run(X, Y, verbose=0, executor=nested)
    assert len(study.trial()) == 4


def test_two_processes_on_one_study(tmp_path):
    """One trains a block for each line that it is told; another is refused meanwhile, reads, and trains the rest."""
    path, block = tmp_path / "a.kohort", killed_study.BLOCK
    first = driver("waiting", path)
    try:
        assert first.stdout.readline() == "0/72 members - 0s\n"
        for blocks in (1, 2):
            print(file=first.stdin, flush=True)
            assert select.select([first.stdout], [], [], 120)[0], "nothing is said of the block"
            assert first.stdout.readline().startswith(f"{blocks * block}/72 members - hidden=2: {block} more")
            trials = kohort.open(path).trials
            assert [len(trial) for trial in trials] == [blocks * block, 0, 0]
            assert np.isfinite(trials[0].history["loss"]).all()
            with refused(BlockingIOError, rf"nobody else is training\. .* which process {first.pid} on .* is training"):
                killed_study.run(killed_study.study_at(path))
        print("\n" * 3, file=first.stdin, flush=True)  # four lines: it writes on while it is read
        read = 2 * block
        deadline = time.monotonic() + 120
        while read < 6 * block:
            assert first.poll() is None
            assert time.monotonic() < deadline
            before = kohort.open(path).trials
            there = sum(len(trial.history["loss"]) for trial in before if len(trial))
            assert there in range(read, 6 * block + 1, block)
            read = there
    finally:
        first.kill()
        first.wait(60)
        first.stdin.close()
        first.stdout.close()
    before = kohort.open(path).trials[0].history["loss"]
    killed_study.run(killed_study.study_at(path))
    assert [len(trial) for trial in kohort.open(path).trials] == [24, 24, 24]
    np.testing.assert_array_equal(kohort.open(path).trials[0].history["loss"], before)


@pytest.mark.parametrize("frozen_before", [False, True])
def test_the_garbage_collector_is_left_as_it_was(tmp_path, monkeypatch, frozen_before):
    """While models are built it looks at nothing older, unless somebody saw to that before; also after an error."""
    calls, frozen = [], [int(frozen_before)]
    monkeypatch.setattr(gc, "get_freeze_count", lambda: frozen[0])
    monkeypatch.setattr(gc, "freeze", lambda: (calls.append("freeze"), frozen.__setitem__(0, 1)))
    monkeypatch.setattr(gc, "unfreeze", lambda: (calls.append("unfreeze"), frozen.__setitem__(0, 0)))

    def failing(hidden):
        calls.append("network")
        raise RuntimeError("not today")

    study = kohort.Study(tmp_path / "a", failing, {"hidden": [2]}, 2)
    with pytest.raises(RuntimeError, match="not today"):
        study.run(X, Y, verbose=0)
    assert calls == (["network"] if frozen_before else ["freeze", "network", "unfreeze"])
