"""The file of results, to which more than one command writes.

Each part of `./run bench`, which begins the file, and each other command has a section of its own between two markers.
The room exists so that none of them overwrites what another has measured.
"""

import importlib.metadata
import os
import platform
import re
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
    """Names what ran, and on what."""
    found = [f"{name} {_version(name)}" for name in names]
    cpus = len(os.sched_getaffinity(0))
    return f"Python {platform.python_version()}, {', '.join(found)}; {cpus} CPUs ({platform.machine()})"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
