"""How far a study scales over Ray's workers: an event simulation of `kohort.distribute.ray`, with measured times.

Run by `./run python examples/scaling.py [folder]`, which prints the table and draws the picture of the docs;
`--measure` measures the times anew, in a small study on one worker of Ray on this machine, about a minute.
"""

import argparse
import heapq
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kohort  # isort: skip  (before Keras, so that Keras starts on JAX)
import keras
import matplotlib.pyplot as plt
import numpy as np

from kohort import files
from kohort.distribute import MOST_TRIES, Plan
from kohort.plot.style import COLOURS, MARKERS

WORKERS = [2**power for power in range(11)]
# The studies that are simulated: the size of a block, how many architectures there are, each of which is a lane with a
# program of its own, and in how many blocks each is trained. Always 131,072 members in all.
STUDIES = [(16, 32, 256), (128, 32, 32), (512, 32, 8), (128, 1024, 1)]


class Times(NamedTuple):
    """What one block, of one size, costs in seconds."""

    start: float  # of a worker, until it says that it is ready
    compile: float  # of a lane's program, once in each worker
    block: float  # training it
    travel: float  # packing a block and sending it, and the next task to the worker, without what follows
    hand: float  # the driver, taking a block and giving a task: as long as to put a block into Ray and to get it
    commit: float  # the one writer, to disk


class Weather(NamedTuple):
    """What goes wrong."""

    spread: float = 0.0  # of the logarithm of a block's time; the mean stays
    failures_per_hour: float = 0.0  # of each worker


class Outcome(NamedTuple):
    """How a simulated run went."""

    seconds: float
    committed: list  # the tasks, in the order in which they were written
    deaths: int
    lost_seconds: float  # of work that was done again


# By `./run python examples/scaling.py --measure`: networks 2-31-31-1 and 2-32-32-1 on moons (400 rows, random_state 0),
# 100 epochs, seeds from 0 on; medians, on one of two cores that were busy besides, so take them as ratios. With Python
# 3.11.7, Keras 3.15.1, JAX 0.10.2, NumPy 2.4.6 and Ray 2.60.0; nothing was kept compiled from before. By block size.
MEASURED = {
    16: Times(start=3.65, compile=3.28, block=0.186, travel=0.00936, hand=0.00194, commit=0.0157),
    128: Times(start=3.65, compile=3.28, block=1.53, travel=0.0112, hand=0.00316, commit=0.0379),
    512: Times(start=3.65, compile=3.28, block=6.25, travel=0.0283, hand=0.00973, commit=0.0861),
}
CALM, ROUGH = Weather(), Weather(spread=0.5, failures_per_hour=10.0)


# --- the simulation ---------------------------------------------------------------------------------------------------


def lanes_of(lanes: int, tasks: int) -> list[list[Any]]:
    """Returns tasks as an executor gets them; here each is a name alone."""
    return [[(lane, task) for task in range(tasks)] for lane in range(lanes)]


def simulated(lanes: list[list[Any]], times: Times, workers: int, weather: Weather = CALM, seed: int = 0) -> Outcome:
    """Runs a study as `kohort.distribute` does, its own plan included, on a clock that is only counted.

    The driver does one thing at a time: it takes an answer, gives that worker its next task, then commits. Whoever
    answers meanwhile waits. A worker that dies loses its programs and its task, which is done again by a new one.
    """
    generator, plan, order = np.random.default_rng(seed), Plan(lanes), itertools.count()
    rate = weather.failures_per_hour / 3600
    committed, tries, deaths, lost, driver = [], {}, 0, 0.0, 0.0
    # When an answer comes, in which order, and from whom: what it has compiled, its lane and task, if it died.
    answers: list[tuple] = []

    def hire(at: float) -> None:
        heapq.heappush(answers, (at + times.start, next(order), set(), None, None, False))

    for _ in range(min(workers, len(plan))):
        hire(0.0)
    while answers:
        came, _, programs, lane, task, is_dead = heapq.heappop(answers)
        driver = max(driver, came) + times.hand
        if is_dead:
            deaths, tries[task] = deaths + 1, tries.get(task, 0) + 1
            if tries[task] == MOST_TRIES:
                raise RuntimeError(f"{MOST_TRIES} workers died one after the other while training {task}.")
            plan.again(lane, task)
            hire(driver)
            continue
        given = plan.next(lane)
        if given is not None:
            slow = generator.lognormal(-(weather.spread**2) / 2, weather.spread)
            seconds = times.travel + slow * times.block + times.compile * (given[0] not in programs)
            lived = generator.exponential(1 / rate) if rate else np.inf
            lost += lived if lived < seconds else 0.0
            programs.add(given[0])
            ends = driver + min(seconds, lived)
            heapq.heappush(answers, (ends, next(order), programs, *given, lived < seconds))
        if task is not None:
            driver += times.commit
            committed.append(task)
    return Outcome(float(driver), committed, deaths, float(lost))


def bounds(lanes: list[list[Any]], times: Times, workers: int) -> dict[str, float]:
    """Returns the seconds below which no run of a calm day can be, by what takes them."""
    tasks = sum(map(len, lanes))
    busy = min(workers, tasks)
    return {
        "workers": tasks * (times.travel + times.block) / busy,
        "start and compile": times.start + times.compile * max(1, len(lanes) / busy),
        "writer": tasks * (times.hand + times.commit),
    }


def limit(lanes: list[list[Any]], times: Times, workers: int) -> str:
    """Returns what takes most of the time; more workers help while it is they."""
    own = bounds(lanes, times, workers)
    return max(own, key=lambda name: own[name])


# --- what comes of it -------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One line of the table."""

    size: int
    lanes: int
    workers: int
    calm: Outcome
    rough: Outcome
    limit: str
    one: float  # the seconds of one worker on a calm day

    def speed_up(self, outcome: Outcome) -> float:
        """Returns how many times faster than one worker on a calm day."""
        return self.one / outcome.seconds


def table() -> list[Row]:
    """Simulates every study with every number of workers."""
    rows = []
    for size, count, blocks in STUDIES:
        lanes, times = lanes_of(count, blocks), MEASURED[size]
        one = simulated(lanes, times, 1).seconds
        for workers in WORKERS:
            calm, rough = (simulated(lanes, times, workers, weather) for weather in (CALM, ROUGH))
            rows.append(Row(size, count, workers, calm, rough, limit(lanes, times, workers), one))
    return rows


def told(rows: list[Row]) -> str:
    """Returns the table for a page."""
    head = ["architectures", "block_size", "workers", "seconds", "speed-up", "efficiency", "rough", "died", "limit"]
    lines = [head, ["--:"] * (len(head) - 1) + [":--"]]
    for row in rows:
        calm, rough = row.speed_up(row.calm), row.speed_up(row.rough)
        study = [f"{row.lanes:,}", str(row.size), f"{row.workers:,}"]
        on_calm_days = [f"{row.calm.seconds:,.0f}", f"{calm:.1f}", f"{calm / row.workers:.0%}"]
        lines.append([*study, *on_calm_days, f"{rough:.1f}", str(row.rough.deaths), row.limit])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def picture(rows: list[Row]) -> Any:
    """Draws speed-up and efficiency, and returns the figure."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for (size, count, blocks), colour, marker in zip(STUDIES, COLOURS, MARKERS, strict=False):
        own = [row for row in rows if (row.size, row.lanes) == (size, count)]
        name = f"{count:,} architectures, block_size={size}"
        for outcome, style in (("calm", "-"), ("rough", ":")):
            gain = np.array([row.speed_up(getattr(row, outcome)) for row in own])
            drawn = {"color": colour, "linestyle": style, "marker": marker, "markersize": 4}
            left.plot(WORKERS, gain, label=name if style == "-" else None, **drawn)
            right.plot(WORKERS, gain / WORKERS, **drawn)
        writer = own[0].one / bounds(lanes_of(count, blocks), MEASURED[size], 1)["writer"]
        left.axhline(writer, color=colour, linewidth=0.8, linestyle="--")
    ground = plt.rcParams["axes.edgecolor"]
    left.plot(WORKERS, WORKERS, color=ground, linewidth=0.8)
    left.text(420, 480, "as the workers", ha="right", va="bottom")
    for style, name in (("-", "calm"), (":", "rough: stragglers, deaths"), ("--", "the writer's bound")):
        left.plot([], [], color=ground, linestyle=style, label=name)
    left.set(ylabel="speed-up", yscale="log", ylim=(0.7, 1500))
    left.yaxis.set_major_formatter("{x:,.0f}")
    right.set(ylabel="efficiency", ylim=(0, 1.05))
    for ax in (left, right):
        ax.set(xlabel="workers", xscale="log", xticks=[1, 4, 16, 64, 256, 1024])
        ax.set_xticks([], minor=True)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


# --- the measurement --------------------------------------------------------------------------------------------------


def network(width: int = 32) -> keras.Model:
    """Two hidden layers."""
    layers = [keras.layers.Dense(width, "relu"), keras.layers.Dense(width, "relu"), keras.layers.Dense(1, "sigmoid")]
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def measure(size: int, blocks: int, ray: Any) -> Times:
    """Trains a study of two lanes on one worker, and reads the times off its own records."""
    x, y = kohort.data.moons()
    executor, seen, commits, begun = kohort.distribute.ray(workers=1), [], [], []

    def timed(*arguments: Any) -> Iterator[Any]:
        begun.append(time.time())
        for finished in executor(*arguments):
            seen.append(finished)
            start = time.perf_counter()
            yield finished  # and the study commits it
            commits.append(time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        study = kohort.Study(Path(folder) / "study", network, {"width": [31, 32]}, seeds=size * blocks)
        study.run(x, y, epochs=100, verbose=0, block_size=size, executor=timed)
    about = [finished[0][0].about for finished in seen]
    walls = [own["wall_seconds"] for own in about]
    begins = [own["finished"] - own["wall_seconds"] for own in about]
    gaps = [later - own["finished"] for own, later in zip(about, begins[1:], strict=False)]
    warm = [wall for number, wall in enumerate(walls) if number % blocks]
    cold = [wall for number, wall in enumerate(walls) if not number % blocks]
    hands = [clocked(lambda block=block: ray.get(ray.put(block))) for block in seen]
    del gaps[blocks - 1]  # where the second lane begins, and its model is sent
    middle = statistics.median
    block, hand = middle(warm), middle(hands)
    travel = max(0.0, middle(gaps) - hand)
    return Times(begins[0] - begun[0], middle(cold) - block, block, travel, hand, middle(commits))


def clocked(do: Any) -> float:
    """Returns how many seconds something takes."""
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def measure_all() -> None:
    """Prints the lines of `MEASURED`."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"KOHORT_CACHE_DIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "JAX_PLATFORMS": "cpu"}
        import ray

        short = None  # start and compilation are read off the short blocks, whose own time does not hide them
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        print("#", files.versions(), "ray", ray.__version__)
        for size, blocks in ((16, 6), (128, 3), (512, 2)):
            own = measure(size, blocks, ray)
            short = short or own
            own = own._replace(start=short.start, compile=short.compile)
            rounded = {name: float(f"{value:.3g}") for name, value in own._asdict().items()}
            print(f"    {size}: Times({', '.join(f'{name}={value}' for name, value in rounded.items())}),")
        ray.shutdown()


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo-pictures"), help="where the picture goes")
    parser.add_argument("--dark", action="store_true", help="on dark ground")
    parser.add_argument("--measure", action="store_true", help="measure the times anew, and do nothing else")
    chosen = parser.parse_args()
    if chosen.measure:
        measure_all()
        return
    chosen.folder.mkdir(parents=True, exist_ok=True)
    rows = table()
    print(told(rows))
    with plt.style.context("dark_background" if chosen.dark else "default"):
        picture(rows).savefig(chosen.folder / "scaling.png", dpi=100)
    print(chosen.folder / "scaling.png")


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main()
