"""`kohort demo`: XOR and the moons, from Keras models to success rates and pictures.

In comes a folder; out go tables on the terminal, and pictures into the folder. 4,000 networks are trained on XOR and 64
on the moons. The room exists so that whoever has installed kohort sees at once what it does.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt

from kohort import data, files, plot
from kohort.cohort import Cohort
from kohort.fit import fit
from kohort.history import success_rate

WIDTHS = (2, 3, 4, 8)
MEMBERS, EPOCHS = 1000, 3000
MOONS_MEMBERS, MOONS_EPOCHS = 64, 120


def xor_network(hidden: int) -> keras.Model:
    """The course text's network: two inputs, one hidden layer of ReLU units, one linear output."""
    inputs = keras.Input(shape=(2,))
    middle = keras.layers.Dense(hidden, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(middle))
    model.compile(optimizer=keras.optimizers.RMSprop(1e-3), loss="mse")
    return model


def moons_network() -> keras.Model:
    """Two hidden layers of 32 units, and the probability of class 1."""
    layers = [keras.layers.Dense(32, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1, activation="sigmoid")])
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def train_xor() -> dict[int, Cohort]:
    """Trains a cohort for each width and prints how often it solves XOR."""
    x, y = data.xor()
    cohorts = {}
    for hidden in WIDTHS:
        print(f"\nXOR, 2-{hidden}-1: {MEMBERS} members, {EPOCHS} epochs (the loss shown is the members' median)")
        cohorts[hidden] = Cohort(xor_network(hidden), seeds=MEMBERS)
        cohorts[hidden].fit(x, y, epochs=EPOCHS)
    print("\nHow often XOR is solved (final loss at most 0.01), seeds 0 to 999")
    print("  hidden units   solved   rate     95 % interval (Wilson)")
    for hidden, cohort in cohorts.items():
        rate = cohort.success_rate(loss=0.01)
        print(f"  {hidden:12}   {rate.k:6}   {rate.rate:6.1%}   {rate.low:6.1%} to {rate.high:6.1%}")
    return cohorts


def train_moons() -> Cohort:
    """Trains the moons cohort and prints how accurate its members are."""
    x, y = data.moons()
    print(f"\nMoons, 2-32-32-1: {MOONS_MEMBERS} members, {MOONS_EPOCHS} epochs, batches of 32")
    cohort = Cohort(moons_network(), seeds=MOONS_MEMBERS)
    cohort.fit(x, y, epochs=MOONS_EPOCHS)
    accuracy = cohort.evaluate(x, y)["accuracy"]
    print(f"Training accuracy: median {100 * float(sorted(accuracy)[len(accuracy) // 2]):.1f} %, ", end="")
    print(f"worst {100 * float(accuracy.min()):.1f} %; at least 99.5 %: ", end="")
    print(success_rate(accuracy >= 0.995))
    return cohort


def seconds_of(train: Callable[[], object]) -> float:
    """Times one call."""
    start = time.perf_counter()
    train()
    return time.perf_counter() - start


def compare_with_keras() -> None:
    """Times one XOR network through plain Keras and through `kohort.fit`, both after their compilation."""
    x, y = data.xor()
    model: Any = xor_network(2)
    print(f"\nOne XOR network, {EPOCHS} epochs, through plain Keras and through kohort.fit (both warmed up)")
    model.fit(x, y, epochs=20, verbose=0)
    parts, by_keras = 10, 0.0
    progress = keras.utils.Progbar(EPOCHS, unit_name="epoch")
    for part in range(1, parts + 1):
        by_keras += seconds_of(lambda: model.fit(x, y, epochs=EPOCHS // parts, verbose=0))
        progress.update(part * EPOCHS // parts)
    fit(model, x, y, epochs=EPOCHS, verbose=0)
    by_kohort = seconds_of(lambda: fit(model, x, y, epochs=EPOCHS, verbose=0))
    print(f"  model.fit  {by_keras:8.4f} s\n  kohort.fit {by_kohort:8.4f} s: {by_keras / by_kohort:.0f} times faster")


def draw(cohorts: dict[int, Cohort], moons: Cohort, folder: Path) -> None:
    """Draws walls, curves and the best member of both problems into the folder."""
    x, y = data.xor()
    limits: Any = {"xlim": (-0.5, 1.5), "ylim": (-0.5, 1.5)}
    moons_x, moons_y = data.moons()
    displays = {
        "xor-wall": lambda: plot.wall(cohorts[2], x, y, **limits),
        "xor-loss": lambda: plot.history(cohorts[2]),
        "xor-best": lambda: plot.decision_boundary(cohorts[8].best("loss"), x, y, **limits),
        "moons-wall": lambda: plot.wall(moons, moons_x, moons_y),
        "moons-loss": lambda: plot.history(moons),
        "moons-best": lambda: plot.decision_boundary(moons.best("loss"), moons_x, moons_y),
    }
    print(f"\nDrawing {len(displays)} pictures:")
    for name, display in displays.items():
        path = folder / f"{name}.png"
        display().figure_.savefig(path, dpi=110)
        plt.close("all")
        print(f"  {path}", flush=True)


def make(folder: Path) -> None:
    """Makes the folder, and raises where it cannot be one, or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"`folder` must be a folder, or a place for one. Received: {str(folder)!r} ({error.strerror}). "
            "Name another."
        ) from error
    files.checked_room(folder / "xor-wall.png")


def show(folder: Path) -> None:
    """Does all of it and says how long it took."""
    make(folder)  # before anything is trained
    plt.switch_backend("Agg")
    start = time.perf_counter()
    print(f"kohort {files.versions()['kohort']}, Keras {keras.__version__} on {keras.backend.backend()}")
    cohorts, moons = train_xor(), train_moons()
    compare_with_keras()
    draw(cohorts, moons, folder)
    print(f"\nDone in {time.perf_counter() - start:.1f} s. The pictures are in {folder.resolve()}")
