"""Where a study stands: counts of what its blocks hold."""

from pathlib import Path

import keras
import pytest

import kohort
from kohort.standing import lines, standing
from kohort.store import Store

pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def network(hidden):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(hidden, "relu"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_what_is_unfinished_is_counted(tmp_path):
    """One trial has fewer seeds than the other, and some members have not gone on."""
    path, data = tmp_path / "a.kohort", kohort.data.xor()
    kohort.Study(path, network, {"hidden": [2]}, seeds=5).run(*data, epochs=3, verbose=0)
    kohort.Study(path, network, {"hidden": [3]}, seeds=2).run(*data, epochs=4, batch_size=None, verbose=0)
    stands = standing(kohort.open(path))

    assert (stands["trials"], stands["members"], stands["epochs"]) == (2, 7, 4)
    assert (stands["missing"], stands["behind"]) == (3, 5)
    assert stands["outcomes"] == {"COMPLETED": 2, "STOPPED_EARLY": 5, "DIVERGED": 0}
    assert stands["parameters"] == {"hidden": [2, 3]}
    assert stands["first"] <= stands["last"]
    assert stands["bytes"] == sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    [used] = stands["trained_with"]
    assert used["keras"] == keras.__version__
    assert "  unfinished  3 members of seeds that other trials have are not trained, 5 have not reached epoch 4" in (
        lines(stands)
    )


def test_counts_add_up_while_the_study_is_trained(tmp_path, monkeypatch):
    """Before each look at it another block is committed; what is being written is gone when its size is asked for."""
    path = tmp_path / "a.kohort"
    kohort.Study(path, network, {"hidden": [2]}, seeds=3).run(*kohort.data.xor(), epochs=2, verbose=0)
    opened, records, stat = kohort.open(path), Store.records, Path.stat
    seeds = iter(range(4, 9))

    def more(self):
        with monkeypatch.context() as patch:
            patch.setattr(Store, "records", records)
            kohort.Study(path, network, {"hidden": [2]}, next(seeds)).run(*kohort.data.xor(), epochs=2, verbose=0)
        return records(self)

    def gone(self, **options):
        if self.name.endswith(".part"):
            raise FileNotFoundError(self)
        return stat(self, **options)

    monkeypatch.setattr(Store, "records", more)
    (path / "blocks" / ".x.part").touch()
    monkeypatch.setattr(Path, "stat", gone)
    stands = standing(opened)
    assert sum(stands["outcomes"].values()) == stands["members"] == 4
    assert stands["bytes"] > 0


def test_a_study_that_is_declared_and_not_trained(tmp_path):
    study = kohort.Study(tmp_path / "a.kohort", network, {"hidden": [2]}, seeds=5)
    with pytest.raises(RuntimeError, match="nothing is trained"):
        study.run(*kohort.data.xor(), verbose=0, executor=broken)

    stands = standing(kohort.open(tmp_path / "a.kohort"))
    assert (stands["trials"], stands["members"], stands["last"]) == (1, 0, None)
    assert lines(stands)[0].startswith(f"{tmp_path / 'a.kohort'}: 1 trials, 0 members, ")


def broken(*_):
    raise RuntimeError("nothing is trained")
