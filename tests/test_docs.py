"""The site: what its pages say in code runs, and every page is reached."""

import itertools
import re
from pathlib import Path

import pytest
import safetensors.numpy
from test_study import trained

from kohort.store import Store

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_code_of_the_pages_runs(capsys):
    names = {}
    for page in ("index", "fit", "cohort"):
        for block in blocks(DOCS / f"{page}.md"):
            exec(compile(block, f"{page}.md", "exec"), names)

    assert "of 1000 (2" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("annotations_unchecked")
def test_the_code_of_many_machines_runs(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    names = {}
    (block,) = blocks(DOCS / "many-machines.md")
    exec(compile(block, "many-machines.md", "exec"), names)

    assert names["study"].trial(width=32).cohort().history["loss"].shape == (32, 5)


def test_no_other_page_has_code_that_is_not_run():
    assert {page.stem for page in PAGES if blocks(page)} == {"index", "fit", "cohort", "many-machines"}


def test_every_page_is_in_the_contents():
    listed = re.findall(r"^[a-z/-]+$", (DOCS / "index.md").read_text(), re.MULTILINE)

    assert {page.stem for page in PAGES} - {"index"} == set(listed) - {"generated/gallery", "generated/discussion"}


def test_the_tables_of_a_study_are_those_that_the_page_names(tmp_path):
    rows = re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|", (DOCS / "study.md").read_text(), re.MULTILINE)
    told = {table: re.findall(r"\w+", columns) for table, columns in rows}

    with Store(tmp_path / "a.kohort").writer() as writer:
        connection = writer._connection
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        made = {name: [each[1] for each in connection.execute(f"PRAGMA table_info({name})")] for (name,) in tables}

    assert told == made


def test_the_arrays_of_a_block_are_those_that_the_page_names(tmp_path):
    lines = (DOCS / "study.md").read_text().partition("| array |")[2].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("| `"), lines)
    kinds = {name.partition("/")[0] for row in rows for name in re.findall(r"`([\w/]+)`", row.split("|")[1])}
    trained(tmp_path, {"hidden": [2], "dropout": [0.5]}, seeds=3, epochs=2)
    [path] = (tmp_path / "a.kohort" / "blocks").iterdir()

    assert {name.partition("/")[0] for name in safetensors.numpy.load_file(path)} == kinds


def test_every_function_of_ours_has_its_entry_on_a_page():
    from test_layout import documented

    told = set()
    for page in PAGES:
        room = ""
        for directive, name in re.findall(r"^\.\. (currentmodule|auto\w+):: (\S+)$", page.read_text(), re.MULTILINE):
            room = f"{name}." if directive == "currentmodule" else room
            told |= {name, room + name}
    names = {name for name, thing in documented() if not isinstance(thing, type) or name.count(".") == 1}

    assert {"kohort.fit", "kohort.Cohort", "kohort.distribute.ray", "kohort.plot.wall", "kohort.search.sobol"} <= names
    assert {name for name in names if name not in told and name.rpartition(".")[0] not in told} == set()
