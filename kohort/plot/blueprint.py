"""The layers of a network as boxes: what each is, what it gives, how many parameters it has, what flows where.

In comes a built Keras model; out comes a record of boxes and arrows. The room exists because a network of many units
is read by its layers, and drawing them must not need another program.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import keras
from matplotlib import rcParams
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from kohort import keras_parts
from kohort.plot.style import COLOURS, Display, on_axes, require, shortened

WIDTH, HEIGHT, GAP = 2.9, 0.5, 0.3  # inches of a box, and between boxes
MOST_LAYERS = 60


@dataclass(kw_only=True, eq=False, repr=False)
class LayerDiagram(Display):
    """The layers of a network and what flows between them; `network` computes it.

    Example:
        >>> import kohort
        >>> layers = [("dense", "Dense", "(None, 1)", 3)]
        >>> len(kohort.plot.LayerDiagram(layers=layers, flows=[], rows=[0]).plot().boxes_)
        1
    """

    layers: list  # name, kind, output shape ("" where it is not known) and number of parameters of each
    flows: list  # pairs of positions: what the first gives, the second takes
    rows: list  # how far each is from the inputs
    boxes_: list = field(default_factory=list, init=False)  # once drawn
    ax_: Any = field(default=None, init=False)  # once drawn
    figure_: Any = field(default=None, init=False)  # once drawn

    def plot(self, ax: Any = None) -> "LayerDiagram":
        """Draws the record on `ax`, or in a figure made here, and returns it."""
        widest, deepest = max(Counter(self.rows).values()), max(self.rows) + 1
        size = (widest * (WIDTH + GAP) + 1.2, deepest * (HEIGHT + GAP) + 0.2)
        self.ax_ = on_axes(ax, size)
        self.figure_ = self.ax_.figure
        self.ax_.set(xlim=(-size[0] / 2, size[0] / 2), ylim=(-size[1], 0), aspect="equal")
        self.ax_.set_axis_off()
        inches = self.ax_.get_window_extent().size / self.figure_.dpi
        font = 8.5 if ax is None else 8.5 * min(1.0, *(inches / size))
        places, self.boxes_ = self._places(), []
        for (x, y), (name, kind, shape, parameters) in zip(places, self.layers, strict=True):
            style = {"facecolor": rcParams["axes.facecolor"], "edgecolor": COLOURS[0], "boxstyle": "round,pad=0"}
            box = FancyBboxPatch((x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT, mutation_scale=0.1, zorder=2, **style)
            self.boxes_.append(self.ax_.add_patch(box))
            counted = f"{parameters:,} parameters" if parameters else ""
            lines = [f"{name} · {kind}", " · ".join(filter(None, (shape, counted)))]
            text = "\n".join(shortened(line, 40) for line in lines)
            self.ax_.text(x, y, text, ha="center", va="center", fontsize=font, zorder=3)
        for a, b in self.flows:
            self._draw_flow(places[a], places[b], self.rows[b] - self.rows[a])
        return self

    def _places(self) -> list[tuple[float, float]]:
        widths, seen, places = Counter(self.rows), Counter(), []
        for row in self.rows:
            x = (seen[row] - (widths[row] - 1) / 2) * (WIDTH + GAP)
            seen[row] += 1
            places.append((x, -(row + 0.5) * (HEIGHT + GAP) - 0.1))
        return places

    def _draw_flow(self, source: tuple[float, float], target: tuple[float, float], rows: int) -> None:
        """Draws an arrow; one that skips rows goes around the boxes between."""
        style: dict = {"arrowstyle": "-|>", "mutation_scale": 9, "color": rcParams["text.color"], "zorder": 1}
        start, end = (source[0], source[1] - HEIGHT / 2), (target[0], target[1] + HEIGHT / 2)
        if rows > 1:
            start, end = (source[0] + WIDTH / 2, source[1]), (target[0] + WIDTH / 2, target[1])
            style |= {"connectionstyle": f"bar,angle=90,fraction={-0.3 / max(0.1, abs(start[1] - end[1])):.4f}"}
        self.ax_.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))


def layers_of(model: Any) -> LayerDiagram:
    """Computes the record of a model's layers and flows."""
    step = "Draw one that is built, or build it with `model.build(input_shape)`."
    is_built = isinstance(model, keras.Model) and model.built and bool(model.layers)
    require(is_built, "model", "a built Keras model with layers", model, step)
    steps, flows = keras_parts.flows(model)
    require(len(steps) <= MOST_LAYERS, "model", f"a model of at most {MOST_LAYERS} layers", model, "Draw a part of it.")
    rows = [0] * len(steps)
    for a, b in sorted(flows, key=lambda flow: flow[1]):
        rows[b] = max(rows[b], rows[a] + 1)
    return LayerDiagram(layers=[_described(each) for each in steps], flows=flows, rows=rows)


def _described(step: Any) -> tuple[str, str, str, int]:
    """Returns name, kind, output shape and number of parameters of a layer or another operation."""
    output = getattr(step, "output", None)  # the layers of a subclassed model do not know what they give
    shapes = "" if output is None else keras.tree.map_structure(lambda tensor: tuple(tensor.shape), output)
    parameters = step.count_params() if isinstance(step, keras.Layer) and step.built else 0
    return step.name, type(step).__name__, str(shapes).replace("None", "n"), int(parameters)
