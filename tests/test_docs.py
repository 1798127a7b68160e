"""The site: what its pages say in code runs, and every page is reached."""

import re
from pathlib import Path

import pytest

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


def test_pages_have_the_words_of_the_pictures():
    from kohort import plot

    text = (DOCS / "plot.md").read_text()
    functions = [name for name in plot.__all__ if name[0].islower()]
    assert [name for name in functions if f".. autofunction:: {name}\n" not in text] == []
