"""The picture of how often networks solve a problem, by what they are made of.

In come a study and a bound; out comes a record of counts, rates and intervals at each value of one parameter, or of
two. The room exists because "more units help" is a claim about rates, and a rate without its interval is an anecdote.
"""

import contextlib
import math
import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.colors import to_rgba
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from kohort.history import Criterion
from kohort.plot.sources import check_names, is_study
from kohort.plot.sources import criterion as in_words
from kohort.plot.style import (
    COLOURS,
    LONGEST,
    MARKERS,
    NUMBERS,
    Display,
    check_axes,
    counted,
    fit_labels,
    on_axes,
    require,
    shortened,
)
from kohort.plot.surface import HATCH
from kohort.store import canonical

LINES_APART, POINTS_APART = 5, 8  # points from the interval of one group to that of the next, at the same value
MIDDLE = 0.47  # the rate from which on black reads better than white on its colour


@dataclass(kw_only=True, eq=False, repr=False)
class Success(Display):
    """How often the trials of a study solve a problem, by their parameters; `success` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> counts = {"solved": np.array([[1, 3]]), "members": np.array([[4, 4]])}
        >>> rates = {"rate": np.array([[0.25, 0.75]]), "low": np.zeros((1, 2)), "high": np.ones((1, 2))}
        >>> kohort.plot.Success(over="hidden", places=(2, 4), **counts, **rates).plot().ax_.get_xlabel()
        'hidden'
    """

    over: str  # the parameter along the first axis
    places: tuple  # its values, (place,)
    by: str | None = None  # the second parameter, if there is one
    groups: tuple = (None,)  # its values, (group,)
    solved: np.ndarray  # members that met the criterion, (group, place)
    members: np.ndarray  # that are trained, 0 where there is no such trial, likewise
    rate: np.ndarray  # solved / members, NaN where there is no such trial, likewise
    low: np.ndarray  # lower end of its Wilson interval, likewise
    high: np.ndarray  # upper end
    criterion: str = ""  # in words
    note: str = ""  # where other parameters are held
    confidence: float = 0.95
    is_map: bool = False  # whether it is drawn as a heat map, and not as lines
    ax_: Any = field(default=None, init=False)  # once drawn
    figure_: Any = field(default=None, init=False)  # once drawn

    def plot(self, ax: Any = None) -> "Success":
        """Draws the record on `ax`, or in a figure made here, and returns it."""
        size = (2.4 + 0.8 * max(3, len(self.places)), 1.8 + 0.6 * max(3, len(self.groups)))
        self.ax_ = on_axes(ax, size if self.is_map else (6.4, 4.4))
        self.figure_ = self.ax_.figure
        lines = [f"solved: {self.criterion}" if self.criterion else "", self.note]
        self.ax_.set_title("\n".join(filter(None, lines)), fontsize="medium")
        (self._plot_map if self.is_map else self._plot_lines)(self.ax_, ax is None)
        fit_labels(self.ax_)
        return self

    def _counted(self) -> str:
        counts = np.unique(self.members[self.members > 0]).tolist()
        fewest = f"{counts[0]:,} to " if len(counts) > 1 else ""
        return f"{fewest}{counted(counts[-1], 'member')} each, {100 * self.confidence:g} % interval"

    # One line for each value of the second parameter.

    def _plot_lines(self, ax: Any, is_ours: bool) -> None:
        is_scale, is_free = _are_numbers(self.places), isinstance(ax.xaxis.get_major_locator(), MaxNLocator)
        at = np.array(self.places, float) if is_scale else np.arange(len(self.places))
        ax.set(xlabel=self.over, ylabel="members that solve it", ylim=(-0.04, 1.04), xlim=(-0.5, len(at) - 0.5))
        if is_scale:
            _scale(ax, at)
        gap = np.diff(ax.transData.transform(np.column_stack((at, 0 * at)))[:, 0]).min(initial=np.inf)
        apart = min(LINES_APART if is_scale else POINTS_APART, 0.6 * 72 / ax.figure.dpi * gap / len(self.groups))
        for k in range(len(self.groups)):
            aside = apart * (k - (len(self.groups) - 1) / 2)
            self._draw_group(ax, at, k, aside / 72, linestyle="-" if is_scale else "none")
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        if is_free:
            _name_places(ax, at, list(map(_shown, self.places)), is_scale)
        if is_ours:
            longest = max(len(_shown(group)) for group in self.groups)
            rows = math.ceil(len(self.groups) / max(1, min(5, 60 // (longest + 6))))
            columns = math.ceil(len(self.groups) / rows)
            title = f"{shortened(self.by)} ({self._counted()})" if self.by else None
            self.figure_.legend(loc="outside upper center", ncols=columns, frameon=False, title=title)

    def _draw_group(self, ax: Any, at: np.ndarray, k: int, aside: float, **look: Any) -> None:
        """Draws the rates of one group with their intervals, so many inches aside."""
        has = self.members[k] > 0
        ends = np.maximum(0, [(self.rate - self.low)[k, has], (self.high - self.rate)[k, has]])
        look |= {"marker": MARKERS[k % 9], "color": COLOURS[k % 10], "capsize": 3}
        look |= {"markeredgecolor": rcParams["text.color"], "markeredgewidth": 0.6}
        look["transform"] = ax.transData + ScaledTranslation(aside, 0, ax.figure.dpi_scale_trans)
        look["label"] = _shown(self.groups[k]) if self.by else self._counted()
        ax.errorbar(at[has], self.rate[k, has], yerr=ends, **look)

    # One cell for each pair of values.

    def _plot_map(self, ax: Any, is_ours: bool) -> None:
        rows, columns = self.rate.shape
        style = {"cmap": NUMBERS, "vmin": 0, "vmax": 1, "edgecolors": rcParams["axes.facecolor"]}
        cells = ax.pcolormesh(np.arange(columns), np.arange(rows), self.rate, **style)
        ax.set(xlabel=self.over, ylabel=self.by)
        ax.set_yticks(np.arange(rows), list(map(_shown, self.groups)))
        _name_places(ax, np.arange(columns), list(map(_shown, self.places)), is_scale=False)
        ax.tick_params(length=0)
        inches = ax.get_window_extent().size / ax.figure.dpi
        if is_ours:
            bar = self.figure_.colorbar(cells, ax=ax, format=PercentFormatter(1))
            bar.set_label(f"members that solve it\n({self._counted()})", fontsize="small")
            inches = np.array([0.8 * columns, 0.6 * rows])  # as the figure was made for it
        size = min(10.0, *(72 * inches / (3.6 * columns, 2.8 * rows)))
        for row, column in np.ndindex(rows, columns):
            self._write_cell(ax, row, column, size)

    def _write_cell(self, ax: Any, row: int, column: int, size: float) -> None:
        """Writes the rate and its interval into a cell, in letters that stand out; hatches one without a trial."""
        if not self.members[row, column]:
            look = {"hatch": HATCH, "edgecolor": to_rgba(rcParams["text.color"], 0.4), "linewidth": 0}
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, **look))
            return
        rate, low, high = (float(each[row, column]) for each in (self.rate, self.low, self.high))
        text = f"{100 * rate:.0f} %\n{100 * low:.0f}–{100 * high:.0f}"
        ground = [withStroke(linewidth=1, foreground=colormaps[NUMBERS](rate))]
        style = {"ha": "center", "va": "center", "fontsize": size, "path_effects": ground}
        ax.text(column, row, text, color="black" if rate > MIDDLE else "white", **style)


def success(
    study: Any,
    criterion: Criterion | None = None,
    /,
    *,
    over: Any = None,
    by: Any = None,
    fixed: Any = None,
    confidence: float = 0.95,
    ax: Any = None,
    **bounds: float | int,
) -> Success:
    """Computes and draws how often the trials of a study solve a problem, by their parameters.

    Over a parameter of numbers, such as the width of a layer, there is a line for each value of a second one, such as
    the activation, with the Wilson interval of each rate. Two parameters of numbers make a heat map.

    Args:
        study: A `kohort.Study`, or what `kohort.open` gives.
        criterion: Callable that takes a history and returns one truth value per member, as in `study.table`.
        over: The parameter along the first axis. Default: of those that have several values the first of numbers.
        by: The second parameter. Default: the other one that has several values, if there is one.
        fixed: Parameter to the value at which it is held, where more than two have several.
        confidence: Confidence level of the intervals, between 0 and 1.
        ax: Matplotlib axes to draw on; None makes a figure.
        **bounds: Metric name to the bound that its last value must reach, as in `study.table`.

    Returns:
        The record, drawn: `places`, `groups`, `solved`, `members`, `rate`, `low`, `high` and so on.

    Raises:
        OSError: The study cannot be read.
        RuntimeError: No member of the study is trained yet.
        TypeError, ValueError: An argument is not what it must be.

    Example:
        >>> import kohort, keras
        >>> def network(hidden, activation):
        ...     layers = [keras.layers.Dense(hidden, activation), keras.layers.Dense(1)]
        ...     model = keras.Sequential([keras.Input((2,)), *layers])
        ...     model.compile(keras.optimizers.RMSprop(1e-2), "mse")
        ...     return model
        >>> study = kohort.Study("rates.kohort", network, {"hidden": [2, 8], "activation": ["relu", "tanh"]}, seeds=20)
        >>> study.run(*kohort.data.xor(), epochs=400, verbose=0)
        >>> record = kohort.plot.success(study, loss=0.01)
        >>> record.over, record.places, record.by, record.groups, record.solved.shape
        ('hidden', (2, 8), 'activation', ('relu', 'tanh'), (2, 2))

    Source:
        Wilson (1927), by `scipy.stats.binomtest`.
    """
    check_axes(ax)
    step = "Count the members of one cohort with `cohort.success_rate(loss=0.01)`."
    is_path: Any = isinstance(study, str | os.PathLike)
    step = "Open it: `kohort.open(path)`." if is_path else step
    require(is_study(study), "study", "a `kohort.Study`, or what `kohort.open` gives", study, step, TypeError)
    accepted = "at least one metric with its bound, where there is no criterion"
    require(criterion is not None or bounds, "bounds", accepted, bounds, "Write for example `loss=0.01`.")
    trials = [trial for trial in study.trials if len(trial)]
    if not trials:
        raise RuntimeError(
            f"`study` must have members that are trained. Received: study={study!r}. Call `study.run` first."
        )
    check_names(success, bounds, trials[0].direction, "a metric of the history with its bound")
    trials = _held(trials, fixed)
    over, by = _axes(trials, over, by, fixed)
    places, groups = _values(trials, over), _values(trials, by)
    is_map = by is not None and min(len(places), len(groups)) > 1 and _are_numbers((*places, *groups))
    parts: dict[str, Any] = {name: np.full((len(groups), len(places)), np.nan) for name in ("rate", "low", "high")}
    parts |= {name: np.zeros((len(groups), len(places)), int) for name in ("solved", "members")}
    for trial in trials:
        place = _place(groups, trial, by), _place(places, trial, over)
        found = trial.success_rate(criterion, confidence=confidence, **bounds)
        told = {"solved": found.k, "members": found.n, **found._asdict()}
        for name, array in parts.items():
            array[place] = told[name]
    names = {name: trials[0].direction(name) for name in bounds}
    words = [] if criterion is None else [getattr(criterion, "__name__", "criterion").replace("<lambda>", "criterion")]
    said = ", ".join(filter(None, [*words, in_words(bounds, names)]))
    note = ", ".join(f"{name} = {_shown(value)}" for name, value in (fixed or {}).items())
    axes: dict[str, Any] = {"over": over, "by": by, "places": places, "groups": groups, "is_map": is_map}
    return Success(**axes, **parts, criterion=said, note=note, confidence=confidence).plot(ax)


def _values(trials: list, name: str | None) -> tuple:
    """Returns the values of a parameter: numbers in order, others as they came; lists as tuples."""
    found = {} if name is None else {_key(trial.parameters.get(name)): trial.parameters.get(name) for trial in trials}
    values = tuple(tuple(value) if isinstance(value, list) else value for value in found.values()) or (None,)
    return tuple(sorted(values)) if _are_numbers(values) else values


def _place(values: tuple, trial: Any, name: str | None) -> int:
    return 0 if name is None else [_key(value) for value in values].index(_key(trial.parameters.get(name)))


def _key(value: Any) -> str:
    """Returns what tells values of parameters apart, the same for those of NumPy; for other things nothing."""
    with contextlib.suppress(TypeError, ValueError):
        return canonical(value.item() if hasattr(value, "item") else value)
    return ""


def _are_numbers(values: tuple) -> bool:
    return all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values)


def _shown(value: Any) -> str:
    """Writes a value in few letters, of a long one its two ends."""
    return shortened(f"{value:g}" if isinstance(value, float) else value)


def _held(trials: list, fixed: Any) -> list:
    """Returns the trials whose parameters are as told."""
    step = "Pass for example `fixed={'learning_rate': 0.01}`."
    require(
        fixed is None or isinstance(fixed, Mapping), "fixed", "a dict from parameter to value", fixed, step, TypeError
    )
    for name, value in (fixed or {}).items():
        _check_parameter(trials, "fixed", name)
        known = ", ".join(map(repr, _values(trials, name)))
        kept = [trial for trial in trials if _key(trial.parameters.get(name)) == _key(value)]
        require(
            kept, "fixed", f"a dict of values that trials have, {name!r} one of {known}", fixed, "Pass one of them."
        )
        trials = kept
    return trials


def _check_parameter(trials: list, argument: str, name: Any) -> None:
    names = list(dict.fromkeys(name for trial in trials for name in trial.parameters))
    accepted = f"one of the parameters {', '.join(map(repr, names))}" if names else "left out: trials have no parameter"
    require(
        isinstance(name, str) and name in names,
        argument,
        accepted,
        name,
        "They are those in the grid: what only has a default is the same in all trials.",
    )


def _axes(trials: list, over: Any, by: Any, fixed: Any) -> tuple[str, str | None]:
    """Returns the parameters to draw along the axes, which must tell the trials apart."""
    for argument, name in (("over", over), ("by", by)):
        if name is not None:
            _check_parameter(trials, argument, name)
    require(over is None or over != by, "by", "another parameter than `over`", by, "Leave it out, or pass another one.")
    names = dict.fromkeys(name for trial in trials for name in trial.parameters)
    step = "Count them with `study.trial().success_rate(loss=0.01)`."
    require(names, "study", "one whose networks have parameters", trials, step)
    several = [name for name in names if len(_values(trials, name)) > 1]
    if over is None:
        free = [name for name in several if name != by] or [name for name in names if name != by]
        over = next((name for name in free if _are_numbers(_values(trials, name))), free[0])
    others = [name for name in several if name not in (over, by)]
    if by is None and others:
        by = others.pop(0)
    held = {name: _values(trials, name)[0] for name in others}
    accepted = f"given, with a value for {', '.join(map(repr, held))}: trials differ in more than two parameters"
    require(not held, "fixed", accepted, fixed, f"Pass for example by={by!r}, fixed={held}.")
    return over, by


def _scale(ax: Any, at: np.ndarray) -> None:
    """Sets the limits of the axis, which is logarithmic where positive numbers span more than a decade."""
    if at[0] > 0 and at[-1] > 10 * at[0]:
        margin = (at[-1] / at[0]) ** 0.06
        ax.set(xscale="log", xlim=(at[0] / margin, at[-1] * margin))
    else:
        margin = 0.06 * (at[-1] - at[0]) or 1.0
        ax.set_xlim(at[0] - margin, at[-1] + margin)


def _name_places(ax: Any, at: np.ndarray, labels: list[str], is_scale: bool) -> None:
    """Sets ticks at the values: of numbers as many as there is room for, of names all, aslant or upright if long."""
    size = FontProperties(size=rcParams["xtick.labelsize"]).get_size_in_points()
    points = ax.transData.transform(np.column_stack((at, 0.5 + 0 * at)))[:, 0] / ax.figure.dpi * 72
    halves = [0.35 * size * (len(label) + 1) for label in labels]
    kept = [0]
    for i in range(1, len(at)):
        if points[i] - halves[i] > points[kept[-1]] + halves[kept[-1]]:
            kept.append(i)
    if is_scale:
        ax.set_xticks(at[kept], [labels[i] for i in kept])
        ax.xaxis.set_minor_locator(NullLocator())
    elif len(kept) == len(at):
        ax.set_xticks(at, labels)
    else:
        apart = np.diff(points).min()
        turned = {"rotation": 30 if apart > 2.4 * size else 90, "ha": "right", "rotation_mode": "anchor"}
        turned["va"] = "top" if turned["rotation"] == 30 else "center"
        every = math.ceil(1.2 * size / apart)
        letters = LONGEST if ax.figure.get_layout_engine() is not None else 10  # else they reach a neighbour
        ax.set_xticks(at[::every], [shortened(label, letters) for label in labels[::every]], **turned)
