"""Train a thousand Keras networks in the time Keras trains one, and see what every one of them learned."""

import os
import sys

__version__ = "0.1.0"


def _is_command() -> bool:
    """Says whether Python imports the package on its way to a command, which loads the rest when it is needed.

    Either to `python -m kohort`: as long as Python looks for the module that it is to run, `sys.argv[0]` is "-m". Or to
    `kohort.cli`, for the script `kohort`, which imports nothing else of it.
    """
    argv = getattr(sys, "argv", [])
    if argv[:1] == ["-m"]:
        module = sys.orig_argv[-len(argv)]
        return module == "kohort" or (module.startswith("-") and module.endswith("mkohort"))
    if "kohort.cli" in sys.modules or not os.path.basename("".join(argv[:1])).startswith("kohort"):
        return False
    import inspect

    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") != "__main__":
        frame = frame.f_back
    return frame is not None and "kohort.cli" in frame.f_code.co_names


if not _is_command():
    if "keras" not in sys.modules:
        from kohort import backend as _backend

        _backend.choose()

    from kohort import data, distribute, history, plot, search
    from kohort.accelerate import DifferenceWarning, FallBackError, install, uninstall
    from kohort.accelerate import load_ipython_extension as load_ipython_extension
    from kohort.accelerate import unload_ipython_extension as unload_ipython_extension
    from kohort.cohort import Cohort
    from kohort.disk import keep_programs_on_disk as _keep_programs_on_disk
    from kohort.fit import FallBackWarning, fit
    from kohort.remote import WorkerError
    from kohort.report import report
    from kohort.study import Study
    from kohort.trials import open

    _keep_programs_on_disk()

__all__ = [
    "Cohort",
    "DifferenceWarning",
    "FallBackError",
    "FallBackWarning",
    "Study",
    "WorkerError",
    "data",
    "distribute",
    "fit",
    "history",
    "install",
    "open",
    "plot",
    "report",
    "search",
    "uninstall",
]


def __dir__() -> list[str]:
    """Names what is for users, and not the rooms."""
    return __all__
