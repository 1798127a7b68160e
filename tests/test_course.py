"""The code cells of a course's notebook run to their end under `python -m kohort`, and their fits run compiled.

The course is a text beside the checkout; where it is not, the project's own notebook stands in for it.
"""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
COURSES = [TESTS / "notebook.txt", *sorted((TESTS.parents[1] / "shared" / "seed").glob("*.txt"))]
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def cells(text):
    """Yields the code cells: of what follows each mark, the paragraphs up to where it is no Python any more."""
    for part in text.split("In [None]:\n")[1:]:
        paragraphs = part.split("\n\n")
        prefixes = ["\n\n".join(paragraphs[:n]) for n in range(len(paragraphs), 0, -1)]
        yield next(filter(is_python, prefixes))


def is_python(text):
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def script(text):
    """Joins the cells, and changes what today's Keras refuses; without TensorFlow, also where Keras comes from."""
    code = "\n\n".join(cells(text)).replace("keras.Input(shape=2)", "keras.Input(shape=(2,))")
    return code if HAS_TENSORFLOW else code.replace("from tensorflow import keras", "import keras")


@pytest.mark.parametrize("course", COURSES, ids=lambda path: path.name)
def test_no_cell_is_lost_and_what_today_s_keras_refuses_alone_is_changed(course):
    text = course.read_text()
    found = list(cells(text))

    assert len(found) == text.count("In [None]:\n") > 5
    assert all(cell.strip() for cell in found)
    before, after = "\n\n".join(found).splitlines(), script(text).splitlines()
    changed = {old.strip() for old, new in zip(before, after, strict=True) if old != new}
    assert all("keras.Input(shape=2)" in line or line == "from tensorflow import keras" for line in changed)


@pytest.mark.parametrize("course", COURSES, ids=lambda path: path.name)
def test_the_cells_run_to_their_end(course, tmp_path):
    code = script(course.read_text())
    (tmp_path / "course.py").write_text(code + "\nimport keras\nprint('end', keras.backend.backend())\n")
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    environment |= {"MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "kohort", "--report", "course.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    fits = len(re.findall(r"model\.fit\(", code))

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"end {'tensorflow' if HAS_TENSORFLOW else 'jax'}"
    assert fits > 0
    assert f"kohort: {fits} of {fits} fits ran compiled" in done.stderr


def test_the_cells_are_found():
    found = list(cells((TESTS / "notebook.txt").read_text()))

    assert len(found) == 9
    assert found[0] == "from tensorflow import keras"
    assert found[6] == "..."
    assert found[7].startswith("import matplotlib")
    assert found[7].rstrip().endswith("alpha=0.2)")
    assert found[8].count("\n") > 1
