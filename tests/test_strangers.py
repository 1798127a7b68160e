"""A study from elsewhere: what its sums do not tell apart from one of ours is still not believed."""

import copy
import json

import keras
import numpy as np
import pytest
from keras.src.backend.common import global_state
from refusals import refused
from test_saving import HARMFUL, layer
from test_store import edit, ragged, study
from test_study import trained

import kohort
from kohort import files, store
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


RUNS_CODE = {
    **{name: {"kernel_initializer": {"registered_name": None, **harmful}} for name, harmful in HARMFUL.items()},
    "a layer that calls a lambda": {"class_name": "Lambda", "config": {"function": HARMFUL["a lambda"]}},
    "a layer that calls what a folder holds": {"class_name": "TFSMLayer", "config": {"filepath": "elsewhere"}},
}


@pytest.mark.parametrize("name", RUNS_CODE)
def test_a_cohort_of_a_study_is_of_parts_that_were_checked(name, tmp_path):
    """Its tables can be read; its networks are not built, also where somebody has turned Keras's safe mode off."""
    own = trained(tmp_path, {"hidden": [2]}, 2, epochs=1)
    [block] = own.store.records().blocks
    kept = files.read(own.store.file(block), "block", 1)
    about = copy.deepcopy(kept.about)
    if "class_name" in RUNS_CODE[name]:
        layer(about).update(module="keras.layers", registered_name=None, **RUNS_CODE[name])
    else:
        layer(about)["config"].update(RUNS_CODE[name])
    files.write(own.store.file(block), "block", 1, Contents(about, kept.arrays))
    keras.config.enable_unsafe_deserialization()
    try:
        study = kohort.open(own.path)
        assert study.table()["seeds"].tolist() == [2]
        with refused(ValueError, r"`path` must be a file of which this process can make the cohort again\."):
            study.trials[0].cohort()
    finally:
        global_state.set_global_attribute("safe_mode_saving", None)
