"""A study from elsewhere: what its sums do not tell apart from one of ours is still not believed."""

import json

import numpy as np
import pytest
from refusals import refused
from test_store import edit, ragged, study

from kohort import store
from kohort.blocks import history_of
from kohort.files import Contents

__all__ = ["study"]  # a fixture

pytestmark = pytest.mark.usefixtures("annotations_unchecked")


@pytest.mark.parametrize("name", ["index.sqlite-journal", "writer.lock-journal"])
@pytest.mark.parametrize("page_bytes", [4096, 0])
def test_a_journal_that_would_make_the_index_huge_is_refused(name, page_bytes, study):
    """SQLite makes it as large as it was when a transaction began, as the journal says; 0 stands for its own pages."""
    head = store.BEGINS + b"".join(number.to_bytes(4, "big") for number in (0, 1234, 2**20, 512, page_bytes))
    (study.folder / name).write_bytes(head.ljust(512, b"\0"))
    size = (study.folder / "index.sqlite").stat().st_size
    for act in (study.records, lambda: study.writer().__enter__()):
        with refused(
            ValueError, r"`path` must be a study whose index is whole\. .*\(its journal would make it larger than"
        ):
            act()
    assert (study.folder / "index.sqlite").stat().st_size == size


@pytest.mark.parametrize(
    ("table", "said"),
    [
        *[("block", {"wall_seconds": value}) for value in ("x", [1], -1, float("nan"), None)],
        *[("block", {"finished": value}) for value in ("x", 1e300)],
        *[("block", {"versions": value}) for value in ("3", ["3"])],
        *[("block", {"directions": value}) for value in ([1], {"loss": "sideways"}, {"loss": [1]})],
        ("block", {"device": 3}),
        ("study", {"fit": [3]}),
        ("study", {"data": "x"}),
    ],
)
def test_what_a_stranger_says_of_a_block_is_of_its_form(table, said, study):
    edit(study, f"UPDATE {table} SET about = '{json.dumps(said)}'")
    with refused(ValueError, r"`path` must be a study whose index is whole\. .*index\.sqlite is damaged \("):
        study.records()


@pytest.mark.parametrize("lost", ["epoch", "seeds", "stopped_epoch"])
@pytest.mark.parametrize("shape", [None, (), (7,)])
def test_a_block_without_what_every_block_has_is_refused(lost, shape):
    rows, read = ragged(2, 3)
    arrays = {name: array for name, array in read(rows[0]).arrays.items() if name != lost or shape is not None}
    if shape is not None:
        arrays[lost] = np.zeros(shape, int)
    with refused(ValueError, r"`path` must be a study whose blocks go on where others end\."):
        history_of(rows[:1], lambda row: Contents({}, arrays))
