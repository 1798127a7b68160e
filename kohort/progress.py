"""What a person sees and does while a fit runs: a bar that moves, and Ctrl-C.

In come the logs of finished epochs; out go lines on the terminal. An interrupt comes in and is held until nothing is
half done. The room exists because everything that trains for a while needs both.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np


class Interrupt:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        """Starts as not pressed."""
        self.pressed = False
        self._is_open = False

    def press(self, *_: Any) -> None:
        """Notes that it was pressed; where the user's own code runs, it is interrupted at once."""
        self.pressed = True
        if self._is_open:
            self._is_open = False
            raise KeyboardInterrupt

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Runs the user's own code inside the block: it may take its time or wait for ever."""
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False

    def __bool__(self) -> bool:
        """Says whether it was pressed."""
        return self.pressed


@contextmanager
def held_interrupt() -> Iterator[Interrupt]:
    """Holds Ctrl-C back inside the block, so that nothing is left half done, and raises KeyboardInterrupt after it."""
    shared = getattr(_of_thread, "interrupt", None)
    interrupt = Interrupt() if shared is None else shared
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        if interrupt:
            raise KeyboardInterrupt
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        # Somebody else's handler (a server, a notebook that ignores Ctrl-C) decides; it is not ours to replace.
        yield interrupt
        return

    signal.signal(signal.SIGINT, interrupt.press)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupt:
        raise KeyboardInterrupt


_of_thread = threading.local()


@contextmanager
def heeding(interrupt: Interrupt) -> Iterator[None]:
    """Lets what this thread trains inside the block end as soon as somebody else, who hears Ctrl-C, has noted it."""
    _of_thread.interrupt = interrupt
    try:
        yield
    finally:
        _of_thread.interrupt = None


class Progress:
    """Shows how far a fit is: one bar over all epochs, or one line per epoch."""

    def __init__(self, epochs: int, verbose: str | int) -> None:
        """Shows nothing before the first update."""
        self.epochs = epochs
        self.verbose = 1 if verbose == "auto" else int(verbose)
        self.bar: Any = None
        self.last: tuple[int, list] | None = None

    @property
    def is_per_epoch(self) -> bool:
        """Whether each epoch is shown by itself."""
        return self.verbose == 2

    def update(self, epoch: int, count: int, logs: dict) -> None:
        """Takes in the last logs of the `count` epochs from `epoch` on."""
        values = [(name, value) for name, value in logs.items() if np.ndim(value) == 0]
        if self.verbose == 1:
            # Keras's bar averages what it is not told to show as it is.
            self.bar = self.bar or keras.utils.Progbar(self.epochs, unit_name="epoch", stateful_metrics=list(logs))
            self.bar.update(epoch + count, values, finalize=False)
            self.last = (epoch + count, values)
        elif self.verbose == 2:
            shown = "".join(f" - {name}: {value:.4g}" for name, value in values)
            print(f"Epoch {epoch + count}/{self.epochs}{shown}")

    def finish(self) -> None:
        """Ends the bar's line."""
        if self.bar is not None and self.last:
            self.bar.update(*self.last, finalize=True)
