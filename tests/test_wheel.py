"""The wheel: only the package in it, and it works where there is no checkout."""

import os
import runpy
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

SCRIPT = """
import kohort, keras
model = keras.Sequential([keras.Input(shape=(2,)), keras.layers.Dense(1)])
model.compile(optimizer="sgd", loss="mse")
history = kohort.fit(model, *kohort.data.xor(), epochs=3, verbose=0)
print(len(history.history["loss"]), kohort.__version__, kohort.__file__, sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    (path,) = folder.iterdir()
    return path


def test_wheel_holds_the_package_and_nothing_else(wheel):
    about = f"kohort-{VERSION}.dist-info"
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("kohort/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert names == package | {
        f"{about}/METADATA",
        f"{about}/WHEEL",
        f"{about}/RECORD",
        f"{about}/entry_points.txt",
        f"{about}/licenses/LICENSE",
    }


def test_a_wheel_with_a_library_is_for_this_platform_and_every_python(wheel):
    has_library = "kohort/shuffle.compiled" in zipfile.ZipFile(wheel).namelist()
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_") if has_library else "any"

    assert wheel.name == f"kohort-{VERSION}-py3-none-{platform}.whl"


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false -pthread"])
def test_without_a_c_compiler_nothing_is_compiled(tmp_path, monkeypatch, compiler):
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: compiler)

    assert not hook["compiled"](ROOT / hook["SOURCE"], tmp_path / "library")
    assert list(tmp_path.iterdir()) == []


def test_wheel_works_in_an_empty_folder(wheel, tmp_path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(installed)
    environment = os.environ | {"PYTHONPATH": str(installed), "KERAS_HOME": str(tmp_path)}
    del environment["KERAS_BACKEND"]  # kohort picks the backend itself
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=empty,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    epochs, version, file = done.stdout.splitlines()
    assert epochs == "3"
    assert version == VERSION
    assert Path(file) == installed / "kohort" / "__init__.py"
    assert list(empty.iterdir()) == []
