"""Pictures: compute a record, keep it, then draw it.

In come a trained model, a cohort or a history; out comes a record that holds as arrays all that the
picture shows. Its `plot` draws from those arrays alone, and keeps the Matplotlib objects. A figure
made here has a legend beside the data; on axes of yours the artists carry labels, for `ax.legend()`
where your layout has room. The room exists because many networks say what one cannot.
"""

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kohort import data

# Matplotlib and scikit-learn take seconds to load, so the functions that draw import them.
# Colours: Petroff, Accessible color sequences for data visualization (2021).
COLOURS = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"]
COLOURS += ["#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]
MARKERS = "osD^vPXp*"
FEATURES = ("x[:, 0]", "x[:, 1]")
MARGIN = 0.25  # of the samples' span, added on each side where no limits are given
MAX_LINES = 200  # faint lines in a history; its record keeps every member
ROWS_AT_ONCE = 2**20  # members times samples in one step of `Cohort.predict`: bounds its memory
HIGHER_IS_BETTER = {"acc", "accuracy", "auc", "iou", "precision", "recall", "score", "similarity"}


@dataclass(kw_only=True, eq=False, repr=False)
class _Plane:
    """A grid over two features, and the samples that lie there."""

    xx0: np.ndarray  # first feature at each grid point, (grid, grid)
    xx1: np.ndarray  # second feature, likewise
    x: np.ndarray | None = None  # samples, (sample, 2)
    labels: np.ndarray | None = None  # which of the classes each sample is, (sample,)
    classes: tuple = (0, 1)
    threshold: float = 0.5  # where a single output changes from the first class to the second
    figure_: Any = field(default=None, init=False)  # once drawn

    @property
    def limits(self) -> dict:
        """Lower and upper limit of both features, as Matplotlib's `Axes.set` takes them."""
        return {"xlim": tuple(self.xx0[0, [0, -1]]), "ylim": tuple(self.xx1[[0, -1], 0])}

    def _looks(self) -> list[dict]:
        """Gives each class a shape, a colour and a name."""
        style = {"linestyle": "none", "markeredgecolor": _ink()}
        return [
            style | {"marker": MARKERS[k % 9], "color": COLOURS[k % 10], "label": f"class {name}"}
            for k, name in enumerate(self.classes)
        ]

    def _draw_samples(self, ax: Any, size: float, few: int) -> None:
        """Draws markers of `size` points, smaller where there are more than a few samples."""
        if self.x is None:
            return
        size *= min(1.0, max(0.4, math.sqrt(few / len(self.x))))
        looks, labels = self._looks(), self.labels
        if labels is None:
            looks, labels = [looks[0] | {"color": "none", "label": "sample"}], np.zeros(len(self.x))
        for k, look in enumerate(looks):
            ax.plot(*self.x[labels == k].T, **look, markersize=size, markeredgewidth=size / 12)

    def _draw_legend(self, **place: Any) -> None:
        """Shows the marker of each class on the tint of its region."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        looks = self._looks()
        handles: list = [Patch(facecolor=tint, edgecolor=_ink()) for tint in _tints(len(looks))]
        if self.labels is not None:
            handles = [(handles[k], Line2D([], [], **look)) for k, look in enumerate(looks)]
        self.figure_.legend(handles, [look["label"] for look in looks], frameon=False, **place)


@dataclass(kw_only=True, eq=False, repr=False)
class DecisionBoundary(_Plane):
    """What one model answers over a plane of two features; `decision_boundary` computes it.

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
        from sklearn.inspection import DecisionBoundaryDisplay

        self.ax_, self.surface_ = _axes(ax, (5.4, 4.2)), []
        self.figure_ = self.ax_.figure
        leads = _leads(self.response, self.threshold, self.response.ndim == 2)
        for k, tint in enumerate(_tints(len(leads))):
            grid = {"xx0": self.xx0, "xx1": self.xx1, "n_classes": 2, "response": leads[k]}
            display, low, high = DecisionBoundaryDisplay(**grid), leads[k].min(), leads[k].max()
            if high > 0:
                region = {"levels": [0, 2 * high], "colors": [tint], "zorder": 0}
                display.plot("contourf", ax=self.ax_, **region)
                self.surface_.append(display.surface_)
            if k and low < 0 < high:  # the border of the first class is also another's
                display.plot("contour", ax=self.ax_, **_border(1.2))
        _mark_failure(self.ax_, leads)
        self._draw_samples(self.ax_, 7.5, 50)
        self.ax_.set(xlabel=FEATURES[0], ylabel=FEATURES[1], **self.limits)
        if ax is None:
            self._draw_legend(loc="outside right upper")
        return self


@dataclass(kw_only=True, eq=False, repr=False)
class Wall(_Plane):
    """What many members answer over one plane of two features; `wall` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> xx0, xx1 = np.meshgrid([0.0, 1.0], [0.0, 1.0])
        >>> cells = {"responses": np.stack([xx0, xx1]), "seeds": (3, 8), "members": 9}
        >>> [ax.get_title() for ax in kohort.plot.Wall(xx0=xx0, xx1=xx1, **cells).plot().axes_]
        ['seed 3', 'seed 8']
    """

    responses: np.ndarray  # raw outputs, (member, grid, grid) or (member, grid, grid, class)
    seeds: tuple  # the members' seeds, in the order of `responses`
    metric: str | None = None  # what stands in the titles
    values: np.ndarray | None = None  # its last values, (member,)
    members: int  # how many the cohort has
    columns: int = 8  # cells in a row
    axes_: list = field(default_factory=list, init=False)  # once drawn, one for each member

    def plot(self) -> "Wall":
        """Draws the record in a new figure, all cells with the same limits, and returns it."""
        import matplotlib.pyplot as plt

        cell = min(3.0, max(1.3, 11 / self.columns))
        step = np.array([cell + 0.06, cell + 0.22])  # inches, with the gap and the title
        width = max(4.2, 0.5 + self.columns * step[0], 0.9 * (len(self.classes) + 1))
        inches = np.array([width, 1.05 + math.ceil(len(self.seeds) / self.columns) * step[1]])
        self.figure_, self.axes_ = plt.figure(figsize=tuple(inches)), []
        for i in range(len(self.seeds)):
            # Placed by hand: shared axes and a layout engine take seconds for 64 cells.
            row, column = divmod(i, self.columns)
            corner = [0.4, inches[1] - 0.6] + step * [column, -1 - row]
            box = (*(corner / inches), *(cell / inches))
            self.axes_.append(self.figure_.add_axes(box, xticks=[], yticks=[]))
        self._draw_cells()
        (left, right), (low, high) = self.limits.values()
        self.figure_.supxlabel(f"{FEATURES[0]}, {left:.3g} to {right:.3g}", fontsize=9)
        self.figure_.supylabel(f"{FEATURES[1]}, {low:.3g} to {high:.3g}", fontsize=9)
        text = f"{len(self.seeds)} of {self.members} members: seed"
        text += "" if self.metric is None else f" · last {self.metric}"
        self.figure_.text(*([0.4, inches[1] - 0.1] / inches), text, va="top")
        place = {"loc": "upper left", "bbox_to_anchor": tuple([0.3, inches[1] - 0.25] / inches)}
        self._draw_legend(**place, fontsize=9, ncols=len(self.classes))
        return self

    def _draw_cells(self) -> None:
        """Draws one image and one contour in each cell, far cheaper than filled contours."""
        leads = _leads(self.responses, self.threshold, self.responses.ndim == 3)
        leader = np.where(np.isfinite(leads).all(0), leads.argmax(0) + 1, 0)
        pixels = np.array([(0, 0, 0, 0), *_tints(len(leads))])[leader]
        # Pixels are centred on grid points, so the image is half a step larger than the limits.
        ends = np.array(list(self.limits.values()))
        extent = ends + np.diff(ends) / (len(self.xx0) - 1) / 2 * [-1, 1]
        place = {"extent": extent.ravel(), "origin": "lower", "aspect": "auto", "zorder": 0}
        for i, ax in enumerate(self.axes_):
            ax.imshow(pixels[i], **place)
            for lead in leads[1:, i]:
                if lead.min() < 0 < lead.max():
                    ax.contour(self.xx0, self.xx1, lead, **_border(0.8))
            _mark_failure(ax, leads[:, i])
            self._draw_samples(ax, 4.0, 40)
            value = "" if self.values is None else f" · {self.values[i]:.3g}"
            ax.set_title(f"seed {self.seeds[i]}{value}", fontsize=7, pad=3)
            ax.set(**self.limits)


@dataclass(kw_only=True, eq=False, repr=False)
class HistoryCurves:
    """One metric over the epochs, of one network or of a cohort; `history` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> row = {"epochs": np.ones(1), "values": np.ones((1, 1)), "quantiles": np.ones((3, 1))}
        >>> kohort.plot.HistoryCurves(metric="loss", **row).plot().ax_.get_ylabel()
        'loss'
    """

    metric: str
    epochs: np.ndarray  # counted from 1, where any member has a finite value, (epoch,)
    values: np.ndarray  # the metric there, (member, epoch), NaN where a member has none
    quantiles: np.ndarray  # 10, 50 and 90 % over the members that have one, (3, epoch)
    validation: "HistoryCurves | None" = None  # the same on the validation data
    ax_: Any = field(default=None, init=False)  # once drawn
    figure_: Any = field(default=None, init=False)  # once drawn

    def plot(self, ax: Any = None) -> "HistoryCurves":
        """Draws the record on `ax`, or in a figure made here, and returns it.

        The scale is logarithmic for a loss that spans more than a decade.
        """
        self.ax_, several = _axes(ax, (6.4, 4.2)), len(self.values) > 1
        self.figure_ = self.ax_.figure
        if several:
            self._draw_members()
        for curves in filter(None, (self, self.validation)):
            look = {"linestyle": "--" if curves.metric.startswith("val_") else "-", "zorder": 3}
            label = f"median {curves.metric}" if several else curves.metric
            look |= {"label": label, "color": _line_colour(curves.metric)}
            self.ax_.plot(curves.epochs, curves.quantiles[1], **look)
        low, median, high = self.quantiles
        is_falling = not _is_higher_better(self.metric) and (median > 0).all()
        if is_falling and np.nanmax(self.values, initial=0) > 10 * low[low > 0].min(initial=np.inf):
            self.ax_.set_yscale("log", nonpositive="mask")
        self.ax_.set(xlabel="epoch", ylabel=self.metric)
        _mark_failure(self.ax_, self.epochs)
        if ax is None:
            self.figure_.legend(loc="outside upper center", ncols=4, frameon=False)
        return self

    def _draw_members(self) -> None:
        from matplotlib.collections import LineCollection

        low, _, high = self.quantiles
        look = {"color": _line_colour(self.metric), "alpha": 0.3}
        self.ax_.fill_between(self.epochs, low, high, lw=0, label="10 to 90 %", zorder=2, **look)
        drawn = self.values[:: math.ceil(len(self.values) / MAX_LINES)]
        lines = np.stack([np.broadcast_to(self.epochs, drawn.shape), drawn], axis=-1)
        label = f"{len(drawn)} of {len(self.values)} members"
        self.ax_.add_collection(LineCollection(list(lines), lw=0.4, label=label, zorder=1, **look))


def decision_boundary(
    model: Any,
    x: Any = None,
    y: Any = None,
    *,
    xlim: Any = None,
    ylim: Any = None,
    grid_resolution: int = 100,
    threshold: float | int | None = None,
    ax: Any = None,
) -> DecisionBoundary:
    """Computes and draws which class a model with two features answers where.

    A single output changes class at `threshold`; of one output for each class the largest is the
    answer. A line marks where the answer changes.

    Args:
        model: A trained Keras model, or anything whose `predict(x)` answers like one.
        x: Samples to draw on top, shape (sample, 2).
        y: Their classes, shape (sample,), or one-hot, shape (sample, class).
        xlim, ylim: Limits of the two features. Default: those of `x`, and a quarter more each side.
        grid_resolution: Grid points along each feature, at least 2.
        threshold: Default: halfway between the two labels in `y`, else 0.5. Pass 0 for logits.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The record, drawn: `xx0`, `xx1`, `response` and so on.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    Example:
        >>> import keras, kohort
        >>> layer = keras.layers.Dense(1, kernel_initializer="ones")
        >>> model = keras.Sequential([keras.Input(shape=(2,)), layer])
        >>> limits = {"xlim": (0, 1), "ylim": (0, 1)}
        >>> kohort.plot.decision_boundary(model, **limits, grid_resolution=3).response.tolist()
        [[0.0, 0.5, 1.0], [0.5, 1.0, 1.5], [1.0, 1.5, 2.0]]

    Source:
        `sklearn.inspection.DecisionBoundaryDisplay`, which shades responses: this fills classes.
    """
    _require(callable(getattr(model, "predict", None)), "model", "a model", model, STEP, TypeError)
    shape = getattr(model, "input_shape", (None, 2))
    _require(shape in ((None, 2), (None, None)), "model", TWO_FEATURES, f"of {shape}", STEP)
    grid = _grid(x, y, xlim, ylim, grid_resolution)
    options = {"batch_size": 10_000, "verbose": 0} if isinstance(model, keras.Model) else {}
    response = _on_grid([model.predict(_points(grid), **options)], grid)[0]
    grid |= _classes(y, response.shape[2:], threshold)
    return DecisionBoundary(**grid, response=response).plot(ax)
