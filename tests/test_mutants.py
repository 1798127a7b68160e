"""The deliberate faults: each is to be found in kohort's text, and the runner tells noticed from unnoticed."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ("tests/test_history.py::test_a_rate_is_plain_numbers_and_reads_as_a_sentence",)


@pytest.fixture
def mutants(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "mutants"))
    return importlib.import_module("mutants")


def fault(mutants, old, new, tests=TESTS):
    return mutants.Fault("tried", "kohort/history.py", old, new, tests)


def test_each_fault_applies_exactly_once_and_is_python(mutants):
    sources = {each.name: mutants.broken_source(each, ROOT) for each in mutants.FAULTS}

    assert [name for name, source in sources.items() if source is None] == []
    for each in mutants.FAULTS:
        assert sources[each.name] != (ROOT / each.file).read_text(), each.name
        ast.parse(sources[each.name], each.name)


def test_no_fault_is_a_name_that_is_not_there(mutants, tmp_path):
    """Such a fault would be noticed for what it says, and not for what it does."""
    for each in mutants.FAULTS:
        (tmp_path / f"{each.name}.py").write_text(mutants.broken_source(each, ROOT))

    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--ignore", "F722", tmp_path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout


def test_there_are_enough_faults_with_names_of_their_own(mutants):
    names = [each.name for each in mutants.FAULTS]

    assert len(names) == len(set(names)) >= 20


def test_each_fault_names_tests_that_are_there(mutants):
    for each in mutants.FAULTS:
        assert each.tests, each.name
        for test in each.tests:
            file, _, name = test.partition("::")
            source = (ROOT / file).read_text()
            assert f"\ndef {name.split('[')[0]}" in source, test


COUNT = "k, n = int(met.sum()), int(met.size)"
NOTICED = "tests.test_history::test_a_rate_is_plain_numbers_and_reads_as_a_sentence"
WRONG = "k, n = 0, int(met.size)"


@pytest.mark.parametrize(
    ("old", "new", "tests", "outcome"),
    [
        pytest.param(COUNT, WRONG, TESTS, NOTICED, marks=pytest.mark.slow),
        pytest.param(COUNT, COUNT, TESTS, "SURVIVED", marks=pytest.mark.slow),
        ("not to be found", "", TESTS, "STALE: the old text is not exactly once in kohort/history.py"),
        ("import", "", TESTS, "STALE: the old text is not exactly once in kohort/history.py"),
        pytest.param(COUNT, "k, n = (", TESTS, "BROKEN: no test ran", marks=pytest.mark.slow),
        pytest.param(COUNT, "", ("tests/test_history.py::test_of_nothing",), "BROKEN: no", marks=pytest.mark.slow),
    ],
    ids=["noticed", "survived", "not-found", "found-twice", "no-python", "no-test"],
)
def test_the_runner_tells_what_became_of_a_fault(mutants, tmp_path, old, new, tests, outcome):
    result = mutants.try_fault(fault(mutants, old, new, tests), tmp_path)

    assert result.outcome.startswith(outcome)
    assert result.is_noticed == outcome.startswith("tests.")


@pytest.mark.slow
def test_tests_must_pass_on_an_unbroken_copy(mutants, tmp_path, monkeypatch):
    assert mutants.check_unbroken(list(TESTS), tmp_path) == ""
    copy = mutants.copy_project

    def copy_broken(folder):
        copy(folder)
        path = folder / "kohort" / "history.py"
        path.write_text(path.read_text().replace(COUNT, WRONG))

    monkeypatch.setattr(mutants, "copy_project", copy_broken)
    assert mutants.check_unbroken(list(TESTS), tmp_path) == NOTICED


def run(*arguments):
    command = [sys.executable, ROOT / "mutants" / "mutants.py", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)


def test_unknown_names_are_refused():
    done = run("no-shufling")

    assert done.returncode == 1
    assert "`names` must be names of faults: sample-weights-ignored, " in done.stderr
    assert "Received: no-shufling. Give some of them, or none for all." in done.stderr


@pytest.mark.slow
def test_one_fault_from_the_command_line():
    done = run("diverged-members-not-counted")

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\n1 of 1 faults were noticed\n")
    assert done.stdout.startswith("diverged-members-not-counted ")


def test_the_rate_goes_into_the_results(mutants):
    one, other = (mutants.Result(each.name, "tests/x::y", 1.0, True) for each in mutants.FAULTS[:2])
    text = mutants.told([one, other._replace(outcome="SURVIVED", is_noticed=False)])

    assert f"1 of 2 faults put into kohort on purpose were noticed by its own tests, of {len(mutants.FAULTS)} " in text
    assert f"Not noticed: {other.fault}: SURVIVED" in text
