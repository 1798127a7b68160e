"""What ran: how many fits went which way, for how long, and why.

In come calls as they happen; out goes a plain record of counts and seconds, which prints as a table. The room exists so
that whoever leaves kohort switched on can see what it did. It knows neither Keras nor JAX.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

COMPILED = "compiled"
KERAS = "Keras"
VERIFIED = "both ways, same result"
PARTED = "both ways, not the same result"


class Row(NamedTuple):
    """What went one way for one reason: the number of fits, their finished epochs and their seconds."""

    way: str
    reason: str
    calls: int
    epochs: int
    seconds: float


class Report(tuple[Row, ...]):
    """The rows of a report: what ran compiled, then the rest, the longest time first. It prints as a table."""

    __slots__ = ()

    @property
    def calls(self) -> int:
        """Number of fits."""
        return sum(row.calls for row in self)

    @property
    def compiled_calls(self) -> int:
        """Number of fits that ran compiled."""
        return sum(row.calls for row in self if row.way != KERAS)

    def __repr__(self) -> str:
        if not self:
            return "kohort: no fit ran"
        head = f"kohort: {self.compiled_calls} of {self.calls} fits ran compiled"
        lines = [f"{row.calls:>7} {row.epochs:>8} {row.seconds:>9.2f}  {_told(row)}" for row in self]
        return "\n".join([head, "  calls   epochs   seconds", *lines])


def _told(row: Row) -> str:
    return row.way + (f", because {row.reason}" if row.reason else "")


_lock = threading.Lock()
_totals: dict[tuple[str, str], tuple[int, int, float]] = {}


def report(clear: bool = False) -> Report:
    """Tells how the fits of this process ran: compiled, or by Keras and why, with the time spent in each way.

    Fits of `kohort.fit` are counted, and those of `keras.Model.fit` while kohort is installed; those of a `Cohort` are
    not. The time of a fit is all that it took, compilation and callbacks included.

    Args:
        clear: Whether to begin a new count after this report.

    Returns:
        A tuple of rows `(way, reason, calls, epochs, seconds)`: what ran compiled, then the rest, the longest time
        first. It prints as a table.

    Example:
        >>> import kohort, keras
        >>> _ = kohort.report(clear=True)
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer="sgd", loss="mse")
        >>> history = kohort.fit(model, *kohort.data.xor(), epochs=3, verbose=0)
        >>> kohort.report()
        kohort: 1 of 1 fits ran compiled
          calls   epochs   seconds
              1        3      ...  compiled
    """
    with _lock:
        rows = [Row(*key, *total) for key, total in _totals.items()]
        if clear:
            _totals.clear()
    return Report(sorted(rows, key=lambda row: (row.way == KERAS, -row.seconds)))


class Call:
    """One fit as it is recorded: its way may be told during the fit."""

    def __init__(self, way: str) -> None:
        """Begins with the way that is expected."""
        self.way = way


@contextmanager
def recorded(model: Any, way: str, reason: str = "") -> Iterator[Call]:
    """Records the block as one fit of `model`, also when it fails."""
    call = Call(way)
    before = getattr(model, "history", None)
    is_done, start = False, time.perf_counter()
    try:
        yield call
        is_done = True
    finally:
        seconds = time.perf_counter() - start
        history = getattr(model, "history", None)
        began = is_done or history is not before  # else the history is that of an earlier fit
        epochs = getattr(history, "epoch", []) if began else []  # it has none if a callback failed before any began
        _add(call.way, reason, len(epochs), seconds)


def _add(way: str, reason: str, epochs: int, seconds: float) -> None:
    with _lock:
        calls, all_epochs, all_seconds = _totals.get((way, reason), (0, 0, 0.0))
        _totals[way, reason] = (calls + 1, all_epochs + epochs, all_seconds + seconds)
