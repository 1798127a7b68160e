"""The decision boundary of one model, or the surface of a regression.

In comes a model and, if wanted, samples; out comes a record of its answers over a plane. The room exists because the
first question about a classifier is what it says where.
"""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kohort.plot.plane import cut, features_of
from kohort.plot.sources import check_single, threshold_of
from kohort.plot.style import check_axes, on_axes, require
from kohort.plot.surface import Surface, answers, meaning


@dataclass(kw_only=True, eq=False, repr=False)
class DecisionBoundary(Surface):
    """What one model answers over a plane; `decision_boundary` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> xx0, xx1 = np.meshgrid([0.0, 1.0], [0.0, 1.0])
        >>> len(kohort.plot.DecisionBoundary(xx0=xx0, xx1=xx1, response=xx0).plot().surface_)
        2
    """

    response: np.ndarray  # the model's raw outputs, (grid, grid) or (grid, grid, class)
    surface_: list = field(default_factory=list, init=False)  # once drawn, the filled regions
    ax_: Any = field(default=None, init=False)  # once drawn

    def plot(self, ax: Any = None) -> "DecisionBoundary":
        """Draws the record on `ax`, or in a figure made here, and returns it."""
        self.ax_ = on_axes(ax, (5.6, 4.2))
        self.figure_ = self.ax_.figure
        self.surface_ = self.paint(self.ax_, self.response, 7.5)
        self.name_axes(self.ax_)
        if ax is None and self.levels is None:
            self.draw_legend(self.figure_, loc="outside right upper")
        elif ax is None:
            self.figure_.colorbar(self.surface_[0], ax=self.ax_, label="answer")
        return self


def decision_boundary(
    model: Any,
    x: Any = None,
    y: Any = None,
    *,
    xlim: Any = None,
    ylim: Any = None,
    features: Any = None,
    fixed: Any = None,
    projection: Any = None,
    grid_resolution: int = 100,
    threshold: float | int | None = None,
    regression: bool | None = None,
    ax: Any = None,
) -> DecisionBoundary:
    """Computes and draws what a model answers where: classes and their boundary, or the heights of a number.

    A single output changes class at `threshold`; of one output for each class the largest is the answer. A line marks
    where the answer changes. Of a regression, contour lines join what gets the same answer.

    Args:
        model: A trained Keras model, or anything whose `predict(x)` answers like one.
        x: Samples to draw on top, shape (sample, feature); a table's column names go to the axes.
        y: Their classes, shape (sample,), or one-hot, shape (sample, class); of a regression their numbers.
        xlim: Limits of the first axis. Default: those of `x`, and a quarter more on each side.
        ylim: Limits of the second axis, likewise.
        features: Of more than two features the two to draw, by number or column name. Default: the first two that
            `fixed` leaves free.
        fixed: Feature to the value at which it is held. Features neither drawn nor here are held at the medians of `x`.
        projection: Instead of these, a fitted projection onto two components with `transform` and `inverse_transform`,
            such as `sklearn.decomposition.PCA(2).fit(x)`: the picture is the plane of the components.
        grid_resolution: Grid points along each axis, at least 2.
        threshold: Default: 0 where the model's loss takes logits (`from_logits=True`), else halfway between the two
            labels in `y`, else 0.5.
        regression: Whether a single output is a number and not a class. Default: whether `y` holds more than two
            different numbers with a fractional type.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The record, drawn: `xx0`, `xx1`, `points`, `response` and so on.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    Example:
        >>> import kohort, keras
        >>> model = keras.Sequential([keras.Input(shape=(2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> limits = {"xlim": (0, 1), "ylim": (0, 1)}
        >>> kohort.plot.decision_boundary(model, **limits, grid_resolution=3).response.tolist()
        [[0.0, 0.5, 1.0], [0.5, 1.0, 1.5], [1.0, 1.5, 2.0]]

    Source:
        `sklearn.inspection.DecisionBoundaryDisplay`, which shades responses: this fills classes.
    """
    check_axes(ax)
    check_single(model)
    require(hasattr(model, "predict"), "model", "a trained model", model, "Pass a `keras.Model`.", TypeError)
    plane = cut(features_of(model, x), x, y, xlim, ylim, grid_resolution, features, fixed, projection)
    options: dict = {"batch_size": 10_000, "verbose": 0} if isinstance(model, keras.Model) else {}
    response = answers(model.predict, plane, **options)
    means = meaning(response, response.shape[2:], y, threshold_of(model, threshold), regression)
    return DecisionBoundary(**plane, **means, response=response).plot(ax)
