"""Trials that are drawn, spread, or asked of Optuna; and studies in the forms of other tools."""

import importlib.util
from collections import Counter

import jaxtyping
import keras
import numpy as np
import pytest
from keras import layers
from refusals import refused
from scipy.stats import kstest, loguniform, randint, uniform

import kohort
from kohort import blocks, executors, exports
from kohort.search import _at, _value

X, Y = kohort.data.xor()
SPACE = {"hidden": [2, 4, 8], "rate": loguniform(1e-4, 1e-1)}


@pytest.fixture(autouse=True)
def annotations_unchecked():
    """Turns the checks of kohort's annotations off: whoever uses kohort has none, and must be told by kohort itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def network(rate=1e-2, hidden=2):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(hidden, "tanh"), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [kohort.search.random, kohort.search.sobol])
def test_draws_are_of_the_space(draw):
    drawn = draw(SPACE, 256, seed=3)

    assert len(drawn) == 256
    assert drawn == draw(SPACE, 256, seed=3)
    assert drawn != draw(SPACE, 256, seed=4)
    assert {type(each["rate"]) for each in drawn} == {float}
    assert kstest([each["rate"] for each in drawn], SPACE["rate"].cdf).pvalue > 0.01
    counts = np.unique([each["hidden"] for each in drawn], return_counts=True)
    assert counts[0].tolist() == [2, 4, 8]
    assert counts[1].min() > 60


def test_what_is_spread_leaves_no_gaps():
    space = {"a": uniform(0, 1), "b": uniform(0, 1)}
    cells = [{(int(8 * t["a"]), int(8 * t["b"])) for t in draw(space, 64)} for draw in SPREAD]

    assert len(cells[0]) == 64  # one in each of 64 cells
    assert len(cells[1]) < 60


SPREAD = (kohort.search.sobol, kohort.search.random)


def test_lists_alone_are_drawn_without_repeats():
    assert sorted(t["a"] for t in kohort.search.random({"a": [1, 2, 3]}, 10)) == [1, 2, 3]
    assert len(kohort.search.sobol({"a": [1, 2, 3]}, 5)) == 5
    assert {type(t["n"]) for t in kohort.search.random({"n": randint(2, 9)}, 5)} == {int}


def test_a_study_of_draws_shares_a_program(tmp_path, monkeypatch):
    lanes = []
    in_threads = executors.in_threads
    monkeypatch.setattr(executors, "in_threads", lambda *args: lanes.append(args[0]) or in_threads(*args))
    drawn = kohort.search.sobol({"rate": loguniform(1e-3, 1e-1)}, 8)
    study = kohort.Study(tmp_path / "a", network, drawn, 2)
    study.run(X, Y, epochs=2, verbose=0)

    assert [len(lane) for lane in lanes[0]] == [1]
    assert study.table()["network.rate"].tolist() == [each["rate"] for each in drawn]
    assert study.table()["seeds"].tolist() == [2] * 8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (({}, 3), TypeError, r"`space` must map each parameter to a list of choices, or to a distribution"),
        (([1], 3), TypeError, r"`space` must map each parameter .* Received: space=\[1\]"),
        (({"a": []}, 3), TypeError, r"`space` must map each parameter"),
        (({"a": 3}, 3), TypeError, r"`space` must map each parameter"),
        ((SPACE, 0), ValueError, r"`trials` must be an integer of at least 1"),
        ((SPACE, 2.5), ValueError, r"`trials` must be an integer of at least 1"),
        ((SPACE, 2, -1), ValueError, r"`seed` must be an integer of at least 0"),
    ],
)
@pytest.mark.parametrize("draw", [kohort.search.random, kohort.search.sobol])
def test_wrong_spaces_are_refused(draw, arguments, error, message):
    with pytest.raises(error, match=message):
        draw(*arguments)


# --- Optuna -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def optuna():
    module = pytest.importorskip("optuna")
    module.logging.set_verbosity(module.logging.WARNING)
    return module


def searched(optuna, path, own, trials, **options):
    rate = {"rate": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)}
    arguments = {"epochs": 5, "verbose": 0, "seeds": 3, "batch": 4, **options}
    return kohort.search.optuna(own, path, network, rate, X, Y, trials=trials, **arguments)


def test_optuna_is_asked_and_told_in_batches(optuna, tmp_path, monkeypatch):
    tasks, in_threads = [], executors.in_threads

    def counting(lanes, *args):
        tasks.extend(task for lane in lanes for task in lane)
        return in_threads(lanes, *args)

    monkeypatch.setattr(executors, "in_threads", counting)
    own = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study = searched(optuna, tmp_path / "a", own, 10)

    assert [len(task.members) for task in tasks] == [12, 12, 6]
    assert len({id(task.group.model) for task in tasks}) == 1  # one program for all batches
    table = study.table()
    assert [trial.params["rate"] for trial in own.trials] == table["network.rate"].tolist()
    np.testing.assert_array_equal([trial.value for trial in own.trials], table["loss"])
    assert own.best_params["rate"] == table["network.rate"][table["loss"].argmin()]

    tasks.clear()
    again = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    more = searched(optuna, tmp_path / "a", again, 12)  # goes on, in an Optuna study that knows nothing yet
    assert [len(task.members) for task in tasks] == [6]
    assert len(more.trials) == len(again.trials) == 12
    assert [trial.value for trial in again.trials[:10]] == [trial.value for trial in own.trials]
    tasks.clear()
    searched(optuna, tmp_path / "a", again, 12)
    assert (tasks, len(again.trials)) == ([], 12)


def test_a_trial_that_is_asked_for_again_counts_and_is_not_trained_again(optuna, tmp_path):
    few = {"hidden": optuna.distributions.CategoricalDistribution([2, 3])}
    own = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(2):
        study = kohort.search.optuna(own, tmp_path / "a", network, few, X, Y, trials=8, batch=3, epochs=2, verbose=0)
        assert states(own) == {"COMPLETE": 8}
    assert sorted(trial.parameters["hidden"] for trial in study.trials) == [2, 3]
    assert {trial.value for trial in own.trials} == set(study.table()["loss"].tolist())


def test_a_trial_that_diverges_has_failed(optuna, tmp_path):
    rate = {"rate": optuna.distributions.FloatDistribution(1e30, 1e31)}
    own = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    kohort.search.optuna(own, tmp_path / "a", network, rate, X, Y, trials=2, seeds=2, epochs=5, verbose=0)

    assert [trial.state.name for trial in own.trials] == ["FAIL", "FAIL"]


def pressed(lanes, train, interrupt, workers):
    """Ctrl-C is pressed when one task is trained."""
    yield train(lanes[0][0])
    raise KeyboardInterrupt


def states(search):
    return Counter(trial.state.name for trial in search.trials)


@pytest.mark.parametrize("block_size", [3, 1])
def test_an_interrupted_search_goes_on(optuna, tmp_path, block_size):
    """Nothing is left running: what is trained is told, also of a trial of which the rest was missing."""
    own = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    with pytest.raises(KeyboardInterrupt):
        searched(optuna, tmp_path / "a", own, 4, block_size=block_size, executor=pressed)
    assert states(own) == ({"COMPLETE": 1, "FAIL": 3} if block_size == 3 else {"FAIL": 4})
    study = searched(optuna, tmp_path / "a", own, 4, block_size=block_size)

    assert states(own) == {"COMPLETE": 4, "FAIL": 3 if block_size == 3 else 4}
    table = study.table()
    assert table["seeds"].tolist() == [3] * 4
    complete = {trial.params["rate"]: trial.value for trial in own.trials if trial.state.name == "COMPLETE"}
    assert complete == dict(zip(table["network.rate"].tolist(), table["loss"].tolist(), strict=True))


def test_a_search_that_was_killed_is_told_what_is_trained(optuna, tmp_path):
    """Its trials are still running, as those of another process may be, which are left alone."""
    rate = {"rate": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)}
    own = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    asked = [own.ask(rate) for _ in range(2)]
    kohort.Study(tmp_path / "a", network, [asked[0].params], 3).run(X, Y, epochs=5, verbose=0)
    study = searched(optuna, tmp_path / "a", own, 1)

    assert [trial.state.name for trial in own.trials] == ["COMPLETE", "RUNNING"]
    assert own.trials[0].value == study.table()["loss"][0]


def test_a_batch_that_fails_is_not_left_running(optuna, tmp_path):
    own = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    with pytest.raises(ValueError, match=r"`by` must be a metric"):
        searched(optuna, tmp_path / "a", own, 2, by="auc")
    assert states(own) == {"FAIL": 2}
    searched(optuna, tmp_path / "a", own, 2)
    assert states(own) == {"FAIL": 2, "COMPLETE": 2}


def test_a_batch_that_is_interrupted_while_it_is_asked_for_is_not_left_running(optuna, tmp_path):
    class Pressed(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, *arguments):
            if trial.number == 2:
                raise KeyboardInterrupt
            return super().sample_independent(study, trial, *arguments)

    own = optuna.create_study(sampler=Pressed(seed=1))
    with pytest.raises(KeyboardInterrupt):
        searched(optuna, tmp_path / "a", own, 4)
    assert states(own) == {"FAIL": 2, "RUNNING": 1}  # the last is Optuna's, which had not given it to anybody


def test_wrong_searches_are_refused(optuna, tmp_path):
    with pytest.raises(TypeError, match=r"`search` must be an `optuna\.Study`\. Received: search=3"):
        searched(optuna, tmp_path / "a", 3, 1)
    own = optuna.create_study()
    with pytest.raises(ValueError, match=r"`batch` must be an integer of at least 1"):
        searched(optuna, tmp_path / "a", own, 1, batch=0)
    with pytest.raises(
        ValueError, match=r"`by` must be a metric of which less is better, .*: loss\. Received: by='auc'"
    ):
        searched(optuna, tmp_path / "a", own, 1, by="auc")
    with refused(ValueError, r"`search` must go in one direction, .* Received: a search of 2 directions\. Make"):
        searched(optuna, tmp_path / "a", optuna.create_study(directions=["minimize"] * 2), 1)
    for distributions in ({"rate": [0.1, 0.2]}, {}, [0.1]):
        with refused(
            TypeError, r"`distributions` must map each parameter to a distribution of `optuna\.distributions`"
        ):
            kohort.search.optuna(own, tmp_path / "b", network, distributions, X, Y, trials=1)
    upward = optuna.create_study(direction="maximize")
    with refused(
        ValueError, r"`by` must be a metric of which more is better, as the search goes\. Received: by='loss'"
    ):
        searched(optuna, tmp_path / "b", upward, 1)
    with refused(
        ValueError, r"`by` must be a metric that is recorded\. Received: by='val_loss', where nothing validates"
    ):
        searched(optuna, tmp_path / "b", own, 1, by="val_loss")
    assert not (tmp_path / "b").exists()  # before anything is trained


# --- other tools ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    made = kohort.Study(tmp_path_factory.mktemp("exports") / "a", network, {"hidden": [2, 3], "rate": [0.1]}, [3, 7])
    made.run(X, Y, epochs=4, verbose=0)
    made.run(X, Y, epochs=4, verbose=0, trials=[{"hidden": 2, "rate": 0.1}])
    return made


def test_a_row_for_each_member(study):
    table = study.to_pandas()

    assert list(table) == ["trial", "hidden", "rate", "seed", "epochs", "outcome", "loss"]
    assert table["seed"].tolist() == [3, 7, 3, 7]
    assert table["hidden"].tolist() == [2, 2, 3, 3]
    assert set(table["outcome"]) == {"COMPLETED"}
    assert table["epochs"].tolist() == [4] * 4
    np.testing.assert_array_equal(table["loss"][2:], study.trial(hidden=3).history.last("loss"))


def test_curves_with_named_axes(study, tmp_path):
    arrays = study.to_xarray()

    assert dict(arrays.sizes) == {"trial": 2, "member": 2, "epoch": 4}
    assert arrays.hidden.values.tolist() == [2, 3]
    np.testing.assert_array_equal(arrays.loss.isel(trial=1), study.trial(hidden=3).history["loss"])
    assert (arrays.outcome == "COMPLETED").all()


def test_files_of_other_tools(study, tmp_path):
    for package in ("h5netcdf", "pyarrow"):
        pytest.importorskip(package)
    import pandas
    import xarray

    study.to_netcdf(tmp_path / "a.nc")
    study.to_parquet(tmp_path / "a.parquet")
    with xarray.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as read:
        xarray.testing.assert_identical(read.load(), study.to_xarray())
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "a.parquet"), study.to_pandas())
    with pytest.raises(FileNotFoundError, match=r"`path` must be in a folder that exists"):
        study.to_parquet(tmp_path / "no" / "a.parquet")


MIXED = [2, [4, 3]], ["relu", True, None, 0.5], [[4, 3], [4.5]], [[1, "a"], [2]], [None, None], [3, None]


@pytest.mark.parametrize("values", MIXED, ids=str)
def test_values_of_several_kinds_are_texts_in_parquet(values, tmp_path):
    """A column there is of one kind."""
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")

    def any_network(value):
        return network()

    study = kohort.Study(tmp_path / "a", any_network, {"value": values}, 1)
    study.run(X, Y, verbose=0)
    study.to_parquet(tmp_path / "a.parquet")
    written = pandas.read_parquet(tmp_path / "a.parquet")["value"]
    is_mixed = values in MIXED[:2] + MIXED[3:4]
    for value, read in zip(study.to_pandas()["value"], written, strict=True):
        if value is None:
            assert pandas.isna(read)
        else:
            assert read == str(value) if is_mixed else np.array_equal(read, value)


def test_curves_of_all_trials_take_no_more_memory_than_is_in_proportion(tmp_path, monkeypatch):
    """One trial has many epochs, another many members: no array is made for all of them in both."""
    kohort.Study(tmp_path / "a", network, {"hidden": [3]}, 200).run(X, Y, epochs=1, verbose=0)
    ragged = kohort.Study(tmp_path / "a", network, {"hidden": [2]}, 2)
    ragged.run(X, Y, epochs=200, verbose=0)
    assert ragged.to_xarray().loss.shape == (2, 200, 200)
    monkeypatch.setattr(blocks, "MOST_ROOM_BYTES", 0)
    monkeypatch.setattr(blocks, "MOST_ROOM_TIMES", 64)
    with pytest.raises(ValueError, match=r"2 x 200 x 200 trials, members and epochs of 320,000 bytes, of .* 2,400 "):
        ragged.to_xarray()


def half_written(self, path, **options):
    """Writes a half, and is killed."""
    with open(path, "w") as file:
        file.write("half")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("way", "patched"),
    [("to_csv", "pandas.DataFrame.to_csv"), ("to_parquet", "pandas.DataFrame.to_parquet"),
     ("to_netcdf", "xarray.Dataset.to_netcdf")],
)  # fmt: skip
def test_whoever_is_interrupted_while_a_file_is_written_keeps_the_old_one(way, patched, study, tmp_path, monkeypatch):
    pytest.importorskip("h5netcdf")
    pytest.importorskip("pyarrow")
    (path := tmp_path / "a").write_text("old")
    monkeypatch.setattr(patched, half_written)
    with pytest.raises(KeyboardInterrupt):
        getattr(study, way)(path)

    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


def test_a_csv_is_compressed_as_its_name_says(study, tmp_path):
    pandas = pytest.importorskip("pandas")
    study.to_csv(tmp_path / "a.csv.gz")

    assert (tmp_path / "a.csv.gz").read_bytes().startswith(b"\x1f\x8b")
    pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "a.csv.gz"), study.to_pandas(), check_dtype=False)


def test_tools_that_are_not_there_are_named(study, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for act in (study.to_pandas, study.to_xarray, lambda: study.to_netcdf(tmp_path / "a"), study.table().to_pandas):
        with pytest.raises(ImportError, match=r"must find the package \w+\. .* Install it: `python -m pip install"):
            act()
    with pytest.raises(ImportError, match=r"'kohort\[pyarrow\]'"):
        study.to_parquet(tmp_path / "a")
    with pytest.raises(ImportError, match=r"'kohort\[optuna\]'"):
        kohort.search.optuna(None, tmp_path, network, {}, X)


def test_studies_of_nothing(tmp_path):
    assert exports.members_table([]).empty
    assert exports.dataset([]).sizes["trial"] == 0


def test_points_of_distributions_of_integers_are_integers():
    spread = kohort.search.sobol({"hidden": randint(2, 6), "rate": uniform(0, 1)}, 8)
    assert [type(trial["hidden"]) for trial in spread] == [int] * 8
    assert sorted(trial["hidden"] for trial in spread) == [2, 2, 3, 3, 4, 4, 5, 5]
    assert _at(randint(2, 6), 0.0) == 2


def test_a_search_goes_on_with_more_epochs_of_all_trials(optuna, tmp_path):
    def sampled(seed):
        return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))

    searched(optuna, tmp_path / "a", sampled(1), 3, epochs=2)
    own = sampled(2)
    study = searched(optuna, tmp_path / "a", own, 5, epochs=4)
    assert [len(trial.history.epoch) for trial in study.trials] == [4] * 5
    assert sorted(each.value for each in own.trials) == sorted(_value(own, trial, "loss") for trial in study.trials)


def test_a_search_cannot_go_on_where_what_was_trained_does_not_lie(optuna, tmp_path):
    searched(optuna, tmp_path / "a", optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)), 3)
    narrow = {"rate": optuna.distributions.FloatDistribution(1.0, 2.0)}
    with refused(ValueError, r"`distributions` must hold the values of all trials .* a trial with rate=0\.\d+\. Widen"):
        kohort.search.optuna(optuna.create_study(), tmp_path / "a", network, narrow, X, Y, trials=4, verbose=0)
