"""A wall: the answers of many members, one small cell each.

In come a trained cohort and samples; out comes a record of what each shown member answers over one plane. The room
exists because sixty boundaries at once say what one never can.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kohort.plot.mosaic import LEFT, check_columns, mosaic
from kohort.plot.plane import cut, features_of
from kohort.plot.sources import (
    answers_of_members,
    check_names,
    chosen,
    criterion,
    diverged,
    logs_of,
    reaches,
    threshold_of,
)
from kohort.plot.style import check_axes, counted
from kohort.plot.surface import Surface, meaning

FAILED = "×"  # before the title of a member that failed, whose cell has a dashed frame


@dataclass(kw_only=True, eq=False, repr=False)
class Wall(Surface):
    """What many members answer over one plane; `wall` computes it.

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
    failed: np.ndarray | None = None  # which of them diverged or did not reach the bounds, (member,)
    criterion: str = ""  # the bounds in words
    members: int  # how many the cohort has
    columns: int | None = None  # cells in a row, None: as many as suit the place
    axes_: list = field(default_factory=list, init=False)  # once drawn, one for each member
    ax_: Any = field(default=None, init=False)  # once drawn, the axes that holds them all

    def plot(self, ax: Any = None) -> "Wall":
        """Draws the record in place of `ax`, or in a figure made here, and returns it."""
        placed = mosaic(ax, len(self.seeds), self.columns, top=0.6, names=self.entries)
        self.ax_, self.figure_, self.axes_ = placed.host, placed.host.figure, placed.axes
        failed = np.zeros(len(self.seeds), bool) if self.failed is None else self.failed
        marks = [f"{FAILED} " * bool(each) for each in failed]
        placed.name_cells(*([mark + self._title(i, form) for i, mark in enumerate(marks)] for form in range(3)))
        for i, cell in enumerate(self.axes_):
            self.paint(cell, self.responses[i], 4 * math.sqrt(placed.cell))
            if failed[i]:
                cell.spines[:].set(linestyle=(0, (2, 2)), linewidth=1.2)
        placed.label(self.names, self.limits)
        placed.write(LEFT, 0.1, self._head() + (f" · {self.note}" if self.note else ""))
        placed.explain(self, 0.32, has_legend=ax is None)
        return self

    def _title(self, i: int, form: int) -> str:
        """Returns what stands above a cell: all, what is not said in the head, or the seed alone."""
        value = "" if self.values is None or form == 2 else f" · {self.values[i]:.3g}"
        return f"{'seed ' * (form == 0)}{self.seeds[i]}{value}"

    def _head(self) -> str:
        head = f"{len(self.seeds)} of {counted(self.members, 'member')}: seed"
        head += f" · last {self.metric}" if self.metric else ""
        if self.failed is None or not (self.failed.any() or self.criterion):
            return head
        how = f"did not reach {self.criterion}" if self.criterion else "diverged"
        return f"{head} · {FAILED} {self.failed.sum()} {how}"


def wall(
    cohort: Any,
    x: Any = None,
    y: Any = None,
    *,
    xlim: Any = None,
    ylim: Any = None,
    features: Any = None,
    fixed: Any = None,
    projection: Any = None,
    members: int | Iterable[int] = 64,
    by: str | None = None,
    grid_resolution: int = 50,
    threshold: float | int | None = None,
    regression: bool | None = None,
    columns: int | None = None,
    ax: Any = None,
    **bounds: float | int,
) -> Wall:
    """Computes and draws the answers of many members, one small cell each.

    The first members are a fair sample, as seeds are exchangeable: the share of failures on the wall estimates that of
    the cohort. So `by` sorts what is shown, and does not choose it.

    Args:
        cohort: A trained `kohort.Cohort`.
        x: Samples, as for `decision_boundary`.
        y: Their classes or numbers, likewise.
        xlim: Limits of the first axis, likewise.
        ylim: Limits of the second axis, likewise.
        features: Of more than two features the two to draw, likewise.
        fixed: Where the others are held, likewise.
        projection: Instead of these, a projection onto two components, likewise.
        members: How many members to show at most, the first ones; or their seeds.
        by: Metric that sorts the cells, best first, and stands in the titles. Default: the members' own order, and the
            last loss in the titles.
        grid_resolution: Grid points along each axis, at least 2.
        threshold: As for `decision_boundary`.
        regression: Likewise.
        columns: Cells in a row. Default: about as many as rows; with `ax` those that make the cells largest.
        ax: Matplotlib axes in whose place the cells are drawn; None makes a figure.
        **bounds: Metric name to the bound that its last value must reach, as in `Cohort.success_rate`. Members that do
            not, and those that diverged, are marked as failed, by a cross and a dashed frame.

    Returns:
        The record, drawn: `xx0`, `xx1`, `points`, `responses`, `seeds`, `failed` and so on.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    Example:
        >>> import kohort, keras
        >>> model = keras.Sequential([keras.Input(shape=(2,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer="sgd", loss="mse")
        >>> cohort, (x, y) = kohort.Cohort(model, seeds=5), kohort.data.xor()
        >>> history = cohort.fit(x, y, epochs=1, verbose=0)
        >>> picture = kohort.plot.wall(cohort, x, y, members=[4, 2], grid_resolution=10, loss=0.01)
        >>> picture.seeds, picture.responses.shape, picture.failed.tolist()
        ((4, 2), (2, 10, 10), [True, True])

    Source:
        Small multiples: Tufte, The Visual Display of Quantitative Information (1983).
    """
    check_axes(ax)
    shown = chosen(cohort, members)
    logs: Any = cohort.history or {}
    check_names(wall, bounds, logs.__contains__, "a metric of the history with its bound")
    metric = by or ("loss" if "loss" in logs else None)
    values = None if metric is None else logs_of(cohort, "by", metric).last(metric)
    failed = ~reaches(cohort, bounds) if bounds else np.zeros(len(cohort.seeds), bool)
    if by is not None and values is not None:
        worth = -values[shown] if cohort.direction(by) == "up" else values[shown]
        shown = shown[np.argsort(worth, kind="stable")]  # NaN last
    check_columns(columns)
    n = features_of(cohort, x)
    plane = cut(n, x, y, xlim, ylim, grid_resolution, features, fixed, projection)
    responses = answers_of_members(cohort, plane)[shown]
    failed = failed[shown] | diverged(cohort, shown, responses)
    means = meaning(responses, responses.shape[3:], y, threshold_of(cohort, threshold), regression)
    said = criterion(bounds, {name: cohort.direction(name) for name in bounds})
    values = None if values is None else values[shown]
    seeds = tuple(cohort.seeds[i] for i in shown)
    cells = {"seeds": seeds, "metric": metric, "values": values, "failed": failed, "criterion": said}
    whole = {"members": len(cohort.seeds), "columns": columns, "responses": responses}
    return Wall(**plane, **means, **cells, **whole).plot(ax)
