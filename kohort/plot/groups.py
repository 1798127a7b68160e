"""The minima of a cohort: its members, grouped by what they converged to.

In come a trained cohort and samples; out comes a record of groups, with how often each occurs and one member that
stands for it. The room exists because "stuck in a local minimum" is a claim about a handful of places, and they can be
counted and looked at.
"""

import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kohort.checks import check_integer
from kohort.plot.mosaic import LEFT, check_columns, mosaic
from kohort.plot.plane import cut, features_of
from kohort.plot.sources import answers_of_members, chosen, diverged, logs_of, threshold_of
from kohort.plot.style import check_axes, counted, require
from kohort.plot.surface import Surface, meaning

LOSS_SHARE = 0.05  # of the loss that training began or ended with: so far apart two members of a group may be


@dataclass(kw_only=True, eq=False, repr=False)
class Minima(Surface):
    r"""Groups of members that converged to the same; `minima` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> xx0, xx1 = np.meshgrid([0.0, 1.0], [0.0, 1.0])
        >>> groups = {"responses": xx0[None], "seeds": (3,), "counts": np.array([2]), "losses": np.array([0.25])}
        >>> kohort.plot.Minima(xx0=xx0, xx1=xx1, **groups, group=np.zeros(2, int)).plot().axes_[0].get_title()
        '2 (100 %)\nloss 0.25'
    """

    responses: np.ndarray  # of each group's representative, (group, grid, grid) or (group, grid, grid, class)
    seeds: tuple  # of the representatives
    counts: np.ndarray  # members in each group, the most frequent first, (group,)
    losses: np.ndarray  # median of the final loss in each, (group,)
    group: np.ndarray  # the group of each member, -1: diverged; (member,)
    metric: str = "loss"
    shown: int = 12  # groups that are drawn
    columns: int | None = None  # cells in a row, None: as many as suit the place
    axes_: list = field(default_factory=list, init=False)  # once drawn, one for each shown group
    ax_: Any = field(default=None, init=False)  # once drawn, the axes that holds them all

    def plot(self, ax: Any = None) -> "Minima":
        """Draws the most frequent groups in place of `ax`, or in a figure made here, and returns the record."""
        shown = min(self.shown, len(self.counts))
        placed = mosaic(ax, shown, self.columns, top=0.6, lines=2, names=self.entries)
        self.ax_, self.figure_, self.axes_ = placed.host, placed.host.figure, placed.axes
        titles = [self._title(i) for i in range(shown)]
        placed.name_cells(titles, [title.split("\n")[0] for title in titles], [f"{count}" for count in self.counts])
        for i, cell in enumerate(self.axes_):
            self.paint(cell, self.responses[i], 4 * math.sqrt(placed.cell))
        placed.label(self.names, self.limits)
        placed.write(LEFT, 0.1, self._head(shown))
        placed.explain(self, 0.32, has_legend=ax is None)
        return self

    def _title(self, i: int) -> str:
        share = f"{100 * self.counts[i] / len(self.group):.3g} %"
        return f"{self.counts[i]} ({share})\n{self.metric} {self.losses[i]:.3g}"

    def _head(self, shown: int) -> str:
        rarer, diverged = int(self.counts[shown:].sum()), int((self.group < 0).sum())
        head = counted(len(self.group), "member")
        if rarer:
            head += f" · {rarer} in {counted(len(self.counts) - shown, 'rarer group')}"
        return head + (f" · {diverged} diverged" if diverged else "")


def minima(
    cohort: Any,
    x: Any = None,
    y: Any = None,
    *,
    metric: str = "loss",
    tolerance: float | int = 0.2,
    xlim: Any = None,
    ylim: Any = None,
    features: Any = None,
    fixed: Any = None,
    projection: Any = None,
    members: int | Iterable[int] = 1000,
    shown: int = 12,
    grid_resolution: int = 50,
    threshold: float | int | None = None,
    regression: bool | None = None,
    columns: int | None = None,
    ax: Any = None,
) -> Minima:
    """Groups members by what they converged to, and draws one boundary for each group with how often it occurs.

    Two members are alike when their last losses are (to a twentieth of the loss that training began or ended with),
    and the functions they compute: what permutes hidden units or flips signs changes no function. Functions are
    compared where the samples lie, as the root of the mean squared difference of the answers at the grid points within
    their limits: what a network says elsewhere, no training decides. In a group each member is alike to each (complete
    linkage); its representative is the one nearest to all others.

    Args:
        cohort: A trained `kohort.Cohort`.
        x: Samples, as for `decision_boundary`. Without them functions are compared over the whole plane.
        y: Their classes or numbers, likewise.
        metric: The loss to compare.
        tolerance: How far apart the answers of two members of a group may be, in their own units.
        xlim: Limits of the first axis, likewise.
        ylim: Limits of the second axis, likewise.
        features: Of more than two features the two to draw, likewise.
        fixed: Where the others are held, likewise.
        projection: Instead of these, a projection onto two components, likewise.
        members: How many members to group at most, the first ones; or their seeds.
        shown: How many groups to draw at most, the most frequent ones.
        grid_resolution: Grid points along each axis, at least 2.
        threshold: As for `decision_boundary`.
        regression: Likewise.
        columns: Cells in a row. Default: about as many as rows; with `ax` those that make the cells largest.
        ax: Matplotlib axes in whose place the cells are drawn; None makes a figure.

    Returns:
        The record, drawn: `counts`, `losses`, `seeds`, `responses`, `group` and so on.

    Raises:
        TypeError, ValueError: An argument is not what it must be, or all members diverged.

    Example:
        >>> import kohort, keras
        >>> model = keras.Sequential([keras.Input(shape=(2,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer=keras.optimizers.SGD(0.2), loss="mse")
        >>> cohort, (x, y) = kohort.Cohort(model, seeds=5), kohort.data.xor()
        >>> history = cohort.fit(x, y, epochs=200, verbose=0)
        >>> kohort.plot.minima(cohort, x, y).counts.tolist()  # a linear network has one minimum
        [5]

    Source:
        `scipy.cluster.hierarchy.linkage(method="complete")`.
    """
    check_axes(ax)
    is_positive = isinstance(tolerance, numbers.Real) and 0 < tolerance < math.inf
    require(is_positive, "tolerance", "a finite number above 0", tolerance, "Pass for example 0.2.")
    check_integer("shown", shown, 1)
    check_columns(columns)
    among = chosen(cohort, members)
    logs = logs_of(cohort, "metric", metric)
    losses = logs.last(metric)[among]
    n = features_of(cohort, x)
    plane = cut(n, x, y, xlim, ylim, grid_resolution, features, fixed, projection)
    responses = answers_of_members(cohort, plane)[among]
    finite = np.flatnonzero(np.isfinite(losses) & ~diverged(cohort, among, responses))
    step = "Train with a smaller learning rate."
    require(finite.size, "cohort", "one of which at least one member did not diverge", cohort, step)
    compared = responses[finite][:, _within(plane)].reshape(len(finite), -1)
    begun_or_ended = [_middle(logs[metric][:, 0]), _middle(losses)]
    near = float(tolerance), LOSS_SHARE * max(begun_or_ended) or 1.0
    found, middles = _grouped(compared, losses[finite], *near)
    group = np.full(len(among), -1)
    group[finite] = found
    middles = finite[middles]
    counts = np.bincount(found)
    medians = np.array([np.median(losses[group == k]) for k in range(len(counts))])
    means = meaning(responses[middles], responses.shape[3:], y, threshold_of(cohort, threshold), regression)
    groups = {"counts": counts, "losses": medians, "group": group, "responses": responses[middles]}
    seeds = tuple(cohort.seeds[among[i]] for i in middles)
    return Minima(**plane, **means, **groups, seeds=seeds, metric=metric, shown=shown, columns=columns).plot(ax)


def _within(plane: dict) -> np.ndarray:
    """Says which grid points lie within the limits of the samples, (grid, grid): all, where there are none so near."""
    x = plane["x"]
    if x is None:
        return np.ones(plane["xx0"].shape, bool)
    (low0, low1), (high0, high1) = x.min(axis=0), x.max(axis=0)
    xx0, xx1 = plane["xx0"], plane["xx1"]
    within = (low0 <= xx0) & (xx0 <= high0) & (low1 <= xx1) & (xx1 <= high1)
    return within if within.any() else np.ones_like(within)


def _middle(values: np.ndarray) -> float:
    """Returns the median size of the values that are finite."""
    return float(np.median(np.abs(values[np.isfinite(values)]))) if np.isfinite(values).any() else 0.0


def _grouped(answers: np.ndarray, losses: np.ndarray, tolerance: float, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the group of each member, the most frequent one 0, and the member in the middle of each group."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist, squareform

    if len(losses) == 1:
        return np.zeros(1, int), np.zeros(1, int)
    differences = pdist(answers.astype("float32")) / (tolerance * math.sqrt(answers.shape[1]))
    apart = np.maximum(differences, pdist(losses[:, None], "cityblock") / near)
    found = fcluster(linkage(apart, "complete"), 1.0, "distance") - 1
    counts = np.bincount(found)
    # Of equally frequent groups the one with the lower loss comes first: the same order for any order of members.
    order = np.lexsort([[np.median(losses[found == k]) for k in range(len(counts))], -counts])
    found = np.argsort(order)[found]
    distances = squareform(apart)
    middles = []
    for k in range(len(counts)):
        own = np.flatnonzero(found == k)
        middles.append(own[distances[np.ix_(own, own)].sum(axis=1).argmin()])
    return found, np.array(middles)
