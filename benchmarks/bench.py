"""Compares kohort with plain Keras, and with what else is installed, in one run.

In come XOR, moons, moons as a stream, with a callback and with members that stop, cohorts of thousands, and a study;
out go a table of figures beside what each must reach, and one of times and losses.
Every contender has a process and a cache folder of its own and works only when told to: those of a problem take turns
(A B C A B C ...), so that a busy moment of the machine meets them all. A ratio is formed within each round; the median
over the rounds counts, the lowest and the highest stand beside it.
"""

import argparse
import datetime
import functools
import importlib.util
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import contenders
import many
import profiles
import results
import studies
import switched
from contenders import CALLBACKS, MOONS, STOPPING, STREAM, XOR, Fit, Problem

SPAWN = multiprocessing.get_context("spawn")
# Who does not answer for so long is given up, and the table says so.
LIMIT_SECONDS = 120.0
# What is measured by itself, and may be hundreds of thousands of trainings, has longer.
LONG_LIMIT_SECONDS = 900.0
# What issues 2 to 4 ask for: the least ratios of (problem, measured, against), and the most seconds of a second start.
LEAST_RATIO = {
    (XOR, "kohort.fit", "model.fit on JAX"): 300,
    (MOONS, "kohort.fit", "model.fit on JAX"): 30,
    (XOR, "Cohort.fit", "model.fit on JAX"): 5000,
    (MOONS, "Cohort.fit", "model.fit on JAX"): 50,
    (STREAM, "kohort.fit", "model.fit on JAX"): 3,
    (CALLBACKS, "kohort.fit with an epoch callback", "model.fit on JAX with an epoch callback"): 10,
    (STOPPING, "Cohort.fit, half stopped at a tenth", "Cohort.fit, nobody stopped"): 1 / 0.65,
}
MOST_START_SECONDS = 1.0
VERSIONS = ("kohort", "keras", "jax", "numpy", "tensorflow", "torch")


class Settings(NamedTuple):
    """How thoroughly to measure."""

    rounds: int = 5
    turn_seconds: float = 0.3  # a turn repeats a shorter fit for so long and takes the median
    starts: int = 3
    refits: int = 200
    problems: tuple[Problem, ...] = (XOR, MOONS)
    stream: Problem = STREAM
    callbacks: Problem = CALLBACKS
    stopping: Problem = STOPPING
    sizes: many.Sizes = many.Sizes()


QUICK = Settings(
    1, 0.0, 1, 5,
    (XOR._replace(epochs=30, slow_epochs=2, members=16), MOONS._replace(epochs=2, slow_epochs=1, members=8)),
    STREAM._replace(rows=80, epochs=2), CALLBACKS._replace(epochs=2), STOPPING._replace(epochs=10, members=16),
    many.QUICK,
)  # fmt: skip


class Row(NamedTuple):
    """One line of the first table."""

    case: str
    measured: str
    against: str
    figure: str
    lowest_to_highest: str = "–"
    must_reach: str = "–"
    reached: str = "–"


class Timing(NamedTuple):
    """One line of the second table."""

    case: str
    contender: str
    epochs_timed: str
    microseconds_per_epoch_and_network: str
    lowest_to_highest: str = "–"
    networks_per_second: str = "–"
    last_loss_of_seed_0: str = "–"
    median_last_loss: str = "–"


def say(text: str) -> None:
    """Reports progress, apart from the results."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Process:
    """A fresh Python with a cache folder of its own; what it sends is waited for with signs of life."""

    def __init__(self, label: str, target: Callable, *arguments: Any, needs: str = "jax", cache: str = "") -> None:
        self.label = label
        self.pipe, theirs = SPAWN.Pipe()
        backend = "tensorflow" if needs == "tensorflow" else "jax"
        os.environ |= {"KERAS_BACKEND": backend, "KOHORT_CACHE_DIR": cache or tempfile.mkdtemp()}
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
        hidden = {"tensorflow", "torch"} - {needs}
        self.process = SPAWN.Process(target=contenders.begin, args=(hidden, target, theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self, limit_seconds: float = LIMIT_SECONDS) -> Any:
        """Returns what comes next; raises TimeoutError after so long."""
        started = time.monotonic()
        while not self.pipe.poll(1.5):
            waited = time.monotonic() - started
            if waited > limit_seconds:
                raise TimeoutError
            say(f"{self.label}: {waited:.0f} s")
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit(f"bench: {self.label} ended early; its own message stands above.") from None

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self.process.terminate()
        self.process.join()


# --- races ------------------------------------------------------------------------------------------------------------


class Contender(NamedTuple):
    """Who takes part: the function that makes it, and the option that is tried, of whose values it uses the fastest."""

    name: str
    make: Callable
    option: str = ""
    values: tuple = (None,)
    needs: str = "jax"
    is_slow: bool = False


OURS = [
    Contender("kohort.fit", contenders.kohort_fit),
    Contender("Cohort.fit", contenders.cohort_fit, values=(False,)),
    Contender("Cohort.fit, exact=True", contenders.cohort_fit, values=(True,)),
]


def ours(problem: Problem) -> list[Contender]:
    """Returns kohort's own: cohorts take no streams."""
    if problem.name == STOPPING.name:
        return [Contender("Cohort.fit, half stopped at a tenth", contenders.stopping_fit, values=(True,))]
    if problem.has_callback:
        return [OURS[0]._replace(name="kohort.fit with an epoch callback")]
    return OURS[:1] if problem.is_stream else OURS


def rivals(problem: Problem) -> list[Contender]:
    """Returns those that kohort is compared with."""
    if problem.name == STOPPING.name:
        return [Contender("Cohort.fit, nobody stopped", contenders.stopping_fit, values=(False,))]
    single = Contender("model.fit on JAX", contenders.keras_fit, values=(1,))
    if problem.has_callback:
        return [single._replace(name="model.fit on JAX with an epoch callback")]
    several = single._replace(option="steps_per_execution", values=problem.steps_per_execution)
    if problem.is_stream:
        return [single, several]
    return [
        single,
        *([several] if len(several.values) > 1 else []),
        Contender("clone_model, compile, model.fit on JAX", contenders.keras_loop),
        several._replace(name="model.fit on TensorFlow", needs="tensorflow", is_slow=True),
        Contender("PyTorch loop", contenders.torch_loop, "threads", (1, 2), needs="torch"),
    ]


class Runner:
    """A contender at work on a problem: its process and the fits of its turns, or why there are none."""

    def __init__(self, contender: Contender, problem: Problem, settings: Settings) -> None:
        self.contender, self.best = contender, contender.values[0]
        self.label = ", ".join(filter(None, (problem.name, contender.name, contender.option)))
        self.epochs = problem.slow_epochs if contender.is_slow else problem.epochs
        self.is_loop = contender.make is contenders.keras_loop  # over seeds: compared with cohorts only
        self.members = problem.members if contender.make in (contenders.cohort_fit, contenders.stopping_fit) else 1
        self.fits: list[Fit] = []
        self.is_installed = importlib.util.find_spec(contender.needs) is not None
        self.why_not = "" if self.is_installed else "not installed"
        if self.is_installed:
            arguments = (contender.make, problem, contender.values, self.epochs, settings.turn_seconds)
            self.process = Process(self.label, contenders.take_turns, *arguments, needs=contender.needs)
            self.best = self._receive()

    def _receive(self) -> Any:
        try:
            return self.process.receive()
        except TimeoutError:
            self.fits, self.why_not = [], f"no answer in {LIMIT_SECONDS:.0f} s"
            self.process.close()
            say(f"{self.label}: {self.why_not}, given up")

    def turn(self) -> None:
        """Lets it train once, or for `turn_seconds`."""
        if not self.why_not:
            self.process.pipe.send(True)
            fit = self._receive()
            if fit is not None:
                self.fits.append(fit)
                say(f"{self.label}: {fit.seconds:.4g} s, loss {fit.loss:.6g}")

    def seconds(self) -> list[float]:
        """Returns the seconds per epoch and network of each turn."""
        return [fit.seconds / self.epochs / self.members for fit in self.fits]

    def name(self) -> str:
        """Returns its name, with the value that was the fastest."""
        name, _, option, values = self.contender[:4]
        tried = ", ".join(map(str, values))
        return f"{name}, {option} {self.best} (best of {tried})" if len(values) > 1 else name


def race(problem: Problem, settings: Settings) -> tuple[list[Row], list[Timing]]:
    """Lets all contenders of a problem take turns."""
    us, them = ([Runner(each, problem, settings) for each in group] for group in (ours(problem), rivals(problem)))
    for nth in range(settings.rounds):
        say(f"{problem.name}: round {nth + 1} of {settings.rounds}")
        for runner in us + them:
            runner.turn()
    for runner in us + them:
        if not runner.why_not:
            runner.process.close()
    pairs = [(one, other) for one in us for other in them if other.is_installed]
    rows = [ratio(problem, one, other) for one, other in pairs if one.members > 1 or not other.is_loop]
    return rows, [timing(problem, runner) for runner in us + them]


def ratio(problem: Problem, one: Runner, other: Runner) -> Row:
    """Returns how many times faster `one` is than `other`."""
    least = LEAST_RATIO.get((problem, one.name(), other.name()))
    names = case(problem, one.members), one.name(), other.name()
    ratios = [b / a for a, b in zip(one.seconds(), other.seconds(), strict=False)]
    if not ratios:
        return Row(*names, one.why_not or other.why_not)
    goal = (
        ("–", "–")
        if least is None
        else (
            f"≥ {least:.3g} times" if least < 2 else f"≥ {least:,} times",
            yes_or_no(statistics.median(ratios) >= least),
        )
    )
    return Row(*names, f"{number(statistics.median(ratios))} times", spread(ratios), *goal)


def timing(problem: Problem, runner: Runner) -> Timing:
    """Returns the times and losses of a contender."""
    names = case(problem, runner.members), runner.name(), f"{runner.epochs:,}"
    if not runner.fits:
        return Timing(*names, runner.why_not)
    microseconds = [1e6 * seconds for seconds in runner.seconds()]
    middle, (_, loss, median_loss) = statistics.median(microseconds), runner.fits[0]
    losses = f"{loss:.9g}", "–" if median_loss is None else f"{median_loss:.9g}"
    return Timing(*names, number(middle), spread(microseconds), number(1e6 / middle / problem.epochs), *losses)


def case(problem: Problem, members: int = 1) -> str:
    """Names data, model, epochs, batch size and seeds; the head of the file describes data and model."""
    seeds = "seed 0" if members == 1 else f"seeds 0–{members - 1}"
    return f"{problem.name} {problem.network}, {problem.epochs:,} epochs, batch {problem.batch_size}, {seeds}"


def number(value: float) -> str:
    """Writes a number with at least three digits, and no exponent where it is large."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: list[float]) -> str:
    """Writes the lowest and the highest."""
    return f"{number(min(values))} – {number(max(values))}"


def yes_or_no(claim: bool) -> str:
    """Writes whether a figure was reached."""
    return "yes" if claim else "**no**"


# --- what is not a race -----------------------------------------------------------------------------------------------


def starts(problem: Problem, settings: Settings) -> Iterator[Row]:
    """Measures first fits in fresh processes, and in a second process that finds the programs of the first on disk."""
    ways = [("model.fit on JAX", ""), ("kohort.fit", ""), ("Cohort.fit", "")]
    ways += [(name, ", second start") for name, _ in ways[1:]]
    measured: dict[tuple, list] = {way: [] for way in ways}
    for _ in range(settings.starts):
        caches = {name: tempfile.mkdtemp() for name, _ in ways}
        for name, nth in ways:
            label = f"{problem.name}, a new process, {name}{nth}"
            process = Process(label, contenders.first_fit, name, problem, cache=caches[name])
            measured[name, nth].append(process.receive())
            say(f"{label}: {measured[name, nth][-1][1]:.3g} s beyond imports")
            process.close()
    for (name, nth), seconds in measured.items():
        yield start_row(problem, name, nth, seconds)


def start_row(problem: Problem, name: str, nth: str, seconds: list[tuple]) -> Row:
    """Returns what a new process took beyond importing JAX and Keras."""
    imports, beyond, fit, compiling = (statistics.median(part) for part in zip(*seconds, strict=True))
    names = case(problem, problem.members if name == "Cohort.fit" else 1), f"a new process, {name}{nth}"
    against = f"– (beyond the {number(imports)} s of importing jax and keras)"
    figure = f"{number(beyond)} s, of it fit {number(fit)} s, of it XLA {number(compiling)} s"
    row = Row(*names, against, figure, f"{spread([each[1] for each in seconds])} s")
    if (problem, name, nth) != (XOR, "kohort.fit", ", second start"):
        return row
    return row._replace(must_reach=f"≤ {MOST_START_SECONDS} s", reached=yes_or_no(beyond <= MOST_START_SECONDS))


def compilation_rows(problem: Problem) -> Iterator[Row]:
    """Counts the programs that XLA compiles in a first fit and in later ones."""
    process = Process(f"{problem.name}, compilations", contenders.compilations, problem)
    for name, other, count in process.receive():
        say(f"{problem.name}, {name}, {other or 'first fit'}: {count} compilations")
        names = case(problem, problem.members if name == "Cohort.fit" else 1), f"{name}, {other or 'first fit'}"
        goal = ("0 XLA compilations", yes_or_no(count == 0)) if other else ("–", "–")
        yield Row(*names, "–", f"{count} XLA compilations", "–", *goal)


def memory_rows(problem: Problem, settings: Settings) -> Iterator[Row]:
    """Measures the memory of a cohort."""
    process = Process(f"{problem.name}, memory", contenders.memory, problem, settings.refits)
    before, peak, growth = process.receive()
    names = case(problem, problem.members), "Cohort.fit, peak memory"
    yield Row(*names, f"the {before:.0f} MiB of the process before it", f"{peak:.0f} MiB")
    what = f"Cohort.fit, growth over {settings.refits} re-fits"
    yield Row(case(problem, problem.members), what, "memory after the tenth", f"{growth:+.1f} MiB")


def measured(function: Callable, *arguments: Any, needs: str = "jax") -> Any:
    """Runs a function in a process of its own, under the backend that it needs, and returns what it sends."""
    process = Process(function.__name__, function, *arguments, needs=needs)
    told = process.receive(LONG_LIMIT_SECONDS)
    process.close()
    say(f"{function.__name__}: {told}")
    return told


def many_rows(settings: Settings) -> Iterator[Row]:
    """Measures cohorts of thousands."""
    rates = (
        tuple(each._replace(problem=quick(each.problem)) for each in many.RATES) if settings is QUICK else many.RATES
    )
    return figure_rows(many.rows(measured, Process, settings.sizes, rates))


def study_rows(settings: Settings) -> Iterator[Row]:
    """Measures a study from the command line."""
    return figure_rows(studies.rows(measured, min(3, settings.rounds), settings is QUICK))


def figure_rows(found: Iterator[tuple]) -> Iterator[Row]:
    """Returns what was measured as lines of the first table; below 0, and as -0, stands the most that a figure may be.

    A text instead of figures says why there are none.
    """
    for problem, what, against, figures, unit, least in found:
        names = case(problem, problem.members) if isinstance(problem, Problem) else problem, what, against
        if isinstance(figures, str):
            yield Row(*names, figures)
            continue
        middle = statistics.median(figures)
        goal = ("–", "–")
        if least is not None:
            is_most = math.copysign(1, least) < 0
            is_reached = middle <= -least if is_most else middle >= least
            goal = f"{'≤' if is_most else '≥'} {number(abs(least))} {unit}", yes_or_no(is_reached)
        yield Row(*names, f"{number(middle)} {unit}", spread(figures) if len(figures) > 1 else "–", *goal)


def switched_rows(settings: Settings) -> Iterator[Row]:
    """Measures what the switch costs and gains."""
    return figure_rows(switched.rows(measured, switched.QUICK if settings is QUICK else switched.Sizes()))


def profile_rows(settings: Settings) -> Iterator[Row]:
    """Takes fits of cohorts apart."""
    problems = tuple(map(quick, profiles.PROBLEMS)) if settings is QUICK else profiles.PROBLEMS
    return figure_rows(profiles.rows(measured, settings.rounds, problems))


def quick(problem: Problem) -> Problem:
    """Returns the problem in a size that takes no time."""
    return problem._replace(epochs=2, members=8)


# --- the file ---------------------------------------------------------------------------------------------------------


def sections(settings: Settings) -> dict[str, Callable[[], tuple]]:
    """Returns what can be measured by itself: name -> rows and timings."""
    xor, _ = settings.problems
    races = {problem.name: functools.partial(race, problem, settings) for problem in settings.problems}
    return races | {
        "stream": functools.partial(race, settings.stream, settings),
        "callbacks": functools.partial(race, settings.callbacks, settings),
        "stopping": functools.partial(race, settings.stopping, settings),
        "start": lambda: ([row for problem in settings.problems for row in starts(problem, settings)], []),
        "compilations": lambda: ([row for problem in settings.problems for row in compilation_rows(problem)], []),
        "memory": lambda: (list(memory_rows(xor, settings)), []),
        "switched": lambda: (list(switched_rows(settings)), []),
        "profile": lambda: (list(profile_rows(settings)), []),
        "many": lambda: (list(many_rows(settings)), []),
        "study": lambda: (list(study_rows(settings)), []),
    }


HEAD = """# Results

Written part by part by `./run bench --output benchmarks/RESULTS.md`; each part says when, on what, and by which command
it is measured anew.

{cases}

Each contender has a process of its own, which sees TensorFlow and PyTorch only if it is theirs, and is warm (compiled,
trained once before it is timed); they take turns, {rounds} rounds. A ratio is formed within each round: the tables have
the median, the lowest and the highest. Networks per second are trainings to the epochs of the case; where fewer epochs
were timed, the time counts per epoch. `Cohort.fit` is timed with the initialisation of its members, `model.fit`
without; `clone_model, compile, model.fit` is the loop over seeds that a user would write, its compilations included.
What is no ratio depends on the machine of the day: one trained 236 networks of moons 2-32-32-1 a second by commit
754ef7a, and another of the same description 142 to 159 by 17a4a12, of which the programs are the same. On a third,
where `import jax, keras` takes 3.3 s, the study of XOR took 31.4 s cold and 11 s with its programs kept (commit
6363411), where one of the others took 17.2 s and 5.87 s: each table says how long that import took, from then on.
First fits, with what XLA takes to compile (or to load what an earlier process compiled), are those in new processes:
{starts} of each, the median counts.
"""
PART = """## {name}

{quick}Measured by `{command}` on {date}. {versions}; load {load:.2f} at the start.

{figures}
{timings}"""


def head(settings: Settings) -> str:
    """Returns what holds of all parts."""
    shown = *settings.problems, settings.stream, settings.callbacks, settings.stopping
    cases = "\n".join(f"- {problem.name}: {problem.title}" for problem in shown)
    return HEAD.format(cases=cases, rounds=settings.rounds, starts=settings.starts)


def part(name: str, settings: Settings) -> str:
    """Measures a part and returns what is to be read of it."""
    load = os.getloadavg()[0]
    rows, timings = sections(settings)[name]()
    is_quick = settings is QUICK
    return PART.format(
        name=name,
        quick="**Quick run: tiny cases, figures without meaning.** " if is_quick else "",
        command=f"./run bench{' --quick' if is_quick else ''} --only {name}",
        date=datetime.date.today().isoformat(),
        versions=results.versions(VERSIONS),
        load=load,
        figures=results.table(rows),
        timings=results.table(timings),
    )


def main() -> None:
    """Measures, prints, and writes where it is told to."""
    parser = argparse.ArgumentParser(prog="./run bench", description="Compares kohort with plain Keras.")
    parser.add_argument("--quick", action="store_true", help="tiny cases: whether it works, not how fast")
    parser.add_argument("--only", choices=sections(Settings()), help="measure this part only")
    parser.add_argument("--output", type=Path, help="write the results here, too")
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else Settings()
    print(head(settings))
    if arguments.output:
        results.begin(arguments.output, head(settings))
    with tempfile.TemporaryDirectory(prefix="kohort-bench-") as tempfile.tempdir:
        for name in [arguments.only] if arguments.only else sections(settings):
            say(f"--- {name}")
            text = part(name, settings)
            print(text, flush=True)
            if arguments.output:
                results.put(arguments.output, name, text)  # at once: a run takes long, and may be broken off


if __name__ == "__main__":
    main()
