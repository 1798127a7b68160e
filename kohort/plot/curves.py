"""Curves over the epochs: one metric of one network, or of all members of a cohort.

In comes what a `fit` returned; out comes a record of every member's values and their quantiles. The room exists
because a mean follows the few that explode, and one curve follows one lucky start.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.collections import LineCollection
from matplotlib.ticker import LogLocator

from kohort.plot.sources import logs_of, names_of_outcomes
from kohort.plot.style import (
    BAND,
    COLOURS,
    Display,
    check_axes,
    cover,
    fit_labels,
    halo,
    on_axes,
    set_ticks,
    shortened,
    show_faint_lines,
)

MAX_LINES = 200  # faint lines in a history, about; its record keeps every member
HIGHER_IS_BETTER = {"acc", "accuracy", "auc", "iou", "precision", "recall", "score", "similarity"}
# How members end that did not run to the last epoch: a marker, a colour and a dash of their own.
ENDS = {
    "stopped": {"label": "stopped early", "marker": "o", "color": COLOURS[8], "linestyle": "-"},
    "diverged": {"label": "diverged", "marker": "x", "color": COLOURS[2], "linestyle": ":"},
}


@dataclass(kw_only=True, eq=False, repr=False)
class HistoryCurves(Display):
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
    quantiles: np.ndarray  # 10, 50 and 90 % over the members, (3, epoch)
    ends: np.ndarray | None = None  # "stopped", "diverged" or "" for each member, (member,)
    validation: "HistoryCurves | None" = None  # the same on the validation data
    ax_: Any = field(default=None, init=False)  # once drawn
    figure_: Any = field(default=None, init=False)  # once drawn

    def plot(self, ax: Any = None) -> "HistoryCurves":
        """Draws the record on `ax`, or in a figure made here, and returns it; logarithmic if a loss spans a decade."""
        self.ax_, several = on_axes(ax, (6.4, 4.4)), len(self.values) > 1
        self.figure_ = self.ax_.figure
        if several:
            self._draw_members(self.ax_)
        for curves in filter(None, (self, self.validation)):
            look = {**curves.look, "label": f"{'median ' * several}{shortened(curves.metric)}"}
            if several:  # the median of the members must stand out from them, on any ground
                look |= {"path_effects": halo(4.0), "linewidth": 2}
            if several and curves is self:
                look["color"] = rcParams["text.color"]
            self.ax_.plot(curves.epochs, curves.quantiles[1], zorder=3, **look)
        if self.is_logarithmic:
            self.ax_.set_yscale("log", nonpositive="mask")
            self.ax_.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # all ten have no room beside each other
        self.ax_.set(xlabel="epoch", ylabel=self.metric)
        set_ticks(self.ax_.xaxis, integer=True)
        fit_labels(self.ax_)
        if not self.epochs.size:
            self.ax_.text(0.5, 0.5, "not finite", transform=self.ax_.transAxes, ha="center", va="center")
            self.ax_.set(xticks=[], yticks=[])
        if ax is None:
            legend = self.figure_.legend(loc="outside upper center", ncols=2, frameon=False)
            show_faint_lines(legend)
        return self

    @property
    def look(self) -> dict:
        """The line of the median."""
        is_validation = self.metric.startswith("val_")
        return {"color": COLOURS[6 * is_validation], "linestyle": "--" if is_validation else "-"}

    @property
    def is_logarithmic(self) -> bool:
        """Whether the scale is: where a loss spans more than a decade, and its median is positive."""
        positive = self.values[self.values > 0]
        spans_decade = positive.max(initial=0) > 10 * positive.min(initial=np.inf)
        is_better_higher = not HIGHER_IS_BETTER.isdisjoint(self.metric.lower().replace("io_u", "iou").split("_"))
        return bool(spans_decade and (self.quantiles[1] > 0).all() and not is_better_higher)

    def _draw_members(self, ax: Any) -> None:
        colour, every = self.look["color"], math.ceil(len(self.values) / MAX_LINES)
        band = {"color": colour, "alpha": cover(0.3), "linewidth": 0, "zorder": 2}
        ax.fill_between(self.epochs, *self.quantiles[[0, 2]], label="10 to 90 %", **band)
        ends = np.full(len(self.values), "") if self.ends is None else self.ends
        faint = {"alpha": cover(min(0.3, 30 * every / len(self.values))), "linewidth": 0.4}
        self._draw_lines(ax, self.values[ends == ""][::every], color=colour, **faint, zorder=1)
        # Of each kind the first is drawn at least: else the one that diverged among many would have no line.
        drawn = sum(len(self.values[ends == end][::every]) for end in ("", *ENDS))
        ax.collections[-1].set_label(f"{drawn} of {len(self.values)} members")
        for end, look in ENDS.items():
            if (ends == end).any():
                self._draw_ends(ax, self.values[ends == end], every, look, faint)

    def _draw_lines(self, ax: Any, values: np.ndarray, **style: Any) -> None:
        lines = np.stack([np.broadcast_to(self.epochs, values.shape), values], axis=-1)
        ax.add_collection(LineCollection(list(lines), **style))

    def _draw_ends(self, ax: Any, values: np.ndarray, every: int, look: dict, faint: dict) -> None:
        """Draws members that ended before the last epoch: some of their lines, and for each a marker where it did."""
        look = dict(look)
        dash, colour = look.pop("linestyle"), look["color"]
        self._draw_lines(ax, values[::every], color=colour, **(faint | {"linewidth": 0.8}), linestyle=dash, zorder=1)
        has_value = np.isfinite(values)
        rows = np.flatnonzero(has_value.any(axis=1))
        last = values.shape[1] - 1 - has_value[rows, ::-1].argmax(axis=1) if rows.size else rows
        look |= {"label": f"{len(values)} {look['label']}", "color": rcParams["text.color"]}
        style = {"linestyle": "none", "markersize": 5, "markerfacecolor": "none", "zorder": 4}
        ax.plot(self.epochs[last], values[rows, last], **look, **style)


def history(source: Any, metric: str = "loss", *, ax: Any = None) -> HistoryCurves:
    """Computes and draws a metric over the epochs, for one network or all members of a cohort.

    Of a cohort: members faint, the band that holds the middle 80 % of them, and their median. A mean would follow the
    few that explode, and one curve would follow one lucky start. A member that stopped early counts on with its last
    value, as its weights stay; one that diverged no longer counts. Both have a mark where they end. Of more than 200
    members only about 200 have a faint line, evenly taken and always the same; marks have all that stopped or diverged.

    Args:
        source: What `fit` returned, or a `kohort.Cohort`.
        metric: Its name. Its `val_` twin is drawn too, dashed, where there is one.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The record, drawn: `epochs`, `values`, `quantiles`, `ends` and so on.

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
    check_axes(ax)
    logs = logs_of(source, "metric", metric)
    epoch, twin = getattr(logs, "epoch", None) or getattr(source, "epoch", None), f"val_{metric}"
    record = _curves(metric, logs, epoch)
    record.validation = _curves(twin, logs, epoch) if twin in logs else None
    return record.plot(ax)


def _curves(metric: str, logs: Any, epoch: Any) -> HistoryCurves:
    values = np.atleast_2d(np.asarray(logs[metric], float))
    epochs = 1 + np.asarray(epoch or range(values.shape[1]))
    every = max(1, len(epochs) // max(1, values.shape[1]))  # Keras's own list of a `val_` metric leaves no gaps
    has_value = np.isfinite(values).any(axis=0)
    epochs = epochs[every - 1 :: every][: values.shape[1]][has_value]
    values = np.where(np.isfinite(values), values, np.nan)[:, has_value]
    ends = _ends(values, names_of_outcomes(logs))
    quantiles = np.empty((3, 0))
    if values.size:
        counted = np.where((ends == "stopped")[:, None], _carried(values), values)
        quantiles = np.nanquantile(counted, BAND, axis=0)
    return HistoryCurves(metric=metric, epochs=epochs, values=values, quantiles=quantiles, ends=ends)


def _ends(values: np.ndarray, outcomes: np.ndarray | None) -> np.ndarray:
    """Says how members ended: "stopped", "diverged", or "" in the last epoch."""
    has_no_last = ~np.isfinite(values[:, -1:]).all(axis=1) if values.size else np.ones(len(values), bool)
    if outcomes is None:
        return np.where(has_no_last, "diverged", "")
    is_stopped = outcomes == "STOPPED_EARLY"
    return np.where(is_stopped, "stopped", np.where((outcomes == "DIVERGED") | has_no_last, "diverged", ""))


def _carried(values: np.ndarray) -> np.ndarray:
    """Returns the values with each gap filled by the last value before it."""
    last = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(values.shape[1]), 0), axis=1)
    return np.take_along_axis(values, last, axis=1)
