"""What networks of one feature answer along it: the curve of a regression, of many members with its band.

In come a trained model or cohort and, if wanted, samples; out comes a record of the answers along the feature. The room
exists because a network of one feature has no plane, and because members agree where there are samples, and part where
there are none.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from matplotlib import rcParams
from matplotlib.collections import LineCollection

from kohort.plot.plane import check_resolution, ends_along, flat
from kohort.plot.sources import diverged, way_from
from kohort.plot.style import (
    BAND,
    COLOURS,
    Display,
    check_axes,
    cover,
    fit_labels,
    halo,
    on_axes,
    require,
    set_ticks,
    show_faint_lines,
)

MAX_LINES = 200  # faint lines; the record keeps every member


@dataclass(kw_only=True, eq=False, repr=False)
class ResponseCurve(Display):
    """What networks of one feature answer along it; `response_curve` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> grid, responses = np.array([0.0, 1.0]), np.array([[0.0, 1.0], [0.0, 3.0]])
        >>> kohort.plot.ResponseCurve(grid=grid, responses=responses).plot().quantiles[1].tolist()
        [0.0, 2.0]
    """

    grid: np.ndarray  # values of the feature, (grid,)
    responses: np.ndarray  # raw outputs of the members that did not diverge, (member, grid)
    diverged: int = 0  # members that are left out, as their last loss or their answers are not finite
    x: np.ndarray | None = None  # samples, (sample,)
    y: np.ndarray | None = None  # their numbers, (sample,)
    name: str = "x"  # what the feature is called
    ax_: Any = field(default=None, init=False)  # once drawn
    figure_: Any = field(default=None, init=False)  # once drawn

    @property
    def quantiles(self) -> np.ndarray:
        """10, 50 and 90 % over the members, (3, grid)."""
        return np.quantile(self.responses, BAND, axis=0)

    def plot(self, ax: Any = None) -> "ResponseCurve":
        """Draws the record on `ax`, or in a figure made here, and returns it."""
        self.ax_, several = on_axes(ax, (6.4, 4.4)), len(self.responses) > 1
        self.figure_ = self.ax_.figure
        low, middle, high = self.quantiles
        look = {"color": COLOURS[0], "label": "answer"}
        if several:
            self._draw_members(self.ax_, low, high)
            look = {"color": rcParams["text.color"], "label": "median", "path_effects": halo(4.0), "linewidth": 2}
        self.ax_.plot(self.grid, middle, zorder=3, **look)
        if self.x is not None and self.y is not None:
            style = {"s": 16, "color": COLOURS[1], "edgecolors": rcParams["text.color"], "linewidths": 0.5}
            self.ax_.scatter(self.x, self.y, **style, zorder=4, label="sample")
        self.ax_.set(xlabel=self.name, ylabel="answer", xlim=(self.grid[0], self.grid[-1]))
        set_ticks(self.ax_.xaxis, nbins=8)
        fit_labels(self.ax_)
        if ax is None:
            title = f"without {self.diverged} diverged" if self.diverged else None
            legend = self.figure_.legend(loc="outside upper center", ncols=4, frameon=False, title=title)
            show_faint_lines(legend)
        return self

    def _draw_members(self, ax: Any, low: np.ndarray, high: np.ndarray) -> None:
        band = {"color": COLOURS[0], "alpha": cover(0.3), "linewidth": 0, "zorder": 2}
        ax.fill_between(self.grid, low, high, label="10 to 90 %", **band)
        every = math.ceil(len(self.responses) / MAX_LINES)
        drawn = self.responses[::every]
        lines = np.stack([np.broadcast_to(self.grid, drawn.shape), drawn], axis=-1)
        faint = {"alpha": cover(min(0.4, 30 * every / len(self.responses))), "linewidth": 0.5, "color": COLOURS[0]}
        label = f"{len(drawn)} of {len(self.responses)} members"
        ax.add_collection(LineCollection(list(lines), **faint, zorder=1, label=label))


def response_curve(
    source: Any,
    x: Any = None,
    y: Any = None,
    *,
    xlim: Any = None,
    grid_resolution: int = 200,
    ax: Any = None,
) -> ResponseCurve:
    """Computes and draws what networks of one feature answer along it.

    Of a cohort: members faint, the band that holds the middle 80 % of them, and their median. Where there are no
    samples, nothing holds the members together: the band tells how far an answer depends on the start of the training.

    Args:
        source: A trained Keras model of one feature and one output, or a `kohort.Cohort` of them.
        x: Samples to draw on top, shape (sample,) or (sample, 1); a table's column name goes to the axis.
        y: Their numbers, shape (sample,) or (sample, 1).
        xlim: Limits of the feature. Default: those of `x`, and a quarter more on each side.
        grid_resolution: Points along the feature, at least 2.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The record, drawn: `grid`, `responses`, `quantiles` and so on. Members that diverged are left out, and
        `diverged` tells how many they are.

    Raises:
        TypeError, ValueError: An argument is not what it must be, or all members diverged.

    Example:
        >>> import numpy as np, kohort, keras
        >>> x = np.linspace(-1, 1, 20).astype("float32")
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> cohort = kohort.Cohort(model, seeds=6)
        >>> history = cohort.fit(x, x**2, epochs=5, verbose=0)
        >>> kohort.plot.response_curve(cohort, x, x**2).responses.shape
        (6, 200)

    Source:
        Quantiles as `numpy.quantile`, linear between members.
    """
    check_axes(ax)
    step = way_from(source, "Pass a `keras.Model` or a `kohort.Cohort`.")
    require(hasattr(source, "predict"), "source", "a trained model or cohort", source, step, TypeError)
    check_resolution(grid_resolution, 200)
    name = str(getattr(x, "name", None) or next(iter(getattr(x, "columns", ())), "x"))
    seen, targets = flat("x", x), flat("y", y)
    is_pair = targets is None or (seen is not None and len(seen) == len(targets))
    require(is_pair, "y", "given with as many samples in `x`", y, "Pass both, or none.")
    grid = np.linspace(*ends_along(xlim, seen), int(grid_resolution))
    answers = _answers(source, grid[:, None].astype("float32"))
    is_cohort, every = hasattr(source, "seeds"), np.arange(len(answers))
    finite = ~diverged(source, every, answers) if is_cohort else np.isfinite(answers).all(axis=1)
    step = "Train with a smaller learning rate."
    require(finite.any(), "source", "one of which at least one network gives finite answers", source, step)
    curve = ResponseCurve(
        grid=grid, responses=answers[finite], diverged=int((~finite).sum()), x=seen, y=targets, name=name
    )
    return curve.plot(ax)


def _answers(source: Any, points: np.ndarray) -> np.ndarray:
    """Returns the answers (member, grid) of one model, or of all members of a cohort."""
    shape = getattr(source, "input_shape", None)
    step = "Of more features draw `kohort.plot.decision_boundary`, or of a cohort `kohort.plot.spread`."
    is_one = shape is None or shape == (None, 1)
    require(is_one, "source", "a network of one feature", source, step)
    answers: Any = source.predict(points, **({"verbose": 0} if isinstance(source, keras.Model) else {}))
    is_array = not isinstance(answers, list | tuple | dict)
    answers = np.asarray(answers)[None] if is_array and not hasattr(source, "seeds") else answers
    is_number = is_array and np.shape(answers)[2:] in ((), (1,)) and np.shape(answers)[1:2] == (len(points),)
    require(is_number, "source", "a network of one output", source, "Draw one that ends in `Dense(1)`.")
    return np.asarray(answers, float).reshape(len(answers), len(points))
