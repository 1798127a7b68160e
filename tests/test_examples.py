"""The examples run to their end, and print and store what they say."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
DISCUSSION = EXAMPLES / "discussion.ipynb"
CLAIMS = 17  # of the course text, each beside its figure


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stdout


def percent(pattern, text):
    return float(re.search(pattern, text)[1])


@pytest.mark.slow
def test_the_course_text_done_says_what_it_measures():
    stored = DISCUSSION.read_bytes()

    text = run(EXAMPLES / "notebook.py", DISCUSSION, "--check")

    assert DISCUSSION.read_bytes() == stored
    assert text.count("claim: ") == text.count("measured: ") == CLAIMS
    assert "measured: 9: 2 x 2 weights + 2 biases, then 2 weights + 1 bias" in text
    linear, first, later, able, *descent, longer = (int(each) for each in re.findall(r"(\d+) of 1000", text))
    assert linear == 0
    assert 30 < first < 80 < 170 < later < 260  # a standard deviation is 7, and 13
    assert later <= longer < later + 15
    assert later <= able < later + 15
    assert len(descent) == 3
    assert min(descent) < 20 < 150 < max(descent)  # at the text's learning rate, and at the best one
    assert "measured: 1,000 epochs are 1,000 steps, each of all 4 points" in text
    assert "measured: 0 of 1,000 starts have them by chance" in text
    assert percent(r"half of them are ([\d.]+) or more above it", text) > 0.12
    assert percent(r"\n  2 hidden units: .*?\(([\d.]+) %", text) < 30
    assert percent(r" 16 hidden units: .*?\(([\d.]+) %", text) > 95
    # Question 3: training accuracy at least 99.5 % for at least 95 % of the members.
    assert percent(r"of 64 \(([\d.]+) %.* reach 99.5 %", text) >= 95
    assert percent(r"on 10,000 new points: median ([\d.]+)%", text) > 99


def test_the_notebook_is_stored_with_its_outputs_and_nothing_else():
    notebook = json.loads(DISCUSSION.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    shown = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    pictures = [base64.b64decode(each) for each in shown]
    printed = "".join("".join(output.get("text", ())) for output in outputs)

    assert notebook["nbformat"] == 4
    assert all(cell["execution_count"] is None and cell["metadata"] == {} for cell in cells)
    assert len(pictures) == 15
    assert max(map(len, pictures)) < 60_000
    assert DISCUSSION.stat().st_size < 400_000
    assert printed.count("claim: ") == CLAIMS
    assert "Error" not in printed
    assert not re.search(r"/(home|root|tmp|work)/|https?://", DISCUSSION.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("table", [(r"by start: .*median ([\d.]+)%", 95), (r"by the mean .*: +([\d.]+)%", 95), (r"rows: (\S+)%", 94)]),
        ("digits", [(r"as one model: +([\d.]+)%", 95), (r"of these ([\d.]+)% are right", 97)]),
        ("bands", [(r"where there are samples .*holds +([\d.]+)% of the wave", 60)]),
    ],
)  # fmt: skip
def test_an_example_prints_its_figures_and_leaves_its_picture(name, figures, tmp_path):
    text = run(EXAMPLES / f"{name}.py", tmp_path)

    for pattern, least in figures:
        assert percent(pattern, text) >= least
    if name == "bands":  # wide where nothing is known
        assert percent(r"gap +band ([\d.]+)", text) > 3 * percent(r"samples +band ([\d.]+)", text)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]
