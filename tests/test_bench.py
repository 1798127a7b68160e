"""The benchmark: same data and network as kohort's own, figures from measurements, a table that names what it must."""

import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import kohort

FOLDER = Path(__file__).parents[1] / "benchmarks"
FIGURES = "| case | measured | against | figure | lowest to highest | must reach | reached |"
TIMES = (
    "| case | contender | epochs timed | microseconds per epoch and network | lowest to highest "
    "| networks per second | last loss of seed 0 | median last loss |"
)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("bench")


def runner(name, seconds, members=1, why_not=""):
    return SimpleNamespace(name=lambda: name, seconds=lambda: seconds, members=members, why_not=why_not)


def run(part, output):
    """Runs a part of the benchmark on its tiny cases and returns what it wrote."""
    command = [sys.executable, FOLDER / "bench.py", "--quick", "--only", part, "--output", output]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    assert re.sub(r"<!-- (begin|end) \w+ -->\n", "", text).split() == done.stdout.split()
    return text, done.stderr


def cells(text, head):
    """Returns the rows of the table with this head as lists of cells."""
    table = re.split("\n\n|\n<!-- end", text.split(f"{head}\n")[1])[0].splitlines()[1:]
    rows = [line.strip("| ").split(" | ") for line in table]
    assert {len(row) for row in rows} == {head.count("|") - 1}
    return rows


def test_data_and_steps_are_those_of_the_issue(bench):
    for problem, expected in [(bench.XOR, kohort.data.xor()), (bench.MOONS, kohort.data.moons())]:
        for ours, theirs in zip(bench.contenders.data(problem), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
        assert len(expected[0]) == problem.rows
    assert (bench.XOR.network, bench.MOONS.network) == ("2-2-1", "2-32-32-1")
    assert bench.XOR.steps_per_execution == (1,)
    assert bench.MOONS.steps_per_execution == (1, 2, 4, 8, 13)


@pytest.mark.parametrize(("theirs", "reached"), [([2.9, 3.1, 9.0], "yes"), ([2.9, 2.99, 9.0], "**no**")])
def test_the_median_of_the_ratios_decides(bench, theirs, reached):
    row = bench.ratio(bench.XOR, runner("kohort.fit", [0.01] * 3), runner("model.fit on JAX", theirs))

    assert row[:3] == ("xor 2-2-1, 3,000 epochs, batch 4, seed 0", "kohort.fit", "model.fit on JAX")
    assert row[5:] == ("≥ 300 times", reached)
    assert row.lowest_to_highest.endswith(" – 900")


def test_what_was_not_asked_for_has_no_goal(bench):
    one, other = runner("Cohort.fit", [0.002], members=64), runner("PyTorch loop", [1.0])

    assert bench.ratio(bench.MOONS, one, other)[3:] == ("500 times", "500 – 500", "–", "–")


def test_who_gave_no_answer_has_no_figure(bench):
    silent = runner("Cohort.fit", [], members=1000, why_not="no answer in 120 s")

    assert bench.ratio(bench.XOR, silent, runner("model.fit on JAX", [1.0]))[3:] == ("no answer in 120 s", *"–––")


def test_a_second_start_is_measured_beyond_the_imports(bench):
    def last(*beyond):
        row = bench.start_row(bench.XOR, "kohort.fit", ", second start", [(5.0, each, 0.5, 0.1) for each in beyond])
        return row.figure, *row[-2:]

    assert last(0.9, 0.7, 3.0) == ("0.9 s, of it fit 0.5 s, of it XLA 0.1 s", "≤ 1.0 s", "yes")
    assert last(1.1, 0.7, 3.0) == ("1.1 s, of it fit 0.5 s, of it XLA 0.1 s", "≤ 1.0 s", "**no**")


def test_a_race_writes_times_and_losses(bench):
    fits = [bench.Fit(6.0, 0.1234567891), bench.Fit(3.0, 0.5), bench.Fit(9.0, 0.5)]
    racer = runner("model.fit on JAX", [fit.seconds / 3000 for fit in fits])
    racer.epochs, racer.fits = 3000, fits

    assert bench.timing(bench.XOR, racer)[2:] == ("3,000", "2,000", "1,000 – 3,000", "0.167", "0.123456789", "–")


@pytest.mark.slow
def test_quick_counts_compilations_and_writes_them(tmp_path):
    text, progress = run("compilations", tmp_path / "results.md")
    rows = cells(text, FIGURES)

    assert {row[0].split()[0] for row in rows} == {"xor", "moons"}
    assert all(int(row[3].split()[0]) > 0 for row in rows if row[1].endswith("first fit"))
    others = [row[1:] for row in rows if not row[1].endswith("first fit")]
    assert [row[2:] for row in others] == [["0 XLA compilations", "–", "0 XLA compilations", "yes"]] * 10
    assert {row[0] for row in others} >= {"kohort.fit, other epochs", "Cohort.fit, other seeds"}
    assert "kohort 0." in text
    assert re.search(r"Python 3\.\d+.*keras 3\..*jax 0\..*numpy.*(tensorflow|torch) .*\d+ CPUs", text)
    assert "Measured by `./run bench --quick --only compilations` on" in text
    assert progress.startswith("bench: --- compilations\n")


@pytest.mark.slow
def test_quick_races_and_writes_both_tables(tmp_path):
    text, _ = run("xor", tmp_path / "results.md")
    figures, times = cells(text, FIGURES), cells(text, TIMES)
    losses = {row[1]: row[6] for row in times if row[3] != "not installed"}

    assert ["kohort.fit", "model.fit on JAX"] in [row[1:3] for row in figures]
    assert ["Cohort.fit", "clone_model, compile, model.fit on JAX"] in [row[1:3] for row in figures]
    same = ["kohort.fit", "Cohort.fit, exact=True", "model.fit on JAX", "clone_model, compile, model.fit on JAX"]
    assert len({losses[name] for name in same}) == 1


@pytest.mark.slow
def test_quick_measures_cohorts_of_many_members(tmp_path):
    text, _ = run("many", tmp_path / "results.md")
    rows = cells(text, FIGURES)

    assert {row[5] for row in rows} >= {"≥ 20,000 members/s", "≥ 1.7 times", "≤ 1,431 MiB", "≥ 50 times", "≤ 10 %"}
    assert {row[6] for row in rows} <= {"yes", "**no**", "–"}
    assert all(float(row[3].split()[0].replace(",", "")) > 0 for row in rows)


@pytest.mark.slow
def test_quick_measures_a_study_from_the_command_line(tmp_path):
    text, _ = run("study", tmp_path / "results.md")
    rows = cells(text, FIGURES)

    assert [row[5] for row in rows[:2]] == ["≤ 20 s", "≤ 8 s"]
    assert [row[5] for row in rows[2:5]] == ["≤ 5 %", "≤ 1.2 times", "≤ 2 s"]
    assert [row[5] for row in rows[5:]] == ["≥ 1.6 times", "–", "≥ 50 times", "≥ 50 times"]
    assert all(float(row[3].split()[0]) > 0 for row in [*rows[:2], *rows[3:]])  # of two trials it is all chance


def test_studies_say_what_they_reached(bench):
    """Of figures that are given; what is measured in processes of their own, the slow test runs."""
    studies = importlib.import_module("studies")
    told = {
        "command": ([19.0, 7.0], [21.0, 9.0]),
        "many": (([4.9], [10.0], 119, 100), ([5.1], [10.0], 121, 100)),
        "resume": (1.9, 2.1),
        "by_workers": (((10.0, 5.0), (16.1, 6.0)), ((10.0, 5.0), (15.9, 6.0))),
        "by_optuna": (([1.0, 2.0, 3.0], 10.0, 10.1), ([1.0, 2.0, 3.0], 10.3, 10.4)),
    }

    def reached(which):
        found = studies.rows(lambda function, *arguments: told[function.__name__][which], 1, False)
        return [row.reached for row in bench.figure_rows(found) if row.must_reach != "–"]

    rows = 2 + 3 * len(studies.Sizes().problems) + 3
    assert reached(0) == ["yes"] * rows
    assert reached(1) == ["**no**"] * rows


def test_what_is_not_installed_has_no_figure(bench, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    studies = importlib.import_module("studies")
    found = [*studies.rows_of_workers(None, studies.Sizes()), *studies.rows_of_searches(None, studies.Sizes())]

    assert [row[3:] for row in bench.figure_rows(iter(found))] == [("not installed", "–", "–", "–")] * 4


@pytest.mark.slow
def test_quick_times_the_pictures_and_writes_a_section_of_its_own(tmp_path):
    output = tmp_path / "results.md"
    output.write_text("# Results\n\nof others\n\n<!-- begin pictures -->\nold\n<!-- end pictures -->\n\nlast\n")
    command = [sys.executable, FOLDER / "pictures.py", "--quick", "--output", output]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    text = output.read_text()

    assert done.returncode == 0, done.stderr
    rows = cells(text, "| picture | seconds to compute | seconds to compute and draw | file | must reach | reached |")
    assert [row[0].split(",")[0] for row in rows] == [
        *("wall", "wall", "spread", "minima", "history", "survival", "loss_landscape"),
        *("a cohort of 8 members", "animate"),
    ]
    goals = [row[4] for row in rows if row[4] != "–"]
    walls = ["compute ≤ 0.2 s, with drawing ≤ 1.5 s"] * 2
    assert goals == [*walls, "compute ≤ 1 s", "compute ≤ 0.5 s", "with drawing ≤ 10 s, ≤ 2 MB"]
    assert all((row[5] in ("yes", "**no**")) == (row[4] != "–") for row in rows)
    assert all(float(row[2].split()[0]) > 0 for row in rows)
    assert re.search(
        r"Quick run.*`./run bench pictures --quick --output .*` on \d.*kohort 0\..*matplotlib.*\d CPUs", text
    )
    assert text.startswith("# Results\n\nof others\n\n<!-- begin pictures -->\n## Pictures\n")
    assert text.endswith("\n<!-- end pictures -->\n\nlast\n")
    assert "old" not in text


@pytest.fixture
def pictures(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "pictures", raising=False)  # which the tests' own has, too
    yield importlib.import_module("pictures")
    del sys.modules["pictures"]


def test_a_picture_reaches_its_goal_by_medians(pictures):
    goal = pictures.Goal(compute=0.2, drawn=1.5)

    assert [goal.reached(*each) for each in [(0.2, 1.5, 0), (0.21, 1, 0), (0.1, 1.6, 0)]] == ["yes", "**no**", "**no**"]
    assert pictures.Goal().reached(9, 9, 9) == "–"
    assert pictures.spread([3.0, 1.0, 1.5]) == "1.500 (1.000 – 3.000)"


@pytest.fixture
def switched(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    kohort.report(clear=True)
    return importlib.import_module("switched")


def calls_of(function):
    """Returns how many functions of Python and C a call calls: what it takes on any machine, whatever else runs."""
    counted = itertools.count()
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, argument: next(counted) if event in ("call", "c_call") else None)
    try:
        function()
    finally:
        sys.setprofile(before)
    return next(counted)


# Of 513 calls `./run bench --only switched` measures 0.14 ms; issue 3 asks for a millisecond.
MOST_CALLS = 3_000


@pytest.mark.usefixtures("annotations_unchecked")
def test_a_fall_back_costs_next_to_nothing(switched, monkeypatch):
    monkeypatch.setattr(switched, "milliseconds_of", calls_of)
    plain, by_switch = switched.by_turns(10)
    assert 0 < min(by_switch) - min(plain) < MOST_CALLS
    assert kohort.report().calls == 10


@pytest.mark.usefixtures("annotations_unchecked")
def test_to_judge_a_deep_model_costs_no_more(switched, monkeypatch):
    """Where Keras runs operation by operation, all that a step may run is looked at, the nearest code first."""
    monkeypatch.setattr(switched, "milliseconds_of", calls_of)
    assert 0 < min(switched.judge(10)) < 50 * switched.LAYERS


@pytest.mark.slow
def test_quick_takes_cohorts_apart(tmp_path):
    text, _ = run("profile", tmp_path / "results.md")
    rows = cells(text, FIGURES)

    told = {row[1]: float(row[3].split()[0]) for row in rows if row[0].startswith("moons")}
    assert list(told) == [
        *(f"first fit: {name}" for name in ("Python traces Keras's step", "JAX lowers it", "XLA compiles it")),
        *(f"warm fit: {name}" for name in ("members begin", "batch orders are drawn", "programs run")),
        "warm fit: logs are put together",
    ]
    assert min(told.values()) > 0
    assert sum(told[name] for name in told if name.startswith("warm")) <= 100
    assert len(rows) == 2 * len(told)


@pytest.mark.slow
def test_quick_measures_what_the_switch_costs_and_gains(tmp_path):
    text, _ = run("switched", tmp_path / "results.md")
    rows = cells(text, FIGURES)

    rows.pop(1)  # where TensorFlow is not installed, it says so
    assert [row[5] for row in rows] == ["≤ 1 ms", "≤ 1 ms", "–", "–", "≤ 20 MB", "≤ 0 compilations"]
    assert [row[6] for row in rows[-2:]] == ["yes", "yes"]
    assert all(float(row[3].split()[0]) > 0 for row in rows[1:4])  # what a fall back takes more is noise of two calls


@pytest.mark.parametrize("is_there", [True, False])
def test_the_switch_says_what_it_reached(bench, switched, is_there, monkeypatch):
    """Of figures that are given; what is measured in processes of their own, the slow test runs."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True if is_there else None)
    told = {
        "fall_backs": ([1.0], [0.9]), "judged": [1.1], "passes": {"evaluate": [9.0], "predict": [8.0]},
        "refits": (20.1, 1),
    }  # fmt: skip

    def measured(function, *arguments, needs="jax"):
        return told[function.__name__] if needs == "jax" else ([3.0], [1.2])

    found = switched.rows(measured, switched.QUICK)

    assert [(row.figure, row.reached) for row in bench.figure_rows(found)] == [
        ("0.9 ms", "yes"), ("1.2 ms", "**no**") if is_there else ("not installed", "–"),
        ("1.1 ms", "**no**"), ("9 times", "–"), ("8 times", "–"), ("20.1 MB", "**no**"), ("1 compilations", "**no**"),
    ]  # fmt: skip
    told["refits"] = (19.9, 0)
    found = switched.rows(measured, switched.QUICK)
    assert [row.reached for row in bench.figure_rows(found)][-2:] == ["yes", "yes"]
