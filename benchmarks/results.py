"""The file of results, to which more than one command writes.

Each part of `./run bench`, which begins the file, and each other command has a section of its own between two markers.
The room exists so that none of them overwrites what another has measured.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

SECTION = re.compile(r"<!-- begin (\w+) -->\n.*?\n<!-- end \1 -->\n", re.DOTALL)


def put(path: Path, name: str, text: str) -> None:
    """Writes a section, in the place of the one of that name, or at the end."""
    section = f"<!-- begin {name} -->\n{text.strip()}\n<!-- end {name} -->\n"
    before = path.read_text() if path.exists() else "# Results\n"
    known = [found[0] for found in SECTION.finditer(before) if found[1] == name]
    path.write_text(before.replace(known[0], section) if known else f"{before.rstrip()}\n\n{section}")


def begin(path: Path, text: str) -> None:
    """Writes the beginning of the file, and keeps the sections."""
    sections = [found[0] for found in SECTION.finditer(path.read_text())] if path.exists() else []
    path.write_text("\n".join([f"{text.rstrip()}\n", *sections]))


def table(rows: list) -> str:
    """Returns named tuples as a Markdown table, their fields as its head."""
    if not rows:
        return ""
    head = [field.replace("_", " ") for field in rows[0]._fields]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def versions(names: Iterable[str]) -> str:
    """Names what ran, on what, and how quick that was at this moment: what is no ratio depends on it."""
    found = [f"{name} {_version(name)}" for name in names]
    cpus = len(os.sched_getaffinity(0))
    machine = f"{cpus} CPUs ({platform.machine()}), where `import jax, keras` takes {_importing():.1f} s"
    return f"Python {platform.python_version()}, {', '.join(found)}; {machine}"


def _importing() -> float:
    """Returns the seconds of a process that imports what all of them import, of three the quickest."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "import jax, keras"], env=os.environ | {"KERAS_BACKEND": "jax"}, check=True
        )
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
