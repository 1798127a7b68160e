"""Studies: the same members as cohorts give, kept, resumed and counted; and what is wrong is said."""

import itertools
import os
import re
import signal
from collections import Counter

import keras
import numpy as np
import pytest
from keras import layers
from keras.src.backend.common import global_state
from oracle import differences

import kohort
from kohort import executors, plans, rounds
from kohort.history import CohortHistory
from kohort.lots import Lot

X, Y = kohort.data.xor()
MOONS = kohort.data.moons(40)


pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def network(hidden=2, activation="relu", learning_rate=1e-2, dropout=0.0):
    stack = [keras.Input((2,)), layers.Dense(hidden, activation)]
    stack += [layers.Dropout(dropout)] if dropout else []
    model = keras.Sequential([*stack, layers.Dense(1)])
    model.compile(keras.optimizers.RMSprop(learning_rate), "mse", metrics=["mae"])
    return model


def study_of(folder, grid, seeds=8, **options):
    return kohort.Study(folder / "a.kohort", network, grid, seeds, **options)


def trained(folder, grid, seeds=8, epochs=20, **options):
    study = study_of(folder, grid, seeds, exact=options.pop("exact", False))
    study.run(X, Y, epochs=epochs, verbose=0, **options)
    return study


def left(cohort):
    """All that a fit leaves in a cohort."""
    members, made = cohort._members, cohort._members.trained
    history = [dict(made.history), made.history.epoch, made.history.stopped_epoch.tolist()]
    return [cohort.seeds, list(members.join(made.states)), made.generators.states, *history]


def as_lists(structure):
    """Arrays of JAX and of NumPy are compared alike."""
    if isinstance(structure, list | tuple):
        return [as_lists(part) for part in structure]
    return np.asarray(structure) if hasattr(structure, "__array__") else structure


@pytest.fixture
def ctrl_c():
    """Lets Ctrl-C be heard as on a terminal, wherever the tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def tasks(monkeypatch):
    """What is trained: (parameters' places, seeds, first epoch) of each task."""
    done = []

    in_threads = executors.in_threads

    def counting(lanes, train, interrupt, workers):
        done.extend(task for lane in lanes for task in lane)
        return in_threads(lanes, train, interrupt, workers)

    monkeypatch.setattr(executors, "in_threads", counting)
    return done


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
def test_a_trial_is_the_cohort_of_its_model(exact, tmp_path):
    """States, generators and history to the bit, however the members were cut into blocks."""
    study = trained(tmp_path, {"hidden": [2, 3]}, 20, epochs=7, exact=exact, batch_size=3, block_size=8)
    for hidden in (2, 3):
        cohort = kohort.Cohort(network(hidden), 20, exact=exact)
        cohort.fit(X, Y, epochs=7, batch_size=3, verbose=0)

        assert differences(as_lists(left(study.trial(hidden=hidden).cohort())), as_lists(left(cohort))) == []
    assert [len(trial._blocks) for trial in study.trials] == [3, 3]


@pytest.mark.many
@pytest.mark.parametrize("exact", [False, True])
def test_trials_that_differ_in_numbers_share_a_program_and_differ_as_they_should(exact, tmp_path, tasks):
    grid = {"learning_rate": [1e-3, 1e-2], "dropout": [0.2, 0.6]}
    study = trained(tmp_path, grid, 8, epochs=6, exact=exact)

    assert len(tasks) == 1
    for rate, dropout in itertools.product(*grid.values()):
        cohort = kohort.Cohort(network(learning_rate=rate, dropout=dropout), 8, exact=exact)
        cohort.fit(X, Y, epochs=6, verbose=0)
        own = study.trial(learning_rate=rate, dropout=dropout).cohort()
        if exact:
            assert differences(as_lists(left(own)), as_lists(left(cohort))) == []
        for ours, theirs in zip(left(own)[1], left(cohort)[1], strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5)
        model = own.member(3)
        assert model.optimizer.get_config()["learning_rate"] == pytest.approx(rate)
        assert next(layer.rate for layer in model.layers if isinstance(layer, layers.Dropout)) == dropout


def test_trials_of_other_shapes_or_without_dropout_have_programs_of_their_own(tmp_path, tasks):
    trained(tmp_path, {"hidden": [2, 3], "dropout": [0.0, 0.5], "learning_rate": [1e-3, 1e-2]}, 2, epochs=1)

    assert Counter(len(task.group.trials) for task in tasks) == {2: 4}


def test_what_is_continued_is_what_is_trained_at_once(tmp_path, tasks):
    grid = {"learning_rate": [1e-3, 1e-2]}
    (tmp_path / "b").mkdir()
    at_once = trained(tmp_path / "b", grid, 6, epochs=9, batch_size=3)
    trained(tmp_path, grid, 6, epochs=4, batch_size=3)
    study = study_of(tmp_path, grid, 6)  # in another process
    study.run(X, Y, epochs=9, batch_size=3, verbose=0)

    assert [task.first_epoch for task in tasks] == [0, 0, 4]
    for ours, theirs in zip(study.trials, at_once.trials, strict=True):
        assert differences(as_lists(left(ours.cohort())), as_lists(left(theirs.cohort()))) == []


def test_a_cohort_from_a_study_goes_on(tmp_path):
    study = trained(tmp_path, {"hidden": [3]}, 5, epochs=4, batch_size=3)
    whole = kohort.Cohort(network(3), 5)
    whole.fit(X, Y, epochs=4, batch_size=3, verbose=0)
    cohort = study.trial().cohort()

    for each in (whole, cohort):
        each.fit(X, Y, epochs=8, initial_epoch=4, batch_size=3, verbose=0)
    assert differences(as_lists(left(cohort)), as_lists(left(whole))) == []
    assert isinstance(cohort.best(), keras.Model)


def test_callbacks_act_on_each_member(tmp_path):
    stop = keras.callbacks.EarlyStopping("loss", patience=2, min_delta=0.02)
    study = trained(tmp_path, {"hidden": [2]}, 12, epochs=30, callbacks=[stop])
    cohort = kohort.Cohort(network(2), 12)
    cohort.fit(X, Y, epochs=30, callbacks=[stop], verbose=0)

    history = study.trial().history
    assert differences(dict(history), dict(cohort.history)) == []
    assert history.stopped_epoch.tolist() == cohort.history.stopped_epoch.tolist()
    assert {outcome.name for outcome in history.outcome} >= {"STOPPED_EARLY"}


def test_generators_and_names_are_left_as_they_were(tmp_path):
    keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    before = np.random.get_state(), dict(global_state.get_global_attribute("object_name_uids"))
    trained(tmp_path, {"hidden": [2]}, 2, epochs=1)
    after = np.random.get_state(), dict(global_state.get_global_attribute("object_name_uids"))

    assert differences(before, after) == []


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_table_is_what_the_cohorts_say(tmp_path):
    study = trained(tmp_path, {"hidden": [2, 6]}, 30, epochs=400)
    table = study.table(loss=0.01)

    assert list(table) == ["hidden", "seeds", "solved", "rate", "low", "high", "median_epoch", "seconds"]
    for i, hidden in enumerate((2, 6)):
        cohort = study.trial(hidden=hidden).cohort()
        rate, first = cohort.success_rate(loss=0.01), cohort.survival(loss=0.01).first
        assert [table[name][i] for name in ("solved", "rate", "low", "high")] == [
            rate.k,
            rate.rate,
            rate.low,
            rate.high,
        ]
        assert table["median_epoch"][i] == np.nanmedian(first)
        assert study.trial(hidden=hidden).success_rate(loss=0.01) == rate
        np.testing.assert_array_equal(study.trial(hidden=hidden).survival(loss=0.01).first, first)
    assert (table["seconds"] > 0).all()
    by_hand = study.trial(hidden=6).cohort().compare(study.trial(hidden=2).cohort(), loss=0.01)
    assert study.compare({"hidden": 6}, study.trial(hidden=2), loss=0.01) == by_hand
    assert study.compare({"hidden": 6}, {"hidden": 2}, by="mae").what == "median of last mae"
    quick = study.table(lambda history: (history["loss"] < 0.01).any(axis=1), confidence=0.9)
    assert quick["median_epoch"].tolist() == pytest.approx([np.nan, np.nan], nan_ok=True)
    assert (quick["solved"] >= table["solved"]).all()
    assert list(study.table()) == ["hidden", "seeds", "epochs", "loss", "seconds"]
    assert study.table()["epochs"].tolist() == [400, 400]


def test_how_a_table_shows_itself(tmp_path):
    study = trained(tmp_path, {"hidden": [2], "activation": ["relu", "tanh"], "dropout": [0.5]}, 4, epochs=2)
    table = study.table(loss=0.01)

    lines = str(table).splitlines()
    assert lines[0].split() == ["hidden", "activation", "dropout", *list(table)[3:]]
    assert lines[1].split()[:6] == ["2", "relu", "0.5", "4", "0", "0"]
    assert len({len(line) for line in lines}) == 1
    assert table.parameters == ["hidden", "activation", "dropout"]
    assert table.to_pandas()["activation"].tolist() == ["relu", "tanh"]
    assert table.rows[0]["activation"] == "relu"
    assert "<td>tanh</td>" in table._repr_html_()
    shown = study._repr_html_()
    assert re.search(r"<strong>Study\(.*, 2 trials, 8 members\)</strong><table>", shown)
    assert shown.count("<tr>") == 3
    with pytest.raises(KeyError, match=r"`column` must be one of 'hidden', .*Received: column='depth'"):
        table["depth"]


def test_what_a_stranger_wrote_is_escaped(tmp_path):
    study = trained(tmp_path, [{"activation": "relu"}], 2, epochs=1)
    table = study.table()
    table.columns["activation"] = np.array(["<script>"])

    assert "<script>" not in table._repr_html_()
    assert "&lt;script&gt;" in table._repr_html_()


# --- what is there is not trained again -------------------------------------------------------------------------------


def test_a_finished_study_trains_nothing(tmp_path, tasks):
    grid = {"hidden": [2, 3]}
    trained(tmp_path, grid)
    before = study_of(tmp_path, grid).table()
    tasks.clear()
    study = study_of(tmp_path, grid)
    study.run(X, Y, epochs=20, verbose=0)
    study.run(X, Y, epochs=10, verbose=0)  # they are beyond it

    assert tasks == []
    assert study.table().rows == before.rows


def test_what_is_missing_is_trained(tmp_path, tasks):
    study = trained(tmp_path, {"hidden": [2]}, [3, 5])
    first = study.trial().history
    tasks.clear()
    study.extend(seeds=[4, 5], verbose=0)
    study.extend(hidden=[3, 2], verbose=0)
    study.extend(activation=["tanh"], verbose=0)

    assert [task.members for task in tasks] == [((0, 4),), ((0, 3), (0, 5), (0, 4)), *[((0, 3), (0, 5), (0, 4))] * 2]
    assert [trial.parameters for trial in study.trials] == [
        {"hidden": 2}, {"hidden": 3}, {"hidden": 2, "activation": "tanh"}, {"hidden": 3, "activation": "tanh"},
    ]  # fmt: skip
    assert study.trials[0].seeds == (3, 4, 5)
    np.testing.assert_array_equal(study.trials[0].history["loss"][[0, 2]], first["loss"])


def test_trials_may_be_listed(tmp_path, tasks):
    study = trained(tmp_path, [{"hidden": 2}, {"activation": "tanh", "hidden": 3}, {"hidden": 2}], 2)

    assert [trial.parameters for trial in study.trials] == [{"hidden": 2}, {"activation": "tanh", "hidden": 3}]
    table = study.table()
    assert table["activation"].tolist() == [None, "tanh"]
    assert study.trial(activation="tanh").parameters["hidden"] == 3
    with pytest.raises(ValueError, match=r"`extend` must be given more seeds only where the trials are a list"):
        study.extend(hidden=[9])
    study.extend(seeds=3, verbose=0)
    assert [len(trial) for trial in study.trials] == [3, 3]


def test_progress_is_shown(tmp_path, capsys):
    study = study_of(tmp_path, {"hidden": [2, 3]}, 2)
    study.run(X, Y, epochs=1, verbose=2)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(re.sub(r"[\d.]+ s$", "t", line.split(" - ")[1]) for line in lines[1:]) == [
        "hidden=2: 2 more, t", "hidden=3: 2 more, t",
    ]  # fmt: skip
    assert [line.split(" - ")[0] for line in lines] == ["0/4 members", "2/4 members", "4/4 members"]
    study.extend(seeds=4, verbose=1)
    assert "4/4" in capsys.readouterr().out
    study.extend(seeds=5, verbose=0)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_a_bar_counts_members(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kohort.runs.shows_bars", lambda: True)
    study_of(tmp_path, {"hidden": [2, 3]}, 2).run(X, Y, epochs=1)
    written = re.sub("\x1b.*?m", "", capsys.readouterr().out)
    assert re.findall(r"\r(\d+/\d+) \S+ \d+s \d+\w+/member", written) == ["0/4", "2/4", "4/4"]


def test_ctrl_c_keeps_what_is_finished(tmp_path, tasks, ctrl_c):
    def pressed(lanes, train, interrupt, workers):
        results = executors.in_threads(lanes, train, interrupt, 1)
        yield next(results)
        os.kill(os.getpid(), signal.SIGINT)
        yield from results

    study = study_of(tmp_path, {"hidden": [2, 3, 4, 5]}, 8)
    with pytest.raises(KeyboardInterrupt):
        study.run(X, Y, epochs=3, verbose=0, executor=pressed)
    there = len(study.trials[0]), sum(map(len, study.trials))
    assert there[0] == 8
    assert there[1] < 32
    tasks.clear()
    study.run(X, Y, epochs=3, verbose=0)

    assert sum(len(task.members) for task in tasks) == 32 - there[1]
    assert [len(trial) for trial in study.trials] == [8] * 4


def test_ctrl_c_ends_what_is_running_at_its_next_epoch(tmp_path, ctrl_c, monkeypatch):
    """It is pressed when the first round is over; of a million epochs, which would take minutes, few more are run."""
    study, a_round = study_of(tmp_path, {"hidden": [2]}, 8), rounds.Rounds._round
    done = []

    def pressing(self, trained, epochs, *args):
        done.append(epochs)
        further = a_round(self, trained, epochs, *args)
        if len(done) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return further

    monkeypatch.setattr(rounds.Rounds, "_round", pressing)
    with pytest.raises(KeyboardInterrupt):
        study.run(X, Y, epochs=10**6, verbose=0)

    assert len(done) < 5
    assert sum(map(len, study.trials)) == 0


def test_who_has_another_handler_of_ctrl_c_keeps_it(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trained(tmp_path, {"hidden": [2]}, 2, epochs=1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_task_that_fails_keeps_what_is_finished(tmp_path):
    def failing(lanes, train, interrupt, workers):
        def fails(task):
            if task.group.trials == [2]:
                raise MemoryError("too much")
            return train(task)

        return executors.in_threads(lanes, fails, interrupt, 1)

    study = study_of(tmp_path, {"hidden": [2, 3, 4, 5]}, 4)
    with pytest.raises(MemoryError, match="too much"):
        study.run(X, Y, epochs=2, verbose=0, executor=failing)

    assert [len(trial) for trial in study.trials][:3] == [4, 4, 0]


# --- halving ----------------------------------------------------------------------------------------------------------


def test_halving_keeps_the_best_of_all_trials(tmp_path):
    (tmp_path / "b").mkdir()
    grid = {"hidden": [2, 5], "learning_rate": [1e-3, 1e-2]}
    whole = trained(tmp_path / "b", grid, 9, epochs=40)
    study = study_of(tmp_path, grid, 9)
    study.halve(X, Y, epochs=40, factor=2, rungs=3, verbose=0)

    reached = {}
    for trial in study.trials:
        history = trial.history
        for i, seed in enumerate(trial.seeds):
            reached[str(trial.parameters), seed] = int(np.isfinite(history["loss"][i]).sum())
            until = reached[str(trial.parameters), seed]
            ours, theirs = history["loss"][i, :until], whole.trial(**trial.parameters).history["loss"][i, :until]
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert Counter(reached.values()) == {10: 18, 20: 9, 40: 9}
    losses = {key: whole_loss(whole, key, 10) for key in reached}
    best = sorted(losses, key=losses.get)[:18]
    assert {key for key, epochs in reached.items() if epochs > 10} == set(best)
    outcomes = Counter(outcome.name for trial in study.trials for outcome in trial.history.outcome)
    assert outcomes == {"STOPPED_EARLY": 27, "COMPLETED": 9}


def test_survivors_are_trained_exactly_as_without_halving(tmp_path):
    (tmp_path / "b").mkdir()
    grid = {"hidden": [2, 5], "learning_rate": [1e-3, 1e-2]}
    whole = trained(tmp_path / "b", grid, 5, epochs=12, batch_size=3, exact=True)
    study = study_of(tmp_path, grid, 5, exact=True)
    study.halve(X, Y, epochs=12, factor=2, rungs=3, batch_size=3, verbose=0)

    reached = []
    for ours, theirs in zip(study.trials, whole.trials, strict=True):
        for i, (loss, outcome) in enumerate(zip(ours.history["loss"], ours.history.outcome, strict=True)):
            until = int(np.isfinite(loss).sum())
            reached.append(until)
            np.testing.assert_array_equal(loss[:until], theirs.history["loss"][i, :until])
            if outcome.name == "COMPLETED":
                own = [network_values(trial.cohort().member(ours.seeds[i])) for trial in (ours, theirs)]
                assert differences(*own) == []
    assert Counter(reached) == {3: 10, 6: 5, 12: 5}


def network_values(model):
    return [np.asarray(v.value) for v in [*model.variables, *model.optimizer.variables, *model.metrics_variables]]


def test_survivors_of_all_trials_share_full_blocks_again(tmp_path, tasks, monkeypatch):
    """What is computed is counted: no lane is kept for who was left, and none is padding."""
    lanes_times_epochs = []

    def call(lot, mapping, block, arguments, interrupt, real=Lot.call):
        assert block.own == len(block.members)
        lanes_times_epochs.append(block.own * arguments[4])
        return real(lot, mapping, block, arguments, interrupt)

    monkeypatch.setattr(Lot, "call", call)
    monkeypatch.setattr("kohort.members.cores", lambda: 1)  # each of which would have a block of its own
    study = study_of(tmp_path, {"learning_rate": [1e-3, 3e-3, 1e-2, 3e-2]}, 32)
    study.halve(X, Y, epochs=16, factor=4, rungs=3, block_size=32, verbose=0)

    assert [(task.first_epoch, len(task.members)) for task in tasks] == [(0, 32)] * 4 + [(1, 32), (4, 8)]
    assert len({place for place, _ in tasks[4].members}) > 1
    assert sum(lanes_times_epochs) == 4 * 32 + 32 * 3 + 8 * 12


def test_halving_takes_the_arguments_of_a_run(tmp_path):
    (tmp_path / "b").mkdir()
    options = {"bootstrap": True, "batch_size": 3, "block_size": 8, "callbacks": None, "trials": None}
    study = study_of(tmp_path, {"hidden": [2]})
    study.halve(X, Y, epochs=4, factor=2, rungs=1, verbose=0, **options)
    whole = trained(tmp_path / "b", {"hidden": [2]}, epochs=4, **options)

    assert study.trial().specification["fit"]["bootstrap"] is True
    assert differences(as_lists(left(study.trial().cohort())), as_lists(left(whole.trial().cohort()))) == []


def whole_loss(study, key, epochs):
    trial = next(trial for trial in study.trials if str(trial.parameters) == key[0])
    return trial.history["loss"][trial.seeds.index(key[1]), epochs - 1]


def test_halving_again_trains_nothing(tmp_path, tasks):
    study = study_of(tmp_path, {"hidden": [2, 5]}, 6)
    study.halve(X, Y, epochs=9, rungs=2, verbose=0, batch_size=3)
    assert [task.first_epoch for task in tasks].count(3) <= 2
    tasks.clear()
    study_of(tmp_path, {"hidden": [2, 5]}, 6).halve(X, Y, epochs=9, rungs=2, verbose=0, batch_size=3)

    assert tasks == []


def test_where_all_diverge_halving_has_no_further_rung(tmp_path, tasks):
    """That nothing of it can be trained is a result."""
    study = study_of(tmp_path, {"learning_rate": [1e38]}, 2)
    study.halve(X, Y, epochs=27, verbose=0)

    assert [task.first_epoch for task in tasks] == [0]
    assert [outcome.name for outcome in study.trial().history.outcome] == ["DIVERGED"] * 2


def test_survivors_are_ranked_together():
    def history(losses):
        return CohortHistory({"loss": np.array(losses, float)[:, None]}, list(range(len(losses))), [0])

    histories = [history([3, 1, np.nan]), history([2, 5, 0])]
    assert plans.survivors(histories, [[0, 1, 2], [0, 1, 2]], "loss", "down", 1, 0.5) == [[1], [2, 0]]
    assert plans.survivors(histories, [[0, 2], [1]], "loss", "up", 1, 1) == [[0], [1]]
    assert plans.survivors(histories, [[2], []], "loss", "up", 1, 1) == [[], []]
    assert plans.rung_epochs(100, 3, 3) == [12, 34, 100]


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_are_smaller_where_members_take_longer():
    small, large = network(2), network(4000)

    assert plans.block_members(small, 4, 300, 2) == plans.MOST_BLOCK_MEMBERS
    assert plans.block_members(small, 4, 3000, 2) == 672  # whose curves are as much as is written in one piece
    assert plans.block_members(large, 60_000, 1000, 2) == plans.BLOCK_STEP
    assert plans.BLOCK_STEP < plans.block_members(large, 500, 100, 2) < plans.MOST_BLOCK_MEMBERS


def test_tasks_are_of_equal_size():
    group = None
    parts = plans.tasks_of(group, {0: range(100), 1: range(100)}, 0, 64)
    assert [len(task.members) for task in parts] == [50, 50, 50, 50]
    together = plans.tasks_of(group, {place: range(10) for place in range(7)}, 0, 32)
    assert [len(task.members) for task in together] == [30, 30, 10]
    assert plans.tasks_of(group, {0: []}, 0, 4) == []


@pytest.mark.parametrize("other", [X + 1, X.astype("float64"), X[:3], {"a": X}, X.T.copy()])
def test_fingerprints_tell_data_apart(other):
    assert plans.fingerprint(X) == plans.fingerprint(X.copy())
    assert plans.fingerprint(X) != plans.fingerprint(other)
    assert plans.fingerprint(None) is None
