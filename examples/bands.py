"""A regression with bands: how far an answer depends on the start of the training and on the samples.

Run by `./run python examples/bands.py [folder]`. Each of 64 networks fits a noisy wave, with a gap, from samples of its
own, drawn with replacement: where there are samples they agree, in the gap and beyond they do not.
"""

import argparse
from pathlib import Path

import kohort  # isort: skip  (before Keras, so that Keras starts on JAX)
import keras
import matplotlib.pyplot as plt
import numpy as np

SEEDS, EPOCHS, NOISE = 64, 600, 0.15


def wave(x: np.ndarray) -> np.ndarray:
    """Returns what is to be found."""
    return np.sin(2 * x)


def samples() -> tuple[np.ndarray, np.ndarray]:
    """Returns 80 noisy samples, none between -1 and 0.5."""
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.uniform(-3, -1, 40), generator.uniform(0.5, 3, 40)])
    return x.astype("float32"), (wave(x) + generator.normal(0, NOISE, x.shape)).astype("float32")


def network() -> keras.Model:
    """Two hidden layers of 32 units, of one number."""
    layers = [keras.layers.Dense(32, "tanh"), keras.layers.Dense(32, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((1,)), *layers])
    model.compile(optimizer=keras.optimizers.Adam(5e-3), loss="mse")
    return model


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo-pictures"), help="where the picture goes")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    x, y = samples()
    cohort = kohort.Cohort(network(), seeds=SEEDS)
    cohort.fit(x, y, epochs=EPOCHS, bootstrap=True, verbose=0)
    picture = kohort.plot.response_curve(cohort, x, y, xlim=(-4, 4))
    low, middle, high = picture.quantiles
    grid, width, truth = picture.grid, high - low, wave(picture.grid)
    places = {
        "where there are samples": ((grid > -3) & (grid < -1)) | ((grid > 0.5) & (grid < 3)),
        "in the gap": (grid > -1) & (grid < 0.5),
        "beyond": np.abs(grid) > 3,
    }
    print(f"{SEEDS} networks, {EPOCHS} epochs, each with {len(x)} samples of its own draw; noise {NOISE}")
    for name, here in places.items():
        inside = ((low <= truth) & (truth <= high))[here].mean()
        error = np.sqrt(((middle - truth) ** 2)[here].mean())
        print(
            f"{name:24} band {width[here].mean():.2f} wide, holds {inside:4.0%} of the wave, median off by {error:.2f}"
        )
    picture.ax_.plot(grid, truth, ":", color="black", label="the wave itself", zorder=5)
    picture.figure_.legends[0].remove()
    picture.figure_.legend(loc="outside upper center", ncols=3, frameon=False)
    picture.figure_.savefig(folder / "bands.png", dpi=100)
    print(f"\n{folder / 'bands.png'}")


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main()
