"""The space of a hidden layer: where it puts the points, and the line that separates them there.

In come a Keras model, one of its layers and samples; out comes a record of the samples as the layer sees them, and of
what the rest of the network answers around them. The room exists because a network solves a hard problem by moving it
to where it is easy, and that place can be looked at.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kohort import data
from kohort.checks import check_features
from kohort.plot.layers import answers_of, check_model, check_units, layer_of, rest_of
from kohort.plot.plane import cut
from kohort.plot.sources import threshold_of
from kohort.plot.style import check_axes, on_axes, require
from kohort.plot.surface import Surface, answers, meaning


@dataclass(kw_only=True, eq=False, repr=False)
class FeatureSpace(Surface):
    """Samples as a hidden layer sees them, and what the rest of the network answers there; `feature_space` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> xx0, xx1 = np.meshgrid([0.0, 1.0], [0.0, 1.0])
        >>> space = {"response": xx0, "layer": "dense", "units": 2, "hidden": np.zeros((4, 2))}
        >>> kohort.plot.FeatureSpace(xx0=xx0, xx1=xx1, **space, names=("unit 0", "unit 1")).plot().ax_.get_ylabel()
        'unit 1'
    """

    response: np.ndarray  # of the rest of the network, (grid, grid) or (grid, grid, class)
    layer: str  # the layer's name
    units: int  # how many units it has
    hidden: np.ndarray  # its answers to the samples, (sample, unit)
    variance: float = 1.0  # share of their variance that the plane shows
    ax_: Any = field(default=None, init=False)  # once drawn

    def plot(self, ax: Any = None) -> "FeatureSpace":
        """Draws the record on `ax`, or in a figure made here, and returns it."""
        self.ax_ = on_axes(ax, (5.6, 4.4))
        self.figure_ = self.ax_.figure
        (surface, *_) = self.paint(self.ax_, self.response, 7.5)
        self.name_axes(self.ax_)
        if ax is None and self.levels is None:
            self.draw_legend(self.figure_, loc="outside right upper")
        elif ax is None:
            self.figure_.colorbar(surface, ax=self.ax_, label="answer")
        return self


def feature_space(
    model: Any,
    layer: Any,
    x: Any,
    y: Any = None,
    *,
    xlim: Any = None,
    ylim: Any = None,
    grid_resolution: int = 100,
    threshold: float | int | None = None,
    regression: bool | None = None,
    ax: Any = None,
) -> FeatureSpace:
    """Computes and draws where a hidden layer puts the samples, and the line that separates them there.

    With two units the plane is that of the units. With more it is that of the first two principal components of the
    samples' answers, and the picture says how much of their variance it shows: the line is then where that plane cuts
    the boundary.

    Args:
        model: A built sequential or functional Keras model of one input.
        layer: The name of a layer, its number as in `model.layers`, or the layer; all later ones must follow from it.
        x: Samples, as the model takes them.
        y: Their classes or numbers, as for `decision_boundary`.
        xlim: Limits of the first axis. Default: those of the samples there, and a quarter more on each side.
        ylim: Limits of the second axis, likewise.
        grid_resolution: Grid points along each axis, at least 2.
        threshold: As for `decision_boundary`.
        regression: Likewise.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The record, drawn: `hidden` (sample, unit), `x` (their places in the plane), `response`, `variance` and so on.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    Example:
        >>> import kohort, keras
        >>> x, y = kohort.data.xor()
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
        >>> space = kohort.plot.feature_space(model, 0, x, y)
        >>> space.hidden.shape, space.x.shape
        ((4, 3), (4, 2))

    Source:
        `sklearn.decomposition.PCA`.
    """
    check_axes(ax)
    check_model(model)
    found = layer_of(model, layer)
    data.samples(x, y)
    check_features(model, x)
    rest = rest_of(model, found)
    (hidden,) = answers_of(model, [found], np.asarray(x))
    check_units(found, hidden)
    units = hidden.shape[1]
    require(units >= 2, "layer", "a layer of at least two units", found.name, "Take a wider one.")
    is_finite = np.isfinite(hidden).all()
    require(is_finite, "model", "a model whose layer gives finite answers", model, "It diverged: train it anew.")
    projection = _components(hidden) if units > 2 else None
    plane = cut(units, hidden, y, xlim, ylim, grid_resolution, None, None, projection)
    response = answers(rest, plane)
    plane |= {"names": (f"{found.name}, unit 0", f"{found.name}, unit 1"), "note": ""}
    variance = 1.0
    if projection is not None:
        shares = np.nan_to_num(projection.explained_variance_ratio_)
        variance = float(shares.sum())
        names = tuple(f"{found.name}, component {i + 1} ({100 * shares[i]:.3g} %)" for i in (0, 1))
        plane |= {"names": names, "note": f"2 components of {units} units: {100 * variance:.3g} % of the variance"}
    means = meaning(response, response.shape[2:], y, threshold_of(model, threshold), regression)
    space = {"response": response, "layer": found.name, "units": units, "hidden": hidden, "variance": variance}
    return FeatureSpace(**plane, **means, **space).plot(ax)


def _components(hidden: np.ndarray) -> Any:
    from sklearn.decomposition import PCA

    accepted = "at least three samples, to find components of"
    require(len(hidden) > 2, "x", accepted, hidden, "Take a layer of two units, or more samples.")
    with np.errstate(invalid="ignore", divide="ignore"):  # units that all answer the same have no variance to share
        return PCA(2).fit(hidden)
