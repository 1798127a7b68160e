"""The judge: two reports are compared by test and by fit, the list of exceptions only shrinks, the file keeps all."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = "did not compile, because it is slow"


@pytest.fixture
def conformance(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "conformance"))
    return importlib.import_module("conformance")


def report(tests, fits=(), seconds=1.0):
    """Makes a report: test -> outcome or line of failure, and fits as (test, what it left, way)."""
    outcomes = {
        name: {"outcome": state if state in ("passed", "skipped") else "failed", "line": state}
        for name, state in tests.items()
    }
    notes = [{"test": test, "left": left, "way": way, "is_promoted": False} for test, left, way in fits]
    return {"tests": outcomes, "fits": notes, "seconds": seconds}


PASSED = report({"a.x::t": "passed", "a.x::u": "passed", "b.y::v": "skipped", "b.y::w": "no tensorflow"})


def compare(conformance, kohort, plain=PASSED, tests=None, fall_backs=None, is_whole=True):
    return conformance.Comparison(plain, kohort, conformance.Exceptions(tests or {}, fall_backs or {}), is_whole)


def test_nothing_to_complain_of(conformance):
    found = compare(conformance, PASSED)

    assert found.complaints(0.7) == []
    assert found.table().splitlines()[2:] == [
        "| a | 2 | 2 | 0 | 0 |",
        "| b | 0 | 0 | 0 | 0 |",
        "| all | 2 | 2 | 0 | 0 |",
    ]


def test_what_needs_a_package_that_is_not_here_is_not_missed(conformance, tmp_path):
    entry = '[[fall_back]]\npattern = "{0}"\nreason = "so"\nneeds = "{0}"\n'
    (tmp_path / "list.toml").write_text(entry.format("numpy") + entry.format("no_such_package"))

    assert conformance.Exceptions.read(tmp_path / "list.toml").fall_backs == {"numpy": "so"}


def test_a_judge_that_has_not_sat_is_named(conformance):
    skipped = report({"a.x::t": "passed", "a.x::u": "skipped"})
    fitted = report({"a.x::t": "passed"}, [("a.x::t", 1, "compiled")])

    assert compare(conformance, skipped, skipped).complaints(0.7, {"a": 2}) == [
        "only 1 tests of a pass plain, and at least 2 must",
        "not a single fit was run",
    ]
    assert compare(conformance, fitted, fitted).complaints(0.7, {"a": 1}) == []


def test_a_test_that_fails_with_kohort_is_named_with_its_line(conformance):
    found = compare(conformance, report({"a.x::t": "passed", "a.x::u": "3 is not 2", "b.y::w": "no tensorflow"}))

    assert found.complaints(0.7) == ["fails with kohort: a.x::u\n    3 is not 2"]
    assert "| a | 2 | 1 | 0 | 0 |" in found.text()


def test_a_test_that_is_skipped_or_gone_with_kohort_has_not_passed(conformance):
    found = compare(conformance, report({"a.x::t": "skipped"}))

    assert found.failures == {"a.x::t": "skipped", "a.x::u": "missing"}


def test_a_listed_test_may_fail_and_must_leave_the_list_when_it_passes(conformance):
    failing = report({"a.x::t": "passed", "a.x::u": "3 is not 2"})
    listed = {"a.x::u": "counts traces"}

    assert compare(conformance, failing, tests=listed).complaints(0.7) == []
    assert "exceptions: 1.\n- a.x::u: counts traces" in compare(conformance, failing, tests=listed).text()
    assert compare(conformance, PASSED, tests=listed).complaints(0.7) == ["passes again, take it off the list: a.x::u"]


def test_entries_that_nothing_needs_must_leave_the_lists_in_a_whole_run(conformance):
    lists = {"tests": {"a.x::gone": "why"}, "fall_backs": {"slow": "why"}}

    assert len(compare(conformance, PASSED, **lists).complaints(0.7)) == 2
    assert compare(conformance, PASSED, **lists, is_whole=False).complaints(0.7) == []


def fits(*ways, left="same"):
    return report({"a.x::t": "passed", "a.x::u": "passed"}, [("a.x::t", left, way) for way in ways])


def test_a_fit_with_other_bits_fails_its_test(conformance):
    plain, other = fits("Keras", "Keras"), fits("compiled", "compiled")
    other["fits"][1]["left"] = "other"

    found = compare(conformance, other, plain)
    assert found.failures == {"a.x::t": "fit 2 of 2 left other bits than in the plain run"}
    found = compare(conformance, fits("compiled"), plain)
    assert found.failures == {"a.x::t": "1 fits instead of 2"}


def test_a_fall_back_needs_a_listed_reason(conformance):
    plain, kohort = fits(*["Keras"] * 4), fits("compiled", "compiled", "compiled", RUN)

    assert compare(conformance, kohort, plain).complaints(0.7) == [f"no listed reason to fall back (1 fits): {RUN}"]
    listed = compare(conformance, kohort, plain, fall_backs={"because it is slow": "it is"})
    assert listed.complaints(0.7) == []
    assert f"- 1: {RUN} (it is)" in listed.text()


def test_too_few_compiled_fits_make_the_run_fail(conformance):
    plain, kohort = fits("Keras", "Keras"), fits("compiled", RUN)
    found = compare(conformance, kohort, plain, fall_backs={"slow": "it is"})

    assert found.complaints(0.5) == []
    assert found.complaints(0.7) == ["50.0 % of the fits ran compiled, and at least 70 % must"]


def test_the_list_in_the_project_can_be_read(conformance):
    listed = conformance.Exceptions.read(ROOT / "conformance" / "exceptions.toml")

    assert listed.fall_backs
    assert all(reason for reasons in listed for reason in reasons.values())


def test_sections_of_the_results_live_side_by_side(conformance, tmp_path):
    results, path = conformance.results, tmp_path / "results.md"
    results.put(path, "conformance", "first")
    results.put(path, "stream", "fast")
    results.begin(path, "# Results\n\nbench\n")
    results.put(path, "conformance", "second\n")
    results.begin(path, "# Results\n\nbench again\n")

    assert path.read_text() == (
        "# Results\n\nbench again\n"
        "\n<!-- begin conformance -->\nsecond\n<!-- end conformance -->\n"
        "\n<!-- begin stream -->\nfast\n<!-- end stream -->\n"
    )


def run(*arguments):
    command = [sys.executable, ROOT / "conformance" / "conformance.py", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_part_of_keras_tests(tmp_path):
    output = tmp_path / "results.md"
    done = run("--output", output, "keras.src.callbacks.early_stopping_test")

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\| callbacks \| (\d+) \| \1 \| (\d+) \| \2 \|\n\| all \| \1 \| \1 \| \2 \| \2 \|", done.stdout)
    assert re.search(r"\n(\d+) of \1 fits left the same bits in weights and history", done.stdout)
    text = output.read_text()
    assert text.startswith("# Results\n\n<!-- begin conformance -->\n## Keras's own tests\n")
    assert "keras.src.callbacks.early_stopping_test` on 20" in text


@pytest.mark.slow
def test_what_is_not_there_is_an_error():
    done = run("keras.src.callbacks.no_test")

    assert done.returncode == 1
    assert "conformance: pytest ended with 4 in the run 'plain'" in done.stderr
