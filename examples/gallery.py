"""Every picture of `kohort.plot`, drawn into a folder: to look at them, in light and dark, at any resolution.

Run by `./run python examples/gallery.py [folder] [--dark] [--scale 2] [--only NAME ...]`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import kohort  # isort: skip  (before Keras, so that Keras starts on JAX)
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA

SQUARE = {"xlim": (-0.5, 1.5), "ylim": (-0.5, 1.5)}
XOR, MOONS = kohort.data.xor(), kohort.data.moons()


def dense(*units: int, features: int = 2, activation: str = "relu", last: str | None = None) -> keras.Model:
    """Returns a network of dense layers, not compiled."""
    keras.utils.set_random_seed(7)
    hidden = [keras.layers.Dense(n, activation) for n in units[:-1]]
    return keras.Sequential([keras.Input((features,)), *hidden, keras.layers.Dense(units[-1], last)])


@cache
def xor_cohort(members: int, rate: float = 1e-3) -> kohort.Cohort:
    """Trains the course text's network from many seeds."""
    model = dense(2, 1)
    model.compile(optimizer=keras.optimizers.RMSprop(rate), loss="mse")
    cohort = kohort.Cohort(model, seeds=members)
    cohort.fit(*XOR, epochs=3000, verbose=0)
    return cohort


@cache
def diverging_cohort() -> kohort.Cohort:
    """Trains with a learning rate at which some members diverge."""
    model = dense(2, 1)
    model.compile(optimizer=keras.optimizers.SGD(1.05), loss="mse")
    cohort = kohort.Cohort(model, seeds=40)
    cohort.fit(*XOR, epochs=465, verbose=0)
    return cohort


WAVES = np.concatenate([np.linspace(-3, -1, 30), np.linspace(0.5, 3, 40)])
WAVES = WAVES, np.sin(2 * WAVES) + np.random.default_rng(0).normal(0, 0.1, WAVES.shape)


@cache
def waves_cohort() -> kohort.Cohort:
    """Fits a curve to samples with a gap."""
    model = dense(32, 32, 1, features=1, activation="tanh")
    model.compile(optimizer=keras.optimizers.Adam(5e-3), loss="mse")
    cohort = kohort.Cohort(model, seeds=64)
    cohort.fit(*WAVES, epochs=400, verbose=0)
    return cohort


@cache
def moons_cohort() -> kohort.Cohort:
    """Trains two hidden layers on the moons."""
    model = dense(32, 32, 1, last="sigmoid")
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss="binary_crossentropy", metrics=["accuracy"])
    cohort = kohort.Cohort(model, seeds=64)
    cohort.fit(*MOONS, epochs=30, validation_split=0.25, verbose=0)
    return cohort


@cache
def iris_model() -> keras.Model:
    """Trains a softmax on four features of three kinds of iris."""
    model = dense(16, 3, features=4, activation="tanh", last="softmax")
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="sparse_categorical_crossentropy")
    kohort.fit(model, *iris(), epochs=100, verbose=0)
    return model


def iris() -> tuple[np.ndarray, np.ndarray]:
    """Returns the measures (sample, 4) and kinds of irises."""
    x, y = load_iris(return_X_y=True)
    return x.astype("float32"), y


def wave() -> tuple[np.ndarray, np.ndarray]:
    """Returns a regression of two features."""
    x = np.random.default_rng(0).uniform(-2, 2, (200, 2)).astype("float32")
    return x, (np.sin(2 * x[:, 0]) + x[:, 1]).astype("float32")


@cache
def wave_cohort() -> kohort.Cohort:
    """Trains a regression from nine seeds."""
    model = dense(16, 16, 1, activation="tanh")
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
    cohort = kohort.Cohort(model, seeds=9)
    cohort.fit(*wave(), epochs=100, verbose=0)
    return cohort


@cache
def small_moons(*units: int) -> keras.Model:
    """Trains one small network on the moons."""
    model = dense(*units, activation="tanh", last="sigmoid")
    model.compile(optimizer=keras.optimizers.Adam(2e-2), loss="binary_crossentropy")
    kohort.fit(model, *MOONS, epochs=150, verbose=0)
    return model


def convolutional() -> keras.Model:
    """Returns a network of layers with a way around two of them."""
    inputs = keras.Input((28, 28, 1))
    first = keras.layers.Conv2D(8, 3, activation="relu", padding="same")(inputs)
    second = keras.layers.Conv2D(8, 3, activation="relu", padding="same")(first)
    third = keras.layers.Dropout(0.2)(second)
    flat = keras.layers.Flatten()(keras.layers.Add()([first, third]))
    return keras.Model(inputs, [keras.layers.Dense(10, "softmax")(flat), keras.layers.Dense(1)(flat)])


def xor_network(hidden: int = 4, activation: str = "relu", rate: float = 1e-2) -> keras.Model:
    """Returns a network for XOR, of a width, kind and learning rate."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(hidden, activation), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.RMSprop(rate), loss="mse")
    return model


FOLDER = tempfile.TemporaryDirectory()


def xor_study(**grid: list) -> kohort.Study:
    """Trains every combination of some parameters."""
    study = kohort.Study(f"{FOLDER.name}/{'-'.join(grid)}", xor_network, grid, seeds=100)
    study.run(*XOR, epochs=400, verbose=0)
    return study


@cache
def widths_and_kinds() -> kohort.Study:
    """Trains networks of several widths and activations on XOR."""
    return xor_study(hidden=[2, 3, 4, 6, 8, 16], activation=["relu", "tanh", "sigmoid"])


@cache
def widths_and_rates() -> kohort.Study:
    """Trains networks of several widths with several learning rates on XOR."""
    return xor_study(hidden=[2, 3, 4, 6, 8, 16], rate=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1])


def film() -> kohort.plot.Film:
    """Trains the course text's network from 64 seeds, filmed."""
    model = dense(2, 1)
    model.compile(optimizer=keras.optimizers.RMSprop(1e-3), loss="mse")
    return kohort.plot.animate(kohort.Cohort(model, seeds=64), *XOR, epochs=3000, **SQUARE, verbose=0)


def pictures() -> dict[str, Callable[[], object]]:
    """Returns what draws each picture, by name."""
    plot = kohort.plot
    setosa = {"projection": PCA(2).fit(iris()[0])}
    return {
        "boundary-binary": lambda: plot.decision_boundary(xor_cohort(64).best(), *XOR, **SQUARE),
        "boundary-bare": lambda: plot.decision_boundary(xor_cohort(64).best(), **SQUARE),
        "boundary-moons": lambda: plot.decision_boundary(moons_cohort().best(), *MOONS),
        "boundary-held": lambda: plot.decision_boundary(iris_model(), *iris(), features=(2, 3)),
        "boundary-projected": lambda: plot.decision_boundary(iris_model(), *iris(), **setosa),
        "boundary-regression": lambda: plot.decision_boundary(wave_cohort().best(), *wave()),
        "network-xor": lambda: plot.network(xor_cohort(64).best(), XOR[0]),
        "network-deep": lambda: plot.network(small_moons(6, 4, 1), MOONS[0]),
        "network-wide": lambda: plot.network(iris_model()),
        "network-layers": lambda: plot.network(convolutional()),
        "network-one": lambda: plot.network(dense(1)),
        "units": lambda: plot.units(small_moons(6, 4, 1), 0, *MOONS),
        "units-many": lambda: plot.units(moons_cohort().best(), 1, MOONS[0]),
        "space-two": lambda: plot.feature_space(xor_cohort(64).best(), 0, *XOR),
        "space-many": lambda: plot.feature_space(moons_cohort().best(), 1, *MOONS),
        "landscape": lambda: plot.loss_landscape(moons_cohort().best(), *MOONS),
        "landscape-xor": lambda: plot.loss_landscape(xor_cohort(64).best(), *XOR),
        "wall": lambda: plot.wall(xor_cohort(64), *XOR, **SQUARE, by="loss", loss=0.01),
        "xor-wall": lambda: plot.wall(
            xor_cohort(1000), *XOR, **SQUARE, members=24, columns=8, by="loss", loss=0.01
        ),  # README's
        "wall-few": lambda: plot.wall(diverging_cohort(), *XOR, members=6, columns=3),
        "wall-regression": lambda: plot.wall(wave_cohort(), *wave()),
        "wall-moons": lambda: plot.wall(moons_cohort(), *MOONS, by="val_accuracy", members=30),
        "response-curve": lambda: plot.response_curve(waves_cohort(), *WAVES),
        "response-curve-one": lambda: plot.response_curve(waves_cohort().best(), *WAVES),
        "film": film,
        "spread": lambda: plot.spread(moons_cohort(), *MOONS),
        "spread-xor": lambda: plot.spread(xor_cohort(1000), *XOR),
        "history": lambda: plot.history(xor_cohort(1000)),
        "history-validation": lambda: plot.history(moons_cohort(), "accuracy"),
        "history-diverged": lambda: plot.history(diverging_cohort()),
        "survival": lambda: plot.survival(xor_cohort(1000), loss=0.01),
        "survival-diverged": lambda: plot.survival(diverging_cohort(), loss=0.01),
        "success": lambda: plot.success(widths_and_kinds(), loss=0.01),
        "success-map": lambda: plot.success(widths_and_rates(), loss=0.01),
        "minima": lambda: plot.minima(xor_cohort(1000), *XOR, **SQUARE),
    }


def main() -> None:
    """Draws what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("gallery"), help="where the pictures go")
    parser.add_argument("--dark", action="store_true", help="on dark ground")
    parser.add_argument("--scale", type=float, default=1.0, help="2 for twice as many pixels")
    parser.add_argument("--only", nargs="*", help="the names of some")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with plt.style.context("dark_background" if chosen.dark else "default"):
        for name, draw in pictures().items():
            if chosen.only and name not in chosen.only:
                continue
            path = chosen.folder / f"{name}.png"
            start = time.perf_counter()
            display = draw()
            display.figure_.savefig(path, dpi=100 * chosen.scale)
            if isinstance(display, kohort.plot.Film):
                display.save(path.with_suffix(".webp"), dpi=round(100 * chosen.scale))
            plt.close("all")
            print(f"{path}  {time.perf_counter() - start:.2f} s", flush=True)


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main()
