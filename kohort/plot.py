"""Pictures: compute a record, keep it, then draw it.

In come a trained model, a cohort or a history; out comes a record that holds as arrays all that the picture shows, and
draws it from them alone, as often as asked. A figure made here has a legend beside the data; on axes of yours the
artists carry labels, for `ax.legend()`. The room exists because people look before they read, and at many at once.
"""

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import color_sequences, rcParams
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba_array
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from kohort import data

COLOURS = color_sequences["petroff10"]  # told apart by colour-blind readers, too
MARKERS = "osD^vPXp*"
FEATURES = ("x[:, 0]", "x[:, 1]")
MARGIN = 0.25  # of the samples' span, added on each side where no limits are given
MAX_LINES = 200  # faint lines in a history; its record keeps every member
ROWS_AT_ONCE = 2**20  # members times samples in one step of `Cohort.predict`: bounds its memory
HIGHER_IS_BETTER = {"acc", "accuracy", "auc", "iou", "precision", "recall", "score", "similarity"}


@dataclass(kw_only=True, eq=False, repr=False)
class _Plane:
    """A grid over two features, and the samples that lie there."""

    xx0: np.ndarray  # first feature at each grid point, (grid, grid)
    xx1: np.ndarray  # second feature, likewise
    x: np.ndarray | None = None  # samples, (sample, 2)
    labels: np.ndarray | None = None  # which of the classes each sample is, (sample,)
    classes: tuple = (0, 1)
    threshold: float = 0.5  # where a single output changes from the first class to the second
    figure_: Any = field(default=None, init=False)  # once drawn

    @property
    def limits(self) -> dict:
        return {"xlim": tuple(self.xx0[0, [0, -1]]), "ylim": tuple(self.xx1[[0, -1], 0])}

    def _draw(self, ax: Any, response: np.ndarray, size: float) -> list:
        """Draws regions, borders and markers of `size` points; returns the regions."""
        from sklearn.inspection import DecisionBoundaryDisplay

        known, surfaces = np.where(np.isfinite(response), response, np.nan), []
        scores = np.moveaxis(known, -1, 0) if known.ndim == 3 else np.stack([0 * known + self.threshold, known])
        # Each class is painted, with its border, where it beats all those before it, and over them.
        for k, tint in enumerate(_tints(len(scores))):
            lead = scores[k] - scores[:k].max(axis=0) if k else 0 * scores.sum(axis=0)
            display = DecisionBoundaryDisplay(xx0=self.xx0, xx1=self.xx1, n_classes=2, response=lead)
            style = {"levels": [0 if k else -1, max(1, 2 * lead.max())], "colors": [tint], "antialiased": True}
            region: Any = display.plot("contourf", ax=ax, zorder=0, **style).surface_
            region.set(edgecolor=rcParams["text.color"], linewidth=k and size / 6)
            surfaces.append(region)
        ax.spines[:].set_linewidth(size / 6)
        if np.isnan(scores).any():
            ax.text(0.5, 0.5, "not finite", transform=ax.transAxes, ha="center", va="center")
        elif self.x is None:
            self._name_regions(ax, scores, fontsize=5 + 0.8 * size)
        if self.x is not None:
            self._draw_samples(ax, self.x, size * min(1, max(0.4, math.sqrt(50 / len(self.x)))))
        ax.set(**self.limits)
        return surfaces

    def _name_regions(self, ax: Any, scores: np.ndarray, **style: Any) -> None:
        """Writes each class where it leads most, away from the edges: colour alone would not tell."""
        inner = (slice(len(self.xx0) // 6, len(self.xx0) - len(self.xx0) // 6),) * 2
        for k, name in enumerate(self.classes):
            lead = (scores[k] - np.delete(scores, k, axis=0).max(axis=0))[inner]
            best = lead.argmax()
            if lead.flat[best] > 0:
                place = self.xx0[inner].flat[best], self.xx1[inner].flat[best]
                ax.text(*place, f"{name:g}", ha="center", va="center", **style)

    def _draw_samples(self, ax: Any, x: np.ndarray, size: float) -> None:
        looks, labels = self._looks(), self.labels
        if labels is None:
            looks, labels = [looks[0] | {"color": "none", "label": "sample"}], np.zeros(len(x))
        for k, look in enumerate(looks):
            ax.plot(*x[labels == k].T, **look, markersize=size, markeredgewidth=size / 12)

    def _draw_legend(self, **place: Any) -> None:
        """Shows the marker of each class on the tint of its region."""
        looks, edge = self._looks(), rcParams["text.color"]
        handles: list = [Patch(facecolor=tint, edgecolor=edge, linewidth=0.5) for tint in _tints(len(looks))]
        if self.labels is not None:
            handles = [(handles[k], Line2D([], [], **look)) for k, look in enumerate(looks)]
        self.figure_.legend(handles, [look["label"] for look in looks], frameon=False, **place)

    def _looks(self) -> list[dict]:
        """Gives each class a shape, a colour and a name."""
        style = {"linestyle": "none", "markeredgecolor": rcParams["text.color"]}
        return [
            style | {"marker": MARKERS[k % 9], "color": COLOURS[k % 10], "label": f"class {name:g}"}
            for k, name in enumerate(self.classes)
        ]


@dataclass(kw_only=True, eq=False, repr=False)
class DecisionBoundary(_Plane):
    """What one model answers over a plane of two features; `decision_boundary` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> xx0, xx1 = np.meshgrid([0.0, 1.0], [0.0, 1.0])
        >>> len(kohort.plot.DecisionBoundary(xx0=xx0, xx1=xx1, response=xx0).plot().surface_)
        2
    """

    response: np.ndarray  # the model's raw outputs, (grid, grid) or (grid, grid, class)
    surface_: list = field(default_factory=list, init=False)  # once drawn, the filled regions
    ax_: Any = field(default=None, init=False)  # once drawn

    def plot(self, ax: Any = None) -> "DecisionBoundary":
        """Draws the record on `ax`, or in a figure made here, and returns it."""
        self.ax_ = _axes(ax, (5.6, 4.2))
        self.figure_ = self.ax_.figure
        self.surface_ = self._draw(self.ax_, self.response, 7.5)
        self.ax_.set(xlabel=FEATURES[0], ylabel=FEATURES[1])
        self.ax_.locator_params(nbins=6)
        if ax is None:
            self._draw_legend(loc="outside right upper")
        return self


@dataclass(kw_only=True, eq=False, repr=False)
class Wall(_Plane):
    """What many members answer over one plane of two features; `wall` computes it.

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
    members: int  # how many the cohort has
    columns: int = 8  # cells in a row
    axes_: list = field(default_factory=list, init=False)  # once drawn, one for each member

    def plot(self) -> "Wall":
        """Draws the record in a new figure, all cells with the same limits, and returns it."""
        columns = min(self.columns, len(self.seeds))
        cell = min(3.0, max(1.3, 11 / columns))
        step = np.array([cell + 0.06, cell + 0.22])  # inches, with the gap and the title
        width = max(4.2, 0.5 + columns * step[0], 0.9 * (len(self.classes) + 1))
        inches = np.array([width, 1.05 + math.ceil(len(self.seeds) / columns) * step[1]])
        self.figure_, self.axes_ = plt.figure(figsize=tuple(inches)), []
        for i in range(len(self.seeds)):
            # Placed by hand: shared axes and a layout engine take seconds for 64 cells.
            row, column = divmod(i, columns)
            corner = [0.4, inches[1] - 0.6] + step * [column, -1 - row]
            ax = self.figure_.add_axes((*(corner / inches), *(cell / inches)), xticks=[], yticks=[])
            self._draw(ax, self.responses[i], 4 * math.sqrt(cell))
            value = "" if self.values is None else f" · {self.values[i]:.3g}"
            ax.set_title(f"seed {self.seeds[i]}{value}", fontsize=min(10, 5 * cell), pad=3)
            self.axes_.append(ax)
        for write, name, (low, high) in zip(("supxlabel", "supylabel"), FEATURES, self.limits.values(), strict=True):
            getattr(self.figure_, write)(f"{name}, {low:.3g} to {high:.3g}", fontsize=9)
        title = f"{len(self.seeds)} of {self.members} members: seed" + (f" · last {self.metric}" if self.metric else "")
        self.figure_.text(*([0.4, inches[1] - 0.1] / inches), title, va="top")
        place = {"loc": "upper left", "bbox_to_anchor": tuple([0.3, inches[1] - 0.25] / inches)}
        self._draw_legend(**place, fontsize=9, ncols=len(self.classes))
        return self


@dataclass(kw_only=True, eq=False, repr=False)
class HistoryCurves:
    """One metric over the epochs, of one network or of a cohort; `history` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> row = {"epochs": np.ones(1), "values": np.ones((1, 1)), "quantiles": np.ones((3, 1))}
        >>> kohort.plot.HistoryCurves(metric="loss", **row).plot().ax_.get_ylabel()
        'loss'
    """

    metric: str
    epochs: np.ndarray  # counted from 1, where any member has a finite value, (epoch,)
    values: np.ndarray  # the metric there, (member, epoch), NaN where a member has none
    quantiles: np.ndarray  # 10, 50 and 90 % over the members that have one, (3, epoch)
    validation: "HistoryCurves | None" = None  # the same on the validation data
    ax_: Any = field(default=None, init=False)  # once drawn
    figure_: Any = field(default=None, init=False)  # once drawn

    def plot(self, ax: Any = None) -> "HistoryCurves":
        """Draws the record on `ax`, or in a figure made here, and returns it; logarithmic if a loss spans a decade."""
        self.ax_, several = _axes(ax, (6.4, 4.2)), len(self.values) > 1
        self.figure_ = self.ax_.figure
        if several:
            self._draw_members(self.ax_)
        for curves in filter(None, (self, self.validation)):
            look = {**curves._look(), "label": f"median {curves.metric}" if several else curves.metric}
            halo = [withStroke(linewidth=3, foreground=rcParams["axes.facecolor"])] * several
            self.ax_.plot(curves.epochs, curves.quantiles[1], path_effects=halo, zorder=3, **look)
        positive = self.values[self.values > 0]
        spans_decade = positive.max(initial=0) > 10 * positive.min(initial=np.inf)
        if spans_decade and (self.quantiles[1] > 0).all() and not _is_higher_better(self.metric):
            self.ax_.set_yscale("log", nonpositive="mask")
        self.ax_.set(xlabel="epoch", ylabel=self.metric)
        self.ax_.locator_params(axis="x", integer=True)
        if not self.epochs.size:
            self.ax_.text(0.5, 0.5, "not finite", transform=self.ax_.transAxes, ha="center", va="center")
        if ax is None:
            self.figure_.legend(loc="outside upper center", ncols=2, frameon=False)
        return self

    def _look(self) -> dict:
        is_validation = self.metric.startswith("val_")
        return {"color": COLOURS[6 * is_validation], "linestyle": "--" if is_validation else "-"}

    def _draw_members(self, ax: Any) -> None:
        colour, drawn = self._look()["color"], self.values[:: math.ceil(len(self.values) / MAX_LINES)]
        band = {"color": colour, "alpha": 0.3, "linewidth": 0, "zorder": 2}
        ax.fill_between(self.epochs, *self.quantiles[[0, 2]], label="10 to 90 %", **band)
        early = np.isnan(self.values[:, -1:]).sum()
        label = f"{len(drawn)} of {len(self.values)} members" + (f", {early} end early" if early else "")
        lines = np.stack([np.broadcast_to(self.epochs, drawn.shape), drawn], axis=-1)
        faint = {"color": colour, "alpha": min(0.3, 30 / len(drawn)), "linewidth": 0.4, "zorder": 1}
        ax.add_collection(LineCollection(list(lines), label=label, **faint))


def decision_boundary(
    model: Any,
    x: Any = None,
    y: Any = None,
    *,
    xlim: Any = None,
    ylim: Any = None,
    grid_resolution: int = 100,
    threshold: float | int | None = None,
    ax: Any = None,
) -> DecisionBoundary:
    """Computes and draws which class a model with two features answers where.

    A single output changes class at `threshold`; of one output for each class the largest is the answer. A line marks
    where the answer changes.

    Args:
        model: A trained Keras model, or anything whose `predict(x)` answers like one.
        x: Samples to draw on top, shape (sample, 2).
        y: Their classes, shape (sample,), or one-hot, shape (sample, class).
        xlim: Limits of the first feature. Default: those of `x`, and a quarter more on each side.
        ylim: Limits of the second feature, likewise.
        grid_resolution: Grid points along each feature, at least 2.
        threshold: Default: halfway between the two labels in `y`, else 0.5. Pass 0 for logits.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The record, drawn: `xx0`, `xx1`, `response` and so on.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    Example:
        >>> import keras, kohort
        >>> model = keras.Sequential([keras.Input(shape=(2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> limits = {"xlim": (0, 1), "ylim": (0, 1)}
        >>> kohort.plot.decision_boundary(model, **limits, grid_resolution=3).response.tolist()
        [[0.0, 0.5, 1.0], [0.5, 1.0, 1.5], [1.0, 1.5, 2.0]]

    Source:
        `sklearn.inspection.DecisionBoundaryDisplay`, which shades responses: this fills classes.
    """
    _require(hasattr(model, "predict"), "model", "a trained model", model, "Pass a `keras.Model`.", TypeError)
    shape = getattr(model, "input_shape", (None, 2))
    step = f"Its input shape is {shape}: draw one whose input shape is (None, 2)."
    _require(shape in ((None, 2), (None, None)), "model", "a model of two input features", model, step)
    grid = _grid(x, y, xlim, ylim, grid_resolution)
    options: dict = {"batch_size": 10_000, "verbose": 0} if isinstance(model, keras.Model) else {}
    response = _answers(model.predict, grid, 0, **options)
    grid |= _classes(y, response.shape[2:], threshold)
    return DecisionBoundary(**grid, response=response).plot(ax)


def wall(
    cohort: Any,
    x: Any = None,
    y: Any = None,
    *,
    xlim: Any = None,
    ylim: Any = None,
    members: int | Iterable[int] = 64,
    by: str | None = None,
    grid_resolution: int = 50,
    threshold: float | int | None = None,
    columns: int | None = None,
) -> Wall:
    """Computes and draws the decision boundaries of many members, one small cell each.

    The first members are a fair sample, as seeds are exchangeable: the share of failures on the wall estimates that of
    the cohort. So `by` sorts what is shown, and does not choose it.

    Args:
        cohort: A trained `kohort.Cohort` of a model with two features.
        x: Samples, as for `decision_boundary`.
        y: Their classes, likewise.
        xlim: Limits of the first feature, likewise.
        ylim: Limits of the second feature, likewise.
        members: How many members to show at most, the first ones; or their seeds.
        by: Metric that sorts the cells, best first, and stands in the titles. Default: the members' own order, and the
            last loss in the titles.
        grid_resolution: Grid points along each feature, at least 2.
        threshold: As for `decision_boundary`.
        columns: Cells in a row. Default: about as many as rows.

    Returns:
        The record, drawn: `xx0`, `xx1`, `responses`, `seeds` and so on.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    Example:
        >>> import keras, kohort
        >>> model = keras.Sequential([keras.Input(shape=(2,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer="sgd", loss="mse")
        >>> cohort, (x, y) = kohort.Cohort(model, seeds=5), kohort.data.xor()
        >>> history = cohort.fit(x, y, epochs=1, verbose=0)
        >>> picture = kohort.plot.wall(cohort, x, y, members=[4, 2], grid_resolution=10)
        >>> picture.seeds, picture.responses.shape
        ((4, 2), (2, 10, 10))

    Source:
        Small multiples: Tufte, The Visual Display of Quantitative Information (1983).
    """
    chosen = _chosen(cohort, members)
    metric = by or ("loss" if "loss" in (cohort.history or {}) else None)
    values = None if metric is None else _logs(cohort, "by", metric).last(metric)[chosen]
    if by is not None and values is not None:
        order = np.argsort(-values if cohort.direction(by) == "up" else values, kind="stable")  # NaN last
        chosen, values = chosen[order], values[order]
    grid = _grid(x, y, xlim, ylim, grid_resolution)
    responses = _answers(cohort.predict, grid, 1, batch_size=max(1, ROWS_AT_ONCE // len(cohort.seeds)))[chosen]
    grid |= _classes(y, responses.shape[3:], threshold)
    seeds = tuple(cohort.seeds[i] for i in chosen)
    columns = math.ceil(math.sqrt(len(chosen))) if columns is None else columns
    _require(columns >= 1, "columns", "at least 1", columns, "Pass for example 8.")
    shown = {"seeds": seeds, "metric": metric, "values": values, "members": len(cohort.seeds), "columns": columns}
    return Wall(**grid, **shown, responses=responses).plot()


def history(source: Any, metric: str = "loss", *, ax: Any = None) -> HistoryCurves:
    """Computes and draws a metric over the epochs, for one network or all members of a cohort.

    Of a cohort: members faint, the band that holds the middle 80 % of them, and their median. A mean would follow the
    few that explode, and one curve would follow one lucky start.

    Args:
        source: What `fit` returned, or a `kohort.Cohort`.
        metric: Its name. Its `val_` twin is drawn too, dashed, where there is one.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The record, drawn: `epochs`, `values`, `quantiles` and so on.

    Raises:
        TypeError, ValueError: An argument is not what it must be, or nothing was recorded yet.

    Example:
        >>> import numpy as np, kohort
        >>> losses = np.array([[0.5, 0.1], [0.5, 0.3]])
        >>> log = kohort.history.CohortHistory({"loss": losses}, seeds=[0, 1], epoch=[0, 1])
        >>> kohort.plot.history(log).quantiles[1].tolist()
        [0.5, 0.2]

    Source:
        Quantiles as `numpy.nanquantile`, linear between members.
    """
    logs = _logs(source, "metric", metric)
    epoch, twin = getattr(logs, "epoch", None) or getattr(source, "epoch", None), f"val_{metric}"
    record = _curves(metric, logs[metric], epoch)
    record.validation = _curves(twin, logs[twin], epoch) if twin in logs else None
    return record.plot(ax)


def _require(ok: Any, name: str, accepted: str, value: Any, step: str, error: type[Exception] = ValueError) -> None:
    """Raises an error that names the argument, what it must be, what came and one next step."""
    if not ok:
        shape = getattr(value, "shape", None)
        came = f"={reprlib.repr(value)}" if shape is None else f" with shape={tuple(shape)}"
        raise error(f"`{name}` must be {accepted}. Received: {name}{came}. {step}")


def _grid(x: Any, y: Any, xlim: Any, ylim: Any, n: Any) -> dict:
    """Returns what a record keeps of the plane: `xx0`, `xx1`, `x`."""
    is_enough = isinstance(n, int | np.integer) and n >= 2
    _require(is_enough, "grid_resolution", "an integer of at least 2", n, "Pass for example 100.")
    _require(x is not None or y is None, "y", "left out where `x` is", y, "Pass the samples as `x`.")
    if x is not None:
        data.samples(x, y)
        x = np.asarray(x, float)
        _require(x.ndim == 2 and x.shape[1] == 2, "x", "of shape (sample, 2)", x, "Select two features.")
    both = (_limits("xlim", xlim, x, 0), _limits("ylim", ylim, x, 1))
    xx0, xx1 = np.meshgrid(*(np.linspace(*ends, n) for ends in both))
    return {"xx0": xx0, "xx1": xx1, "x": x}


def _limits(name: str, limits: Any, x: np.ndarray | None, feature: int) -> tuple[float, float]:
    if limits is None and x is not None:
        low, high = float(x[:, feature].min()), float(x[:, feature].max())
        margin = MARGIN * (high - low) or 1.0
        return low - margin, high + margin
    ends = np.asarray(limits)
    is_pair = ends.shape == (2,) and ends.dtype.kind in "iuf" and -np.inf < ends[0] < ends[1] < np.inf
    accepted = "two finite numbers, the lower first" + (" (without `x` there is no default)" if limits is None else "")
    _require(is_pair, name, accepted, limits, f"Pass for example `{name}=(-0.5, 1.5)`.")
    return float(ends[0]), float(ends[1])


def _answers(predict: Callable, grid: dict, before: int, **options: Any) -> np.ndarray:
    """Returns raw outputs (..., grid, grid) or (..., grid, grid, class), with so many axes before the grid's."""
    points = np.column_stack((grid["xx0"].ravel(), grid["xx1"].ravel())).astype("float32")
    outputs = predict(points, **options)
    is_one = not isinstance(outputs, list | tuple | dict) and np.ndim(outputs) - before in (1, 2)
    step = "Draw a `keras.Model` that ends in one number, or in one for each class."
    _require(is_one, "model", "a model with one output (sample, class)", outputs, step)
    outputs = np.asarray(outputs)
    classes = outputs.shape[before + 1 :]
    return outputs.reshape(*outputs.shape[:before], *grid["xx0"].shape, *(classes if classes != (1,) else ()))


def _classes(y: Any, outputs: tuple, threshold: Any) -> dict:
    """Returns what a record keeps of the classes: `labels`, `classes`, `threshold`."""
    labels, classes = None, list(range(*outputs or (2,)))
    if y is not None:
        labels = np.asarray(y)
        if labels.ndim == 2 and labels.shape[1] in (1, *outputs):
            labels = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(axis=1)
        found = np.unique(labels).tolist()
        classes = found if not outputs and len(found) == 2 else classes
        accepted = f"class numbers from 0 to {classes[-1]}, or one-hot" if outputs else "labels of two classes"
        is_known = labels.ndim == 1 and set(found) <= set(classes)
        _require(is_known, "y", accepted, y, f"It holds {reprlib.repr(found)}: the model tells {len(classes)} apart.")
        labels = np.searchsorted(classes, labels)
    threshold = sum(classes[:2]) / 2 if threshold is None else float(threshold)
    return {"labels": labels, "classes": tuple(classes), "threshold": threshold}


def _chosen(cohort: Any, members: Any) -> np.ndarray:
    """Returns the positions in the cohort of the members to show."""
    is_cohort = hasattr(cohort, "seeds") and hasattr(cohort, "predict")
    _require(is_cohort, "cohort", "a `kohort.Cohort`", cohort, "Draw one model with `decision_boundary`.", TypeError)
    seeds = list(cohort.seeds)
    wanted = seeds[: max(members, 0)] if isinstance(members, int | np.integer) else list(members)
    accepted = f"a number of at least 1, or seeds among {reprlib.repr(seeds)}"
    _require(wanted and set(wanted) <= set(seeds), "members", accepted, members, "Pass for example 64.")
    return np.array([seeds.index(seed) for seed in wanted])


def _logs(source: Any, name: str, metric: str) -> Any:
    """Returns the history of a source, which must have the metric."""
    logs = source if isinstance(source, Mapping) else getattr(source, "history", source)
    _require(isinstance(logs, Mapping), "source", "what a `fit` returned, or a cohort", source, "Fit first.", TypeError)
    names = [each for each in logs if np.ndim(logs[each]) < 3]
    accepted = f"one of {', '.join(map(repr, names))}" if names else "a number that a `fit` recorded"
    _require(metric in names, name, accepted, metric, "Metrics are named in `model.compile(metrics=...)`.")
    return logs


def _curves(metric: str, values: Any, epoch: Any) -> HistoryCurves:
    values = np.atleast_2d(np.asarray(values, float))
    epochs = 1 + np.asarray(epoch or range(values.shape[1]))
    every = max(1, len(epochs) // max(1, values.shape[1]))  # Keras's own list of a `val_` metric leaves no gaps
    has_value = np.isfinite(values).any(axis=0)
    epochs = epochs[every - 1 :: every][: values.shape[1]][has_value]
    values = np.where(np.isfinite(values), values, np.nan)[:, has_value]
    quantiles = np.nanquantile(values, (0.1, 0.5, 0.9), axis=0) if values.size else np.empty((3, 0))
    return HistoryCurves(metric=metric, epochs=epochs, values=values, quantiles=quantiles)


def _is_higher_better(metric: str) -> bool:
    return not HIGHER_IS_BETTER.isdisjoint(metric.lower().replace("io_u", "iou").split("_"))


def _tints(n: int) -> np.ndarray:
    """Returns the colours of the regions, between a class's own and the background."""
    own, ground = [COLOURS[k % 10] for k in range(n)], rcParams["axes.facecolor"]
    return 0.3 * to_rgba_array(own) + 0.7 * to_rgba_array(ground)


def _axes(ax: Any, size: tuple[float, float]) -> Axes:
    is_fit = ax is None or isinstance(ax, Axes)
    _require(is_fit, "ax", "Matplotlib axes or None", ax, "`plt.subplots()` makes some.", TypeError)
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax
