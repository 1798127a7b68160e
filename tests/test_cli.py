"""The command line: what it prints, where, and with which exit code; one clear message where something is wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from refusals import TEMPLATE

import kohort
from kohort import __main__ as script_command
from kohort import cli, executors

pytestmark = pytest.mark.usefixtures("annotations_unchecked")

STUDY = """
seeds = {seeds}
epochs = 20
[data]
problem = "xor"
task = "regression"
[network]
optimizer = "rmsprop"
learning_rate = 0.05
[grid]
hidden = [2, 4]
[solved]
loss = 0.2
"""
COMMANDS = ("study", "table", "show", "export", "fit", "predict", "run", "demo")
ROOT = Path(__file__).parents[1]
SCRIPT = Path(sys.executable).with_name("kohort")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with a study that is trained, and the file that it comes from."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "xor.toml").write_text(STUDY.format(seeds=6))
    assert cli.main(["study", str(folder / "xor.toml"), "--quiet"]) == 0
    return folder


@pytest.fixture
def folder(stored, tmp_path, monkeypatch):
    """A copy of it, which is the folder that the process is in."""
    shutil.copytree(stored, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own"


def told(capsys, *words, code=0):
    """Returns what the command prints, both ways, once its exit code is found right."""
    capsys.readouterr()
    assert cli.main([*map(str, words)]) == code
    return capsys.readouterr()


def complaint(capsys, *words, code=2):
    """Returns the one message of a command that is refused, once it is found to be of the template."""
    out, error = told(capsys, *words, code=code)
    assert out == ""
    assert error.startswith("kohort: `")
    assert TEMPLATE.fullmatch(error.removeprefix("kohort: ").strip()), error
    return error


# --- studies ----------------------------------------------------------------------------------------------------------


def test_a_study_file_trains_what_the_library_trains(folder, capsys, tmp_path):
    """The table is that of the library, on standard output alone; JSON has the same rows."""
    out, _ = told(capsys, "table", "xor.kohort", "--solved", "loss=0.2")
    table = kohort.open("xor.kohort").table(loss=0.2)
    assert out == f"{table}\n"
    rows = json.loads(told(capsys, "table", "xor.kohort", "--solved", "loss=0.2", "--json").out)["rows"]
    assert rows == table.rows
    assert [(row["hidden"], row["seeds"]) for row in rows] == [(2, 6), (4, 6)]

    import keras

    def network(hidden, optimizer, learning_rate):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(hidden, "relu"), keras.layers.Dense(1)])
        model.compile(keras.optimizers.RMSprop(learning_rate), "mse")
        return model

    grid = {"optimizer": ["rmsprop"], "learning_rate": [0.05], "hidden": [2, 4]}
    by_hand = kohort.Study(tmp_path / "by-hand", network, grid, 6)
    by_hand.run(*kohort.data.xor(), epochs=20, verbose=0)
    for ours, theirs in zip(kohort.open("xor.kohort").trials, by_hand.trials, strict=True):
        assert ours.parameters == theirs.parameters
        np.testing.assert_array_equal(ours.history["loss"], theirs.history["loss"])


def test_the_same_command_trains_nothing_and_more_seeds_train_the_new_ones(folder, capsys, monkeypatch):
    trained, in_threads = [], executors.in_threads

    def counting(lanes, train, interrupt, workers):
        trained.extend(seed for lane in lanes for task in lane for _, seed in task.members)
        return in_threads(lanes, train, interrupt, workers)

    monkeypatch.setattr(executors, "in_threads", counting)
    first, progress = told(capsys, "study", "xor.toml")
    assert (trained, progress) == ([], "")
    kept = "kept in xor.kohort: `kohort table xor.kohort --solved loss=0.2` shows it again"
    assert first == f"{kohort.open('xor.kohort').table(loss=0.2)}\n{kept}\n"

    (folder / "xor.toml").write_text(STUDY.format(seeds=8))
    out, progress = told(capsys, "study", "xor.toml", "--json")
    assert sorted(trained) == [6, 6, 7, 7]
    assert [row["seeds"] for row in json.loads(out)["rows"]] == [8, 8]
    assert re.fullmatch(r"0/4 members - 0s\n4/4 members - \d+s\n", progress)  # plain lines: it is no terminal


def test_an_interrupted_study_says_how_to_go_on(folder, capsys, monkeypatch):
    """Ctrl-C after the first block: it is kept, and the same command trains the rest."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    in_threads = executors.in_threads

    def pressing(lanes, train, interrupt, workers):
        results = in_threads(lanes, train, interrupt, 1)
        yield next(results)
        signal.raise_signal(signal.SIGINT)
        yield from results

    try:
        with monkeypatch.context() as patch:
            patch.setattr(executors, "in_threads", pressing)
            out, error = told(capsys, "study", "xor.toml", "--store", "new", "--quiet", code=130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (out, error) == (
        "",
        "kohort: interrupted. What is finished is kept in new; the same command goes on from there\n",
    )
    kept = sum(map(len, kohort.open("new").trials))
    assert 6 <= kept <= 12

    told(capsys, "study", "xor.toml", "--store", "new", "--quiet")
    np.testing.assert_array_equal(
        kohort.open("new").trial(hidden=4).history["loss"], kohort.open("xor.kohort").trial(hidden=4).history["loss"]
    )


def test_what_a_study_is_and_where_it_stands(folder, capsys):
    out = told(capsys, "show", "xor.kohort").out
    assert out.startswith("xor.kohort: 2 trials, 12 members, 0.0 MB\n")
    assert "  hidden         2, 4\n" in out
    assert "  outcomes       12 completed, 0 stopped early, 0 diverged of 20 epochs\n" in out
    assert f"kohort {kohort.__version__}" in out
    assert "unfinished" not in out

    stands = json.loads(told(capsys, "show", "xor.kohort", "--json").out)
    assert stands["outcomes"] == {"COMPLETED": 12, "STOPPED_EARLY": 0, "DIVERGED": 0}
    assert (stands["missing"], stands["behind"]) == (0, 0)


def test_export_writes_what_the_library_writes(folder, capsys):
    pandas = pytest.importorskip("pandas")
    xarray = pytest.importorskip("xarray")
    study = kohort.open("xor.kohort")
    told(capsys, "export", "xor.kohort", "--to", "members.csv")
    told(capsys, "export", "xor.kohort", "--to", "members.parquet")
    told(capsys, "export", "xor.kohort", "--to", "curves.nc")

    pandas.testing.assert_frame_equal(pandas.read_parquet("members.parquet"), study.to_pandas())
    pandas.testing.assert_frame_equal(pandas.read_csv("members.csv"), study.to_pandas(), check_dtype=False)
    xarray.testing.assert_identical(xarray.load_dataset("curves.nc", engine="h5netcdf"), study.to_xarray())
    assert "`--to` must be a file that is not there" in complaint(capsys, "export", "xor.kohort", "--to", "members.csv")
    told(capsys, "export", "xor.kohort", "--to", "members.csv", "--overwrite")
    assert "`--to` must end in one of .csv, .parquet, .nc" in complaint(capsys, "export", "xor.kohort", "--to", "a.xls")


def test_a_missing_package_is_named(folder, capsys, monkeypatch):
    find = kohort.history.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "pandas" else find(name, *a))

    assert "must find the package pandas" in complaint(capsys, "export", "xor.kohort", "--to", "a.csv")


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_store_that_is_not_there(folder, capsys):
    for words in (["table", "none"], ["show", "none"], ["export", "none", "--to", "a.csv"]):
        assert "`path` must be a study. Received: path='none', where there is none" in complaint(capsys, *words)


def test_a_criterion_on_a_metric_that_is_not_there(folder, capsys):
    error = complaint(capsys, "table", "xor.kohort", "--solved", "los=0.1")
    assert "`los` must be a metric of the history: loss" in error


def test_what_fails_through_no_fault_of_the_words_is_another_exit_code(folder, capsys):
    """The study is being trained by somebody else."""
    with kohort.open("xor.kohort").store.writer():
        (folder / "xor.toml").write_text(STUDY.format(seeds=7))
        error = complaint(capsys, "study", "xor.toml", "--quiet", code=1)
    assert "nobody else is training" in error


def test_a_fault_that_is_not_foreseen_is_not_hidden(folder, monkeypatch):
    def broken(path):
        raise ValueError("of somebody's own")

    monkeypatch.setattr("kohort.trials.open", broken)
    with pytest.raises(ValueError, match="of somebody's own"):
        cli.main(["table", "xor.kohort"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["tabel"], "invalid choice: 'tabel'"),
        (["table"], "the following arguments are required: store"),
        (["table", "a", "--solved", "loss"], "`--solved` must be METRIC=NUMBER. Received: 'loss'."),
        (["table", "a", "--solved", "confidence=0.5"], "`--solved` must name a metric, and confidence is the level of"),
        (["table", "a", "--solve", "loss=1"], "unrecognized arguments: --solve loss=1. See `kohort --help`."),
    ],
)
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)

    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_names_in_a_study_do_not_steer_the_terminal(capsys):
    cli._say("a\x1b[2Jb")
    cli._complain("c\x07")

    assert capsys.readouterr() == ("a\\x1b[2Jb\n", "kohort: c\\x07\n")


# --- help, and the script ---------------------------------------------------------------------------------------------


def becoming(program, words):
    """Instead of becoming the process that runs a script, does what that does with its words."""
    assert words[:3] == [program, "-m", "kohort"]
    return script_command._options(words[3:])


def parser_of(command):
    [commands] = [action for action in cli._parser()._actions if isinstance(action.choices, dict)]
    assert tuple(commands.choices) == COMMANDS
    return commands.choices[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_arguments_and_exit_codes(command, capsys, monkeypatch):
    """`kohort run` leaves it to `python -m kohort`, whose script may have an option of that name."""
    monkeypatch.setattr(os, "execv", becoming)
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])

    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"usage: {'python -m kohort [options]' if command == 'run' else f'kohort {command}'}" in printed
    if command != "run":
        assert "exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted" in printed
        actions = parser_of(command)._actions
        assert [each.dest for each in actions if each.option_strings and each.option_strings[-1] not in printed] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is_for(command):
    """Its default alone does not."""
    said = {
        action.dest: re.sub(r"\W*default:[^)]*\)?", "", action.help or "") for action in parser_of(command)._actions
    }
    assert [name for name, text in said.items() if len(text.split()) < 2] == []


def test_help_of_a_study_names_every_key(capsys):
    from kohort import study_file

    with pytest.raises(SystemExit):
        cli.main(["study", "--help"])
    printed = capsys.readouterr().out
    assert [key for key in (*study_file.KEYS, *study_file.TABLE_KEYS) if key not in printed] == []


@pytest.mark.slow
def test_readme_shows_the_example_and_what_it_prints(tmp_path, capsys):
    example = ROOT / "examples" / "xor.toml"
    readme = (ROOT / "README.md").read_text()
    assert re.search(r"```toml\n(.*?)```", readme, re.DOTALL)[1] in example.read_text()
    said = re.search(r"kohort study examples/xor.toml .*?```text\n(.*?)```", readme, re.DOTALL)[1]
    out = told(capsys, "study", example, "--store", tmp_path / "xor.kohort", "--quiet").out
    titles, *rows = (line.split()[:-1] for line in said.splitlines() if line != "...")
    assert out.split()[: len(titles)] == titles
    assert len(rows) > 2
    for row in rows:
        (told_row,) = (line.split() for line in out.splitlines() if line.split()[:4] == row[:4])
        # Processors differ in last bits, and so does an epoch in which a network is solved.
        assert [float(word) for word in told_row[4 : len(row)]] == pytest.approx(
            [float(word) for word in row[4:]], rel=0.01
        )


def test_every_command_is_in_the_docs():
    page = (ROOT / "docs" / "command.md").read_text()
    assert [
        command for command in COMMANDS if f"`kohort {command} " not in page and f"`kohort {command}`" not in page
    ] == []


def script(*words, **options):
    assert SCRIPT.exists(), "the environment has no script; `./run python -V` sets it up anew"
    return subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=120, **options)


def test_help_and_version_import_neither_keras_nor_jax(tmp_path):
    (tmp_path / "keras.py").write_text("raise SystemExit('keras is imported')")
    (tmp_path / "jax.py").write_text("raise SystemExit('jax is imported')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    version, text = (script(word, env=environment) for word in ("--version", "--help"))
    assert (version.stdout, version.stderr, version.returncode) == (f"kohort {kohort.__version__}\n", "", 0)
    assert (text.stderr, text.returncode) == ("", 0)
    assert all(f"\n    {command} " in text.stdout for command in COMMANDS)


def test_the_script_reads_a_study_and_runs_scripts(folder):
    """In a process of its own, whose Keras would be another one: a table, a message, and a script that is compiled."""
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "JAX_PLATFORMS": "cpu"}
    done = script("table", "xor.kohort", "--solved", "loss=0.2", cwd=folder, env=environment)
    assert (done.stdout, done.stderr) == (f"{kohort.open('xor.kohort').table(loss=0.2)}\n", "")

    (folder / "train.py").write_text("import sys, kohort, keras\nprint(sys.argv, 'fit' in vars(keras.Model))\n")
    done = script("run", "--report", "train.py", "--epochs", "2", cwd=folder)
    assert done.stdout == "['train.py', '--epochs', '2'] True\n"
    assert done.stderr == "kohort: no fit ran\n"
    assert "a script is needed" in script("run", cwd=folder).stderr
