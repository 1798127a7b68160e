"""What all pictures share: colours, markers, axes, and how a wrong argument is refused.

In come axes, or none, and values that must hold; out go axes to draw on and the colours of the style that is in force
when a record is drawn. The room exists so that all pictures look alike, on light and on dark ground.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import color_sequences, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb, to_rgba_array
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from kohort.checks import received

COLOURS = color_sequences["petroff10"]  # told apart by colour-blind readers, too
MARKERS = "osD^vPXp*"
NUMBERS = "cividis"  # the colour map of plain numbers: light grows with the value, for all readers alike
AXES = "Pass one of those that `plt.subplots()` returns."
BAND = (0.1, 0.5, 0.9)  # the quantiles that stand for many members
LETTER = 0.62 / 72  # inches that a letter of one point takes across, about
SMALLEST = 4.5  # points of a letter that can still be read
LONGEST = 24  # letters of a name or value among others


class Display:
    """What a picture keeps and how it says so: its arrays by their shapes, and never their values."""

    figure_: Any  # once drawn
    plot: Callable  # draws it

    def __repr__(self) -> str:
        """Names the arrays with their shapes, and what else is short."""
        kept = {name: value for name, value in vars(self).items() if not name.endswith("_")}
        said = filter(None, [_said(name, value) for name, value in kept.items()])
        return f"{type(self).__name__}({', '.join(said)})"

    def _repr_png_(self) -> bytes:
        """Shows the picture in a notebook, which then does not show it a second time as a figure that is still open."""
        if self.figure_ is None:
            self.plot()
        figure: Any = self.figure_
        figure = figure.get_figure(root=True)  # a part of a figure cannot be saved by itself
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
        if "inline" in matplotlib.get_backend():
            plt.close(figure)
        return drawn.getvalue()


def _said(name: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{name} {value.shape}"
    if isinstance(value, list) or (isinstance(value, tuple) and len(value) > 3):
        return f"{len(value)} {name}"
    is_short = isinstance(value, str | int | float | tuple) and bool(value)
    return f"{name} {value!r}" if is_short else ""


def require(ok: Any, name: str, accepted: str, value: Any, step: str, error: type[Exception] = ValueError) -> None:
    """Raises an error that names the argument, what it must be, what came and one next step."""
    if not ok:
        raise error(f"`{name}` must be {accepted}. Received: {received(name, value)}. {step}")


def on_axes(ax: Any, size: tuple[float, float]) -> Axes:
    """Returns the axes to draw on: those given, or those of a new figure of so many inches."""
    check_axes(ax)
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def check_axes(ax: Any) -> None:
    """Raises unless this is what every picture takes as `ax`: asked before anything is computed."""
    require(ax is None or isinstance(ax, Axes), "ax", "Matplotlib axes or None", ax, AXES, TypeError)
    # The axes of a figure that was cleared still know it: what is drawn on them would be seen nowhere.
    is_fit = ax is None or (ax.name == "rectilinear" and ax.figure is not None and ax in _standing(ax.figure.axes))
    require(is_fit, "ax", "flat axes that stand in a figure", ax, AXES)


def _standing(axes: Iterable[Any]) -> Iterator[Any]:
    """Yields axes and those that stand in them."""
    for each in axes:
        yield each
        yield from _standing(each.child_axes)


def set_ticks(axis: Any, **choice: Any) -> None:
    """Sets how the ticks of an axis are chosen; where its owner has chosen them in another way, they stay."""
    if isinstance(axis.get_major_locator(), MaxNLocator):
        inches = axis.axes.get_window_extent().width / axis.axes.figure.dpi
        if axis.axis_name == "x" and "nbins" in choice:  # numbers may be long
            choice["nbins"] = max(1, min(choice["nbins"], int(inches / 0.6)))
        axis.get_major_locator().set_params(**choice)


def shortened(text: Any, letters: int = LONGEST) -> str:
    """Returns a text in at most so many letters, of a long one its two ends: names often differ in the last word."""
    text, letters = str(text), max(3, letters)
    tail = (letters - 1) // 2
    return text if len(text) <= letters else f"{text[: letters - 1 - tail]}…{text[-tail:]}"


def counted(count: int, name: str) -> str:
    """Writes how many there are: 1 member, 20 members."""
    return f"{count:,} {name}{'s' * (count != 1)}"


def fit_labels(ax: Any) -> None:
    """Shortens the labels and the title of axes until none is longer than its side.

    A figure with a layout engine has room for two lines of each; without one a second line would stand on a neighbour.
    """
    width, height = ax.get_window_extent().size
    lines = 1 if ax.figure.get_layout_engine() is None else 2
    for text, room in ((ax.title, width), (ax.xaxis.label, width), (ax.yaxis.label, height)):
        if text.get_text():
            whole = text.get_text().split("\n")
            text.set_text("\n".join(_fitted(text, line, room, max(1, lines + 1 - len(whole))) for line in whole))


def _fitted(text: Any, line: str, room: float, lines: int) -> str:
    """Returns what a text can show of a line within so many pixels, in one line or two."""
    letters = len(line)
    while letters > 3:
        for shown in (shortened(line, letters), _broken(shortened(line, letters)))[:lines]:
            text.set_text(shown)
            if max(text.get_window_extent().size) <= room:
                return shown
        letters -= max(1, letters // 20)
    return shortened(line, 3)


def _broken(line: str) -> str:
    """Returns a line in two, broken nearest to its middle: between words, and not where one is compared."""
    ends = [found.end() for found in re.finditer(r"[,;…_-]+\s*|(?<![≤≥=])\s+(?![≤≥=])", line)]
    at = min(ends, key=lambda end: abs(end - len(line) / 2), default=len(line))
    return f"{line[:at].rstrip()}\n{line[at:]}"


def cover(share: float) -> float:
    """Returns how much of the ground a faint colour covers: of a dark one more, on which it would not be seen."""
    is_dark = sum(to_rgb(rcParams["axes.facecolor"])) < 1.5
    return min(1.0, 1.5 * share) if is_dark else share


def tints(n: int) -> np.ndarray:
    """Returns the colours of the regions of n classes, between a class's own and the ground."""
    own, ground = [COLOURS[k % 10] for k in range(n)], rcParams["axes.facecolor"]
    return cover(0.3) * to_rgba_array(own) + (1 - cover(0.3)) * to_rgba_array(ground)


def between_classes() -> LinearSegmentedColormap:
    """Returns a colour map from the first class over the ground to the second."""
    first, ground, second = to_rgba_array([COLOURS[0], rcParams["axes.facecolor"], COLOURS[1]])
    first, second = (0.65 * own + 0.35 * ground for own in (first, second))
    return LinearSegmentedColormap.from_list("classes", [first, ground, second])


def show_faint_lines(legend: Any) -> None:
    """Draws the lines of a legend so that they are seen: a faint one is not to be seen by itself."""
    for line in legend.get_lines():
        line.set(alpha=1, linewidth=max(1.0, line.get_linewidth()))


def halo(width: float = 2.5) -> list:
    """Returns the path effect that keeps a line or a text readable on any colour."""
    return [withStroke(linewidth=width, foreground=rcParams["axes.facecolor"])]
