"""The worker: a process of its own, in which Keras runs on JAX and trains the models of this one.

In come a model of another backend and the calls of its compiled programs; out come states and logs, computed elsewhere.
The room exists so that a fit need not know where its programs run: `RemotePrograms` are asked as `Programs` are. One
worker serves the whole process. It is started by the first call, kept for the next fit, and gone with the process, at
the latest a second later, even where that one is killed.
"""

import atexit
import builtins
import contextlib
import hashlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from kohort import keras_internals
from kohort.blueprint import blueprint, check_crossing
from kohort.engine import Cut, Pace, Schedule, State
from kohort.structures import arrays_of
from kohort.wire import Channel

# TensorFlow, where it is installed, would cost Keras on JAX seconds at the start; a model's own modules may import it.
START = (
    "import sys; sys.modules['tensorflow'] = None; import kohort.worker as worker; del sys.modules['tensorflow']; "
    "worker.serve(*map(int, sys.argv[1:]))"
)
# After Ctrl-C an epoch that ends so soon is awaited; the worker of a longer one is ended, or it would compute on.
GRACE_SECONDS = 0.5
LOOK_SECONDS = 0.05

always = False  # whether models of Keras on JAX, too, train in the worker: for tests


class WorkerError(RuntimeError):
    """Says that the worker process, in which models of other backends train, could not start or came to an end.

    The model then holds its last finished epoch, and the next fit starts a new worker. Also that Ray's workers died
    again and again at one task of a study, which keeps all finished blocks.

    Example:
        >>> import kohort
        >>> issubclass(kohort.WorkerError, RuntimeError)
        True
    """


def is_needed() -> bool:
    """Says whether models of this process train in the worker: Keras runs on another backend than JAX."""
    return always or not keras_internals.on_jax()


def check(model: keras.Model) -> None:
    """Raises a ValueError if the model is to train in the worker and cannot cross."""
    if is_needed():
        check_crossing(model)


# --- the process ------------------------------------------------------------------------------------------------------


class Worker:
    """The other process, seen from this one."""

    def __init__(self) -> None:
        """Starts the process and waits until it is ready.

        Raises:
            WorkerError: If it does not get so far.
        """
        if not hasattr(socket, "recv_fds"):
            raise WorkerError("kohort's worker process needs Linux or macOS. Import kohort before keras instead.")
        self.compilations = 0
        self.last: State | None = None  # the state that the last call returned: the worker has it, too
        self.lock = threading.RLock()
        self._tokens: dict[tuple[int, ...], int] = {}
        self._forgotten: list[int] = []
        self._sent = 0
        self._output = tempfile.TemporaryFile()
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        try:
            with theirs:
                self.process = self._start(theirs.fileno())
            self._exchange({"do": "start"})
        except (WorkerError, OSError) as error:
            ours.close()
            self._output.close()
            raise WorkerError(f"kohort's worker process could not start: {error}. {_remedy(str(error))}") from None

    def _start(self, descriptor: int) -> subprocess.Popen:
        environment = {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # a GPU is shared with the caller's backend
            **os.environ,
            "KERAS_BACKEND": "jax",
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        return subprocess.Popen(
            [sys.executable, "-P", "-c", START, str(descriptor), str(os.getpid())],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=environment,
            start_new_session=True,  # the Ctrl-C of a terminal is for the caller alone
        )

    @property
    def is_alive(self) -> bool:
        """Whether it can still be asked."""
        return self.process.poll() is None and self.channel.socket.fileno() >= 0

    def call(self, message: dict, arrays: Any = None, interrupt: Any = None) -> tuple[dict, Any] | None:
        """Asks for something and waits for the answer.

        Returns:
            The answer and its arrays, or None if `interrupt` became true and no answer came soon after.

        Raises:
            WorkerError: If the process ends.
            Exception: What the worker raised, where that is one of Python's own exceptions.
        """
        answer = self.ask(message, arrays, interrupt)
        if answer is not None and "error" in answer[0]:
            raise _error_of(answer[0])
        return answer

    def ask(self, message: dict, arrays: Any = None, interrupt: Any = None) -> tuple[dict, Any] | None:
        """Does what `call` does, but returns what the worker raised as an answer."""
        with self.lock:
            try:
                return self._exchange({**message, "forget": self._to_forget()}, arrays, interrupt)
            except WorkerError as error:
                raise WorkerError(
                    f"kohort's worker process is gone: {error}. The model holds its last finished epoch. "
                    "Call fit again: it starts a new worker."
                ) from None

    def _exchange(self, message: dict, arrays: Any = None, interrupt: Any = None) -> tuple[dict, Any] | None:
        try:
            self.channel.send(message, arrays)
            if not self._is_answered(interrupt):
                self.end()
                return None
            return self.channel.receive()
        except (EOFError, ConnectionError):
            raise WorkerError(self._obituary()) from None
        except BaseException:
            self.end()  # half an answer may still be on its way: nothing can be asked after it
            raise

    def _is_answered(self, interrupt: Any) -> bool:
        """Waits for an answer, or for the end of the process. Says whether there is one."""
        poll = select.poll()
        poll.register(self.channel.socket, select.POLLIN)
        until = None
        while not poll.poll(LOOK_SECONDS * 1000):
            if interrupt and until is None:
                until = time.monotonic() + GRACE_SECONDS
            if until is not None and time.monotonic() > until:
                return False
        return True

    def token(self, samples: Any) -> int | None:
        """Returns the number under which the worker keeps some arrays; they are sent if it does not have them."""
        if samples is None:
            return None
        leaves = list(arrays_of(samples))
        key = tuple(map(id, leaves))
        with self.lock:
            if key not in self._tokens:
                self._sent += 1
                answer = self.ask({"do": "keep", "token": self._sent}, samples)
                if answer is not None and "error" in answer[0]:
                    raise WorkerError(f"kohort's worker process cannot take the data: {answer[0]['cause']}.")
                self._tokens[key] = self._sent
                for leaf in leaves:  # the worker keeps them as long as this process does
                    weakref.finalize(leaf, self._forget, key).atexit = False
            return self._tokens[key]

    def _forget(self, key: tuple[int, ...]) -> None:
        if key in self._tokens:
            self._forgotten.append(self._tokens.pop(key))

    def _to_forget(self) -> list[int]:
        tokens, self._forgotten = self._forgotten, []
        return tokens

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._wait()
        self._output.close()

    def _wait(self) -> None:
        self.channel.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)  # it goes by itself when nobody is at the other end
        self.process.kill()
        self.process.wait()

    def _obituary(self) -> str:
        """Ends what is left of the process and says how it ended, with the last line that it wrote."""
        self._wait()
        with self._output:
            self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - 4096))
            lines = self._output.read().decode(errors="replace").split("\n")
        code = self.process.returncode
        if code < 0:
            return f"it was killed by {signal.Signals(-code).name}"
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
        return f"it ended with exit code {code}: {last}"

    def abandon(self) -> None:
        """Leaves the process to the one that started it: this one is a fork."""
        self.channel.socket.close()
        self._output.close()
        self.process.returncode = 0


_worker: Worker | None = None
_starts = threading.Lock()


def worker() -> Worker:
    """Returns the worker of this process, a new one when there is none or it has ended."""
    global _worker
    with _starts:
        if _worker is None or not _worker.is_alive:
            end_worker()
            _worker = Worker()
        return _worker


def end_worker() -> None:
    """Ends the worker, if there is one; the next fit starts another."""
    global _worker
    if _worker is not None:
        _worker.end()
    _worker = None


def _leave_to_parent() -> None:
    global _worker, _starts
    if _worker is not None:
        _worker.abandon()
    _worker, _starts = None, threading.Lock()


atexit.register(end_worker)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _remedy(said: str) -> str:
    """Returns what to do about a worker that could not start."""
    missing = re.search(r"No module named '(jax|jaxlib|keras|numpy|scipy)'", said)
    if missing:
        return f"Install it: `{sys.executable} -m pip install {missing[1]}`."
    return f'Run `KERAS_BACKEND=jax {sys.executable} -c "import kohort.worker"` to see more.'


def _error_of(answer: dict) -> BaseException:
    """Returns the error that the worker met, as it would have been met here."""
    kind = getattr(builtins, answer["error"], None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, OSError | UnicodeError):
        error: Exception = kind(answer["text"])
    else:
        error = WorkerError(f"{answer['error']}: {answer['text']}")
    error.add_note(
        "It was raised in kohort's worker process, where Keras runs on JAX: layers, losses and metrics of your own "
        f"must compute with `keras.ops`.\n{answer['trace']}"
    )
    return error


# --- programs ---------------------------------------------------------------------------------------------------------


class Request(NamedTuple):
    """A call of a program that is still to be made."""

    program: tuple
    state: State
    samples: Any
    validation: Any
    schedule: Schedule
    epochs: int


class RemotePrograms:
    """The compiled programs of one model, in the worker."""

    spends = False  # the state that a call is given stays as it is

    def __init__(self, model: keras.Model) -> None:
        """Takes down the model, which is built; nothing is sent yet."""
        self._marker = keras_internals.compile_marker(model)
        self._blueprint = blueprint(model)
        self._name = hashlib.sha256(json.dumps(self._blueprint).encode()).hexdigest()
        self._paces: dict[tuple, Pace] = {}
        self.room: Any = None  # memory that held the row numbers of the last call

    def is_of(self, model: keras.Model) -> bool:
        """Says whether the model has not been compiled anew since."""
        return self._marker is keras_internals.compile_marker(model)

    def epochs(self, cut: Cut, validation_cut: Cut | None, capacity: int) -> Callable:
        """Returns the training program."""

        def program(
            state: State, samples: Any, validation: Any, schedule: Schedule, count: int, spends: bool = False
        ) -> Request:
            return Request(("epochs", cut, validation_cut, capacity), state, samples, validation, schedule, count)

        return program

    def validation(self, cut: Cut) -> Callable:
        """Returns the program of a validation that belongs to a fit."""

        def program(state: State, samples: Any, count: int) -> Request:
            return Request(("validation", cut), state, samples, None, Schedule(), count)

        return program

    def pace(self, *key: Any) -> Pace:
        """Returns the measured pace of a program at some shape."""
        return self._paces.setdefault(key, Pace())

    def rehearse(self, request: Request) -> str:
        """Makes a call of no epoch, of which neither end keeps a state. Returns why the worker cannot, or nothing."""
        other = worker()
        with other.lock:
            answer = self._answer(other, request, None) or ({}, None)
        return answer[0].get("cause", "")

    def wait(self, request: Request, interrupt: Any) -> tuple[State, Any] | None:
        """Makes the call. Returns the state after it and its logs, or None if it was interrupted before its end."""
        other = worker()
        with other.lock:  # what it has, it must have until the call is made
            return self._run(other, request, interrupt)

    def _run(self, other: Worker, request: Request, interrupt: Any) -> tuple[State, Any] | None:
        answer = self._answer(other, request, interrupt)
        if answer is None:
            return None
        if "error" in answer[0]:
            raise _error_of(answer[0])
        other.compilations = answer[0]["compilations"]
        lists, logs = answer[1]
        other.last = State(*lists)
        return other.last, logs

    def _answer(self, other: Worker, request: Request, interrupt: Any) -> tuple[dict, Any] | None:
        """Returns what the worker answers, an error, too; None if it was interrupted."""
        message = {
            "do": "run",
            "model": self._name,
            "program": request.program,
            "samples": other.token(request.samples),
            "validation": other.token(request.validation),
            "count": request.epochs,
        }
        state = None if request.state is other.last else request.state
        answer = other.ask(message, (state, request.schedule), interrupt)
        if answer is not None and answer[0].get("wants_blueprint"):
            answer = other.ask({**message, "blueprint": self._blueprint}, (state, request.schedule), interrupt)
        return answer
