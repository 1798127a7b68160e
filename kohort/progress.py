"""What a person sees and does while a fit runs: a bar that moves, and Ctrl-C.

In come the logs of finished epochs; out go lines on the terminal. An interrupt comes in and is held until nothing is
half done. The room exists because everything that trains for a while needs both.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from kohort.keras_internals import print_message

# A first epoch within so many seconds may have been spent on compiling: it tells nothing of the next ones.
COMPILING_SECONDS = 5.0
# A bar is drawn at most, and in a file a line is written at most, after so many seconds.
BAR_SECONDS = 0.05
LINE_SECONDS = 10.0


class HeldInterrupt(KeyboardInterrupt):
    """Ctrl-C that was held back until nothing was half done."""


class Interrupt:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        """Starts as not pressed."""
        self.pressed = False
        self._left = 0  # how often it has to be pressed until it interrupts at once; 0: it never does

    def press(self, *_: Any) -> None:
        """Notes that it was pressed; where the user's own code runs, that is interrupted."""
        self.pressed, left = True, self._left
        self._left = max(0, left - 1)
        if left == 1:
            raise KeyboardInterrupt

    @contextmanager
    def opened(self, presses: int = 1) -> Iterator[None]:
        """Runs the user's own code inside the block: it may take its time or wait for ever.

        Args:
            presses: How often Ctrl-C is pressed to interrupt it. What had better come to its end, as it mostly does
                soon, is interrupted by the second only.
        """
        self._left = presses
        try:
            yield
        finally:
            self._left = 0

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
        raise HeldInterrupt


def told(error: KeyboardInterrupt, what: str, epoch: int | None, epochs: int) -> KeyboardInterrupt:
    """Returns what to raise to the user: with a word about what is left, and without the frames that merely held it.

    Args:
        error: What was raised.
        what: Name of what was trained.
        epoch: Number of the last epoch that finished, counted from 1, if one did.
        epochs: Number of epochs that were asked for.
    """
    text = f"{what} holds its last finished epoch, {epoch} of {epochs}; `initial_epoch={epoch}` goes on from there"
    if epoch is None:
        text = f"no epoch had finished: {what} is as it was"
    if isinstance(error, HeldInterrupt):
        return KeyboardInterrupt(text)
    error.add_note(f"kohort: {text}")
    return error


def shows_bars() -> bool:
    """Says whether whoever reads the output sees a line that is written over."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules or "PYCHARM_HOSTED" in os.environ


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
    """Shows how far a fit is: a bar over its epochs, or a line now and then where no bar is seen, or every epoch."""

    def __init__(self, epochs: int, verbose: str | int) -> None:
        """Shows nothing before the fit begins."""
        self.epochs, self.first = epochs, 0
        self.verbose = 1 if verbose == "auto" else int(verbose)
        self.bar: Any = None
        self.last: tuple[int, list] | None = None
        self._start = self._told = time.perf_counter()

    @property
    def is_per_epoch(self) -> bool:
        """Whether each epoch is shown by itself."""
        return self.verbose == 2

    def begin(self, epoch: int) -> None:
        """Shows that a fit begins with this epoch: it may have to compile first."""
        self.first, self._start = epoch, time.perf_counter()
        self._told = self._start
        if self.verbose == 1 and shows_bars():
            self.bar = keras.utils.Progbar(self.epochs - epoch, unit_name="epoch", stateless_metrics=())
            print_message(f"Epoch {epoch + 1}/{self.epochs} ...", line_break=False)

    def rewind(self) -> None:
        """Goes back to where it began: what is shown next is written over it."""
        if self.bar is not None:
            print_message(f"\r{' ' * 40}\r", line_break=False)

    def update(self, epoch: int, count: int, logs: dict) -> None:
        """Takes in the last logs of the `count` epochs from `epoch` on."""
        self.last = (epoch + count, [(name, value) for name, value in logs.items() if np.ndim(value) == 0])
        self._show(is_over=False)

    def finish(self) -> None:
        """Ends the bar's line, or tells of the last epoch; the second time it does nothing."""
        if self.last is not None:
            self._show(is_over=True)
        elif self.bar is not None:  # no epoch was finished
            print_message("")
        self.bar = self.last = None

    def _show(self, is_over: bool) -> None:
        if self.verbose == 0 or self.last is None:
            return
        (epoch, values), now = self.last, time.perf_counter()
        if self.bar is not None:
            is_mostly_compiling = epoch == self.first + 1 and now - self._start < COMPILING_SECONDS
            self.bar.interval = math.inf if is_mostly_compiling else BAR_SECONDS
            self.bar.update(epoch - self.first, values, finalize=is_over)
        elif is_over or self.verbose == 2 or now - self._told >= LINE_SECONDS:
            shown = "".join(f" - {name}: {value:.4g}" for name, value in values)
            print_message(f"Epoch {epoch}/{self.epochs} - {now - self._start:.0f}s{shown}")
            self._told, self.last = now, None
