"""How far members agree: at each point the share of them that say one class.

In come a trained cohort and samples; out comes a record of shares over a plane. The room exists because the spread of
a thousand boundaries is the uncertainty that one boundary hides.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.colors import to_rgba_array
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from kohort.plot.plane import cut, features_of
from kohort.plot.sources import answers_of_members, check_cohort, chosen, diverged, threshold_of
from kohort.plot.style import BAND, LETTER, between_classes, check_axes, counted, halo, on_axes, require
from kohort.plot.surface import Surface, meaning, votes

# Of several classes: the shares at which the colour of the one that most members say gets fainter, and how much.
LEVELS, VEILS = (0.5, 0.7, 0.9), (0.85, 0.6, 0.3, 0.0)
SMALL = 8  # points of a letter on a line


@dataclass(kw_only=True, eq=False, repr=False)
class Spread(Surface):
    """The share of members that say a class, or each of several, over a plane; `spread` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> xx0, xx1 = np.meshgrid([0.0, 1.0], [0.0, 1.0])
        >>> kohort.plot.Spread(xx0=xx0, xx1=xx1, share=xx0, members=10).plot().ax_.get_xlabel()
        'x[:, 0]'
    """

    share: np.ndarray  # of the members, which say `label` at each grid point, (grid, grid), or (class, grid, grid)
    label: Any = 1  # the class they say; None: each of the classes
    members: int  # that are counted
    diverged: int = 0  # that are not, as their last loss or their answers are not finite
    ax_: Any = field(default=None, init=False)  # once drawn

    def plot(self, ax: Any = None) -> "Spread":
        """Draws the record on `ax`, or in a figure made here, and returns it."""
        self.ax_ = on_axes(ax, (6.4, 4.6))
        self.figure_ = self.ax_.figure
        if self.label is None:
            return self._plot_all(ax is None)
        colours = {"levels": np.linspace(0, 1, 11), "cmap": between_classes(), "zorder": 0}
        region = self.ax_.contourf(self.xx0, self.xx1, self.share, **colours)
        inside = [level for level in BAND if self.share.min() < level < self.share.max()]
        looks, lines = [self._line(level) for level in inside], None
        if inside:
            style = {"colors": rcParams["text.color"], "linewidths": [look["linewidth"] for look in looks]}
            dashes = [look["linestyle"] for look in looks]
            lines = self.ax_.contour(self.xx0, self.xx1, self.share, levels=inside, linestyles=dashes, **style)
        if self.x is not None:
            self.draw_samples(self.ax_, self.x, 7.5)
        self.name_axes(self.ax_)
        if lines is not None:  # once the limits are set
            self._name_lines(lines)
        if ax is None:
            self._explain(region)
        return self

    def _plot_all(self, is_ours: bool) -> "Spread":
        """Draws the class that most members say, fainter the fewer they are, and where nine of ten agree."""
        self.paint_classes(self.ax_, np.moveaxis(self.share, 0, -1), 12.0)
        most = self.share.max(axis=0)
        veils = to_rgba_array([rcParams["axes.facecolor"]] * len(VEILS))
        veils[:, 3] = VEILS
        levels = [0, *LEVELS, 1.01]
        self.ax_.contourf(self.xx0, self.xx1, most, levels, colors=veils, zorder=0)
        if most.min() < BAND[2] < most.max():
            line = {"colors": rcParams["text.color"], **{f"{name}s": how for name, how in self._line(BAND[2]).items()}}
            self.ax_.contour(self.xx0, self.xx1, most, levels=[BAND[2]], **line)
        if self.x is not None:
            self.draw_samples(self.ax_, self.x, 7.5)
        self.name_axes(self.ax_)
        if is_ours:
            lines = {"lead changes": BAND[1], "90 % agree": BAND[2]}
            handles = [self._drawn(name, level) for name, level in lines.items()]
            title = f"what most of {self._counted()} say, fainter the fewer they are"
            columns = math.ceil(len(self.classes) / math.ceil(len(self.classes) / 4))  # the lines stand below them
            self.draw_legend(self.figure_, *handles, title=title, loc="outside upper center", ncols=columns)
        return self

    def _name_lines(self, lines: Any) -> None:
        """Writes on the lines of 10 % and 90 %, which look alike, what they are: each where most room is."""
        from scipy.spatial import KDTree

        room, box = 4 * SMALL * LETTER * self.ax_.figure.dpi, self.ax_.get_window_extent()
        pixels = {
            level: self.ax_.transData.transform(path.vertices)
            for level, path in zip(lines.levels.tolist(), lines.get_paths(), strict=True)
        }
        samples = [] if self.x is None else [self.ax_.transData.transform(self.x)]
        written: dict = {}
        for level in (level for level in (BAND[0], BAND[2]) if level in pixels):
            others = [places for each, places in pixels.items() if each != level] + samples
            is_free = ((pixels[level] > box.min + room) & (pixels[level] < box.max - room)).all(axis=1)
            for place in written.values():
                is_free &= np.hypot(*(pixels[level] - place).T) > 1.5 * room
            places = pixels[level][is_free]
            if len(places):
                gaps = KDTree(np.vstack(others)).query(places)[0] if others else np.zeros(len(places))
                written[level] = places[gaps.argmax()]
        style = {"fontsize": SMALL, "inline_spacing": 1, "fmt": lambda share: f"{100 * share:.0f} %", "zorder": 5}
        if written:
            at = self.ax_.transData.inverted().transform(list(written.values()))
            for text in self.ax_.clabel(lines, list(written), manual=at, **style):
                text.set(path_effects=halo(), color=rcParams["text.color"])

    def _counted(self) -> str:
        without = f", without {self.diverged:,} diverged" if self.diverged else ""
        return counted(self.members, "member") + without

    @staticmethod
    def _line(level: float) -> dict:
        is_median = level == BAND[1]
        return {"linestyle": "-" if is_median else "--", "linewidth": 2.0 if is_median else 1.0}

    def _drawn(self, name: str, level: float) -> Line2D:
        """Returns what a legend shows of a line."""
        return Line2D([], [], color=rcParams["text.color"], label=name, **self._line(level))

    def _explain(self, region: Any) -> None:
        """Adds a bar for the shares and a legend for lines and markers."""
        bar = self.figure_.colorbar(region, ax=self.ax_, format=PercentFormatter(1), ticks=np.linspace(0, 1, 6))
        bar.set_label(f"members that say class {self.label:g}")
        lines = {"half of the members": BAND[1], "10 % and 90 %": BAND[0]}
        handles = [self._drawn(name, level) for name, level in lines.items()]
        if self.labels is not None:
            handles += [Line2D([], [], **look) for look in self.looks()]
        title = self._counted()
        self.figure_.legend(handles=handles, title=title, loc="outside upper center", ncols=2, frameon=False)


def spread(
    cohort: Any,
    x: Any = None,
    y: Any = None,
    *,
    label: Any = None,
    xlim: Any = None,
    ylim: Any = None,
    features: Any = None,
    fixed: Any = None,
    projection: Any = None,
    members: int | Iterable[int] | None = None,
    grid_resolution: int = 100,
    threshold: float | int | None = None,
    ax: Any = None,
) -> Spread:
    """Computes and draws at each point the share of members that say class 1, or of several classes each one.

    The solid line is the median boundary: on one side of it more than half of the members say the class, on the other
    fewer. Between the dashed lines, where 10 % and 90 % of them say it, the start of the training decides. Of several
    classes each point has the colour of the one that most members say, and is the fainter the fewer they are. A member
    that is undecided at a point, between classes that score alike to a thousandth, counts for each of them in part.

    Args:
        cohort: A trained `kohort.Cohort` of classifiers.
        x: Samples, as for `decision_boundary`.
        y: Their classes, likewise.
        label: The class whose share is shown. Default: of two the second one, such as the 1 of 0 and 1; of more, all.
        xlim: Limits of the first axis, likewise.
        ylim: Limits of the second axis, likewise.
        features: Of more than two features the two to draw, likewise.
        fixed: Where the others are held, likewise.
        projection: Instead of these, a projection onto two components, likewise.
        members: How many members to count at most, the first ones; or their seeds. Default: all.
        grid_resolution: Grid points along each axis, at least 2.
        threshold: As for `decision_boundary`.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The record, drawn: `xx0`, `xx1`, `points`, `share` and so on. Members that diverged say nothing: they are not
        counted, and `diverged` tells how many they are.

    Raises:
        TypeError, ValueError: An argument is not what it must be, or all members diverged.

    Example:
        >>> import kohort, keras
        >>> model = keras.Sequential([keras.Input(shape=(2,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer="sgd", loss="mse")
        >>> cohort, (x, y) = kohort.Cohort(model, seeds=5), kohort.data.xor()
        >>> history = cohort.fit(x, y, epochs=1, verbose=0)
        >>> share = kohort.plot.spread(cohort, x, y, grid_resolution=10).share
        >>> share.shape, bool(((share >= 0) & (share <= 1)).all())
        ((10, 10), True)

    Source:
        The vote of an ensemble, as in Breiman, Bagging predictors (1996), of networks that differ in their seed.
    """
    check_axes(ax)
    check_cohort(cohort)
    among = chosen(cohort, len(cohort.seeds) if members is None else members)
    n = features_of(cohort, x)
    plane = cut(n, x, y, xlim, ylim, grid_resolution, features, fixed, projection)
    responses = answers_of_members(cohort, plane)[among]
    means = meaning(responses, responses.shape[3:], y, threshold_of(cohort, threshold), regression=False)
    classes = means["classes"]
    label = classes[1] if label is None and len(classes) == 2 else label
    named = ", ".join(f"{name:g}" for name in classes)
    require(label is None or label in classes, "label", f"one of the classes {named}", label, "Pass one of them.")
    finite = ~diverged(cohort, among, responses)
    step_back = "Train with a smaller learning rate."
    require(finite.any(), "cohort", "one of which at least one member did not diverge", cohort, step_back)
    shares = votes(responses[finite], means["threshold"]).mean(axis=1)
    share = shares if label is None else shares[classes.index(label)]
    counts: dict[str, Any] = {"members": int(finite.sum()), "diverged": int((~finite).sum())}
    return Spread(**plane, **means, **counts, share=share, label=label).plot(ax)
