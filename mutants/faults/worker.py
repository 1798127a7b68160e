"""The faults of the worker: of what goes over to it, and of how it ends."""

from fault import Fault

REMOTE = "tests/test_remote.py::"
WORKER = "tests/test_worker.py::"
SWITCHED_ON = "tests/test_switched_on.py::"

FAULTS = [
    Fault(
        "jit-compile-lost-on-the-way",
        "kohort/blueprint.py",
        '"auto" if model.jit_compile or not keras_internals.on_jax() else False',
        '"auto"',
        (f"{REMOTE}test_same_bits_as_keras[one-by-one]",),
    ),
    Fault(
        "backends-without-jit-stay-without",
        "kohort/blueprint.py",
        '"auto" if model.jit_compile or not keras_internals.on_jax() else False',
        '"auto" if model.jit_compile else False',
        ("tests/test_blueprint.py::test_what_another_backend_does_not_jit_jax_does",),
    ),
    Fault(
        "state-of-another-fit-goes-on",
        "kohort/remote.py",
        "state = None if request.state is other.last else request.state",
        "state = None if other.last is not None else request.state",
        (f"{REMOTE}test_a_fit_inside_a_callback",),
    ),
    Fault(
        "worker-hears-the-terminal",
        "kohort/remote.py",
        "start_new_session=True,",
        "start_new_session=False,",
        (f"{REMOTE}test_the_terminal_does_not_interrupt_the_worker",),
    ),
    Fault(
        "samples-never-forgotten",
        "kohort/remote.py",
        "            self._forgotten.append(self._tokens.pop(key))",
        "            pass",
        (f"{REMOTE}test_the_worker_forgets_what_is_gone_here",),
    ),
    Fault(
        "orphan-when-the-socket-stays-open",
        "kohort/worker.py",
        "            if os.getppid() != parent:",
        "            if os.getppid() == 0:",
        (f"{WORKER}test_it_ends_when_nobody_is_there[parent]",),
    ),
    Fault(
        "orphan-when-the-socket-closes",
        "kohort/worker.py",
        "            os._exit(0)  # whatever is being computed, nobody waits for it",
        "            return",
        (f"{WORKER}test_it_ends_when_nobody_is_there[socket]",),
    ),
    Fault(
        "rehearsal-draws",
        "kohort/epochs.py",
        "        with restored_generator():\n            schedule = self._draw(1)\n        validates",
        "        if True:\n            schedule = self._draw(1)\n        validates",
        (f"{SWITCHED_ON}test_what_the_worker_can_train_it_trains",),
    ),
    Fault(
        "switched-on-the-worker-refuses",
        "kohort/accelerate.py",
        "        or _why_the_worker_cannot(model, request)\n",
        "",
        (f"{SWITCHED_ON}test_a_model_that_the_worker_cannot_train",),
    ),
    Fault(
        "rehearsal-leaves-its-state",
        "kohort/worker.py",
        '        if message["count"]:',
        "        if True:",
        (f"{SWITCHED_ON}test_a_rehearsal_between_two_calls_of_another_fit",),
    ),
    Fault(
        "rehearsed-at-every-fit",
        "kohort/accelerate.py",
        "    if key not in known:",
        "    if True:",
        (f"{SWITCHED_ON}test_what_the_worker_cannot_run_it_is_asked_once",),
    ),
    Fault(
        "shared-memory-left-behind",
        "kohort/wire.py",
        "[memory])\n        finally:\n            os.close(memory)",
        "[memory])\n        finally:\n            pass",
        ("tests/test_wire.py::test_nothing_stays_behind",),
    ),
    Fault(
        "settings-of-another-model",
        "kohort/worker.py",
        "        configure(blueprint)",
        "        blueprint",
        (f"{WORKER}test_each_model_is_traced_with_the_settings_that_it_came_with",),
    ),
    Fault(
        "float64-crosses",
        "kohort/blueprint.py",
        'if keras.config.floatx() == "float64" or any(',
        "if False and any(",
        ("tests/test_blueprint.py::test_what_the_worker_would_round_is_refused",),
    ),
]
