"""A real table: benign or malignant, by thirty measures of cells. Folds say how good a network is, an ensemble is used.

Run by `./run python examples/table.py [folder]`. The table is scikit-learn's (569 rows, Wisconsin 1995). Eight starts
of one network train on each of five folds, all in one program; then on one part of the rows, as an ensemble.
"""

import argparse
from pathlib import Path

import kohort  # isort: skip  (before Keras, so that Keras starts on JAX)
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SEEDS, EPOCHS = 8, 60


def network(features: int) -> keras.Model:
    """Scales each measure by the rows it trains on (of a fold: of these alone), then 16 hidden units."""
    layers = [keras.layers.BatchNormalization(), keras.layers.Dense(16, "relu"), keras.layers.Dense(1, "sigmoid")]
    model = keras.Sequential([keras.Input((features,)), *layers])
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def right(probability: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the share of rows that are told right, over the last axis."""
    return ((probability > 0.5) == y).mean(axis=-1)


def validate(x: np.ndarray, y: np.ndarray) -> None:
    """Prints how many rows are told right by networks that have not trained on them, beside a plain baseline."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    cohort = kohort.Cohort(network(x.shape[1]), seeds=SEEDS)
    cohort.fit(x, y, epochs=EPOCHS, folds=folds, verbose=0)
    held_out = cohort.predict_out_of_fold(x)[..., 0]
    each = right(held_out, y)
    baseline = cross_val_predict(make_pipeline(StandardScaler(), LogisticRegression()), x, y, cv=folds)
    print(f"{len(cohort)} networks: {SEEDS} starts on each of 5 folds, {EPOCHS} epochs")
    print(f"held-out rows told right, by start:    {each.min():.1%} to {each.max():.1%}, median {np.median(each):.1%}")
    print(f"by the mean of the {SEEDS} starts:          {right(held_out.mean(axis=0), y):.1%}")
    print(f"by a logistic regression:              {right(baseline, y):.1%}")


def use(x: np.ndarray, y: np.ndarray) -> kohort.Cohort:
    """Trains on two thirds of the rows and prints what an ensemble says of the others; returns the cohort."""
    own_x, other_x, own_y, other_y = train_test_split(x, y, test_size=1 / 3, random_state=0, stratify=y)
    cohort = kohort.Cohort(network(x.shape[1]), seeds=SEEDS)
    cohort.fit(own_x, own_y, epochs=EPOCHS, verbose=0)
    ensemble = cohort.ensemble(top=SEEDS)
    probability = ensemble.predict(other_x, verbose=0)[:, 0]
    apart = cohort.predict(other_x, aggregate="std")[:, 0]
    members = right(cohort.predict(other_x)[..., 0], other_y)
    wrong = (probability > 0.5) != other_y
    print(f"\nensemble of {SEEDS}, on {len(other_y)} other rows: {right(probability, other_y):.1%} right")
    print(f"its members:                           {members.min():.1%} to {members.max():.1%}")
    if wrong.any():
        differ = [f"{apart[these].mean():.2f}" for these in (wrong, ~wrong)]
        print(f"how far its members differ:            {differ[0]} where it is wrong, {differ[1]} where it is right")
    return cohort


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo-pictures"), help="where the picture goes")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    x, y = load_breast_cancer(return_X_y=True)
    x, y = x.astype("float32"), y.astype("float32")
    validate(x, y)
    scaled = StandardScaler().fit(x)
    cohort = use(x, y)
    plane = make_pipeline(scaled, PCA(2)).fit(x)
    picture = kohort.plot.spread(cohort, x, y, projection=plane)
    picture.ax_.set(xlabel="first component of 30 measures", ylabel="second component")
    picture.figure_.savefig(folder / "table.png", dpi=100)
    print(f"\n{folder / 'table.png'}")


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main()
