"""`python -m kohort script.py`: runs a script, or a module, unchanged, with kohort installed.

In comes a command line; the script sees what it would see had Python run it itself: arguments, path, `__main__`, exit
code, traceback. The room exists so that not one line of it has to change.
"""

import argparse
import atexit
import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import pkgutil
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import kohort
from kohort import backend


def main() -> None:
    """Runs what the command line names."""
    options = _options(sys.argv[1:])
    _install_on_import(options)
    if options.report:
        atexit.register(_print_report)  # after the script and its threads, also when it fails
    try:
        _run(options)
    except BaseException:
        sys.excepthook = _without_own_frames(sys.excepthook)
        raise


class _Parser(argparse.ArgumentParser):
    """One whose complaints say what to do next."""

    def error(self, message: str) -> NoReturn:
        # Complaints of our own, which end as sentences do, have said it.
        super().error(message if message.endswith(".") else f"{message}. See `{self.prog} --help`.")


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m kohort",
        usage="python -m kohort [options] (script.py | -m module) [arguments]",
        description="Runs a script with kohort installed: every model.fit that can runs compiled, with the same "
        "numbers; under another backend than JAX in a worker process, with the order of batches and the dropout that "
        "Keras has on JAX. The script is not changed. `kohort run` does the same; `kohort --help` tells of other "
        "commands.",
        allow_abbrev=False,
    )
    parser.add_argument("--report", action="store_true", help="at exit, tell what ran compiled, what did not, and why")
    parser.add_argument("--strict", action="store_true", help="a fit that cannot run compiled is an error")
    parser.add_argument(
        "--verify", action="store_true", help="run each fit by Keras, too, and tell where they part (on JAX)"
    )
    parser.add_argument("--version", action="version", version=f"kohort {kohort.__version__}")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="the module to run, and its arguments")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the script to run, and its arguments")
    options = parser.parse_args(arguments)
    if not options.script and not options.module:
        parser.error("a script is needed. Name one, such as `python -m kohort train.py`, or a module after -m.")
    complaint = _module_complaint(options.module[0]) if options.module else _script_complaint(options.script[0])
    if complaint:
        parser.error(complaint)
    return options


def _script_complaint(script: str) -> str | None:
    if Path(script).exists():
        return None
    return f"`script` must be a file. Received: {script!r}, which does not exist. Look for it from {os.getcwd()!r}."


def _module_complaint(module: str) -> str | None:
    if importlib.util.find_spec(module.partition(".")[0]) is not None:
        return None
    return f"`-m` must name a module that can be imported. Received: {module!r}. Install it, or go to its folder."


def _install_on_import(options: argparse.Namespace) -> None:
    """Lets the script's import of Keras bring kohort with it, installed, whichever of the two it imports first.

    Keras is imported by nobody but the script, because a script may choose the backend in its first lines.
    """

    def install(module: types.ModuleType) -> None:
        backend = importlib.import_module("keras").backend.backend()
        if options.verify and backend != "jax":
            print(
                f"python -m kohort: error: `--verify` must find Keras on JAX. Received: Keras on {backend!r}. "
                'Leave it out, or set the environment variable KERAS_BACKEND to "jax".',
                file=sys.stderr,
            )
            raise SystemExit(2)
        module.accelerate.install_by_command(options.strict, options.verify)

    def import_kohort(_: types.ModuleType) -> None:
        importlib.import_module("kohort")  # or it is at work already, and has imported Keras itself

    del sys.modules["kohort"]  # which Python imported as the package of this module, without its names
    sys.meta_path.insert(0, _Afterwards({"keras": import_kohort, "kohort": install}))


class _Afterwards(importlib.abc.MetaPathFinder):
    """Lets something follow the first import of a module."""

    def __init__(self, following: dict[str, Callable[[types.ModuleType], None]]) -> None:
        self._following = following
        self._is_asking = False

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._following or self._is_asking:
            return None
        self._is_asking = True  # the finders after this one
        try:
            # This kohort, wherever the script's folder may lead to.
            spec = kohort.__spec__ if fullname == "kohort" else importlib.util.find_spec(fullname)
        finally:
            self._is_asking = False
        loader: Any = spec and spec.loader
        if loader is not None:
            loader.exec_module = self._then(loader.exec_module, fullname)
        return spec

    def _then(self, execute: Callable, fullname: str) -> Callable[[types.ModuleType], None]:
        def run(module: types.ModuleType) -> None:
            follow = self._following.pop(fullname, None)  # asked for a spec, it need not have been imported
            if fullname == "keras":
                backend.leave_to_keras()
            execute(module)
            if follow is not None:
                follow(module)

        return run


def _run(options: argparse.Namespace) -> None:
    """Runs the script or module as Python would."""
    if options.module:
        sys.argv[:] = options.module
        runpy.run_module(options.module[0], run_name="__main__", alter_sys=True)
        return
    sys.argv[:] = options.script
    path = os.path.abspath(options.script[0])
    is_file = pkgutil.get_importer(path) is None  # else a folder or a zip file with a __main__.py in it
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(path)) if is_file else path
    if is_file:
        _run_file(path)
    else:
        runpy.run_path(path, run_name="__main__")


def _run_file(path: str) -> None:
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = main
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec")
    exec(code, main.__dict__)


def _without_own_frames(hook: Callable) -> Callable:
    """Returns the hook that shows an error, given only the frames that would be there without kohort."""

    def show(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
        own = {__file__, runpy.__file__, "<frozen runpy>"}
        while traceback is not None and traceback.tb_frame.f_code.co_filename in own:
            traceback = traceback.tb_next
        hook(kind, error.with_traceback(traceback), traceback)

    return show


def _print_report() -> None:
    sys.stdout.flush()
    loaded = sys.modules.get("kohort")
    print(loaded.report() if loaded is not None else "kohort: no fit ran", file=sys.stderr)


if __name__ == "__main__":
    main()
