"""What the units of a layer do: the activation of each over the plane of the inputs.

In come a Keras model and one of its layers; out comes a record of one map for each unit. The room exists because a
network is the sum of its units, and each of them can be looked at.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kohort.plot.layers import answers_of, check_model, check_units, layer_of
from kohort.plot.mosaic import LEFT, LEGEND, check_columns, mosaic
from kohort.plot.plane import Plane, cut, features_of, limits_without
from kohort.plot.style import MARKERS, NUMBERS, check_axes, counted, require
from kohort.plot.surface import in_rows, is_continuous

MOST_UNITS = 64  # maps in one picture; `units` chooses others


@dataclass(kw_only=True, eq=False, repr=False)
class Units(Plane):
    """The activations of the units of a layer, over a plane; `units` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> xx0, xx1 = np.meshgrid([0.0, 1.0], [0.0, 1.0])
        >>> maps = {"activations": np.stack([xx0, xx1]), "shown": (0, 1), "units": 2, "layer": "dense"}
        >>> [ax.get_title() for ax in kohort.plot.Units(xx0=xx0, xx1=xx1, **maps).plot().axes_]
        ['unit 0', 'unit 1']
    """

    activations: np.ndarray  # of each shown unit, (unit, grid, grid)
    shown: tuple  # the numbers of these units
    units: int  # how many the layer has
    layer: str  # its name
    labels: np.ndarray | None = None  # which of the classes each sample is, (sample,)
    classes: tuple = ()
    columns: int | None = None  # cells in a row, None: as many as suit the place
    axes_: list = field(default_factory=list, init=False)  # once drawn, one for each shown unit
    ax_: Any = field(default=None, init=False)  # once drawn, the axes that holds them all

    def plot(self, ax: Any = None) -> "Units":
        """Draws the record in place of `ax`, or in a figure made here, and returns it."""
        ends, entries = ends_of(self.activations), [look["label"] for look in self.looks()]
        top = 0.35 + 0.2 * (ends[0] < ends[1])
        placed = mosaic(ax, len(self.shown), self.columns, top=top + LEGEND * bool(entries), right=0.8, names=entries)
        self.ax_, self.figure_, self.axes_ = placed.host, placed.host.figure, placed.axes
        ticks = np.asarray(MaxNLocator(max(2, min(9, int(placed.bar_height / 0.2)))).tick_values(*ends)).tolist()
        surface, levels = None, [each for each in ticks if ends[0] < each < ends[1]]
        for values, cell in zip(self.activations, self.axes_, strict=True):
            surface = draw_activation(cell, self, values, ends, levels)
            cell.set(**self.limits)
            self._draw_samples(cell)
        placed.name_cells([f"unit {unit}" for unit in self.shown], list(map(str, self.shown)))
        placed.label(self.names, self.limits)
        head = f"{self.layer}: {len(self.shown)} of {counted(self.units, 'unit')}"
        placed.write(LEFT, 0.1, head + (f" · {self.note}" if self.note else ""))
        if levels:
            below = ", dashed below 0" * bool(levels[0] < 0)
            placed.write(LEFT, 0.32, f"lines at the ticks of the bar{below}", fontsize=9)
        bar = placed.bar(surface, "activation", levels)
        bar.ax.tick_params(labelsize=8)
        if ax is None and entries:
            place = {"loc": "upper left", "bbox_to_anchor": placed.at(LEFT - 0.1, top - 0.07), "borderaxespad": 0.0}
            handles = [Line2D([], [], **look) for look in self.looks()]
            order = in_rows(range(len(handles)), placed.columns)
            place |= {"frameon": False, "fontsize": 9, "ncols": placed.columns}
            self.figure_.legend(handles=[handles[i] for i in order], **place)
        return self

    def looks(self) -> list[dict]:
        """Gives each class a shape and a name; black or white, with an edge of the other, it is seen on any colour."""
        pairs = (("white", "black"), ("black", "white"))
        return [
            {"linestyle": "none", "marker": MARKERS[k % 9], "label": f"class {name:g}"}
            | {"markerfacecolor": pairs[k % 2][0], "markeredgecolor": pairs[k % 2][1]}
            for k, name in enumerate(self.classes)
        ]

    def _draw_samples(self, cell: Any) -> None:
        if self.x is None:
            return
        size = 4.5 * min(1, max(0.5, math.sqrt(50 / len(self.x))))
        style = {"markersize": size, "markeredgewidth": 0.15 * size}
        plain = {"linestyle": "none", "marker": "o", "markerfacecolor": "white", "markeredgecolor": "black"}
        looks, labels = self.looks(), self.labels
        if labels is None:
            looks, labels = [plain | {"label": "sample"}], np.zeros(len(self.x))
        for k, look in enumerate(looks):
            cell.plot(*self.x[labels == k].T, **look, **style)


def ends_of(values: np.ndarray) -> tuple[float, float]:
    """Returns the lowest and the highest of the finite values."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def draw_activation(
    ax: Any, plane: Plane, values: np.ndarray, ends: tuple[float, float], levels: Sequence[float] = ()
) -> Any:
    """Draws one map between the ends of the colours, and lines at levels, dashed below 0; returns the image."""
    low, high = ends if ends[0] < ends[1] else (ends[0] - 0.5, ends[0] + 0.5)
    extent = (*plane.limits["xlim"], *plane.limits["ylim"])
    style = {"origin": "lower", "aspect": "auto", "cmap": NUMBERS, "interpolation": "bilinear", "zorder": 0}
    image = ax.imshow(values, extent=extent, vmin=low, vmax=high, **style)
    known = values[np.isfinite(values)]
    crossed = [level for level in levels if known.min(initial=np.inf) < level < known.max(initial=-np.inf)]
    if crossed:
        look = {"colors": "black", "linewidths": 0.5, "zorder": 1}
        dashes = ["--" if level < 0 else "-" for level in crossed]
        ax.contour(plane.xx0, plane.xx1, values, levels=crossed, linestyles=dashes, **look)
    return image


def labels_of(y: Any) -> dict:
    """Returns which class each sample is, and the classes; nothing where there is no `y`, or one of numbers."""
    if y is None or is_continuous(np.asarray(y)):
        return {}
    values = np.asarray(y)
    is_one_hot = values.ndim == 2 and values.shape[1] > 1
    is_fit = values.ndim in (1, 2) and values.dtype.kind in "biuf"
    require(is_fit, "y", "classes of shape (sample,), or one-hot", y, "Leave it out where samples have none.")
    values = values.argmax(axis=1) if is_one_hot else values.reshape(len(values))
    classes = np.unique(values)
    return {"labels": np.searchsorted(classes, values), "classes": tuple(classes.tolist())}


def units(
    model: Any,
    layer: Any,
    x: Any = None,
    y: Any = None,
    *,
    units: Any = None,
    xlim: Any = None,
    ylim: Any = None,
    features: Any = None,
    fixed: Any = None,
    projection: Any = None,
    grid_resolution: int = 60,
    columns: int | None = None,
    ax: Any = None,
) -> Units:
    """Computes and draws the activation of each unit of a layer over the plane of the inputs.

    All maps share one scale of colours; black lines join points of equal activation, at the same levels in all of them,
    so that a map also reads without colours.

    Args:
        model: A built sequential or functional Keras model.
        layer: The name of a layer, its number as in `model.layers`, or the layer.
        x: Samples to draw on top, shape (sample, feature).
        y: Their classes, shape (sample,), or one-hot, shape (sample, class): each has a marker of its own.
        units: The numbers of the units to show. Default: the first 64.
        xlim: Limits of the first axis. Default: those of `x`, and a quarter more on each side; without `x` -1 to 1.
        ylim: Limits of the second axis, likewise.
        features: Of more than two features the two to draw, as for `decision_boundary`.
        fixed: Where the others are held, likewise.
        projection: Instead of these, a projection onto two components, likewise.
        grid_resolution: Grid points along each axis, at least 2.
        columns: Cells in a row. Default: about as many as rows; with `ax` those that make the cells largest.
        ax: Matplotlib axes in whose place the maps are drawn; None makes a figure.

    Returns:
        The record, drawn: `xx0`, `xx1`, `points`, `activations`, `shown` and so on.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    Example:
        >>> import kohort, keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
        >>> kohort.plot.units(model, 0, xlim=(0, 1), ylim=(0, 1)).activations.shape
        (4, 60, 60)

    Source:
        The maps of the hidden neurons in TensorFlow Playground (Smilkov and Carter, 2016).
    """
    check_axes(ax)
    check_model(model)
    xlim, ylim = limits_without(x, xlim, ylim)
    found = layer_of(model, layer)
    plane = cut(features_of(model, x), x, y, xlim, ylim, grid_resolution, features, fixed, projection)
    (answer,) = answers_of(model, [found], plane["points"])
    check_units(found, answer)
    count = answer.shape[1]
    accepted = f"numbers of the layer's units, from 0 to {count - 1}"
    is_choice = units is None or isinstance(units, Iterable)
    require(is_choice, "units", accepted, units, "Pass for example range(4).", TypeError)
    shown = list(range(min(count, MOST_UNITS))) if units is None else list(units)
    require(shown and set(shown) <= set(range(count)), "units", accepted, units, "Pass for example range(4).")
    check_columns(columns)
    maps = answer[:, shown].T.reshape(len(shown), *plane["xx0"].shape)
    whole = {"activations": maps, "shown": tuple(shown), "units": count, "layer": found.name, "columns": columns}
    return Units(**plane, **whole, **labels_of(y)).plot(ax)
