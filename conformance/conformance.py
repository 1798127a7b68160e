"""Runs Keras's own tests twice, plain and with kohort installed, and compares.

In come the tests that the installed Keras carries and the exceptions that are allowed; out goes what passes plain and
fails with kohort, which fits ran compiled, and why the others did not. A test fails with kohort, too, if one of its
fits leaves other bits than in the plain run.
"""

import argparse
import datetime
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parent / "benchmarks"))

import results  # noqa: E402

QUICK = ("trainers", "callbacks", "models")
SUITES = (*QUICK, "optimizers", "losses", "metrics")
LEAST_COMPILED = 0.7
# Where fewer pass plain, the judge has not sat.
LEAST_PASSING = {"trainers": 155, "callbacks": 46, "models": 151, "optimizers": 252, "losses": 180, "metrics": 402}
LIMIT_SECONDS = 1800
COMPILED = "compiled"
NONE: Mapping[str, int] = MappingProxyType({})


class Exceptions(NamedTuple):
    """What may fail (test -> reason) and why a fit may fall back (pattern -> reason)."""

    tests: dict[str, str]
    fall_backs: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "Exceptions":
        """Reads the list, without what tests are about that need a package that is not here."""
        found = tomllib.loads(path.read_text())
        tests = {entry["name"]: entry["reason"] for entry in found.get("test", [])}
        fall_backs = [e for e in found.get("fall_back", []) if "needs" not in e or importlib.util.find_spec(e["needs"])]
        return cls(tests, {entry["pattern"]: entry["reason"] for entry in fall_backs})


class Comparison:
    """Two reports of the plugin, side by side."""

    def __init__(self, plain: dict, kohort: dict, exceptions: Exceptions, is_whole: bool) -> None:
        """Compares; `is_whole` says that no test was left out, so that each exception must be needed."""
        self.plain, self.kohort, self.exceptions = plain, kohort, exceptions
        passed = [name for name, test in plain["tests"].items() if test["outcome"] == "passed"]
        left, left_by_keras = (by_test(report["fits"]) for report in (kohort, plain))
        failures = {name: difference(name, kohort["tests"], left_by_keras, left) for name in passed}
        self.failures = {name: line for name, line in failures.items() if line}
        self.ways = Counter(fit["way"] for fit in kohort["fits"])
        self.same_fits = sum(
            len(left_by_keras[name]) for name in left_by_keras if left.get(name) == left_by_keras[name]
        )
        self.unlisted = {name: line for name, line in self.failures.items() if name not in exceptions.tests}
        self.passing_again = [name for name in exceptions.tests if name in passed and name not in self.failures]
        self.unlisted_ways = [way for way in self.ways if way != COMPILED and not self.allowed(way)]
        self.not_needed = [*self._not_needed(passed)] if is_whole else []

    def _not_needed(self, passed: list[str]) -> list[str]:
        gone = [name for name in self.exceptions.tests if name not in passed]
        return gone + [p for p in self.exceptions.fall_backs if not any(re.search(p, way) for way in self.ways)]

    def allowed(self, way: str) -> str:
        """Returns why a fit may run in this way, or nothing."""
        return next((why for pattern, why in self.exceptions.fall_backs.items() if re.search(pattern, way)), "")

    @property
    def fits(self) -> int:
        """Number of fits."""
        return sum(self.ways.values())

    @property
    def compiled_share(self) -> float:
        """Share of the fits that ran compiled."""
        return self.ways[COMPILED] / self.fits if self.fits else 1.0

    def passing(self, suite: str) -> list[str]:
        """Returns the tests of a suite that pass plain."""
        return [
            name for name, test in self.plain["tests"].items() if test["outcome"] == "passed" and is_in(name, suite)
        ]

    def complaints(self, least_compiled: float, least_passing: Mapping[str, int] = NONE) -> list[str]:
        """Returns all that makes the run fail."""
        passing = {suite: len(self.passing(suite)) for suite in least_passing}
        few = f"{percent(self.compiled_share)} of the fits ran compiled, and at least {100 * least_compiled:.0f} % must"
        return [
            *(f"fails with kohort: {name}\n    {line}" for name, line in self.unlisted.items()),
            *(f"passes again, take it off the list: {name}" for name in self.passing_again),
            *(f"nothing needs it any more, take it off the list: {entry}" for entry in self.not_needed),
            *(f"no listed reason to fall back ({self.ways[way]} fits): {way}" for way in self.unlisted_ways),
            *([few] if self.compiled_share < least_compiled else []),
            *(
                f"only {count} tests of {suite} pass plain, and at least {least_passing[suite]} must"
                for suite, count in passing.items()
                if count < least_passing[suite]
            ),
            *(["not a single fit was run"] if least_passing and not self.fits else []),
        ]

    def table(self) -> str:
        """Returns the counts by suite."""
        lines = [
            "| Keras's tests | pass plain | of these pass with kohort | fits | ran compiled |",
            "|---|---|---|---|---|",
        ]
        suites = dict.fromkeys(name.split(".")[0] for name in self.plain["tests"])
        for suite in [*suites, ""]:
            label = suite or "all"
            passed = self.passing(suite)
            fits = [fit["way"] for fit in self.kohort["fits"] if is_in(fit["test"], suite)]
            good = sum(name not in self.failures for name in passed)
            lines.append(f"| {label} | {len(passed)} | {good} | {len(fits)} | {fits.count(COMPILED)} |")
        return "\n".join(lines)

    def text(self) -> str:
        """Returns all that was found, as Markdown."""
        promoted = [fit["way"] for fit in self.kohort["fits"] if fit["is_promoted"]]
        own = self.fits - len(promoted)
        own_compiled = self.ways[COMPILED] - promoted.count(COMPILED)
        reasons = [
            f"- {count}: {way}" + (f" ({self.allowed(way)})" if self.allowed(way) else "")
            for way, count in self.ways.most_common()
            if way != COMPILED
        ]
        unrun = {name: test["line"] for name, test in self.plain["tests"].items() if "::" not in name}
        listed = [f"- {name}: {self.exceptions.tests[name]}" for name in self.failures if name in self.exceptions.tests]
        return "\n".join(
            [
                self.table(),
                "",
                f"{self.same_fits} of {self.fits} fits left the same bits in weights and history as in the plain run.",
                f"{self.ways[COMPILED]} of {self.fits} ran compiled ({percent(self.compiled_share)}): "
                f"{own_compiled} of {own} of models, and",
                f"{promoted.count(COMPILED)} of {len(promoted)} of bare trainers, which become models in both runs."
                + (" Those that did not, and why:" if reasons else ""),
                "",
                *reasons,
                "",
                f"Tests that pass plain and fail with kohort: {len(self.failures)}; exceptions: {len(listed)}.",
                *listed,
                *([f"Files of tests that could not be imported here: {len(unrun)}."] if unrun else []),
                *(f"- {name}: {line}" for name, line in sorted(unrun.items())),
            ]
        ).rstrip()


def percent(share: float) -> str:
    """Writes a share."""
    return f"{100 * share:.1f} %"


def is_in(name: str, suite: str) -> bool:
    """Says whether a test is of a suite; every test is of the suite without a name."""
    return not suite or name.startswith(suite + ".")


def by_test(fits: list[dict]) -> dict[str, list]:
    """Returns what the fits of each test left."""
    found: dict[str, list] = {}
    for fit in fits:
        found.setdefault(fit["test"], []).append(fit["left"])
    return found


def difference(name: str, tests: dict, left_by_keras: dict, left: dict) -> str:
    """Returns how a test that passes plain fails with kohort, or nothing."""
    test = tests.get(name, {"outcome": "missing", "line": ""})
    if test["outcome"] != "passed":
        return test["line"] or test["outcome"]
    theirs, ours = left_by_keras.get(name, []), left.get(name, [])
    if len(theirs) != len(ours):
        return f"{len(ours)} fits instead of {len(theirs)}"
    other = [str(i + 1) for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b]
    return f"fit {', '.join(other)} of {len(ours)} left other bits than in the plain run" if other else ""


# --- the two runs -----------------------------------------------------------------------------------------------------


def start(mode: str, selections: list[str], folder: Path) -> subprocess.Popen:
    """Starts pytest in one of the plugin's modes."""
    # Keras's tests are run as they are: none of this project's settings, and warnings as they come.
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", folder, "-q", "-W", "ignore"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "plugin", "--continue-on-collection-errors"]
    command += ["--conformance-mode", mode, "--conformance-report", folder / f"{mode}.json", "--pyargs", *selections]
    paths = [str(FOLDER), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"KERAS_BACKEND": "jax", "MPLBACKEND": "Agg", "KERAS_HOME": str(folder)}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "KOHORT_CACHE_DIR": str(folder / "programs")}
    log = (folder / f"{mode}.log").open("w")
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    )


def run(selections: list[str], folder: Path) -> list[dict]:
    """Returns the reports of both modes, which run side by side."""
    processes = {mode: start(mode, selections, folder) for mode in ("plain", "kohort")}
    try:
        for process in processes.values():
            process.wait(LIMIT_SECONDS)
    finally:
        for process in processes.values():
            process.kill()
    for mode, process in processes.items():
        if process.returncode not in (0, 1):  # all passed, or some did not
            log = (folder / f"{mode}.log").read_text()
            raise SystemExit(f"conformance: pytest ended with {process.returncode} in the run {mode!r}:\n{log[-2000:]}")
    return [json.loads((folder / f"{mode}.json").read_text()) for mode in processes]


def head() -> str:
    """Says what ran, when and on what."""
    versions = results.versions(("kohort", "keras", "jax", "numpy", "tensorflow-cpu", "orbax-checkpoint"))
    command = shlex.join(["./run", "conformance", *sys.argv[1:]])
    today = datetime.date.today().isoformat()
    return f"Written by `{command}` on {today}. {versions}."


def main() -> None:
    """Runs, prints, and writes where it is told to; ends with 1 if anything is not as it must be."""
    parser = argparse.ArgumentParser(
        prog="./run conformance", description="Runs Keras's own tests plain and with kohort, and compares."
    )
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--backends", action="store_true", help="where TensorFlow and Orbax are, which `./run` sees to")
    parser.add_argument("--output", type=Path, help="write the results into this file, too, beside what else is there")
    parser.add_argument("selections", nargs="*", help="what pytest shall run instead, such as keras.src.callbacks")
    arguments, options = parser.parse_known_args()
    chosen = arguments.selections + options
    suites = QUICK if arguments.quick else SUITES
    modules = [] if arguments.selections else [f"keras.src.{suite}" for suite in suites]
    with tempfile.TemporaryDirectory(prefix="kohort-conformance-") as folder:
        plain, kohort = run(modules + chosen, Path(folder))
    exceptions = Exceptions.read(FOLDER / "exceptions.toml")
    comparison = Comparison(plain, kohort, exceptions, is_whole=not chosen and not arguments.quick)
    took = f"{plain['seconds']:.0f} s plain, {kohort['seconds']:.0f} s with kohort, side by side."
    text = f"{comparison.text()}\n\n{took}"
    print(text)
    if arguments.output:
        results.put(arguments.output, "conformance", f"## Keras's own tests\n\n{head()}\n\n{text}")
    least_passing = {} if chosen else {suite: LEAST_PASSING[suite] for suite in suites}
    complaints = comparison.complaints(0 if chosen else LEAST_COMPILED, least_passing)
    for complaint in complaints:
        print(f"conformance: {complaint}", file=sys.stderr)
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
