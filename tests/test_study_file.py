"""Study files: the same study as in Python, and every mistake named with the nearest thing that there is."""

import itertools
import json
import sys

import keras
import numpy as np
import pytest
from refusals import refused
from sklearn.preprocessing import StandardScaler

import kohort
from kohort import cli, networks, study_file, tables

pytestmark = pytest.mark.usefixtures("annotations_unchecked")

CELLS = "size,colour,kind\n1,red,b\n2,blue,a\n,red,b\n4,blue,a\n5,red,b\n60,blue,a\n"
NETWORKS = """
import keras

def small(units=2, rate=0.1):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units, "tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse", metrics=["mae"])
    return model

def any_of_them(**words):
    return small()

def uncompiled(units=2):
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])

def none(units=2):
    pass
"""
FUNCTION = 'network.function = "study_networks:{}"\ndata.problem = "xor"\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "cells.csv").write_text(CELLS)
    (tmp_path / "one.csv").write_text("size,kind\n1,b\n2,b\n")
    (tmp_path / "study_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("study_networks", None)


def read(text, **options):
    with open("a.toml", "w") as file:
        file.write(text)
    return study_file.read("a.toml", **options)


def test_what_a_file_asks_for(folder):
    asked = read(
        'seeds = [3, 5]\nepochs = 7\nbatch_size = 2\n[data]\nproblem = "moons"\nn_samples = 20\n'
        "[network]\ndepth = 2\n[grid]\nhidden = [2, [4, 3]]\n[solved]\naccuracy = 0.9\n"
    )
    assert (asked.store, asked.seeds, asked.exact) == ("a.kohort", [3, 5], False)
    assert asked.fit == {"epochs": 7, "batch_size": 2}
    assert asked.grid == {"depth": [2], "hidden": [2, [4, 3]]}
    assert asked.solved == {"accuracy": 0.9}
    for ours, theirs in zip((asked.x, asked.y), kohort.data.moons(n_samples=20), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert asked.network(hidden=2).loss == "binary_crossentropy"


def test_a_table_is_prepared_by_the_rows_that_train(folder):
    """Keras validates on the last rows: what scales them is learned from the others alone."""
    text = 'validation_split = {}\ndata.file = "cells.csv"\ndata.target = "kind"\n'
    asked = read(text.format(0.34))
    table, target = tables.with_target(tables.read("cells.csv"), "kind")
    layout = tables.layout_of(table)

    np.testing.assert_array_equal(asked.x, tables.learned(layout, table.taken(np.arange(3)))(table))
    np.testing.assert_array_equal(asked.y, target.values)
    assert abs(read(text.format(0.0)).x - asked.x).max() > 1
    assert asked.network().count_params() == 8 * (len(layout.names) + 1) + 9


def test_files_and_stores_are_found_from_the_file_on(folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    (folder / "b.toml").write_text('path = "b.store"\ndata.file = "cells.csv"\ndata.target = "size"\n')
    monkeypatch.chdir(folder / "elsewhere")

    assert study_file.read("../b.toml").store == "../b.store"
    assert study_file.read("../b.toml", "own").store == "own"


def test_a_function_of_ones_own(folder):
    asked = read(
        FUNCTION.format("small") + "[network]\n".replace("[network]\n", "") + "network.rate = 0.2\ngrid.units = [3]\n"
    )
    model = asked.network(**{name: values[0] for name, values in asked.grid.items()})
    assert model.layers[0].units == 3
    assert float(model.optimizer.learning_rate) == pytest.approx(0.2)
    read(FUNCTION.format("any_of_them") + "grid.whatever = [1]\n")
    asked._replace(solved={"mae": 0.1}).check_solved()


XOR = '[data]\nproblem = "xor"\n'


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "seed = 5\n" + XOR,
            ValueError,
            r"`seed` must be a key that the file may have: path, seeds, .*Write 'seeds'\.",
        ),
        (
            "seeds = 5\nepochs = = 3\n",
            ValueError,
            r"`file` must be a study in TOML\. Received: 'a\.toml', .*at line 2, ",
        ),
        ("grid = 5\n" + XOR, TypeError, r"`grid` must be a table of TOML\. Received: grid=5"),
        ("path = 5\n" + XOR, TypeError, r"`path` must be a text\. Received: path=5"),
        ("", ValueError, r"`\[data\]` must hold a problem \(.*xor\) or a file\. Received: nothing"),
        ('[data]\nfile = "a.csv"\nproblem = "xor"\n', ValueError, r"`\[data\]` must hold a problem .*: file, problem"),
        ('[data]\nproblem = "xr"\n', ValueError, r"`problem` must be one of .*'xr'\. Write 'xor'\."),
        (
            '[data]\nproblem = "moons"\nnoize = 1\n',
            ValueError,
            r"`noize` must be a key that the problem moons .*'noise'",
        ),
        (XOR + 'task = "guess"\n', ValueError, r"`task` must be 'classification' or 'regression'"),
        ('[data]\nfile = "none.csv"\n', FileNotFoundError, r"`file` must be a file\. Received: 'none\.csv'"),
        ('[data]\nfile = "cells.csv"\n', ValueError, r"`target` must be a column of 'cells\.csv'.*target=None"),
        (
            '[data]\nfile = "one.csv"\ntarget = "kind"\n',
            ValueError,
            r"`target` must hold at least two .*b in all",
        ),
        ('[data]\nfile = "cells.csv"\ntarget = "knid"\n', ValueError, r"`target` .*'knid'\. Write 'kind'\."),
        ('[data]\nfile = "cells.csv"\ntargte = "kind"\n', ValueError, r"`targte` must be a key .*Write 'target'\."),
        (
            XOR + "[network]\nhiden = 3\n",
            ValueError,
            r"`\[network\]` must name parameters .*'hiden'\. Write 'hidden'\.",
        ),
        (XOR + "[grid]\ndept = [3]\n", ValueError, r"`\[grid\]` must name parameters .*'dept'\. Write 'depth'\."),
        (FUNCTION.format("small") + "grid.unit = [3]\n", ValueError, r"takes: units, rate\. .*Write 'units'\."),
        (FUNCTION.format("smal"), ValueError, r"`function` must be a function of the module .*Write 'small'\."),
        ('network.function = "os:system"\n' + XOR, ValueError, r"`function` must be module:function, of a module in"),
        (XOR + "network.depth = 1\ngrid.depth = [2]\n", ValueError, r"`\[network\]` must hold .*'depth' in both"),
        (XOR + "[solved]\nconfidence = 0.9\n", ValueError, r"`\[solved\]` must name metrics, and confidence is the le"),
        (XOR + '[solved]\nloss = "low"\n', TypeError, r"`\[solved\]` must give each metric a number"),
    ],
)
def test_files_that_are_refused(text, error, message, folder):
    if text.startswith("network.function") or "grid.depth" in text:  # dotted keys stand before tables
        text = text.replace(XOR, 'data.problem = "xor"\n')
    with refused(error, message):
        read(text)


def test_a_file_that_is_none(folder):
    with refused(FileNotFoundError, r"`file` must be a study in TOML\. Received: 'none\.toml', which does not exist"):
        study_file.read("none.toml")
    with refused(IsADirectoryError, r"`file` must be a study in TOML\. Received: '\.', which is a folder"):
        study_file.read(".")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (XOR + "[grid]\nhidden = []\n", "`grid` must hold at least one value for each parameter"),
        (XOR + "[grid]\nhidden = 3\n", "`grid` must hold at least one value for each parameter, in a list"),
        ("seeds = 0\n" + XOR, "`seeds` must be a number of members from 1"),
        ("epochs = 0\n" + XOR, "`epochs` must be an integer of at least 1"),
        (
            XOR + "[network]\nlearning_rate = 0\n",
            "`learning_rate` must be a number above 0. Received: learning_rate=0.",
        ),
        (XOR + "[grid]\ndropout = [2.0]\n", "`dropout` must be a number from 0 to below 1. Received: dropout=2.0."),
        *[
            (
                f'[data]\nproblem = "moons"\n{name} = {value}\n',
                f"`[data]` must hold arguments that the problem moons can be made with. Received: {name}={value}, of",
            )
            for name, value in (("n_samples", 0), ("n_samples", "'x'"), ("noise", -1), ("random_state", 1.5))
        ],
        (XOR + '[network]\nactivation = "rely"\n', "`activation` must be one of Keras's"),
        (XOR + "[solved]\nlos = 1\n", "better: loss, accuracy. Received: 'los'. Write 'loss'."),
        (XOR + "[solved]\nval_loss = 1\n", "better: loss, accuracy. Received: 'val_loss'."),
        (FUNCTION.format("none"), "`network` must return a compiled Keras model. Received: network=None"),
        (FUNCTION.format("uncompiled"), "which is not compiled"),
    ],
)
def test_studies_that_are_refused_before_anything_is_trained(text, message, folder, capsys):
    (folder / "a.toml").write_text(text)

    assert cli.main(["study", "a.toml"]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert message in error
    assert not (folder / "a.kohort").exists()


# --- what is trained --------------------------------------------------------------------------------------------------


def cells():
    """The columns of the table as numbers, by hand: size scaled, whether it is missing, blue, red; and the target."""
    size = StandardScaler().fit_transform(np.array([[1.0, 2, 4, 4, 5, 60]]).T)[:, 0]  # 4 is the median of the others
    blue = np.array([0, 1, 0, 1, 0, 1])
    x = np.stack([size, [0, 0, 1, 0, 0, 0], blue, 1 - blue], axis=1)
    return x.astype("float32"), 1 - blue.astype("int32")


def of_cells(learning_rate, hidden):
    stack = [keras.layers.Dense(hidden, "relu"), keras.layers.Dense(1, "sigmoid")]
    model = keras.Sequential([keras.Input((4,)), *stack])
    model.compile(keras.optimizers.Adam(learning_rate), "binary_crossentropy", metrics=["accuracy"])
    return model


def small(rate, units):
    stack = [keras.layers.Dense(units, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,)), *stack])
    model.compile(keras.optimizers.SGD(rate), "mse", metrics=["mae"])
    return model


FILE = 'data.file = "cells.{}"\ndata.target = "kind"\nnetwork.learning_rate = 0.05\ngrid.hidden = [2, 3]\n'
TABLE = cells, of_cells, {"learning_rate": [0.05], "hidden": [2, 3]}
TRAINED = {
    "csv": (FILE.format("csv"), *TABLE),
    "parquet": (FILE.format("parquet"), *TABLE),
    "function": (
        FUNCTION.format("small") + "network.rate = 0.05\ngrid.units = [2, 3]\n",
        kohort.data.xor, small, {"rate": [0.05], "units": [2, 3]},
    ),
}  # fmt: skip


@pytest.mark.many
@pytest.mark.parametrize("kind", TRAINED)
def test_the_command_trains_the_study_that_python_would(kind, folder, capsys):
    """The same data, arguments, members and rows; data and networks are written down here once more."""
    text, data, network, grid = TRAINED[kind]
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        pytest.importorskip("pandas").read_csv("cells.csv").to_parquet("cells.parquet")
    (folder / "a.toml").write_text(f"seeds = 3\nepochs = 4\nbatch_size = 2\n{text}solved.loss = 0.6\n")
    assert cli.main(["study", "a.toml", "--quiet", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["rows"]
    by_hand = kohort.Study("b.kohort", network, grid, 3)
    by_hand.run(*data(), batch_size=2, epochs=4, verbose=0)

    ours = kohort.open("a.kohort")
    assert ours.store.records().about == by_hand.store.records().about  # fingerprints of the data are among it
    for mine, other in zip(ours.trials, by_hand.trials, strict=True):
        assert (mine.parameters, mine.seeds) == (other.parameters, other.seeds)
        np.testing.assert_equal(dict(mine.history), dict(other.history))
    rows = [{**row, "seconds": told[i]["seconds"]} for i, row in enumerate(by_hand.table(loss=0.6).rows)]
    assert told == cli._of_json(rows)


def test_the_example_is_the_case_of_the_issue():
    from pathlib import Path

    asked = study_file.read(Path(study_file.__file__).parents[1] / "examples" / "xor.toml")
    assert len(list(itertools.product(*asked.grid.values()))) == 15
    assert (asked.seeds, asked.fit["epochs"], asked.solved) == (500, 3000, {"loss": 0.01})
    model = asked.network(hidden=2, optimizer="rmsprop")
    assert (model.loss, type(model.optimizer)) == ("mse", keras.optimizers.RMSprop)
    assert networks.dense(2, 1, "regression")().loss == "mse"
