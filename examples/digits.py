"""Handwritten digits with a small convolution, and which of them the networks cannot agree on.

Run by `./run python examples/digits.py [folder]`. The digits are scikit-learn's (1,797 of 8 x 8 pixels).
"""

import argparse
from pathlib import Path

import kohort  # isort: skip  (before Keras, so that Keras starts on JAX)
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEEDS, EPOCHS, SHOWN = 8, 12, 12


def network() -> keras.Model:
    """Two small convolutions and a softmax."""
    layers = [
        keras.layers.Conv2D(8, 3, activation="relu", padding="same"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(16, 3, activation="relu", padding="same"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, "softmax"),
    ]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def draw(x: np.ndarray, y: np.ndarray, votes: np.ndarray, said: np.ndarray, path: Path) -> None:
    """Draws the digits on which the members agree least, with what they say."""
    hardest = np.argsort(votes.max(axis=1), kind="stable")[:SHOWN]
    figure, axes = plt.subplots(2, SHOWN // 2, figsize=(9, 4), layout="constrained")
    for ax, i in zip(axes.flat, hardest, strict=True):
        ax.imshow(x[i, ..., 0], cmap="gray_r")
        ax.set(xticks=[], yticks=[])
        found = ", ".join(f"{digit} ({int(n)})" for digit, n in enumerate(votes[i]) if n)
        ax.set_title(f"a {y[i]}; said: {said[i]}\n{found}", fontsize=9)
    figure.suptitle(f"digits on which the {SEEDS} networks agree least, and how many of them say what", fontsize=11)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo-pictures"), help="where the picture goes")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = load_digits(return_X_y=True)
    x, y = (pixels / 16).reshape(-1, 8, 8, 1).astype("float32"), labels
    own_x, other_x, own_y, other_y = train_test_split(x, y, test_size=0.5, random_state=0, stratify=y)
    cohort = kohort.Cohort(network(), seeds=SEEDS)
    print(f"{SEEDS} networks of {network().count_params():,} parameters, {EPOCHS} epochs of {len(own_x)} digits")
    cohort.fit(own_x, own_y, epochs=EPOCHS, validation_data=(other_x, other_y), verbose=0)
    members = cohort.history.last("val_accuracy")
    probability = cohort.ensemble(top=SEEDS).predict(other_x, verbose=0)
    said = probability.argmax(axis=1)
    answers = cohort.predict(other_x).argmax(axis=-1)
    votes = (answers[..., None] == np.arange(10)).sum(axis=0)
    agreed = votes.max(axis=1) == SEEDS
    print(f"on {len(other_y)} other digits, each network:  {members.min():.1%} to {members.max():.1%} right")
    print(f"the mean of them, as one model:    {(said == other_y).mean():.1%} right")
    right = said == other_y
    print(
        f"digits on which all {SEEDS} agree:       {agreed.mean():.1%}; of these {right[agreed].mean():.2%} are right"
    )
    print(f"of the others:                     {right[~agreed].mean():.1%} are right")
    draw(other_x, other_y, votes, said, folder / "digits.png")
    print(f"\n{folder / 'digits.png'}")


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main()
