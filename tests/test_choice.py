"""Which mapping and which width a fit uses: by rule, by measurement, within memory."""

import os
import re
import subprocess
import sys
import time

import jax
import keras
import numpy as np
import pytest
from keras import layers
from refusals import TEMPLATE

import kohort
from kohort import choice, rounds
from kohort.checks import Recipe
from kohort.choice import check_memory, free_memory
from kohort.cores import threads
from kohort.folds import Shares
from kohort.lots import Ahead

X, Y = kohort.data.moons(64)


def network(units=4):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(units, "relu"), layers.Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy")
    return model


def widths(cohort):
    return {block.width for block in cohort._members.blocks}


@pytest.fixture
def noted(monkeypatch):
    """What is remembered, in a dict instead of on the disk."""
    notes = {}
    monkeypatch.setattr("kohort.disk.remembered", notes.get)
    monkeypatch.setattr("kohort.disk.remember", notes.__setitem__)
    return notes


def mappings(notes):
    return [text for key, text in notes.items() if not key.endswith("-compiling")]


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (None, None),
        (5000, 5000),
        ("2GB", 2 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("500k", 500_000),
        (2e9, 2 * 10**9),
        (1e16, 10**16),
    ],
)
def test_memory_is_said_in_bytes_or_as_people_do(said, size):
    assert check_memory(said) == size


@pytest.mark.parametrize("said", ["much", "2XB", "2IB", 0, -5, True, [1], "GB", float("inf"), float("nan")])
def test_what_is_no_memory(said):
    with pytest.raises(ValueError, match=r"`memory` must be a number of bytes above 0, .* Received: memory="):
        kohort.Cohort(network(), 2, memory=said)


def test_free_memory_is_that_of_a_machine():
    assert 2**20 <= free_memory() < 2**50


@pytest.mark.parametrize("options", [{"mapping": "fast"}, {"mapping": None}, {"mapping": "loop", "exact": True}])
def test_what_is_no_mapping(options):
    with pytest.raises(ValueError, match=r"`mapping` must be one of 'auto', 'abreast', .* Received: mapping="):
        kohort.Cohort(network(), 2, **options)


def test_little_memory_makes_narrow_blocks_with_the_same_results():
    whole, tight = kohort.Cohort(network(), 200), kohort.Cohort(network(), 200, memory="1.6MB")
    losses = [cohort.fit(X, Y, epochs=2, batch_size=16, verbose=0)["loss"] for cohort in (whole, tight)]
    assert max(widths(tight)) < max(widths(whole))
    np.testing.assert_array_equal(*losses)


def test_blocks_keep_to_the_memory_that_they_may_take(monkeypatch):
    """Counted here anew: states and generators twice, the history, and what the program takes on each core at once."""
    taken, cores, limit, members, epochs = [], 4, 1_600_000, 200, 50

    class Seen(choice.Choice):
        def within_memory(self, lot, trained):
            width = self._members.blocks[lot.places[0]].width
            arguments = lot.blank_arguments(trained.states[lot.places[0]], width)
            taken.append((width, lot.program(self.mapping).memory(*arguments)))
            return super().within_memory(lot, trained)

    monkeypatch.setattr(rounds, "Choice", Seen)
    monkeypatch.setattr(choice, "cores", lambda: cores)
    cohort = kohort.Cohort(network(), members, memory=limit)
    history = cohort.fit(X, Y, epochs=epochs, batch_size=16, validation_split=0.25, verbose=0)
    trained, (width, working) = cohort._members.trained, taken[-1]
    states = sum(leaf.nbytes for state in trained.states for leaf in jax.tree.leaves(state))
    metrics = sum(values.nbytes for values in history.history.values())

    assert width < taken[0][0]
    assert 2 * (states + trained.generators.states.nbytes) + metrics + cores * working <= limit


@pytest.mark.slow
def test_where_nothing_is_said_half_of_what_is_free_may_be_taken(monkeypatch):
    monkeypatch.setattr(choice, "free_memory", lambda: 2_000_000)
    assert choice.memory_limit(5_000) == 5_000
    with pytest.raises(ValueError, match=r"`memory` must have room .* memory=None, where 1 MB may be used"):
        kohort.Cohort(network(), 200).fit(X, Y, epochs=2, batch_size=16, verbose=0)


def test_a_device_with_memory_of_its_own_has_no_more(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 7 * 2**20, "bytes_in_use": 3 * 2**20}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert free_memory() == 4 * 2**20


@pytest.mark.many
@pytest.mark.parametrize("exact", [False, True])
def test_no_room_for_one_member_loses_nothing(exact):
    cohort = kohort.Cohort(network(), 3, memory="3kB", exact=exact)
    with pytest.raises(ValueError, match=r"`memory` must have room for all members' states and the training of one"):
        cohort.fit(X, Y, verbose=0)
    with pytest.raises(RuntimeError, match=r"not trained"):
        _ = cohort.history
    roomy = kohort.Cohort(network(), 3, exact=exact)
    roomy.fit(X, Y, verbose=0)
    before = roomy.predict(X)
    roomy._members.settings = roomy._members.settings._replace(memory=3000)
    with pytest.raises(ValueError, match=r"`memory` must have room"):
        roomy.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(roomy.predict(X), before)


@pytest.mark.many
@pytest.mark.parametrize(("members", "options"), [(3, {"exact": True}), (3, {}), (40, {}), (20, {"mapping": "loop"})])
def test_so_much_memory_as_is_said_to_be_needed_is_enough(members, options):
    def fit(memory):
        cohort = kohort.Cohort(network(), members, memory=memory, **options)
        cohort.fit(X, Y, epochs=50, batch_size=16, verbose=0)

    match = r"`memory` must have room for all members' states and the training of one on each core\."
    with pytest.raises(ValueError, match=match) as caught:
        fit("3kB")
    assert TEMPLATE.fullmatch(str(caught.value))
    needed = check_memory(re.search(r"about ([0-9.]+ [kM]B) are needed", str(caught.value))[1])
    fit(needed)
    if members > 3:  # few may need less in one block, beside which no core takes another
        with pytest.raises(ValueError, match=match):
            fit(0.97 * needed)


def measured(monkeypatch, faster):
    """Lets a fit measure at once, and the named mapping seem the fastest."""
    monkeypatch.setattr(rounds, "WORTH_MEASURING", 0)
    monkeypatch.setattr(rounds, "ROUND_SECONDS", 1e-9)  # rounds of an epoch or two
    monkeypatch.setattr(rounds, "MEASURING_SECONDS", 1e-9)
    tried = []

    class Measured(choice.Choice):
        def measure(self, seconds_of, width):
            def seconds(mapping):
                tried.append((mapping, seconds_of(mapping) > 0))
                return 1.0 if mapping == faster else 2.0

            super().measure(seconds, width)

    monkeypatch.setattr(rounds, "Choice", Measured)
    return tried


@pytest.mark.parametrize(("units", "candidates"), [(4, ["abreast", "vectorized"]), (600, ["vectorized", "loop"])])
def test_a_measurement_decides_and_is_remembered(monkeypatch, noted, units, candidates):
    tried = measured(monkeypatch, faster=candidates[1])
    model = network(units)
    expected = kohort.Cohort(model, 4, mapping=candidates[0]).fit(X, Y, epochs=6, verbose=0)
    cohort = kohort.Cohort(model, 4)
    history = cohort.fit(X, Y, epochs=6, verbose=0)
    assert tried == [(candidate, True) for candidate in candidates]
    np.testing.assert_allclose(history["loss"], expected["loss"], atol=1e-4)
    assert mappings(noted) == [candidates[1]]
    cohort.fit(X, Y, epochs=6, verbose=0)
    kohort.Cohort(network(units), 4).fit(X, Y, epochs=6, verbose=0)  # as in another process
    assert len(tried) == 2


@pytest.mark.parametrize("worth", [False, True])
def test_what_is_short_beside_a_compilation_is_not_measured(monkeypatch, noted, worth):
    """Another mapping has to be compiled, too: for a fit that is over before, nothing is gained."""
    tried = measured(monkeypatch, faster="vectorized")
    monkeypatch.setattr(rounds, "WORTH_MEASURING", 1e-6)
    monkeypatch.setattr(choice.Choice, "compiling", 0.0 if worth else 1e12)
    kohort.Cohort(network(), 4).fit(X, Y, epochs=6, verbose=0)
    assert bool(tried) == worth


def test_how_long_a_program_took_to_compile_is_remembered(noted, monkeypatch):
    """Where it is kept, the next process finds it at once; but not the one that it would be measured against."""
    choices = []
    monkeypatch.setattr(rounds, "Choice", lambda *made_of: choices.append(choice.Choice(*made_of)) or choices[-1])
    cohort = kohort.Cohort(network(), 4)
    start = time.perf_counter()
    cohort.fit(X, Y, verbose=0)
    most = time.perf_counter() - start
    (key,) = noted
    assert 0 < float(noted[key]) < most
    cohort.fit(X, Y, verbose=0)
    assert [each.compiling for each in choices] == [float(noted[key])] * 2

    noted[key] = "no number"
    start = time.perf_counter()
    kohort.Cohort(network(), 4).fit(X, Y, verbose=0)  # as in another process
    assert 0 < choices[-1].compiling < time.perf_counter() - start
    noted[key] = "1e6"
    kohort.Cohort(network(), 4).fit(X, Y, verbose=0)  # as in another process
    assert choices[-1].compiling == 1e6


@pytest.mark.parametrize(("told", "most"), [("1", 1), ("2", 2), ("", 4)])
def test_as_many_blocks_train_at_once_as_the_process_was_told_cores(monkeypatch, noted, told, most):
    """Of two cores that it has for itself each gets a block ahead; what it was told to leave is others'."""
    monkeypatch.setenv("NPROC", told)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    asked = []
    monkeypatch.setattr(rounds, "threads", lambda count: asked.append(count) or threads(count))
    kohort.Cohort(network(), 2049, mapping="abreast").fit(X[:4], Y[:4], epochs=4, verbose=0)
    assert set(asked) == {most}


def test_a_small_gain_changes_nothing(monkeypatch, noted):
    measured(monkeypatch, faster="vectorized")
    monkeypatch.setattr(choice, "CLEAR_GAIN", 3.0)
    kohort.Cohort(network(), 4).fit(X, Y, epochs=6, verbose=0)
    assert mappings(noted) == ["abreast"]


def test_what_was_measured_is_known_to_another_process(tmp_path):
    """Through the folder of programs, which only its user may write."""
    code = "from kohort import disk; disk.remember('a1', 'loop'); print(disk.remembered('a1'), disk.remembered('b2'))"
    environment = os.environ | {"KOHORT_CACHE_DIR": str(tmp_path / "cache")}
    for each in (code, code.replace("disk.remember('a1', 'loop')", "0")):
        command = [sys.executable, "-c", each]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.stdout, done.returncode) == ("loop None\n", 0), done.stderr


def test_weights_of_members_do_not_go_abreast():
    weights = np.ones((3, len(X)), "float32")
    cohort = kohort.Cohort(network(), 3, mapping="abreast")
    with pytest.raises(
        ValueError, match=r"`mapping` must be another one where each member .* mapping='abreast'\. Leave"
    ):
        cohort.fit(X, Y, sample_weight=weights, verbose=0)
    assert kohort.Cohort(network(), 3).fit(X, Y, sample_weight=weights, verbose=0).epoch == [0]


def test_a_mapping_that_was_set_is_not_measured(monkeypatch, noted):
    tried = measured(monkeypatch, faster="loop")
    kohort.Cohort(network(), 4, mapping="vectorized").fit(X, Y, epochs=6, verbose=0)
    kohort.Cohort(network(), 2, exact=True).fit(X, Y, epochs=6, verbose=0)
    assert not tried
    assert not noted


@pytest.mark.slow
def test_what_a_failed_fit_would_have_held_out_is_not_asked(monkeypatch):
    cohort = kohort.Cohort(network(), 3)
    cohort.fit(X, Y, folds=2, verbose=0)
    before = cohort.predict_out_of_fold(X)
    cohort._members.settings = cohort._members.settings._replace(memory=3000)
    with pytest.raises(ValueError, match=r"`memory` must have room"):
        cohort.fit(X, Y, folds=[(np.arange(0, 64, 2), np.arange(1, 64, 2)), (np.arange(1, 64, 2), np.arange(0, 64, 2))])
    np.testing.assert_array_equal(cohort.predict_out_of_fold(X), before)


def test_where_a_core_takes_turns_a_call_has_room_for_few_epochs():
    """Each call makes and moves logs for all that it has room for."""
    cohort = kohort.Cohort(network(), 2)
    data = kohort.data.inputs(cohort._template.network, X, Y, None, None, Recipe(batch_size=64))
    ahead = Ahead(cohort._members, data, Recipe(batch_size=64), Shares())
    capacities = [ahead.capacity(8, turns, None) for turns in (1, 2, 3, 4, 5, 50, 5000)]
    assert capacities == [4096, 4096, 2048, 2048, 1024, 256, 256]


def test_tiny_networks_are_given_to_the_cores_before_they_ask(monkeypatch):
    """A call of theirs is soon over, and the core would wait for Python to begin the next."""
    made, threads = [], rounds.threads
    monkeypatch.setattr(rounds, "threads", lambda count: made.append(count) or threads(count))
    for mapping, each in (("abreast", 2), ("vectorized", 1)):
        made.clear()
        cohort = kohort.Cohort(network(), 20, mapping=mapping)
        for _ in range(2):
            cohort.fit(X, Y, epochs=2, verbose=0)
        assert set(made) == {each * choice.cores()}


@pytest.mark.parametrize(("left", "runs"), [(100, [50, 50]), (99, [50, 49]), (101, [50, 50, 1])])
def test_a_short_last_round_is_run_with_the_one_before(monkeypatch, left, runs):
    """Only where it is known how long an epoch takes, and as one call has room for."""
    monkeypatch.setattr(rounds.Pace, "epochs", lambda pace, remaining, capacity, seconds: min(remaining, 50))
    counts = []
    advance = rounds.Rounds._round
    monkeypatch.setattr(rounds.Rounds, "_round", lambda fit, *of: counts.append(len(of[1])) or advance(fit, *of))
    cohort = kohort.Cohort(network(), 4)
    for longest, expected in ((2, [left] if left <= 100 else [50, 51]), (1, runs)):
        counts.clear()
        monkeypatch.setattr(rounds, "LONGEST_ROUND", longest)
        cohort.fit(X, Y, epochs=left, verbose=0)
        assert counts == expected
