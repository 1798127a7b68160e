"""Many small axes in one figure, or in the place of one axes.

In come a number of cells and, if wanted, axes of the caller's; out go the cells, placed by hand, because shared axes
and a layout engine take seconds for 64 of them. The room exists so that all pictures of many look alike.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from kohort.checks import check_integer
from kohort.plot.style import LETTER, SMALLEST, check_axes, shortened

GAP, TITLE = 0.06, 0.25  # inches between cells, and above each of them
LEFT, BOTTOM = 0.42, 0.45  # inches for the labels
FEWER = 0.6  # of the largest side of cells: so small they may be for the sake of their titles
LEGEND = 0.23  # inches of a row of a legend
OURS = "kohort.mosaic"  # what a mosaic puts into axes, so that the next one there can take its place


@dataclass(kw_only=True)
class Mosaic:
    """Where the cells of a picture stand: `host` is the axes that holds them all, in inches (`size`)."""

    host: Axes
    size: np.ndarray
    cell: float  # side of a cell
    top: float  # above all cells
    box: np.ndarray  # of all cells with their titles: left, bottom, right, top; from the lower left of the host
    columns: int = 1  # of a legend
    lines: int = 1  # of a title that there is room for above the cells
    axes: list = field(default_factory=list)

    def title(self, titles: Iterable[str]) -> dict:
        """Returns how these titles are written: as large as the longest one allows, or not at all."""
        lines = [title.split("\n") for title in titles]
        longest = max(len(line) for title in lines for line in [*title, " "])
        size, has_room = self.cell / (LETTER * longest), max(map(len, lines)) <= self.lines
        return {"fontsize": min(10.0, size), "pad": 3, "visible": has_room and size >= SMALLEST}

    def name_cells(self, *choices: Sequence[str]) -> None:
        """Writes above the cells the first of these lists of titles, of which each is shorter, that has room there."""
        styles = [self.title(titles) for titles in choices]
        titles, style = next((each for each in zip(choices, styles, strict=True) if each[1]["visible"]), ([], {}))
        for cell, title in zip(self.axes, titles, strict=False):
            cell.set_title(title, **style)

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
        return {"transform": self.host.transAxes, "fontsize": size, "in_layout": False, "gid": OURS}

    @property
    def bar_height(self) -> float:
        """Inches that a bar of colours takes, beside the cells or where they could be."""
        return max(0.05, min(2.5, self.size[1] - self.top - TITLE - BOTTOM))

    def bar(self, surface: Any, name: str, ticks: Sequence[float]) -> Any:
        """Adds a bar of the colours at the right of the cells, with ticks, and returns it."""
        corner = np.array([self.box[2] + 0.12, self.size[1] - self.top - TITLE - self.bar_height])
        inside = self.host.inset_axes((*(corner / self.size), *([0.15, self.bar_height] / self.size)), gid=OURS)
        inside.set_title(name, fontsize=8, loc="left")
        return self.host.figure.colorbar(surface, cax=inside, ticks=list(ticks) or None)

    def at(self, left: float, top: float) -> tuple[float, float]:
        """Returns a place, so many inches from the left and from the top, as a part of the figure."""
        box = self.host.get_position()
        return box.x0 + box.width * left / self.size[0], box.y1 - box.height * top / self.size[1]

    def label(self, names: tuple, limits: dict) -> None:
        """Names both axes of all cells, with their ends, in the middle of a side or, if that is short, from its end."""
        ends = [f", {low:.3g} to {high:.3g}" for low, high in limits.values()]
        (left, bottom, *_), (x, y) = self.box, (self.box[:2] + self.box[2:]) / 2
        rooms = [self.size[0] - left, 2 * min(y, self.size[1] - self.top - y)]  # the head stands above, too
        letters = [_letters(room) - len(end) for room, end in zip(rooms, ends, strict=True)]
        texts = [shortened(*each) + end for *each, end in zip(names, letters, ends, strict=True)]
        styles = [self._style(text, 9, room) for text, room in zip(texts, rooms, strict=True)]
        wide, high = self.size
        below = self.host.text(x / wide, (bottom - 0.1) / high, texts[0], ha="center", va="top", **styles[0])
        if below.get_window_extent().width / self.host.figure.dpi > self.box[2] - left:
            below.set(x=left / wide, ha="left")
        look = {"ha": "right", "va": "center", "rotation": 90}
        self.host.text((left - 0.1) / wide, y / high, texts[1], **look, **styles[1])


def _letters(room: float) -> int:
    """Returns how many of the smallest letters have place in so many inches."""
    return int(room / (LETTER * SMALLEST))


def mosaic(
    ax: Any,
    count: int,
    columns: int | None,
    top: float,
    lines: int = 1,
    right: float = 0.0,
    across: float = 11.0,
    names: Sequence[str] = (),
) -> Mosaic:
    """Places `count` cells in rows, with room for a title of so many lines above each.

    Args:
        ax: The axes whose place they take, with that of an earlier mosaic in them; or None for a new figure.
        count: How many.
        columns: How many in a row; None for as many as suit the place.
        top: Inches above all cells, for a title and a legend.
        lines: Lines of text above each cell.
        right: Inches at the right of them, for a colour bar.
        across: Inches of a row of cells in a new figure, about; a cell has from 1 to 3.
        names: What a legend above the cells names, in a new figure; `top` has room for one row of it.
    """
    check_axes(ax)
    entries = 1
    if ax is None:
        columns = min(columns or math.ceil(math.sqrt(count)), count)
        rows, cell = math.ceil(count / columns), min(3.0, max(1.3 * across / 11, across / columns))
        across = max(4.2, LEFT + columns * (cell + GAP) + right)
        entries = max(1, int((across - LEFT) / (0.55 + 9 * LETTER * max(map(len, names), default=1))))
        top += 0.2 * (math.ceil(len(names) / entries) - 1) if names else 0
        size = np.array([across, top + BOTTOM + rows * (cell + _title(lines))])
        host = plt.figure(figsize=tuple(size)).add_axes((0, 0, 1, 1))
    else:
        host, size = ax, ax.get_window_extent().size / ax.figure.dpi
        top -= LEGEND if names else 0  # the legend is left to the caller
        room = size - [LEFT + right, top + BOTTOM]
        choices = range(1, count + 1) if columns is None else [min(columns, count)]
        cell, lines, columns = _fitted(room, count, choices, lines)
        _clear(host)
    host.set_axis_off()
    rows = math.ceil(count / columns)
    block = np.array([columns * (cell + GAP) - GAP, rows * (cell + _title(lines))])
    free = np.maximum(0, size - [LEFT + right, top + BOTTOM] - block) / 2  # the cells stand in the middle
    corner = np.array([LEFT + free[0], BOTTOM + free[1]])
    box = np.concatenate([corner, corner + block])
    placed = Mosaic(
        host=host, size=size, cell=cell, top=top, box=box, lines=lines, columns=max(1, min(len(names), entries))
    )
    for i in range(count):
        row, column = divmod(i, columns)
        corner = [box[0] + column * (cell + GAP), box[3] - (row + 1) * (cell + _title(lines))]
        inside = host.inset_axes((*(corner / size), *(cell / size)), xticks=[], yticks=[], gid=OURS)
        placed.axes.append(inside)
    return placed


def check_columns(columns: Any) -> None:
    """Raises unless this is a number of cells in a row, or None."""
    if columns is not None:
        check_integer("columns", columns, 1)


def _title(lines: int) -> float:
    """Returns the inches above a cell for a title of so many lines."""
    return TITLE + 0.17 * (lines - 1) if lines else GAP


def _fitted(room: np.ndarray, count: int, choices: Iterable[int], lines: int) -> tuple[float, int, int]:
    """Returns the side of cells in so many inches, the lines of their titles, and how many of them are in a row.

    For their titles cells may be somewhat smaller, but none is to take more than its cell.
    """
    found = []
    for columns, each in itertools.product(choices, range(lines + 1)):
        wide, high = room[0] / columns - GAP, room[1] / math.ceil(count / columns) - _title(each)
        side = float(min(wide, high))
        if not each or side > _title(each):
            found.append((side, each, columns))
    largest = max(found)[0]
    kept = [each for each in found if each[0] >= largest - (1 - FEWER) * abs(largest)]
    side, lines, columns = max(kept, key=lambda each: (each[1], each[0]))
    return max(0.05, side), lines, columns


def _clear(host: Axes) -> None:
    """Takes out what an earlier mosaic has put into the axes: its cells and texts."""
    for artist in (*host.child_axes, *host.texts):
        if artist.get_gid() == OURS:
            artist.remove()
