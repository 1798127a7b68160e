"""Times the pictures of many and the loss landscape, warm, beside what each must reach.

Run by `./run python benchmarks/pictures.py`. Computing is timed without drawing and drawing with `canvas.draw()`; of
several rounds the median counts, the fastest and the slowest stand beside it.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kohort  # isort: skip  (before Keras, so that Keras starts on JAX)
import keras
import matplotlib.pyplot as plt

ROUNDS = 5


def network(*hidden: int, activation: str = "relu", last: str | None = None) -> keras.Model:
    """Returns a network of two inputs and one output, not compiled."""
    layers = [keras.layers.Dense(units, activation) for units in hidden]
    return keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1, last)])


def xor_cohort(members: int) -> kohort.Cohort:
    """Trains the course text's network."""
    model = network(2)
    model.compile(optimizer=keras.optimizers.RMSprop(1e-3), loss="mse")
    cohort = kohort.Cohort(model, seeds=members)
    cohort.fit(*kohort.data.xor(), epochs=3000, verbose=0)
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


def row(name: str, must: float | None, draw: Callable[[], Any]) -> str:
    """Times one picture; returns a row of computing, and one of computing and drawing."""

    def drawn() -> None:
        draw().figure_.canvas.draw()
        plt.close("all")

    drawn()
    with NotDrawn():
        computing = [seconds(draw) for _ in range(ROUNDS)]
    whole = [seconds(drawn) for _ in range(ROUNDS)]
    cells = [f"{statistics.median(times):.3f} ({min(times):.3f} - {max(times):.3f})" for times in (computing, whole)]
    return f"| {name} | {cells[0]} | {cells[1]} | {must or '-'} |"


def film_row() -> str:
    """Times a film of 64 members in 40 frames, its training and its file included; says how large the file is."""
    sizes, times = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.webp"
        for _ in range(ROUNDS):
            cohort, square = xor_cohort(64), {"xlim": (-0.5, 1.5), "ylim": (-0.5, 1.5)}
            start = time.perf_counter()
            kohort.plot.animate(cohort, *kohort.data.xor(), epochs=3000, **square, verbose=0).save(path)
            times.append(time.perf_counter() - start)
            sizes.append(path.stat().st_size / 1e6)
            plt.close("all")
    spread = f"{statistics.median(times):.2f} ({min(times):.2f} - {max(times):.2f}), {max(sizes):.2f} MB"
    return f"| film, 64 of 2-2-1, 40 frames, 3,000 epochs, WebP | - | {spread} | 10, 2 MB |"


def main() -> None:
    """Prints the table."""
    xor, moons = kohort.data.xor(), kohort.data.moons()
    few, many, deep = xor_cohort(64), xor_cohort(1000), moons_cohort(64)
    model, square = deep.best(), {"xlim": (-0.5, 1.5), "ylim": (-0.5, 1.5)}
    plot = kohort.plot
    print("| picture | seconds to compute | seconds to compute and draw | must reach |\n| --- | --- | --- | --- |")
    must = "compute 0.2, both 1.5"
    print(row("wall, 64 of 2-2-1, 100 x 100", must, lambda: plot.wall(few, *xor, **square, grid_resolution=100)))
    print(row("wall, 64 of 2-32-32-1, 100 x 100", must, lambda: plot.wall(deep, *moons, grid_resolution=100)))
    print(row("spread, 1,000 of 2-2-1, 100 x 100", "compute 1", lambda: plot.spread(many, *xor, **square)))
    print(row("minima, 1,000 of 2-2-1, 50 x 50", None, lambda: plot.minima(many, *xor, **square)))
    print(row("history, 1,000 members, 3,000 epochs", None, lambda: plot.history(many)))
    print(row("survival, 1,000 members, 3,000 epochs", None, lambda: plot.survival(many, loss=0.01)))
    landscape = "loss landscape, 2-32-32-1, 400 points, 51 x 51"
    shown = seconds(lambda: [many._repr_html_() for _ in range(ROUNDS)]) / ROUNDS
    print(f"| a cohort of 1,000 members, 3,000 epochs, in a notebook | {shown:.3f} | - | - |")
    print(film_row())
    print(row(landscape, "compute 0.5", lambda: plot.loss_landscape(model, *moons)))


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main()
