"""What a network answers over a plane: the regions of its classes, or the heights of its numbers, drawn.

In come raw answers and the samples' targets; out go the artists of one picture or of one small cell of many. The room
exists so that one model, a wall of members and the representative of a minimum are painted by the same hand.
"""

import math
import numbers
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from kohort.plot.plane import Plane
from kohort.plot.style import COLOURS, LETTER, MARKERS, NUMBERS, SMALLEST, halo, require, tints

# Of classes whose scores lie so near to each other, rounding decides, or the last step of the optimizer.
UNDECIDED = 1e-3
HATCH = "////"  # of the regions where that is so
COARSE = 3  # points from one place for a name to the next, about: finer grids are thinned out


@dataclass(kw_only=True, eq=False, repr=False)
class Surface(Plane):
    """A plane, and what tells the answers there apart: classes, or levels of a number."""

    labels: np.ndarray | None = None  # which of the classes each sample is, (sample,)
    classes: tuple = (0, 1)
    threshold: float = 0.5  # where a single output changes from the first class to the second
    levels: np.ndarray | None = None  # of a regression: the heights of its contour lines
    targets: np.ndarray | None = None  # of a regression: the samples' own numbers, (sample,)
    undecided_: bool = field(default=False, init=False)  # once drawn, whether there are regions without an answer

    def paint(self, ax: Any, response: np.ndarray, size: float, is_named: bool = True) -> list:
        """Draws what the response says, and the samples as markers of `size` points; returns the filled regions.

        Args:
            ax: The axes.
            response: Raw outputs (grid, grid) or (grid, grid, class).
            size: Points of a marker, where samples are few.
            is_named: Whether classes are written into their regions.
        """
        known = np.where(np.isfinite(response), response, np.nan)
        if self.levels is None:
            surfaces = self.paint_classes(ax, known, size, is_named)
        else:
            surfaces = self._paint_levels(ax, known, size)
        if np.isnan(known).any():
            style = {"ha": "center", "va": "center", "path_effects": halo(), "zorder": 5}
            font = min(10.0, ax.get_window_extent().width / ax.figure.dpi / (10 * LETTER))
            if font >= SMALLEST:
                ax.text(0.5, 0.5, "not finite", transform=ax.transAxes, fontsize=font, **style)
        self.dress(ax, size)
        return surfaces

    def dress(self, ax: Any, size: float) -> None:
        """Draws what stays where the response changes: the samples, the frame and the limits."""
        ax.spines[:].set_linewidth(size / 6)
        if self.x is not None:
            self.draw_samples(ax, self.x, size)
        ax.set(**self.limits)

    def paint_classes(self, ax: Any, known: np.ndarray, size: float, is_named: bool = True) -> list:
        """Fills the region of each class, draws the boundaries, and hatches where none leads; returns the regions."""
        scores, surfaces = self.scores(known), []
        open_ = undecided(scores)
        # Each class is painted, with its border, where it beats all those before it, and over them.
        for k, tint in enumerate(tints(len(scores))):
            lead = scores[k] - scores[:k].max(axis=0) if k else 0 * scores.sum(axis=0)
            levels = [0 if k else -1, max(1, 2 * lead.max())]
            surfaces.append(ax.contourf(self.xx0, self.xx1, lead, levels, colors=[tint], zorder=0))
            if k and lead.min() < 0 < lead.max():
                line = {"colors": rcParams["text.color"], "linewidths": size / 6, "zorder": 0.5}
                border = ax.contour(self.xx0, self.xx1, np.ma.masked_where(open_, lead), [0], **line)
                if k + 1 < len(scores):
                    self._clip(ax, border, scores[: k + 1].max(axis=0) - scores[k + 1 :].max(axis=0))
        if open_.any():
            self.undecided_ = True
            look = {"colors": [rcParams["axes.facecolor"]], "hatches": [HATCH], "zorder": 0}
            surfaces.append(ax.contourf(self.xx0, self.xx1, open_.astype(float), [0.5, 1.5], **look))
            surfaces[-1].set(edgecolor=to_rgba(rcParams["text.color"], 0.4), linewidth=0)
        if is_named and not np.isnan(scores).any():
            self._name_regions(ax, np.where(open_, -1, scores.argmax(axis=0)), size)
        return surfaces

    def _clip(self, ax: Any, border: Any, lead: np.ndarray) -> None:
        """Shows of a border between classes only what lies where none of the later ones leads."""
        region = ax.contourf(self.xx0, self.xx1, lead, [0, max(1, 2 * lead.max())])
        (path,) = region.get_paths()
        region.remove()
        border.set_clip_path(path, ax.transData) if len(path.vertices) else border.set_visible(False)

    def _paint_levels(self, ax: Any, known: np.ndarray, size: float) -> list:
        style: dict = {"levels": self.levels, "cmap": NUMBERS, "zorder": 0, "extend": "both"}
        region = ax.contourf(self.xx0, self.xx1, np.ma.masked_invalid(known), **style)
        if np.nanmin(known, initial=np.inf) < np.nanmax(known, initial=-np.inf):
            lines = ax.contour(self.xx0, self.xx1, known, levels=self.levels, colors="black", linewidths=size / 15)
            lines.set_zorder(1)
        return [region]

    def scores(self, response: np.ndarray) -> np.ndarray:
        """Returns one score a class, (class, grid, grid); the largest is the answer."""
        return scores_of(response[None], self.threshold)[:, 0]

    def _name_regions(self, ax: Any, leader: np.ndarray, size: float) -> None:
        """Writes into each region that has room for it the name of its class: tints alone would not tell them apart.

        It stands where the nearest border or sample is farthest, over samples only where there is no other place.

        Args:
            ax: The axes.
            leader: The class at each grid point, -1 where there is none, (grid, grid).
            size: Of the markers, in points.
        """
        sides = 72 / ax.figure.dpi * ax.get_window_extent().size[::-1]  # in points, upwards first
        thin = max(1, int(COARSE * len(leader) / sides.max()))
        xx0, xx1, leader = (each[::thin, ::thin] for each in (self.xx0, self.xx1, leader))
        steps = sides / leader.shape
        free = self._without_samples(xx0, xx1, steps, 0.5 * self._marker(size))
        font = 5 + 0.8 * size
        for k, name in enumerate(self.classes):
            text = f"{name:g}"
            room = 0.5 * font * math.hypot(0.65 * len(text), 1)
            for at in _poles(leader == k, free, steps, room):
                look = {"fontsize": font, "path_effects": halo(), "zorder": 4, "clip_on": True}
                ax.text(xx0[at], xx1[at], text, ha="center", va="center", **look)

    def _without_samples(self, xx0: np.ndarray, xx1: np.ndarray, steps: np.ndarray, radius: float) -> np.ndarray:
        """Says which grid points no marker of this radius covers, (grid, grid)."""
        from scipy.ndimage import distance_transform_edt

        free = np.ones(xx0.shape, bool)
        if self.x is None or not len(self.x):
            return free
        ends = np.array([[xx1[0, 0], xx0[0, 0]], [xx1[-1, 0], xx0[0, -1]]])
        places = np.rint((self.x[:, ::-1] - ends[0]) / (ends[1] - ends[0]) * (np.array(xx0.shape) - 1)).astype(int)
        inside = ((places >= 0) & (places < xx0.shape)).all(axis=1)
        free[tuple(places[inside].T)] = False
        return np.asarray(distance_transform_edt(free, sampling=steps)) > radius if inside.any() else free

    def draw_samples(self, ax: Any, x: np.ndarray, size: float) -> None:
        """Draws the samples with the shape and colour of their class, or the colour of their number; many are small."""
        size = self._marker(size)
        if self.targets is not None and self.levels is not None:
            ends = {"vmin": self.levels[0], "vmax": self.levels[-1], "cmap": NUMBERS}
            # The colours are the same on light and dark ground, so the edges are, too: black in white.
            edges = [withStroke(linewidth=size / 8 + 1, foreground="white")]
            look = {
                "edgecolors": "black",
                "linewidths": size / 8,
                "path_effects": edges,
                "label": "sample",
                "zorder": 3,
            }
            ax.scatter(*x.T, c=self.targets, s=size**2, **ends, **look)
            return
        looks, labels = self.looks(), self.labels
        if labels is None:
            looks, labels = [looks[0] | {"color": "none", "label": "sample"}], np.zeros(len(x))
        for k, look in enumerate(looks):
            ax.plot(*x[labels == k].T, **look, markersize=size, markeredgewidth=size / 12)

    def _marker(self, size: float) -> float:
        """Returns how large a marker is, of those that would have this size if they were few."""
        return size if self.x is None else size * min(1.0, max(0.4, math.sqrt(50 / len(self.x))))

    def draw_legend(self, figure: Any, *more: Any, **place: Any) -> None:
        """Shows the marker of each class on the tint of its region, and further artists by their labels."""
        looks, edge = self.looks(), rcParams["text.color"]
        handles: list = [Patch(facecolor=tint, edgecolor=edge, linewidth=0.5) for tint in tints(len(looks))]
        if self.labels is not None:
            handles = [(handles[k], Line2D([], [], **look)) for k, look in enumerate(looks)]
        names = [look["label"] for look in looks]
        if self.undecided_:
            faint = to_rgba(edge, 0.4)
            handles.append(Patch(facecolor=rcParams["axes.facecolor"], edgecolor=faint, hatch=HATCH, linewidth=0.5))
            names.append("undecided")
        names += [artist.get_label() for artist in more]
        handles += more
        rows = in_rows(range(len(names)), place.get("ncols", 1))
        figure.legend([handles[i] for i in rows], [names[i] for i in rows], frameon=False, **place)

    @property
    def entries(self) -> list[str]:
        """What a legend may have to name: the classes, and what is undecided; of a regression nothing."""
        return [] if self.levels is not None else [*(look["label"] for look in self.looks()), "undecided"]

    def looks(self) -> list[dict]:
        """Gives each class a shape, a colour and a name."""
        style = {"linestyle": "none", "markeredgecolor": rcParams["text.color"]}
        return [
            style | {"marker": MARKERS[k % 9], "color": COLOURS[k % 10], "label": f"class {name:g}"}
            for k, name in enumerate(self.classes)
        ]


def scores_of(responses: np.ndarray, threshold: float) -> np.ndarray:
    """Returns one score a class of each member, (class, member, grid, grid); the largest is the answer.

    Args:
        responses: Raw outputs (member, grid, grid), or (member, grid, grid, class).
        threshold: Where a single output changes class.
    """
    return np.moveaxis(responses, -1, 0) if responses.ndim == 4 else np.stack([0 * responses + threshold, responses])


def two_best(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest score at each point, and the one that comes next."""
    first, second = scores[0], np.full_like(scores[0], -np.inf)
    for score in scores[1:]:
        second = np.maximum(second, np.minimum(first, score))
        first = np.maximum(first, score)
    return first, second


def undecided(scores: np.ndarray) -> np.ndarray:
    """Says where no class leads, (..., grid, grid): in regions, not at single points of a boundary that is crossed.

    A network on a plateau answers the threshold itself over half the plane, and what is left of a boundary is rounding.
    """
    from scipy.ndimage import binary_opening

    first, second = two_best(scores)
    return binary_opening(first - second < UNDECIDED, np.ones((*[1] * (first.ndim - 2), 3, 3)))


def _poles(region: np.ndarray, free: np.ndarray, steps: np.ndarray, room: float) -> list[tuple]:
    """Returns for each piece of a region that has room the place farthest from its border, and from what is not free.

    Args:
        region: Which grid points belong to it, (grid, grid).
        free: Which of them nothing stands on, likewise.
        steps: Points from one grid point to the next, upwards and across.
        room: Points that must be free around the place.
    """
    from scipy.ndimage import distance_transform_edt, label, maximum_position

    inner = np.zeros_like(region)
    inner[1:-1, 1:-1] = region[1:-1, 1:-1]  # the outermost grid points lie on the edge of the picture
    if not inner.any():
        return []
    labelled: Any = label(inner)
    pieces, count = labelled
    # A border runs between grid points: on average half a step before the first one that is not of the region.
    inside, apart = (
        np.asarray(distance_transform_edt(of, sampling=steps)) - 0.5 * steps.max() for of in (inner, inner & free)
    )
    farthest: Any = [maximum_position(far, pieces, range(1, count + 1)) for far in (apart, inside)]
    poles: list[tuple] = []
    for places in zip(*farthest, strict=True):
        poles += [at for at, far in zip(places, (apart, inside), strict=True) if far[at] >= room][:1]
    return poles


def in_rows(entries: Sequence, columns: int) -> list:
    """Returns entries so that a legend, which fills one column after the other, shows them one row after the other."""
    return [entry for column in range(columns) for entry in entries[column::columns]]


def votes(responses: np.ndarray, threshold: float) -> np.ndarray:
    """Returns which class each member says, (class, member, grid, grid): 1 or 0, and a share of it where undecided.

    Args:
        responses: Raw outputs (member, grid, grid), or (member, grid, grid, class).
        threshold: Where a single output changes class.
    """
    scores = scores_of(responses, threshold)
    leads = scores > scores.max(axis=0) - UNDECIDED
    return leads / leads.sum(axis=0)


def answers(predict: Callable, plane: dict, before: int = 0, **options: Any) -> np.ndarray:
    """Returns raw outputs (..., grid, grid) or (..., grid, grid, class), with so many axes before the grid's."""
    outputs = predict(plane["points"], **options)
    is_one = not isinstance(outputs, list | tuple | dict) and np.ndim(outputs) - before in (1, 2)
    step = "Draw a `keras.Model` that ends in one number, or in one for each class."
    require(is_one, "model", "a model with one output (sample, class)", outputs, step)
    outputs = np.asarray(outputs)
    classes = outputs.shape[before + 1 :]
    return outputs.reshape(*outputs.shape[:before], *plane["xx0"].shape, *(classes if classes != (1,) else ()))


def meaning(responses: np.ndarray, outputs: tuple, y: Any, threshold: Any = None, regression: Any = None) -> dict:
    """Returns what a record keeps of what the answers mean: classes and a threshold, or levels and targets.

    Args:
        responses: All answers of the picture.
        outputs: () for models of a single output, (class,) for the others.
        y: Targets of the samples, or None.
        threshold: Where a single output changes class; None for halfway between the labels.
        regression: Whether the answers are numbers; None for what `y` looks like.
    """
    is_flag = regression is None or (isinstance(regression, bool | np.bool) and not (regression and outputs))
    accepted = "True, False or None" + (", and not True for a model of several outputs" if outputs else "")
    require(is_flag, "regression", accepted, regression, "Leave it out: `y` tells.")
    values = None if y is None else np.asarray(y)
    step = " Of a regression pass `regression=True`." if regression is None and not outputs else ""
    if regression is None:
        regression = not outputs and values is not None and is_continuous(values)
    return _levels(responses, values) if regression else _classes(values, y, outputs, threshold, step)


def is_continuous(values: np.ndarray) -> bool:
    """Says whether targets look like numbers: fractional, and more of them than two classes have."""
    is_column = values.ndim == 1 or values.shape[1:] == (1,)
    return is_column and values.dtype.kind == "f" and len(np.unique(values)) > 2


def _levels(responses: np.ndarray, values: np.ndarray | None) -> dict:
    values = None if values is None else values.reshape(len(values), -1)[:, 0].astype(float)
    every = np.concatenate([responses.ravel(), [] if values is None else values])
    every = every[np.isfinite(every)] if np.isfinite(every).any() else np.zeros(1)
    levels = MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]).tick_values(float(every.min()), float(every.max()))
    return {"levels": levels, "targets": values}


def _classes(values: np.ndarray | None, y: Any, outputs: tuple, threshold: Any, otherwise: str) -> dict:
    labels, classes = values, list(range(*outputs or (2,)))
    if labels is not None:
        if labels.ndim == 2 and labels.shape[1] in (1, *outputs):
            labels = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(axis=1)
        found = np.unique(labels).tolist()
        classes = found if not outputs and len(found) == 2 else classes
        accepted = f"class numbers from 0 to {classes[-1]}, or one-hot" if outputs else "labels of two classes"
        is_known = labels.ndim == 1 and set(found) <= set(classes)
        step = f"It holds {reprlib.repr(found)}: the model tells {len(classes)} apart."
        require(is_known, "y", accepted, y, step + otherwise)
        labels = np.searchsorted(classes, labels)
    is_number = isinstance(threshold, numbers.Real) and math.isfinite(threshold)
    step = "Leave it out: it is halfway between the labels."
    require(threshold is None or is_number, "threshold", "a finite number or None", threshold, step)
    threshold = sum(classes[:2]) / 2 if threshold is None else float(threshold)
    return {"labels": labels, "classes": tuple(classes), "threshold": threshold}
