"""Train a thousand Keras networks in the time Keras trains one, and see what every one of them learned."""

import os
import sys

__version__ = "0.1.0"

if "keras" not in sys.modules:
    # Whoever has named another backend means it: models of that one train in a worker.
    os.environ["KERAS_BACKEND"] = os.environ.get("KERAS_BACKEND") or "jax"

from kohort import data, history, plot
from kohort.cohort import Cohort
from kohort.engine import keep_programs_on_disk as _keep_programs_on_disk
from kohort.fit import FallBackWarning, fit
from kohort.remote import WorkerError

__all__ = ["Cohort", "FallBackWarning", "WorkerError", "data", "fit", "history", "plot"]

_keep_programs_on_disk()
