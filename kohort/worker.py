"""The other end of the worker: the process in which Keras runs on JAX.

In come blueprints of models, states, samples and the names of programs; out go the states after them, and logs. It
reads from one socket, and ends when nobody is at the other end of it, also in the middle of a computation. The room
exists so that a process that cannot run Keras on JAX itself has one that can.
"""

import os
import queue
import select
import signal
import socket
import sys
import threading
import traceback
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from kohort import keras_internals
from kohort.blueprint import build, configure, first_error
from kohort.engine import Cut, Schedule, State
from kohort.programs import Programs
from kohort.structures import map_arrays
from kohort.wire import Channel

MOST_MODELS = 8
LOOK_SECONDS = 1.0


def serve(descriptor: int, parent: int) -> None:
    """Answers, one after the other, what comes in through a socket, until its other end or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=descriptor))
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read, args=(channel, parent, requests), daemon=True).start()
    bench = Bench()
    while True:
        channel.send(*bench.answer(*requests.get()))


def _read(channel: Channel, parent: int, requests: queue.SimpleQueue) -> None:
    poll = select.poll()
    poll.register(channel.socket, select.POLLIN)
    while True:
        while not poll.poll(LOOK_SECONDS * 1000):
            if os.getppid() != parent:  # a fork of the parent may still hold the other end
                os._exit(0)
        try:
            requests.put(channel.receive())
        except (EOFError, OSError):
            os._exit(0)  # whatever is being computed, nobody waits for it


class Bench:
    """What lies ready: models with their programs, samples, and the last state."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self.models: OrderedDict[str, tuple[keras.Model, Programs, dict]] = OrderedDict()  # each with its blueprint
        self.samples: dict[int, Any] = {}
        self.last: State | None = None
        self.compilations = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, *_: Any, **__: Any) -> None:
        self.compilations += event == "/jax/core/compile/backend_compile_duration"

    def answer(self, message: dict, arrays: Any) -> tuple[dict, Any]:
        """Does what is asked. An error is an answer, too."""
        for token in message.get("forget", []):
            self.samples.pop(token, None)
        try:
            return {"start": self._start, "keep": self._keep, "run": self._run}[message["do"]](message, arrays)
        except BaseException as error:  # it is not ours: it is raised again at the other end
            trace = "".join(traceback.format_exception(error)[-6:])
            told = {"error": type(error).__name__, "text": str(error), "cause": first_error(error), "trace": trace}
            return told, None

    def _start(self, *_: Any) -> tuple[dict, Any]:
        return {"python": sys.version}, None

    def _keep(self, message: dict, samples: Any) -> tuple[dict, Any]:
        self.samples[message["token"]] = map_arrays(jnp.asarray, samples)
        return {}, None

    def _run(self, message: dict, arrays: Any) -> tuple[dict, Any]:
        samples = self.samples[message["samples"]]
        found = self._model(message, samples)
        if found is None:
            return {"wants_blueprint": True}, None
        model, programs = found
        given, schedule = arrays
        state = self.last if given is None else keras_internals.like_variables(model, State(*given))
        kind, *cuts = message["program"]
        if kind == "epochs":
            cut, validation_cut, capacity = cuts
            program = programs.epochs(Cut(*cut), validation_cut and Cut(*validation_cut), capacity)
            validation = self.samples.get(message["validation"])
            results = program(state, samples, validation, Schedule(*schedule), message["count"])
        else:
            results = programs.validation(Cut(*cuts[0]))(state, samples, message["count"])
        if message["count"]:  # else it was a rehearsal, of which the other end keeps no state
            self.last = results[0]
        state, logs = map_arrays(np.asarray, (list(results[0]), results[1]))
        return {"compilations": self.compilations}, (state, logs)

    def _model(self, message: dict, samples: Any) -> tuple[keras.Model, Programs] | None:
        """Returns the model of that name and its programs, or None when its blueprint is needed."""
        name = message["model"]
        if name not in self.models:
            if "blueprint" not in message:
                return None
            model = build(message["blueprint"], map_arrays(lambda a: a[:1], samples))
            self.models[name] = (model, Programs(model), message["blueprint"])
            if len(self.models) > MOST_MODELS:
                self.models.popitem(last=False)
        self.models.move_to_end(name)
        model, programs, blueprint = self.models[name]
        configure(blueprint)  # that of another model may have set something else since
        return model, programs
