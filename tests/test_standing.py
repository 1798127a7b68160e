"""Where a study stands: counts of what its blocks hold."""

import keras
import pytest

import kohort
from kohort.standing import lines, standing

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


def test_a_study_that_is_declared_and_not_trained(tmp_path):
    study = kohort.Study(tmp_path / "a.kohort", network, {"hidden": [2]}, seeds=5)
    with pytest.raises(RuntimeError, match="nothing is trained"):
        study.run(*kohort.data.xor(), verbose=0, executor=broken)

    stands = standing(kohort.open(tmp_path / "a.kohort"))
    assert (stands["trials"], stands["members"], stands["last"]) == (1, 0, None)
    assert lines(stands)[0].startswith(f"{tmp_path / 'a.kohort'}: 1 trials, 0 members, ")


def broken(*_):
    raise RuntimeError("nothing is trained")
