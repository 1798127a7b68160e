"""`python -m kohort`: a script runs as Python would run it, with its fits compiled."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

import kohort
from kohort import __main__ as command
from kohort import backend as backends

# What a script can see of how it is run, the numbers of a fit, and an end of each kind.
SCRIPT = """
import argparse, json, signal, sys, os
import beside
import keras, numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("--end", default="")
end = parser.parse_args().end
keras.utils.set_random_seed(1)
x = np.random.normal(size=(40, 2)).astype("float32")
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
model.compile("adam", "mse")


class Interrupted(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)


class Inner(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        pass


if end == "fallback":
    for _ in range(3):
        model.fit(x, x[:, 0], epochs=2, verbose=0, callbacks=[Inner()])  # this line
if end == "interrupt":
    try:
        model.fit(x, x[:, 0], epochs=9, verbose=0, callbacks=[Interrupted()])
    except KeyboardInterrupt:
        print("interrupted in epoch", model.history.epoch[-1] + 1)
        raise
history = model.fit(x, x[:, 0], epochs=5, verbose=0).history
main = sys.modules["__main__"]
print(json.dumps([__name__, __file__, sys.argv, sys.path[0], beside.VALUE, __spec__ is None, __package__,
                  main.__dict__ is globals(), keras.backend.backend(), history]))


def last():
    if end == "raise":
        raise ValueError("mine")
    if end == "exit":
        sys.exit(3)


last()
"""
SPAWNING = """
import multiprocessing, sys

def double(n):
    return 2 * n, __name__, "kohort" in sys.modules

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [1, 2]))
"""
CHOOSING = """
import os, sys
import importlib.util
assert importlib.util.find_spec("keras")  # a look at it is no import; TensorFlow takes one
print({"keras", "jax", "kohort"} & set(sys.modules))
os.environ["KERAS_BACKEND"] = "jax"
from kohort.data import xor
import keras, kohort
print(keras.backend.backend(), "fit" in vars(keras.Model), xor is kohort.data.xor, kohort.report())
"""

CELLS = """
from IPython.core.interactiveshell import InteractiveShell

CELLS = [
    "%load_ext kohort",
    "import keras, kohort",
    "model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])",
    "model.compile('sgd', 'mse')",
    "_ = model.fit(*kohort.data.xor(), epochs=3, verbose=0)",
    "print(kohort.report()[0][:4])",
    "%load_ext kohort",
    "%unload_ext kohort",
    "print('fit' in vars(keras.Model))",
]
shell = InteractiveShell.instance()
for cell in CELLS:
    shell.run_cell(cell).raise_error()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "script.py").write_text(SCRIPT)
    (tmp_path / "scripts" / "beside.py").write_text("VALUE = 42\n")
    (tmp_path / "spawning.py").write_text(SPAWNING)
    (tmp_path / "choosing.py").write_text(CHOOSING)
    (tmp_path / "broken.py").write_text("def f(:\n")
    return tmp_path


def python(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"KERAS_HOME": str(folder), "KERAS_BACKEND": "jax"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def by_kohort(folder, *arguments, **environment):
    return python(folder, "-m", "kohort", *arguments, **environment)


def assert_the_same(theirs, ours):
    assert (theirs.returncode, theirs.stdout, theirs.stderr) == (ours.returncode, ours.stdout, ours.stderr)


def test_a_script_sees_what_it_always_sees(folder):
    """Also where it fails: the same numbers, the same traceback, the same exit code."""
    script = ("scripts/script.py", "--end", "raise")
    theirs, ours = python(folder, *script), by_kohort(folder, "--strict", *script)

    assert_the_same(theirs, ours)
    assert theirs.returncode == 1
    assert theirs.stderr.endswith("ValueError: mine\n")
    name, file, argv, *_ = json.loads(ours.stdout)
    assert (name, file, argv) == ("__main__", str(folder / "scripts" / "script.py"), [*script])


@pytest.mark.slow
def test_a_module_sees_what_it_always_sees(folder):
    """Keras's backend is that which the environment names, or JAX where that one is not installed."""
    module = ("-m", "script", "--end", "exit")
    theirs = python(folder / "scripts", *module)
    ours = by_kohort(folder / "scripts", "--strict", *module, KERAS_BACKEND="")

    assert_the_same(theirs, ours)
    assert theirs.returncode == 3


def test_a_report_at_exit_and_a_line_of_reason(folder):
    done = by_kohort(folder, "--report", "scripts/script.py", "--end", "fallback")
    script = folder / "scripts" / "script.py"
    line = SCRIPT[: SCRIPT.index("# this line")].count("\n") + 1
    reason = "the callback Inner acts inside an epoch (`on_train_batch_end`)"
    warning, code, head, _, *rows = done.stderr.splitlines()

    assert done.returncode == 0
    assert warning == f"{script}:{line}: FallBackWarning: kohort: Keras runs this fit itself, because {reason}."
    assert code.endswith("# this line")
    assert head == "kohort: 1 of 4 fits ran compiled"
    assert [row.split()[:2] for row in rows] == [["1", "5"], ["3", "6"]]
    assert [row.split(maxsplit=3)[3] for row in rows] == ["compiled", f"Keras, because {reason}"]


@pytest.mark.slow
def test_strict_ends_the_script_at_a_fall_back(folder):
    done = by_kohort(folder, "--strict", "scripts/script.py", "--end", "fallback")

    assert done.returncode == 1
    assert done.stdout == ""
    assert "FallBackError: This fit cannot run compiled, because the callback Inner acts inside" in done.stderr
    assert by_kohort(folder, "--strict", "scripts/script.py").returncode == 0


def test_verify_runs_each_fit_both_ways(folder):
    done = by_kohort(folder, "--verify", "--report", "scripts/script.py")

    assert done.returncode == 0
    assert done.stdout == python(folder, "scripts/script.py").stdout
    assert "kohort: 1 of 1 fits ran compiled" in done.stderr
    assert "both ways, same result" in done.stderr


def test_verify_needs_keras_on_jax(folder):
    """One line, and nothing has been trained."""
    done = by_kohort(folder, "--verify", "scripts/script.py", KERAS_BACKEND="numpy")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "python -m kohort: error: `--verify` must find Keras on JAX. Received: Keras on 'numpy'. "
        'Leave it out, or set the environment variable KERAS_BACKEND to "jax".\n'
    )


def test_an_interrupt_ends_the_script(folder):
    """As Python ends it, after the epoch that was at work; the report still comes."""
    done = by_kohort(folder, "--report", "scripts/script.py", "--end", "interrupt")

    assert done.returncode == -signal.SIGINT
    assert done.stdout == "interrupted in epoch 3\n"
    said = "the model holds its last finished epoch, 3 of "
    assert re.search(f"KeyboardInterrupt: {said}.*\nkohort: 1 of 1 fits ran compiled\n", done.stderr)
    assert done.stderr.splitlines()[-1].split()[:2] == ["1", "3"]


def test_processes_of_the_script_start_as_ever(folder):
    """Spawned ones import the script, and not kohort."""
    done = by_kohort(folder, "--report", "spawning.py")

    assert done.stdout == "[(2, '__mp_main__', False), (4, '__mp_main__', False)]\n"
    assert done.stderr == "kohort: no fit ran\n"


def test_a_script_may_choose_the_backend_and_import_kohort(folder):
    done = by_kohort(folder, "choosing.py", KERAS_BACKEND="numpy")

    assert (done.stdout, done.stderr) == ("set()\njax True True kohort: no fit ran\n", "")


def test_cells_of_a_notebook(folder):
    done = python(folder, "-c", CELLS, IPYTHONDIR=str(folder))

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "('compiled', '', 1, 3)",
        "The kohort extension is already loaded. To reload it, use:",
        "  %reload_ext kohort",
        "False",
    ]


def test_a_script_with_a_wrong_line(folder):
    assert_the_same(python(folder, "broken.py"), by_kohort(folder, "broken.py"))


# What the command line takes. None of this imports Keras.


@pytest.fixture
def quick(monkeypatch, capsys):
    """Runs the command line in this process; no script may start."""
    monkeypatch.setattr(command, "_install_on_import", lambda options: pytest.fail("a script starts"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["python -m kohort", *arguments])
        with pytest.raises(SystemExit) as caught:
            command.main()
        printed = capsys.readouterr()
        return caught.value.code, printed.out, printed.err

    return run


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "a script is needed. Name one, such as `python -m kohort train.py`, or a module after -m."),
        (["--report"], "a script is needed. Name one, "),
        (["-m"], "a script is needed. Name one, "),
        (["--reprot", "train.py"], "unrecognized arguments: --reprot. See `python -m kohort --help`."),
        (["--rep", "train.py"], "unrecognized arguments: --rep. See `python -m kohort --help`."),
        (["nowhere.py"], "`script` must be a file. Received: 'nowhere.py', which does not exist. Look for it from '"),
        (["-m", "no.where"], "`-m` must name a module that can be imported. Received: 'no.where'. Install it, or go "),
    ],
)
def test_a_wrong_command_line_says_what_to_do(quick, arguments, complaint):
    code, out, err = quick(*arguments)

    assert (code, out) == (2, "")
    assert err.startswith("usage: python -m kohort [options] (script.py | -m module) [arguments]\n")
    assert f"python -m kohort: error: {complaint}" in err


def test_help_and_version(quick):
    code, out, _ = quick("--help")

    assert code == 0
    assert all(flag in out for flag in ("--report", "--strict", "--verify", "--version", "-m"))
    assert quick("--version") == (0, f"kohort {kohort.__version__}\n", "")


def test_help_imports_no_keras(folder):
    done = python(folder, "-X", "importtime", "-m", "kohort", "--help")

    assert done.returncode == 0
    assert "argparse" in done.stderr
    assert not any(f" {name}\n" in done.stderr for name in ("keras", "jax", "numpy"))


def test_options_end_where_the_script_begins():
    options = command._options(["--strict", __file__, "--verify", "-m", "x"])

    assert (options.strict, options.verify, options.report) == (True, False, False)
    assert options.script == [__file__, "--verify", "-m", "x"]
    assert command._options(["--verify", "-m", "json.tool", "--report"]).module == ["json.tool", "--report"]


# The backend.


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Gives a way to write Keras's configuration file, and to say what is installed."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: name if name in ("jax", "torch") else None)
    return tmp_path / "keras.json"


@pytest.mark.parametrize(
    ("named", "configured", "backend"),
    [
        ("torch", '{"backend": "jax"}', "torch"),
        (None, '{"backend": "torch"}', "torch"),
        ("", '{"backend": "torch"}', "torch"),
        (None, '{"backend": "tensorflow"}', "jax"),
        (None, "{}", "jax"),
        (None, "not json", "jax"),
        (None, None, "jax"),
        ("tensorflow", '{"backend": "torch"}', "jax"),
        ("abacus", None, "abacus"),
    ],
)
def test_the_backend_is_that_without_kohort_where_it_is_installed(home, monkeypatch, named, configured, backend):
    if named is not None:
        monkeypatch.setenv("KERAS_BACKEND", named)
    if configured is not None:
        home.write_text(configured)

    assert backends.wanted() == backend


def test_without_a_configuration_keras_default_counts(home, monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: name)

    assert backends.wanted() == "tensorflow"


@pytest.mark.slow
def test_a_notebook_keeps_the_backend_that_its_code_was_written_for(folder):
    """NumPy's stands for TensorFlow's, which need not be installed: `%load_ext` comes before anything of Keras."""
    cells = ["%load_ext kohort", "import keras", "print(keras.backend.backend())"]
    code = CELLS[: CELLS.index("CELLS = [")] + f"CELLS = {cells}\n" + CELLS[CELLS.index("shell = ") :]
    (folder / "keras.json").write_text('{"backend": "numpy"}')

    assert python(folder, "-c", code, KERAS_BACKEND="").stdout == "numpy\n"
    plain = "import kohort, keras; print(keras.backend.backend())"
    assert python(folder, "-c", plain, KERAS_BACKEND="").stdout == "jax\n"


def test_the_first_half_of_the_command_is_recognised(monkeypatch):
    def is_command(argv, orig_argv):
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", orig_argv)
        return kohort._is_command()

    assert is_command(["-m"], ["python", "-m", "kohort"])
    assert is_command(["-m", "-m", "x"], ["python", "-X", "utf8", "-m", "kohort", "-m", "x"])
    assert is_command(["-m", "x.py"], ["python", "-Bmkohort", "x.py"])
    assert not is_command(["-m"], ["python", "-m", "mykohort"])
    assert not is_command(["-m", "kohort"], ["python", "-m", "pytest", "kohort"])
    assert not is_command(["-c"], ["python", "-c", "import kohort"])
    assert not is_command([""], ["python"])
