"""Many small axes in one figure, or in the place of one axes.

In come a number of cells and, if wanted, axes of the caller's; out go the cells, placed by hand, because shared axes
and a layout engine take seconds for 64 of them. The room exists so that all pictures of many look alike.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from kohort.plot.style import LETTER, SMALLEST, check_axes, shortened

GAP, TITLE = 0.06, 0.25  # inches between cells, and above each of them
LEFT, BOTTOM = 0.42, 0.45  # inches for the labels


@dataclass(kw_only=True)
class Mosaic:
    """Where the cells of a picture stand: `host` is the axes that holds them all, in inches (`size`)."""

    host: Axes
    size: np.ndarray
    cell: float  # side of a cell
    top: float  # above the cells
    columns: int = 1  # of a legend
    has_titles: bool = True  # whether there is room for them above the cells
    axes: list = field(default_factory=list)

    def title(self, titles: Iterable[str]) -> dict:
        """Returns how these titles are written: as large as the longest one allows, or not at all."""
        longest = max(len(line) for title in titles for line in [*title.split("\n"), " "])
        size = self.cell / (LETTER * longest)
        return {"fontsize": min(10.0, size), "pad": 3, "visible": self.has_titles and size >= SMALLEST}

    def explain(self, surface: Any, top: float, has_legend: bool) -> None:
        """Tells, so many inches below the upper edge, what the regions of all cells mean: levels, or classes."""
        if surface.levels is not None:
            ends = f"{surface.levels[0]:g} to {surface.levels[-1]:g}"
            steps = f"in steps of {surface.levels[1] - surface.levels[0]:g}"
            self.write(LEFT, top, f"lines at answers from {ends} {steps}, light: high", fontsize=9)
        elif has_legend:
            place = {"loc": "upper left", "bbox_to_anchor": self.at(LEFT - 0.1, top - 0.07), "borderaxespad": 0.0}
            surface.draw_legend(self.host.figure, **place, fontsize=9, ncols=self.columns)

    def write(self, left: float, top: float, text: str, fontsize: float | int = 10, right: float = 0.0) -> None:
        """Writes a line so many inches from the left and from the top, and at least so many from the right."""
        place, room = (left / self.size[0], 1 - top / self.size[1]), self.size[0] - left - right
        self.host.text(*place, shortened(text, _letters(room)), va="top", **self._style(text, fontsize, room))

    def _style(self, text: str, fontsize: float | int, room: float) -> dict:
        """Returns how a line is written that has so many inches, and which is to take no room from the cells."""
        size = min(fontsize, max(SMALLEST, room / (LETTER * max(1, len(text)))))
        return {"transform": self.host.transAxes, "fontsize": size, "in_layout": False}

    def at(self, left: float, top: float) -> tuple[float, float]:
        """Returns a place, so many inches from the left and from the top, as a part of the figure."""
        box = self.host.get_position()
        return box.x0 + box.width * left / self.size[0], box.y1 - box.height * top / self.size[1]

    def label(self, names: tuple, limits: dict) -> None:
        """Names both axes of all cells, with their ends."""
        ends, rooms = [f", {low:.3g} to {high:.3g}" for low, high in limits.values()], self.size - LEFT
        letters = [_letters(room) - len(end) for room, end in zip(rooms, ends, strict=True)]
        texts = [shortened(*each) + end for *each, end in zip(names, letters, ends, strict=True)]
        middle = 0.5 * (1 + LEFT / self.size[0]), 0.5 * (1 + (BOTTOM - self.top) / self.size[1])
        styles = [self._style(text, 9, room) for text, room in zip(texts, rooms, strict=True)]
        self.host.text(middle[0], 0.1 / self.size[1], texts[0], ha="center", va="bottom", **styles[0])
        self.host.text(0.08 / self.size[0], middle[1], texts[1], ha="left", va="center", rotation=90, **styles[1])


def _letters(room: float) -> int:
    """Returns how many of the smallest letters have place in so many inches."""
    return int(room / (LETTER * SMALLEST))


def mosaic(
    ax: Any,
    count: int,
    columns: int,
    top: float,
    lines: int = 1,
    right: float = 0.0,
    across: float = 11.0,
    names: Sequence[str] = (),
) -> Mosaic:
    """Places `count` cells in rows, with room for a title of so many lines above each.

    Args:
        ax: The axes whose place they take, or None for a new figure.
        count: How many.
        columns: How many in a row.
        top: Inches above all cells, for a title and a legend.
        lines: Lines of text above each cell.
        right: Inches at the right of them, for a colour bar.
        across: Inches of a row of cells in a new figure, about; a cell has from 1 to 3.
        names: What a legend above the cells names, in a new figure; `top` has room for one row of it.
    """
    check_axes(ax)
    columns, title = min(columns, count), TITLE + 0.17 * (lines - 1)
    rows = math.ceil(count / columns)
    if ax is None:
        cell = min(3.0, max(1.3 * across / 11, across / columns))
        across = max(4.2, LEFT + columns * (cell + GAP) + right)
        entries = max(1, int((across - LEFT) / (0.55 + 9 * LETTER * max(map(len, names), default=1))))
        top += 0.2 * (math.ceil(len(names) / entries) - 1) if names else 0
        size = np.array([across, top + BOTTOM + rows * (cell + title)])
        host = plt.figure(figsize=tuple(size)).add_axes((0, 0, 1, 1))
    else:
        host, entries, size = ax, 1, ax.get_window_extent().size / ax.figure.dpi
        wide, high = (size[0] - LEFT - right) / columns - GAP, (size[1] - top - BOTTOM) / rows
        title = title if min(wide, high - title) > title else GAP  # no title is to take more than its cell
        cell = max(0.05, min(wide, high - title))
    host.set_axis_off()
    cells = {"cell": cell, "top": top, "has_titles": title > GAP}
    placed = Mosaic(host=host, size=size, **cells, columns=max(1, min(len(names), entries)))
    for i in range(count):
        row, column = divmod(i, columns)
        corner = [LEFT + column * (cell + GAP), size[1] - top - (row + 1) * (cell + title)]
        placed.axes.append(host.inset_axes((*(corner / size), *(cell / size)), xticks=[], yticks=[]))
    return placed
