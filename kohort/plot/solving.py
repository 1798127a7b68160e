"""The picture of how long it takes until a problem is solved.

In come a trained cohort and a bound; out comes a record of its survival curve with the band. The room exists because
"stuck" and "slow" look alike in a success rate, and differ here: a curve that still falls, or one that does not.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.ticker import PercentFormatter

from kohort.plot.sources import check_cohort, check_names, criterion
from kohort.plot.style import COLOURS, Display, check_axes, counted, cover, fit_labels, on_axes, set_ticks
from kohort.survival import survival_curve


@dataclass(kw_only=True, eq=False, repr=False)
class Survival(Display):
    """The share of members that have not solved a problem yet, by epoch; `survival` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> row = {"epochs": np.arange(2), "share": np.ones(2), "low": np.ones(2), "high": np.ones(2)}
        >>> kohort.plot.Survival(**row, first=np.full(3, np.nan), criterion="loss ≤ 1").plot().ax_.get_xlabel()
        'epoch'
    """

    epochs: np.ndarray  # from the one before the first, (epoch,)
    share: np.ndarray  # of the members, not solved by the end of the epoch, (epoch,)
    low: np.ndarray  # lower end of its interval, likewise
    high: np.ndarray  # upper end
    first: np.ndarray  # the first epoch, counted from 1, in which each member met the criterion, NaN: none; (member,)
    criterion: str  # in words
    confidence: float = 0.95
    stopped: int = 0  # members that stopped early, unsolved: censored then
    diverged: int = 0  # members that diverged, unsolved: never solved
    censored: np.ndarray = field(default_factory=lambda: np.empty(0))  # the epochs of those that stopped, (stopped,)
    ax_: Any = field(default=None, init=False)  # once drawn
    figure_: Any = field(default=None, init=False)  # once drawn

    def plot(self, ax: Any = None) -> "Survival":
        """Draws the record on `ax`, or in a figure made here, and returns it."""
        self.ax_ = on_axes(ax, (6.4, 4.4))
        self.figure_ = self.ax_.figure
        band = {"step": "post", "color": COLOURS[0], "alpha": cover(0.3), "linewidth": 0}
        label = f"{100 * self.confidence:g} % interval"
        self.ax_.fill_between(self.epochs, self.low, self.high, label=label, **band)
        solved = int(np.isfinite(self.first).sum())
        label = f"{counted(len(self.first), 'member')}, {solved:,} solved"
        self.ax_.step(self.epochs, self.share, where="post", color=COLOURS[0], label=label)
        if self.diverged:
            self.ax_.plot([], [], linestyle="none", label=f"{self.diverged:,} diverged: never solved")
        if self.stopped:
            self._mark_censored(self.ax_)
        self.ax_.set(xlabel="epoch", ylabel="members not solved yet", ylim=(-0.02, 1.02))
        self.ax_.set_title(f"solved: {self.criterion}", fontsize="medium")
        self.ax_.yaxis.set_major_formatter(PercentFormatter(1))
        set_ticks(self.ax_.xaxis, integer=True)
        fit_labels(self.ax_)
        if ax is None:
            self.figure_.legend(loc="outside upper center", ncols=2, frameon=False)
        return self

    def _mark_censored(self, ax: Any) -> None:
        """Draws a mark on the curve at each epoch in which members stopped early, unsolved."""
        at = np.unique(self.censored)
        share = self.share[np.searchsorted(self.epochs, at)]
        look = {"linestyle": "none", "marker": "|", "markersize": 11, "markeredgewidth": 1.4, "zorder": 3}
        look |= {"color": rcParams["text.color"], "label": f"{self.stopped:,} stopped early: censored there"}
        ax.plot(at, share, **look)


def survival(cohort: Any, *, confidence: float = 0.95, ax: Any = None, **bounds: float | int) -> Survival:
    """Computes and draws the share of members that have not solved the problem yet, by epoch.

    A member solves it in the first epoch in which all bounds hold. One that was stopped early without is censored
    there: nobody knows what it would have done. One that diverged never solves it, and counts to the end.

    Args:
        cohort: A trained `kohort.Cohort`.
        confidence: Confidence level of the band, between 0 and 1.
        ax: Matplotlib axes to draw on; None makes a figure.
        **bounds: Metric name to its bound: losses at most, accuracies at least; such as `loss=0.01`.

    Returns:
        The record, drawn: `epochs`, `share`, `low`, `high`, `first` and so on.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    Example:
        >>> import kohort, keras
        >>> model = keras.Sequential([keras.Input(shape=(2,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer="sgd", loss="mse")
        >>> cohort, (x, y) = kohort.Cohort(model, seeds=5), kohort.data.xor()
        >>> history = cohort.fit(x, y, epochs=3, verbose=0)
        >>> kohort.plot.survival(cohort, loss=0.01).share.tolist()
        [1.0, 1.0, 1.0, 1.0]

    Source:
        Kaplan and Meier (1958), by `scipy.stats.ecdf`; the band is its exponential Greenwood interval, and where that
        is undefined (nobody or everybody solved) the point itself, or down to 0.
    """
    check_axes(ax)
    check_cohort(cohort)
    history = cohort.history
    check_names(survival, bounds, history.__contains__, "a metric of the history with its bound")
    directions = {name: cohort.direction(name) for name in bounds}
    curve = survival_curve(history, bounds, directions, confidence)
    return Survival(**curve._asdict(), criterion=criterion(bounds, directions)).plot(ax)
