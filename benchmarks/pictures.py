"""Times the pictures of many, a film and the loss landscape, warm, beside what each must reach.

Run by `./run bench pictures`. Computing is timed without drawing and drawing with `canvas.draw()`; of several rounds
the median counts, the fastest and the slowest stand beside it.
"""

import argparse
import datetime
import math
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kohort  # isort: skip  (before Keras, so that Keras starts on JAX)
import keras
import matplotlib.pyplot as plt
import results

SQUARE = {"xlim": (-0.5, 1.5), "ylim": (-0.5, 1.5)}


class Sizes(NamedTuple):
    """How much is drawn, and how often."""

    rounds: int = 5
    few: int = 64
    many: int = 1000
    epochs: int = 3000
    grid: int = 100
    frames: int = 40
    landscape: int = 51


QUICK = Sizes(rounds=1, few=4, many=8, epochs=20, grid=8, frames=3, landscape=5)


class Goal(NamedTuple):
    """What a picture must reach: seconds to compute, seconds with drawing, megabytes of its file."""

    compute: float = math.inf
    drawn: float = math.inf
    megabytes: float = math.inf

    def __str__(self) -> str:
        """Writes what is asked for."""
        parts = {"compute ≤ {:g} s": self.compute, "with drawing ≤ {:g} s": self.drawn, "≤ {:g} MB": self.megabytes}
        return ", ".join(text.format(most) for text, most in parts.items() if most < math.inf) or "–"

    def reached(self, *measured: float) -> str:
        """Says whether what was measured is enough, or nothing where nothing is asked for."""
        is_enough = all(each <= most for each, most in zip(measured, self, strict=True))
        return "–" if self == Goal() else "yes" if is_enough else "**no**"


class Row(NamedTuple):
    """One picture: seconds as median (fastest – slowest)."""

    picture: str
    seconds_to_compute: str
    seconds_to_compute_and_draw: str
    file: str
    must_reach: str
    reached: str


def network(*hidden: int, activation: str = "relu", last: str | None = None) -> keras.Model:
    """Returns a network of two inputs and one output, not compiled."""
    layers = [keras.layers.Dense(units, activation) for units in hidden]
    return keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1, last)])


def xor_cohort(members: int, epochs: int) -> kohort.Cohort:
    """Trains the course text's network."""
    model = network(2)
    model.compile(optimizer=keras.optimizers.RMSprop(1e-3), loss="mse")
    cohort = kohort.Cohort(model, seeds=members)
    cohort.fit(*kohort.data.xor(), epochs=epochs, verbose=0)
    return cohort


def moons_cohort(members: int) -> kohort.Cohort:
    """Trains two hidden layers of 32 units."""
    model = network(32, 32, last="sigmoid")
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss="binary_crossentropy", metrics=["accuracy"])
    cohort = kohort.Cohort(model, seeds=members)
    cohort.fit(*kohort.data.moons(), epochs=10, verbose=0)
    return cohort


def seconds(work: Callable[[], Any]) -> float:
    """Times one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class NotDrawn:
    """Stands in for drawing while computing is timed: every record's `plot` does nothing inside the block."""

    def __enter__(self) -> None:
        """Puts the methods aside."""
        kinds = [getattr(kohort.plot, name) for name in kohort.plot.__all__]
        self.methods = {kind: kind.plot for kind in kinds if isinstance(kind, type)}
        for kind in self.methods:
            kind.plot = lambda record, ax=None: record

    def __exit__(self, *_: object) -> None:
        """Brings them back."""
        for kind, method in self.methods.items():
            kind.plot = method


def spread(times: list[float]) -> str:
    """Writes the median, and between what it lies."""
    return f"{statistics.median(times):.3f} ({min(times):.3f} – {max(times):.3f})"


def row(name: str, goal: Goal, draw: Callable[[], Any], rounds: int) -> Row:
    """Times one picture: computing it, and computing and drawing it."""

    def drawn() -> None:
        draw().figure_.canvas.draw()
        plt.close("all")

    drawn()
    with NotDrawn():
        computing = [seconds(draw) for _ in range(rounds)]
    whole = [seconds(drawn) for _ in range(rounds)]
    reached = goal.reached(statistics.median(computing), statistics.median(whole), 0)
    return Row(name, spread(computing), spread(whole), "–", str(goal), reached)


def film_row(sizes: Sizes) -> Row:
    """Times a film, its training and its file included; says how large the file is."""
    megabytes, times = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.webp"
        for _ in range(sizes.rounds):
            cohort = xor_cohort(sizes.few, sizes.epochs)  # trained once before, so that its program is warm
            start = time.perf_counter()
            film = kohort.plot.animate(
                cohort, *kohort.data.xor(), epochs=sizes.epochs, frames=sizes.frames, **SQUARE, verbose=0
            )
            film.save(path)
            times.append(time.perf_counter() - start)
            megabytes.append(path.stat().st_size / 1e6)
            plt.close("all")
    goal, size = Goal(drawn=10, megabytes=2), max(megabytes)
    name = f"animate, {sizes.few} of 2-2-1, {sizes.frames} frames, {sizes.epochs:,} epochs, to a WebP file"
    return Row(name, "–", spread(times), f"{size:.2f} MB", str(goal), goal.reached(0, statistics.median(times), size))


def rows(sizes: Sizes) -> Iterator[Row]:
    """Trains what is drawn, and times each picture."""
    plot, xor, moons = kohort.plot, kohort.data.xor(), kohort.data.moons()
    few, many, deep = xor_cohort(sizes.few, sizes.epochs), xor_cohort(sizes.many, sizes.epochs), moons_cohort(sizes.few)
    grid, members = f"{sizes.grid} x {sizes.grid}", f"{sizes.many:,} members"
    over = {"grid_resolution": sizes.grid}
    landscape = f"loss_landscape, 2-32-32-1, 400 points, {sizes.landscape} x {sizes.landscape}"
    model = deep.best()
    wall, best = Goal(compute=0.2, drawn=1.5), {"grid_resolution": sizes.landscape}
    drawn: dict[str, tuple[Goal, Callable[[], Any]]] = {
        f"wall, {sizes.few} of 2-2-1, {grid}": (wall, lambda: plot.wall(few, *xor, **SQUARE, **over)),
        f"wall, {sizes.few} of 2-32-32-1, {grid}": (wall, lambda: plot.wall(deep, *moons, **over)),
        f"spread, {sizes.many:,} of 2-2-1, {grid}": (
            Goal(compute=1),
            lambda: plot.spread(many, *xor, **SQUARE, **over),
        ),
        f"minima, {sizes.many:,} of 2-2-1, 50 x 50": (Goal(), lambda: plot.minima(many, *xor, **SQUARE)),
        f"history, {members}, {sizes.epochs:,} epochs": (Goal(), lambda: plot.history(many)),
        f"survival, {members}, {sizes.epochs:,} epochs": (Goal(), lambda: plot.survival(many, loss=0.01)),
        landscape: (Goal(compute=0.5), lambda: plot.loss_landscape(model, *moons, **best)),
    }
    for name, (goal, draw) in drawn.items():
        yield row(name, goal, draw, sizes.rounds)
    shown = [seconds(many._repr_html_) for _ in range(sizes.rounds)]
    yield Row(f"a cohort of {members}, {sizes.epochs:,} epochs, in a notebook", "–", spread(shown), "–", "–", "–")
    yield film_row(sizes)


def head(is_quick: bool) -> str:
    """Says what ran, when and on what."""
    versions = results.versions(("kohort", "keras", "jax", "numpy", "matplotlib"))
    command, today = shlex.join(["./run", "bench", "pictures", *sys.argv[1:]]), datetime.date.today().isoformat()
    warning = "**Quick run: tiny pictures, figures without meaning.** " if is_quick else ""
    return f"{warning}Written by `{command}` on {today}. {versions}; load {os.getloadavg()[0]:.2f} at the start."


def main() -> None:
    """Measures, prints, and writes where it is told to."""
    parser = argparse.ArgumentParser(prog="./run bench pictures", description="Times the pictures.")
    parser.add_argument("--quick", action="store_true", help="tiny pictures: whether it works, not how fast")
    parser.add_argument("--output", type=Path, help="write the results into this file, too, beside what else is there")
    arguments = parser.parse_args()
    said, sizes = head(arguments.quick), QUICK if arguments.quick else Sizes()
    names = [field.replace("_", " ") for field in Row._fields]
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join(['---'] * len(names))} |"]
    print("\n".join(lines))
    for each in rows(sizes):
        lines.append(f"| {' | '.join(each)} |")
        print(lines[-1], flush=True)
    if arguments.output:
        told = f"Seconds are the median of {sizes.rounds} rounds, warm, and in brackets the fastest and the slowest."
        results.put(arguments.output, "pictures", "\n".join(["## Pictures", "", said, told, "", *lines]))


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main()
