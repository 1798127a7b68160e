"""What the units of a layer do: the activation of each over the plane of the inputs.

In come a Keras model and one of its layers; out comes a record of one map for each unit. The room exists because a
network is the sum of its units, and each of them can be looked at.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kohort.checks import check_integer
from kohort.plot.layers import answers_of, check_model, check_units, layer_of
from kohort.plot.mosaic import LEFT, mosaic
from kohort.plot.plane import Plane, cut, features_of, limits_without
from kohort.plot.style import NUMBERS, check_axes, require

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
    columns: int = 8  # cells in a row
    axes_: list = field(default_factory=list, init=False)  # once drawn, one for each shown unit
    ax_: Any = field(default=None, init=False)  # once drawn, the axes that holds them all

    def plot(self, ax: Any = None) -> "Units":
        """Draws the record in place of `ax`, or in a figure made here, and returns it."""
        placed = mosaic(ax, len(self.shown), self.columns, top=0.35, right=0.8)
        self.ax_, self.figure_, self.axes_ = placed.host, placed.host.figure, placed.axes
        ends = ends_of(self.activations)
        style = placed.title(f"unit {unit}" for unit in self.shown)
        surface: Any = None
        for unit, values, cell in zip(self.shown, self.activations, self.axes_, strict=True):
            surface = draw_activation(cell, self, values, ends)
            cell.set(**self.limits)
            cell.set_title(f"unit {unit}", **style)
            if self.x is not None:
                size = 3 * min(1, max(0.5, math.sqrt(50 / len(self.x))))
                cell.plot(*self.x.T, "o", color="white", markeredgecolor="black", markeredgewidth=0.3, markersize=size)
        placed.label(self.names, self.limits)
        head = f"{self.layer}: {len(self.shown)} of {self.units} units" + (f" · {self.note}" if self.note else "")
        placed.write(LEFT, 0.1, head, right=0.8)
        bottom, height = 0.45 / placed.size[1], min(2.5, placed.size[1] - 0.8) / placed.size[1]
        bar = placed.host.inset_axes((1 - 0.7 / placed.size[0], bottom, 0.15 / placed.size[0], height))
        self.figure_.colorbar(surface, cax=bar)
        bar.set_title("activation", fontsize=8, loc="left")
        bar.tick_params(labelsize=8)
        return self


def ends_of(values: np.ndarray) -> tuple[float, float]:
    """Returns the lowest and the highest of the finite values."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def draw_activation(ax: Any, plane: Plane, values: np.ndarray, ends: tuple[float, float], *, lines: bool = True) -> Any:
    """Draws one map between the ends of the colours, and lines of equal activation; returns the image."""
    low, high = ends if ends[0] < ends[1] else (ends[0] - 0.5, ends[0] + 0.5)
    extent = (*plane.limits["xlim"], *plane.limits["ylim"])
    style = {"origin": "lower", "aspect": "auto", "cmap": NUMBERS, "interpolation": "bilinear", "zorder": 0}
    image = ax.imshow(values, extent=extent, vmin=low, vmax=high, **style)
    known = values[np.isfinite(values)]
    if lines and known.size and known.min() < known.max():
        levels = np.linspace(known.min(), known.max(), 7)[1:-1]
        ax.contour(plane.xx0, plane.xx1, values, levels=levels, colors="black", linewidths=0.4, zorder=1)
    return image


def units(
    model: Any,
    layer: Any,
    x: Any = None,
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

    All maps share one scale of colours; black lines join points of equal activation, so that a map also reads without
    colours.

    Args:
        model: A built sequential or functional Keras model.
        layer: The name of a layer, its number as in `model.layers`, or the layer.
        x: Samples to draw on top, shape (sample, feature).
        units: The numbers of the units to show. Default: the first 64.
        xlim: Limits of the first axis. Default: those of `x`, and a quarter more on each side; without `x` -1 to 1.
        ylim: Limits of the second axis, likewise.
        features: Of more than two features the two to draw, as for `decision_boundary`.
        fixed: Where the others are held, likewise.
        projection: Instead of these, a projection onto two components, likewise.
        grid_resolution: Grid points along each axis, at least 2.
        columns: Cells in a row. Default: about as many as rows, and at most 8.
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
    plane = cut(features_of(model, x), x, None, xlim, ylim, grid_resolution, features, fixed, projection)
    (answer,) = answers_of(model, [found], plane["points"])
    check_units(found, answer)
    count = answer.shape[1]
    accepted = f"numbers of the layer's units, from 0 to {count - 1}"
    is_choice = units is None or isinstance(units, Iterable)
    require(is_choice, "units", accepted, units, "Pass for example range(4).", TypeError)
    shown = list(range(min(count, MOST_UNITS))) if units is None else list(units)
    require(shown and set(shown) <= set(range(count)), "units", accepted, units, "Pass for example range(4).")
    columns = min(8, math.ceil(math.sqrt(len(shown)))) if columns is None else columns
    check_integer("columns", columns, 1)
    maps = answer[:, shown].T.reshape(len(shown), *plane["xx0"].shape)
    whole = {"activations": maps, "shown": tuple(shown), "units": count, "layer": found.name, "columns": columns}
    return Units(**plane, **whole).plot(ax)
