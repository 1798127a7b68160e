"""Train a thousand Keras networks in the time Keras trains one, and see what every one of them learned."""

import os
import sys

__version__ = "0.1.0"

if "keras" not in sys.modules:
    os.environ["KERAS_BACKEND"] = "jax"
import keras

if keras.backend.backend() != "jax":
    raise ImportError(
        f"kohort must run on Keras's JAX backend. Received: Keras, imported earlier, on {keras.backend.backend()!r}. "
        'Import kohort before keras, or set the environment variable KERAS_BACKEND to "jax" before Python starts.'
    )

from kohort import data, history, plot
from kohort.accelerate import FallBackError, install, uninstall
from kohort.cohort import Cohort
from kohort.engine import keep_programs_on_disk as _keep_programs_on_disk
from kohort.fit import FallBackWarning, fit
from kohort.report import report

__all__ = [
    "Cohort",
    "FallBackError",
    "FallBackWarning",
    "data",
    "fit",
    "history",
    "install",
    "plot",
    "report",
    "uninstall",
]

_keep_programs_on_disk()
