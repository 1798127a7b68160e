"""How fast cohorts of thousands train: members per second, what a second core adds, memory, and a sweep over folds.

In come the benchmark's problems; out go rows of the first table. The figures that each must reach are those of issue 4.
"""

import os
import resource
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
    Rate(MOONS._replace(metrics=(), members=1024), 200),
)
LEAST_SECOND_CORE, LEAST_SWEEP, MOST_MEBIBYTES, MOST_DRAWING_PERCENT = 1.7, 50, 1.5e9 / 2**20, 10


class Turn(NamedTuple):
    """Members per second in one turn."""

    alone: float  # one process on one core
    apart: float  # two processes, each on a core of its own: what the machine has to give
    both: float  # one process on two cores
    devices: float  # one process of two host devices, on two cores


class Sizes(NamedTuple):
    """How thoroughly to measure, and how many members."""

    turns: int = 5
    many: int = 100_000
    folds: int = 10
    rates: int = 20
    seeds: int = 10
    epochs: int = 5


class Sweep(NamedTuple):
    """Seconds of one turn of a sweep."""

    members: int
    together: float  # all members as one cohort, warm
    looped: float  # one member in a loop: cloned, compiled, fitted
    refitted: float  # one model that is fitted again and again
    first: float  # all members as the first cohort of the process


SECONDS_OF_A_TURN, LIMIT_SECONDS = 1, 900
DRAWN_TOGETHER = 56  # members, as in a block
LOOPED = 5  # so many of the members are trained in a loop
# Up to this learning rate the members of both are the same at the last epoch, too: losses differed by 2e-6 at most.
# Where it is higher, rounding grows from epoch to epoch.
STEADY_RATE = 0.02

QUICK = Sizes(turns=1, many=64, folds=2, rates=2, seeds=1, epochs=1)


# --- in processes of their own ----------------------------------------------------------------------------------------


def rate(pipe: Any, problem: Problem, cores: set[int], mapping: str = "auto") -> None:
    """Sends the members per second on these cores, warm, each time that it is asked to; their initialisation counts.

    A turn is as many fits as take about a second: a single one of 0.1 s depends on what else the machine does.
    """
    os.sched_setaffinity(0, cores)
    once = contenders.cohort_fit(problem, exact=False, mapping=mapping)
    once(problem.epochs)
    fits = max(1, round(SECONDS_OF_A_TURN / once(problem.epochs).seconds))
    pipe.send("warm")
    while True:
        pipe.recv()
        pipe.send(fits * problem.members / sum(once(problem.epochs).seconds for _ in range(fits)))


def rate_over_devices(pipe: Any, problem: Problem, cores: set[int]) -> None:
    """Sends the same of members spread over host devices, one for each core, where kohort has threads otherwise."""
    import jax

    jax.config.update("jax_num_cpu_devices", len(cores))
    rate(pipe, problem, cores, mapping="sharded")


def permutations(pipe: Any, problem: Problem, turns: int) -> None:
    """Sends what the orders of all batches take on one core, as percents of the training that they are drawn for."""
    import numpy as np

    from kohort.generators import MemberGenerators

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    once = contenders.cohort_fit(problem, exact=False)
    once(problem.epochs)
    generators = MemberGenerators(range(problem.members))
    after = generators.like()
    room = np.zeros((DRAWN_TOGETHER, problem.epochs, problem.rows), np.min_scalar_type(problem.rows))

    def drawn() -> None:
        for first in range(0, problem.members, DRAWN_TOGETHER):
            members = np.arange(first, min(first + DRAWN_TOGETHER, problem.members))
            generators.draw(after, members, problem.epochs, room, members - first)

    pipe.send([100 * seconds_of(drawn) / once(problem.epochs).seconds for _ in range(turns)])


def peak(pipe: Any, problem: Problem) -> None:
    """Sends the members per second of one fit, warm, and the process's peak of resident memory in MiB."""
    small = contenders.cohort_fit(problem._replace(members=min(problem.members, 4096)), exact=False)
    small(problem.epochs)
    once = contenders.cohort_fit(problem, exact=False)
    once(problem.epochs)
    seconds = once(problem.epochs).seconds
    pipe.send((problem.members / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def sweep(pipe: Any, sizes: Sizes) -> None:
    """Sends what folds x rates x seeds on the digits take: a `Sweep` for each turn."""
    import keras
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold

    import kohort

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    dense = [keras.layers.Dense(width, activation="relu") for width in (32, 16)]
    model = keras.Sequential([keras.Input((64,)), *dense, keras.layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    rates, fitted = np.geomspace(1e-4, 1e-1, sizes.rates), []

    def cohort() -> None:
        fitted[:] = [kohort.Cohort(model, sizes.seeds, vary={"optimizer.learning_rate": rates}, grid=True)]
        fitted[0].fit(x, y, epochs=sizes.epochs, folds=sizes.folds, verbose=0)

    def fit(network: keras.Model, fold: int) -> list[float]:
        own, held_out = list(StratifiedKFold(sizes.folds).split(x, y))[fold]
        validation_data = x[held_out], y[held_out]
        history = network.fit(x[own], y[own], epochs=sizes.epochs, validation_data=validation_data, verbose=0)
        return history.history["val_loss"]

    def loop(members: range) -> None:
        """Trains some of the members as a loop over them would: the same networks, from the same seeds."""
        table = fitted[0].parameters
        for member in members:
            keras.utils.set_random_seed(int(table["seed"][member]))
            network = keras.models.clone_model(model)
            rate = table["optimizer.learning_rate"][member]
            network.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
            compared = sizes.epochs if rate <= STEADY_RATE else 1
            found = fit(network, int(table["fold"][member]))[:compared]
            expected = fitted[0].history["val_loss"][member, :compared]
            if not np.allclose(found, expected, rtol=1e-4, atol=0):
                raise RuntimeError(f"member {member} has a val_loss of {expected} in the cohort, {found} in the loop")

    def turn(number: int) -> Sweep:
        members = range(number, len(fitted[0].seeds), max(1, len(fitted[0].seeds) // LOOPED))
        together, refitted = seconds_of(cohort), seconds_of(lambda: fit(model, 0))
        looped = seconds_of(lambda: loop(members)) / len(members)
        return Sweep(len(fitted[0].seeds), together, looped, refitted, first)

    first = seconds_of(cohort)
    fit(model, 0)  # compiles
    pipe.send([turn(number) for number in range(min(3, sizes.turns))])


def seconds_of(function: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# --- rows -------------------------------------------------------------------------------------------------------------


def turns_of(begin: Callable[..., Any], problem: Problem, turns: int) -> list[Turn]:
    """Measures on one core and on two by turns, so that both see the same machine."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    processes = []
    for measure, own in ((rate, cores[:1]), (rate, cores[-1:]), (rate, cores), (rate_over_devices, cores)):
        processes.append(begin(f"{measure.__name__} on {len(own)} core(s)", measure, problem, set(own)))
        processes[-1].receive(LIMIT_SECONDS)  # warm, before the next one begins
    first, second, both, devices = processes

    def turn(*asked: Any) -> float:
        for process in asked:
            process.pipe.send("go")
        return sum(process.receive(LIMIT_SECONDS) for process in asked)

    found = [Turn(turn(first), turn(first, second), turn(both), turn(devices)) for _ in range(turns)]
    for process in processes:
        process.close()
    return found


def rows(
    measured: Callable[..., Any], begin: Callable[..., Any], sizes: Sizes, problems: tuple[Rate, ...] = RATES
) -> Iterator[tuple]:
    """Gives what the columns of the first table hold: case, measured, against, numbers, unit, least or most.

    Args:
        measured: Runs one of the functions above in a process of its own and returns what it sends.
        begin: Begins such a process, and returns it.
        sizes: How thoroughly to measure.
        problems: The cohorts whose rates are measured.
    """
    for problem, least in problems:
        found = turns_of(begin, problem, sizes.turns)
        yield problem, "Cohort.fit, two cores", "–", [turn.both for turn in found], "members/s", least or None
        ratios = [turn.both / turn.alone for turn in found]
        yield problem, "Cohort.fit, two cores", "one core", ratios, "times", LEAST_SECOND_CORE
        ratios = [turn.apart / turn.alone for turn in found]
        yield problem, "two processes of one core each, together", "one core", ratios, "times", None
        ratios = [turn.both / turn.devices for turn in found]
        yield problem, "Cohort.fit, two cores", "two host devices, mapping='sharded'", ratios, "times", None
        if problem.batch_size < problem.rows:
            percents = measured(permutations, problem, sizes.turns)
            what = "NumPy's permutations for all its members, on one core"
            yield problem, what, "all of Cohort.fit on one core", percents, "%", -MOST_DRAWING_PERCENT
    many = problems[0].problem._replace(members=sizes.many)
    per_second, mebibytes = measured(peak, many)
    yield many, "Cohort.fit, two cores", "–", [per_second], "members/s", problems[0].least or None
    yield many, "Cohort.fit, peak memory of the process", "–", [mebibytes], "MiB", -MOST_MEBIBYTES
    title = (
        f"digits 64-32-16-10, {sizes.folds} folds x {sizes.rates} rates x {sizes.seeds} seeds, {sizes.epochs} epochs"
    )
    turns = measured(sweep, sizes)
    for contender, seconds in (("Cohort.fit", "together"), ("Cohort.fit, first", "first")):
        for rival, each in (("clone_model, compile, model.fit on JAX", "looped"), ("model.fit on JAX", "refitted")):
            least = LEAST_SWEEP if (seconds, each) == ("together", "looped") else None
            ratios = [turn.members * getattr(turn, each) / getattr(turn, seconds) for turn in turns]
            yield title, contender, f"{turns[0].members:,} times {rival}", ratios, "times", least
