"""How fast cohorts of thousands train: members per second, what a second core adds, memory, and a sweep over folds.

In come the benchmark's problems; out go rows of the first table. The figures that each must reach are those of issue 4.
"""

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import contenders
from contenders import MOONS, XOR, Problem


class Rate(NamedTuple):
    """A cohort, and the members per second that it must reach on two cores; 0 where none are asked for."""

    problem: Problem
    least: int


RATES = (
    Rate(XOR._replace(members=4096), 20_000),
    Rate(MOONS._replace(hidden=(8, 8), metrics=(), members=1024), 1000),
    Rate(MOONS._replace(metrics=(), members=256), 200),
)
LEAST_SECOND_CORE, LEAST_SWEEP, MOST_MEBIBYTES = 1.7, 50, 1.5e9 / 2**20


class Sizes(NamedTuple):
    """How thoroughly to measure, and how many members."""

    turns: int = 5
    many: int = 100_000
    folds: int = 10
    rates: int = 20
    seeds: int = 10
    epochs: int = 5


QUICK = Sizes(turns=1, many=64, folds=2, rates=2, seeds=1, epochs=1)


# --- in processes of their own ----------------------------------------------------------------------------------------


def rate(pipe: Any, problem: Problem, cores: int, turns: int) -> None:
    """Sends the members per second of several fits on so many cores, warm; their initialisation counts."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    once = contenders.cohort_fit(problem, exact=False)
    once(problem.epochs)
    pipe.send([problem.members / once(problem.epochs).seconds for _ in range(turns)])


def peak(pipe: Any, problem: Problem) -> None:
    """Sends the members per second of one fit, warm, and the process's peak of resident memory in MiB."""
    small = contenders.cohort_fit(problem._replace(members=min(problem.members, 4096)), exact=False)
    small(problem.epochs)
    once = contenders.cohort_fit(problem, exact=False)
    once(problem.epochs)
    seconds = once(problem.epochs).seconds
    pipe.send((problem.members / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def sweep(pipe: Any, sizes: Sizes) -> None:
    """Sends the seconds of folds x rates x seeds on the digits as one cohort, warm, and of one `model.fit`."""
    import keras
    import numpy as np
    from sklearn.datasets import load_digits

    import kohort

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    dense = [keras.layers.Dense(width, activation="relu") for width in (32, 16)]
    model = keras.Sequential([keras.Input((64,)), *dense, keras.layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    vary = {"optimizer.learning_rate": np.geomspace(1e-4, 1e-1, sizes.rates)}

    def cohort() -> float:
        start = time.perf_counter()
        kohort.Cohort(model, sizes.seeds, vary=vary, grid=True).fit(
            x, y, epochs=sizes.epochs, folds=sizes.folds, verbose=0
        )
        return time.perf_counter() - start

    def single() -> float:
        start = time.perf_counter()
        rows = len(x) - len(x) // sizes.folds
        held_out = (x[rows:], y[rows:])
        model.fit(x[:rows], y[:rows], epochs=sizes.epochs, validation_data=held_out, verbose=0)
        return time.perf_counter() - start

    first = cohort()
    single()
    pipe.send([(cohort(), single(), first) for _ in range(min(3, sizes.turns))])


# --- rows -------------------------------------------------------------------------------------------------------------


def rows(measured: Callable[..., Any], sizes: Sizes, problems: tuple[Rate, ...] = RATES) -> Iterator[tuple]:
    """Gives what the columns of the first table hold: case, measured, against, numbers, unit, least or most.

    Args:
        measured: Runs one of the functions above in a process of its own and returns what it sends.
        sizes: How thoroughly to measure.
        problems: The cohorts whose rates are measured.
    """
    for problem, least in problems:
        alone, both = (measured(rate, problem, cores, sizes.turns) for cores in (1, 2))
        yield problem, "Cohort.fit, two cores", "–", both, "members/s", least or None
        ratio = [statistics.median(both) / statistics.median(alone)]
        yield problem, "Cohort.fit, two cores", "one core", ratio, "times", LEAST_SECOND_CORE
    many = problems[0].problem._replace(members=sizes.many)
    per_second, mebibytes = measured(peak, many)
    yield many, "Cohort.fit, two cores", "–", [per_second], "members/s", problems[0].least or None
    yield many, "Cohort.fit, peak memory of the process", "–", [mebibytes], "MiB", -MOST_MEBIBYTES
    count = sizes.folds * sizes.rates * sizes.seeds
    title = (
        f"digits 64-32-16-10, {sizes.folds} folds x {sizes.rates} rates x {sizes.seeds} seeds, {sizes.epochs} epochs"
    )
    seconds = measured(sweep, sizes)
    against = f"{count:,} times model.fit on JAX"
    yield title, "Cohort.fit", against, [count * one / all_in for all_in, one, _ in seconds], "times", LEAST_SWEEP
    yield title, "Cohort.fit, first", against, [count * seconds[0][1] / seconds[0][2]], "times", None
