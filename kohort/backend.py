"""Which backend Keras takes, before it is imported.

In come the environment and Keras's configuration file; out goes the environment variable by which Keras chooses, where
another choice than its own is needed. The room exists because it must be asked before Keras is there.
"""

import importlib.util
import inspect
import json
import os
from pathlib import Path

BACKENDS = {"tensorflow", "jax", "torch", "numpy", "openvino"}


def choose() -> None:
    """Gives Keras JAX, unless another backend is named: models of that one train in a worker.

    What switches kohort on, and changes no code, leaves Keras the backend that the code was written for.
    """
    if _is_loaded_by_ipython():
        leave_to_keras()
    else:
        os.environ["KERAS_BACKEND"] = os.environ.get("KERAS_BACKEND") or "jax"


def leave_to_keras() -> None:
    """Leaves Keras the backend that it would have without kohort, or, where that one is not installed, gives it JAX."""
    if wanted() == "jax":
        os.environ["KERAS_BACKEND"] = "jax"


def wanted() -> str:
    """Returns the backend that Keras would have, or JAX where that is not installed."""
    named = os.environ.get("KERAS_BACKEND") or _configured()
    # One that Keras does not know is Keras's to complain about.
    return "jax" if named in BACKENDS and importlib.util.find_spec(named) is None else named


def _configured() -> str:
    """Returns the backend of Keras's configuration file, or its default where there is none."""
    home = Path.home() if os.access(Path.home(), os.W_OK) else Path("/tmp")
    folder = os.environ.get("KERAS_HOME") or home / ".keras"
    try:
        settings = json.loads(Path(folder, "keras.json").expanduser().read_text())
    except (OSError, ValueError):
        settings = {}
    return settings.get("backend", "tensorflow")


def _is_loaded_by_ipython() -> bool:
    """Says whether a notebook's `%load_ext kohort` imports the package."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "IPython.core.extensions":
            return True
        frame = frame.f_back
    return False
