"""The diagram of a network of dense layers: its units, weights and biases, and what each unit does.

In comes a Keras model; out comes a record of weights, biases and activation maps. The room exists because nine
parameters can be seen at one glance, and no graph of boxes shows them.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from matplotlib import rcParams
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from kohort.plot.activations import draw_activation, ends_of
from kohort.plot.blueprint import LayerDiagram, layers_of
from kohort.plot.layers import answers_of, check_model
from kohort.plot.plane import Plane, check_resolution, cut, ends_along, flat, limits_without
from kohort.plot.style import COLOURS, LETTER, SMALLEST, Display, check_axes, on_axes, require, shortened

MOST_UNITS, MOST_LAYERS = 16, 8  # beyond them a network is drawn as layers
STEP = 1.9  # inches between layers
NUMBERED = 8  # weights between two layers that are written out
SMALL = 7.5  # points of a letter
LINE, NUMBER = 0.14, 0.23  # inches of a line of the caption, and that a number takes below a unit
# Layers that do something to each unit by itself: their units are those of the dense layer before.
UNITWISE = (
    keras.layers.Activation,
    keras.layers.Dropout,
    keras.layers.ELU,
    keras.layers.GaussianNoise,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
)


@dataclass(kw_only=True, eq=False, repr=False)
class NetworkDiagram(Display):
    """Units, weights, biases and activation maps of dense layers; `network` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> parts = {"weights": [np.ones((2, 1))], "biases": [np.zeros(1)], "captions": ["input", "dense"]}
        >>> len(kohort.plot.NetworkDiagram(**parts).plot().units_)
        3
    """

    weights: list  # of each layer, (unit before, unit)
    biases: list  # of each layer, (unit,)
    captions: list  # above each column, the inputs first
    names: tuple = ()  # of the inputs
    plane: Plane | None = None  # over which the maps are, for two inputs
    grid: np.ndarray | None = None  # or along which, for one input, (grid,)
    maps: list = field(
        default_factory=list
    )  # activations of each column, the inputs first, (unit, grid, grid) or (unit, grid)
    sums: list = field(default_factory=list)  # of each layer what its activation is applied to, (unit, grid, grid)
    units_: list = field(default_factory=list, init=False)  # once drawn, the circles
    ax_: Any = field(default=None, init=False)  # once drawn
    figure_: Any = field(default=None, init=False)  # once drawn

    @property
    def sizes(self) -> list[int]:
        """How many units each column has, the inputs first."""
        return [len(self.weights[0]), *(kernel.shape[1] for kernel in self.weights)]

    @property
    def height(self) -> float:
        """Inches that the columns take."""
        most = max(self.sizes)
        return max(2.6, most * 0.95) if most <= 7 else min(8.5, 6.65 + 0.3 * (most - 7))

    def plot(self, ax: Any = None) -> "NetworkDiagram":
        """Draws the record on `ax`, or in a figure made here, and returns it."""
        left = max(1.2, 0.5 + SMALL * LETTER * max((len(shortened(name)) for name in self.names), default=0))
        width = left + 1.2 + STEP * len(self.weights)
        text = self._caption(max(width, 5.4) if ax is None else width)
        below = 0.6 + LINE * (1 + text.count("\n"))
        height = below + self.height + 0.65
        self.ax_ = on_axes(ax, (max(width, 5.4), height))
        self.figure_ = self.ax_.figure
        self.ax_.set(xlim=(-left, width - left), ylim=(-below, self.height + 0.65), aspect="equal")
        self.ax_.set_axis_off()
        inches = self.ax_.get_window_extent().size / self.figure_.dpi
        small = SMALL * min(1.0, *(1.15 * inches / [width, height])) if ax is not None else SMALL
        radius = self._radius
        self.units_, others = [], len(self.ax_.texts)
        for column in range(len(self.sizes)):
            if column:
                self._draw_weights(column, radius, small)
            self._draw_units(column, radius, small)
            place = column * STEP, self.height + 0.12
            self.ax_.text(*place, self.captions[column], ha="center", va="bottom", fontsize=small + 1)
        self._explain(text, small)
        for artist in (*self.ax_.texts[others:], self.ax_.get_legend()):
            artist.set_visible(small >= SMALLEST)
        return self

    @property
    def _radius(self) -> float:
        """Inches of a unit's radius, which leaves room for the numbers below the units."""
        apart = [self.height / size for size in self.sizes]
        numbered = [gap for i, gap in enumerate(apart) if i and self._is_numbered(i)]
        return min(0.36, 0.4 * min(apart), *((gap - NUMBER) / 2 for gap in numbered))

    def _is_numbered(self, column: int) -> bool:
        """Says whether the units of a column are far enough apart for their biases below them."""
        return self.height / self.sizes[column] > 0.8

    def _places(self, column: int) -> np.ndarray:
        """Returns the centres of a column's units, from top to bottom, (unit, 2)."""
        n = self.sizes[column]
        return np.column_stack((np.full(n, column * STEP), self.height * (1 - (np.arange(n) + 0.5) / n)))

    def _draw_weights(self, column: int, radius: float, small: float) -> None:
        kernel, largest = np.nan_to_num(self.weights[column - 1], posinf=0, neginf=0), _largest(self.weights)
        before, after = self._places(column - 1), self._places(column)
        lines = [[a, b] for a in before for b in after]
        for is_negative in (False, True):
            own = np.flatnonzero((kernel.ravel() < 0) == is_negative)
            widths = 0.3 + 4 * (np.abs(kernel.ravel()[own]) / (largest or 1))
            style = {"color": COLOURS[int(is_negative)], "linestyles": _dash(is_negative), "zorder": 1}
            self.ax_.add_collection(LineCollection([lines[i] for i in own], linewidths=widths, **style))
        places = _apart(np.array(lines)) if kernel.size <= NUMBERED else None
        if places is not None:
            for (x, y), weight in zip(places, self.weights[column - 1].ravel(), strict=True):
                self._write(x, y, _signed(weight), small, va="center")

    def _draw_units(self, column: int, radius: float, small: float) -> None:
        places, is_input = self._places(column), column == 0
        biases = np.zeros(len(places)) if is_input else self.biases[column - 1]
        widths = np.abs(np.nan_to_num(biases, posinf=0, neginf=0)) / (_largest(self.biases) or 1)
        maps = self.maps[column] if self.maps else None
        for i, (x, y) in enumerate(places):
            edge = 1.0 if is_input else 0.8 + 2.2 * widths[i]
            ring = {"edgecolor": rcParams["text.color"], "linestyle": _dash(biases[i] < 0), "linewidth": edge}
            circle = Circle((x, y), radius, facecolor=rcParams["axes.facecolor"], zorder=3)
            self.ax_.add_patch(circle)
            if maps is not None:
                ends = ends_of(maps[i] if is_input else maps)  # each input has a range of its own
                sums = None if is_input or not self.sums else self.sums[column - 1][i]
                self._draw_map(circle, maps[i], ends, sums)
            self.ax_.add_patch(Circle((x, y), radius, fill=False, zorder=4, **ring))
            self.units_.append(circle)
            if is_input and self.names:
                self.ax_.text(x - radius - 0.08, y, shortened(self.names[i]), ha="right", va="center", fontsize=small)
            elif not is_input and self._is_numbered(column):
                self._write(x, y - radius - 0.06, _signed(biases[i]), small, va="top")

    def _write(self, x: float, y: float, text: str, size: float, va: Any) -> None:
        """Writes a number, of which no line that it stands on is to hide a point or a sign."""
        box = {"boxstyle": "round,pad=0.1", "facecolor": rcParams["axes.facecolor"], "edgecolor": "none"}
        self.ax_.text(x, y, text, ha="center", va=va, fontsize=size, bbox=box, zorder=5)

    def _draw_map(self, circle: Circle, values: np.ndarray, ends: tuple[float, float], sums: np.ndarray | None) -> None:
        """Draws the activation inside the circle, and the line where the unit's sum is zero; of one input a curve."""
        (x, y), r = circle.center, circle.radius
        if values.ndim == 1:
            across = np.linspace(-0.76, 0.76, len(values))
            up = 1.16 * (values - ends[0]) / ((ends[1] - ends[0]) or 1) - 0.58
            (curve,) = self.ax_.plot(x + r * across, y + r * up, color=COLOURS[0], linewidth=1.5, zorder=3.5)
            curve.set_clip_path(circle)
            return
        xx0, xx1 = np.meshgrid(np.linspace(x - r, x + r, values.shape[1]), np.linspace(y - r, y + r, values.shape[0]))
        held = self.ax_.get_xlim(), self.ax_.get_ylim()
        image = draw_activation(self.ax_, Plane(xx0=xx0, xx1=xx1), values, ends)
        image.set(clip_path=circle, zorder=3)
        if sums is not None and sums.min() < 0 < sums.max():
            style = {"levels": [0], "colors": "white", "linewidths": 1.2, "zorder": 3.5}
            line = self.ax_.contour(xx0, xx1, sums, **style)
            line.set(clip_path=circle, path_effects=None)
        self.ax_.set(xlim=held[0], ylim=held[1], aspect="equal")

    def _explain(self, text: str, small: float) -> None:
        """Says what widths, dashes and colours mean."""
        style = [{"color": COLOURS[k], "linestyle": _dash(bool(k)), "linewidth": 2} for k in (0, 1)]
        handles = [Line2D([], [], **look) for look in style]
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.0), "ncols": 2, "frameon": False, "fontsize": small}
        self.ax_.legend(handles, ["positive weight or bias", "negative: dashed"], **place, handlelength=3.5)
        middle = 0.5 * sum(self.ax_.get_xlim())
        self.ax_.text(middle, -0.15, text, ha="center", va="top", fontsize=small, linespacing=1.3)

    def _caption(self, width: float) -> str:
        """Returns what stands below the columns, in lines of so many inches."""
        is_numbered = [self._is_numbered(i) for i in range(1, len(self.sizes))]
        number = "the ring and the number below a unit" if all(is_numbered) else "the ring of a unit"
        number += " and, where there is room, the number below" if any(is_numbered) and not all(is_numbered) else ""
        said = [f"the widest line is a weight of {_largest(self.weights):.3g}; {number}: its bias"]
        if not all(np.isfinite(each).all() for each in (*self.weights, *self.biases)):
            said[0] += "; not all of them are finite"
        if self.plane is not None:
            (a, b), (c, d) = self.plane.limits.values()
            names = [name.split(" (")[0] for name in self.plane.names]  # how much variance is not said here
            drawn = " and ".join(map(shortened, names)) if self.plane.note else "inputs"
            ends = f"from ({a:.3g}, {c:.3g}) to ({b:.3g}, {d:.3g})"
            said.append(f"in each unit: its activation for {drawn} {ends}, light: high;")
            said.append("white line: where its weighted sum is 0" + (f"; {self.plane.note}" if self.plane.note else ""))
        elif self.grid is not None:
            ends = f"from {self.grid[0]:.3g} to {self.grid[-1]:.3g}"
            said.append(f"in each unit: its activation for inputs {ends}, of a column all on one scale")
        letters = int((width - 0.2) / (0.5 * SMALL / 72))  # a sentence takes less than names and numbers do
        return "\n".join(line for each in said for line in textwrap.wrap(each, letters))


def _apart(lines: np.ndarray) -> np.ndarray | None:
    """Returns a place for a number on each of the lines (line, end, 2), at the part of them where they are most apart.

    None, where the numbers would still touch.
    """
    parts = [lines[:, 0] + part * (lines[:, 1] - lines[:, 0]) for part in np.linspace(0.32, 0.68, 10)]
    gaps = [np.diff(np.sort(places[:, 1])).min(initial=np.inf) for places in parts]
    return parts[int(np.argmax(gaps))] if max(gaps) > 0.17 else None


def _dash(is_negative: Any) -> Any:
    return (0, (2.2, 1.1)) if is_negative else "-"


def _signed(number: Any) -> str:
    if np.isnan(number):
        return "NaN"
    return f"{number:+.2g}".replace("-", "−") if number else "0"


def _largest(arrays: Sequence[np.ndarray]) -> float:
    """Returns the largest size of a finite number in arrays; of none 0."""
    return max((float(np.abs(each[np.isfinite(each)]).max(initial=0)) for each in arrays), default=0.0)


def network(
    model: Any,
    x: Any = None,
    *,
    xlim: Any = None,
    ylim: Any = None,
    features: Any = None,
    fixed: Any = None,
    projection: Any = None,
    grid_resolution: int = 50,
    ax: Any = None,
) -> "NetworkDiagram | LayerDiagram":
    """Computes and draws the diagram of a network: units, weights and biases, or its layers.

    A network of dense layers of at most 16 units is drawn unit by unit: lines are weights, wide for large ones and
    dashed for negative ones; rings are biases likewise. With two inputs each unit shows its own activation over the
    plane of the inputs, and the line where its weighted sum is zero; with more it does so over the plane that
    `features`, `fixed` or `projection` choose; with one it shows the curve of its activation. Any other network is
    drawn layer by layer, with what each gives and how many parameters it has; what belongs to maps is not looked at
    then. Of a subclassed model the layers are drawn, but not what they give: only its `call` knows.

    Args:
        model: A built Keras model.
        x: Samples, whose limits are those of the activation maps; of one input also of shape (sample,).
        xlim: Limits of the first input. Default: those of `x`, and a quarter more on each side; without `x` -1 to 1.
        ylim: Limits of the second input, likewise.
        features: Of more than two features the two to draw, as for `decision_boundary`.
        fixed: Where the others are held, likewise.
        projection: Instead of these, a projection onto two components, likewise.
        grid_resolution: Grid points of the maps along each input, at least 2.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The record, drawn: a `NetworkDiagram`, or a `LayerDiagram`.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    Example:
        >>> import kohort, keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(1)])
        >>> diagram = kohort.plot.network(model)
        >>> diagram.sizes, [maps.shape for maps in diagram.maps]
        ([2, 3, 1], [(2, 50, 50), (3, 50, 50), (1, 50, 50)])

    Source:
        The diagram of TensorFlow Playground (Smilkov and Carter, 2016), with signs as dashes.
    """
    check_axes(ax)
    columns = _dense_columns(model)
    if columns is None:
        return layers_of(model).plot(ax)
    dense = [column[0] for column in columns]
    weights = [np.asarray(layer.kernel) for layer in dense]
    biases = [np.asarray(layer.bias) if layer.use_bias else np.zeros(layer.units) for layer in dense]
    captions = ["input", *(_caption(column) for column in columns)]
    n = len(weights[0])
    names = tuple(map(str, getattr(x, "columns", [f"x[:, {i}]" for i in range(n)])))
    record = NetworkDiagram(weights=weights, biases=biases, captions=captions, names=names)
    chosen = (x, xlim, ylim, features, fixed, projection)
    if n == 1:
        record.grid = _along(x, xlim, ylim, features, fixed, projection, grid_resolution)
        points = record.grid[:, None].astype("float32")
        record.maps = [each.T for each in (points, *answers_of(model, [column[-1] for column in columns], points))]
    elif n == 2 or any(each is not None for each in chosen):
        ends = limits_without(x, xlim, ylim)
        plane = cut(n, x, None, *ends, grid_resolution, features, fixed, projection)
        record.plane, shape = Plane(**plane), plane["xx0"].shape
        answers = [plane["points"], *answers_of(model, [column[-1] for column in columns], plane["points"])]
        with np.errstate(over="ignore", invalid="ignore"):  # of a network that diverged
            sums = [answers[i] @ weights[i] + biases[i] for i in range(len(dense))]
        record.maps, record.sums = ([each.T.reshape(-1, *shape) for each in these] for these in (answers, sums))
    return record.plot(ax)


def _along(x: Any, xlim: Any, *others: Any) -> np.ndarray:
    """Returns the points along the one input of a network, (grid,)."""
    *choices, resolution = others
    for name, choice in zip(("ylim", "features", "fixed", "projection"), choices, strict=True):
        step = "Of one input `xlim` chooses what is drawn."
        require(choice is None, name, "left out where the network has one input", choice, step)
    check_resolution(resolution)
    seen = flat("x", x)
    return np.linspace(*ends_along(limits_without(x, xlim, None)[0], seen), int(resolution))


def _dense_columns(model: Any) -> list[list] | None:
    """Returns the dense layers in order, each with those that act on its units, or None for another network."""
    if isinstance(model, keras.Model) and len(getattr(model, "inputs", None) or ()) != 1:
        return None
    check_model(model)
    columns, flow = [], model.inputs[0]
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        is_next = isinstance(model, keras.Sequential) or layer.input is flow
        is_dense = type(layer) is keras.layers.Dense
        if not is_next or not (is_dense or (columns and isinstance(layer, UNITWISE))):
            return None
        flow = layer.output
        columns.append([layer]) if is_dense else columns[-1].append(layer)
    sizes = [model.inputs[0].shape[-1] or 0, *(column[0].units for column in columns)]
    is_readable = len(model.inputs[0].shape) == 2 and max(sizes) <= MOST_UNITS and 0 < len(columns) <= MOST_LAYERS
    return columns if is_readable else None


def _caption(column: list) -> str:
    """Names a column of units: its dense layer, and what is applied to its sums."""
    first, *others = column
    applied = [getattr(first.activation, "__name__", type(first.activation).__name__)]
    applied += [getattr(getattr(each, "activation", None), "__name__", each.name) for each in others]
    named = [each for each in applied if each != "linear"] or ["linear"]
    return "\n".join(shortened(text, 16) for text in (first.name, ", ".join(named)))
