"""Where the time of a cohort of small members goes: in its first fit, and in a warm one.

In come the benchmark's cohorts; out go rows of the first table. First fits are taken apart by what JAX itself reports
of tracing, lowering and compiling; warm ones by a clock around each step of a round. Steps that run side by side on
several cores count once for each, so that the shares are of what all cores have to give.
"""

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import contenders
from contenders import MOONS, XOR, Problem

PROBLEMS = XOR._replace(members=4096), MOONS._replace(hidden=(8, 8), metrics=(), members=1024)
# What JAX reports (the last part of an event's name) -> as which it counts.
REPORTED = {
    "jaxpr_trace_duration": "Python traces Keras's step",
    "jaxpr_to_mlir_module_duration": "JAX lowers it",
    "backend_compile_duration": "XLA compiles it",
}
# Where a clock stands: module, class, method -> as which it counts.
STEPS = {
    ("members", "Members", "begin"): "members begin",
    ("lots", "Lot", "schedule"): "batch orders are drawn",
    ("lots", "Lot", "call"): "programs run",
    ("curves", "Curves", "put"): "logs are put together",
}


def first(pipe: Any, problem: Problem) -> None:
    """Sends the seconds of the first fit of a process with nothing kept, and those that JAX reports of it."""
    import jax

    once = contenders.cohort_fit(problem, exact=False)
    found: Counter = Counter()

    def listen(event: str, duration: float, **_: Any) -> None:
        if name := REPORTED.get(event.rsplit("/", 1)[-1]):
            found[name] += duration

    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    once(problem.epochs)
    pipe.send((time.perf_counter() - start, dict(found)))


def warm(pipe: Any, problem: Problem, turns: int) -> None:
    """Sends for each turn the milliseconds of a warm fit and those of its steps."""
    import importlib

    found: Counter = Counter()

    def timed(function: Callable, name: str) -> Callable:
        def method(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                found[name] += 1e3 * (time.perf_counter() - start)

        return method

    once = contenders.cohort_fit(problem, exact=False)
    once(problem.epochs)
    for (module, kind, method), name in STEPS.items():
        owner = getattr(importlib.import_module(f"kohort.{module}"), kind)
        setattr(owner, method, timed(getattr(owner, method), name))
    once(problem.epochs)
    told = []
    for _ in range(turns):
        found.clear()
        told.append((1e3 * once(problem.epochs).seconds, dict(found)))
    pipe.send(told)


def rows(measured: Callable[..., Any], turns: int, problems: tuple[Problem, ...] = PROBLEMS) -> Iterator[tuple]:
    """Gives what the columns of the first table hold: case, measured, against, numbers, unit, least or most.

    Args:
        measured: Runs one of the functions above in a process of its own and returns what it sends.
        turns: How many warm fits.
        problems: The cohorts.
    """
    cores = len(os.sched_getaffinity(0))
    for problem in problems:
        seconds, reported = measured(first, problem)
        for name in REPORTED.values():
            yield problem, f"first fit: {name}", f"all of {seconds:.3g} s", [reported.get(name, 0.0)], "s", None
        told = measured(warm, problem, turns)
        whole = statistics.median(milliseconds for milliseconds, _ in told)
        for name in STEPS.values():
            shares = [100 * steps.get(name, 0.0) / (milliseconds * cores) for milliseconds, steps in told]
            if name == STEPS["members", "Members", "begin"]:
                shares = [cores * share for share in shares]  # the others wait for it
            yield problem, f"warm fit: {name}", f"{cores} cores for {whole:.3g} ms", shares, "%", None
