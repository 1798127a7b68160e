"""Breaks kohort on purpose, one fault at a time, and sees whether a test notices.

In come the faults of `faults`, or those that are named; out goes a table that says which test noticed each. A fault
goes into a copy of the package, and the tests that it names are run on the copy. It is noticed when one of them fails;
a test that cannot be collected, or does not run, notices nothing.
"""

import argparse
import concurrent.futures
import datetime
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fault import Fault
from faults import FAULTS

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from results import put  # noqa: E402

AT_ONCE = 2
LIMIT_SECONDS = 300
UNBROKEN_LIMIT_SECONDS = 1800
SURVIVED, STALE, BROKEN = "SURVIVED", "STALE", "BROKEN"


class Result(NamedTuple):
    """What became of a fault: the test that noticed it, or why it stands as an error."""

    fault: str
    outcome: str
    seconds: float
    is_noticed: bool = False


def copy_project(folder: Path) -> None:
    """Copies what the tests read into a folder of its own."""
    ignored = shutil.ignore_patterns(".venv", ".tools", ".git", ".*_cache", "dist")
    for path in ROOT.iterdir():
        if path.name in ("kohort", "tests", "benchmarks", "conformance", "mutants", "examples"):
            shutil.copytree(path, folder / path.name, ignore=ignored)
        elif path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, folder / path.name)


def broken_source(fault: Fault, root: Path) -> str | None:
    """Returns the faulty text of the file, or None where the old text is not found exactly once."""
    path = root / fault.file
    source = path.read_text() if path.exists() else ""
    return source.replace(fault.old, fault.new) if source.count(fault.old) == 1 else None


def run_tests(root: Path, tests: Iterable[str], programs: Path, limit: float) -> tuple[int, list[str], str]:
    """Runs tests in a copy of the project; returns pytest's exit code, the tests that failed, and what it printed."""
    report = root / "report.xml"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "", "-p", "no:cacheprovider", "-p", "no:xdist"]
    # The copy comes before the checkout, which an editable install puts at the end of the path. Compiled programs are
    # shared: most of them are the same in all copies.
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(programs), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [*command, f"--junitxml={report}", *tests],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
    )
    cases = xml.etree.ElementTree.parse(report).iter("testcase") if report.exists() else []
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in cases if case.find("failure") is not None]
    return done.returncode, failed, done.stdout


def try_fault(fault: Fault, programs: Path) -> Result:
    """Puts the fault into a fresh copy and runs its tests."""
    start = time.monotonic()

    def result(outcome: str, is_noticed: bool = False) -> Result:
        return Result(fault.name, outcome, time.monotonic() - start, is_noticed)

    with tempfile.TemporaryDirectory(prefix="kohort-mutant-") as name:
        root = Path(name)
        copy_project(root)
        source = broken_source(fault, root)
        if source is None:
            return result(f"{STALE}: the old text is not exactly once in {fault.file}")
        (root / fault.file).write_text(source)
        try:
            code, failed, output = run_tests(root, fault.tests, programs, LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return result(f"{BROKEN}: the tests took longer than {LIMIT_SECONDS} s")
    if failed:
        return result(failed[0], is_noticed=True)
    if code == 0:
        return result(SURVIVED)
    return result(f"{BROKEN}: no test ran to a failure (pytest ended with {code})\n{output[-1500:]}")


def check_unbroken(tests: list[str], programs: Path) -> str:
    """Runs tests on an unbroken copy; returns what is wrong, or nothing."""
    with tempfile.TemporaryDirectory(prefix="kohort-mutant-") as name:
        copy_project(Path(name))
        code, failed, output = run_tests(Path(name), tests, programs, UNBROKEN_LIMIT_SECONDS)
    return "" if code == 0 else f"{', '.join(failed) or output[-1500:]}"


def chosen(names: list[str]) -> list[Fault]:
    """Returns the faults of these names, all of them where none is given."""
    known = {fault.name: fault for fault in FAULTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(
            f"mutants: `names` must be names of faults: {', '.join(known)}. Received: {', '.join(unknown)}. "
            "Give some of them, or none for all."
        )
    return [known[name] for name in names] or FAULTS


def main() -> None:
    """Tries the faults, prints the table, and ends with 1 if one is not noticed."""
    parser = argparse.ArgumentParser(prog="./run mutants", description="Breaks kohort and sees the tests notice.")
    parser.add_argument("names", nargs="*", help="faults to try, by default all")
    parser.add_argument("--part", metavar="K/N", help="only every N-th fault, beginning with the K-th")
    parser.add_argument("--list", action="store_true", help="print the names only")
    parser.add_argument("--output", type=Path, help="write the results into this file, too, beside what else is there")
    arguments = parser.parse_args()
    faults = chosen(arguments.names)
    if arguments.part:
        k, n = map(int, arguments.part.split("/"))
        faults = faults[k - 1 :: n]
    if arguments.list:
        print(*(fault.name for fault in faults), sep="\n")
        return
    with tempfile.TemporaryDirectory(prefix="kohort-programs-") as programs:
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as executor:
            tests = sorted({test for fault in faults for test in fault.tests})
            shares = [share for k in range(AT_ONCE) if (share := tests[k::AT_ONCE])]
            wrong = "".join(executor.map(check_unbroken, shares, [Path(programs)] * len(shares)))
            if wrong:
                raise SystemExit(f"mutants: the tests must pass on an unbroken copy first: {wrong}")
            futures = [executor.submit(try_fault, fault, Path(programs)) for fault in faults]
            results = [show(future.result()) for future in futures]
    noticed = sum(result.is_noticed for result in results)
    print(f"{noticed} of {len(results)} faults were noticed")
    if arguments.output:
        put(arguments.output, "mutants", f"## Deliberate faults\n\n{told(results)}")
    sys.exit(noticed < len(results))


def told(results: list[Result]) -> str:
    """Returns what was found, as Markdown: the counts by file, and each fault that nothing noticed."""
    files = {fault.name: fault.file for fault in FAULTS}
    by_file: dict[str, list[Result]] = {}
    for result in results:
        by_file.setdefault(files[result.fault], []).append(result)
    rows = [
        f"| {file} | {len(found)} | {sum(r.is_noticed for r in found)} |" for file, found in sorted(by_file.items())
    ]
    command = shlex.join(["./run", "mutants", *sys.argv[1:]])
    return "\n".join(
        [
            f"Written by `{command}` on {datetime.date.today().isoformat()}: "
            f"{sum(r.is_noticed for r in results)} of {len(results)} faults put into kohort on purpose were noticed by "
            f"its own tests, of {len(FAULTS)} there are.",
            "",
            "| fault in | faults | noticed |",
            "|---|---|---|",
            *rows,
            *(f"\nNot noticed: {r.fault}: {r.outcome.splitlines()[0]}" for r in results if not r.is_noticed),
        ]
    )


def show(result: Result) -> Result:
    """Prints one line of the table."""
    print(f"{result.fault:<42} {result.seconds:>5.1f} s  {result.outcome}", flush=True)
    return result


if __name__ == "__main__":
    main()
