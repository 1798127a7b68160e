"""A plane through the space of features, as a grid, and the samples on it.

In come limits, samples, and what to do with the features beyond two; out go the points to ask a model about and all
that a record keeps of the plane. The room exists because every picture of what networks answer begins with one.
"""

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kohort import data
from kohort.plot.style import Display, fit_labels, require, set_ticks, shortened

MARGIN = 0.25  # of the samples' span, added on each side where no limits are given
SHOWN = 3  # fixed features that a note names one by one


@dataclass(kw_only=True, eq=False, repr=False)
class Plane(Display):
    """A grid over two axes, and the samples that lie there."""

    xx0: np.ndarray  # first coordinate at each grid point, (grid, grid)
    xx1: np.ndarray  # second coordinate, likewise
    points: np.ndarray | None = None  # all features at each grid point, (grid * grid, feature)
    x: np.ndarray | None = None  # samples, (sample, 2)
    names: tuple = ("x[:, 0]", "x[:, 1]")  # what the axes show
    note: str = ""  # where the features beyond two are held
    figure_: Any = field(default=None, init=False)  # once drawn

    @property
    def limits(self) -> dict:
        """The limits of both axes, by the names that Matplotlib's `ax.set` takes."""
        return {"xlim": tuple(self.xx0[0, [0, -1]]), "ylim": tuple(self.xx1[[0, -1], 0])}

    def name_axes(self, ax: Any, nbins: int = 6) -> None:
        """Names the axes, and says on top where the other features are held."""
        ax.set(xlabel=self.names[0], ylabel=self.names[1], **self.limits)
        for axis in (ax.xaxis, ax.yaxis):
            set_ticks(axis, nbins=nbins)
        if self.note:
            ax.set_title(self.note, fontsize="small")
        fit_labels(ax)


def features_of(model: Any, x: Any) -> int:
    """Returns how many features a model or cohort takes: what it says itself, else what the samples have, else two."""
    shape, name = getattr(model, "input_shape", None), "cohort" if hasattr(model, "seeds") else "model"
    is_flat = shape is None or (isinstance(shape, tuple) and len(shape) == 2 and not isinstance(shape[0], tuple))
    step = f"Its input shape is {shape}: draw one whose input shape is (None, 2)."
    require(is_flat, name, f"a {name} of one array of features (sample, feature)", model, step)
    stated = shape[1] if shape else None
    step = "Of one feature draw `kohort.plot.response_curve`."
    require(stated is None or stated >= 2, name, f"a {name} of at least two features", model, step)
    return stated or max(2, np.shape(x)[1] if np.ndim(x) == 2 else 2)


def limits_without(x: Any, xlim: Any, ylim: Any) -> tuple[Any, Any]:
    """Returns the limits of both axes, which without samples are -1 to 1: where scaled features lie."""
    default = (-1.0, 1.0) if x is None else None
    return default if xlim is None else xlim, default if ylim is None else ylim


def cut(
    n: int,
    x: Any,
    y: Any,
    xlim: Any,
    ylim: Any,
    grid_resolution: Any,
    features: Any = None,
    fixed: Any = None,
    projection: Any = None,
) -> dict:
    """Returns what a record keeps of the plane through the space of `n` features.

    Args:
        n: How many features the model takes.
        x: Samples (sample, feature), or None.
        y: Their targets, which are only checked for their length.
        xlim: Limits of the first axis, or None: those of the samples and a margin.
        ylim: Limits of the second axis, likewise.
        grid_resolution: Grid points along each axis.
        features: The two features to draw, by number or, of a table, by name.
        fixed: Feature to value, for the other features; those that are not named stay at the samples' medians.
        projection: A fitted projection onto two components, with `transform` and `inverse_transform`.

    Returns:
        `xx0`, `xx1`, `points`, `x`, `names` and `note`.

    Raises:
        TypeError, ValueError: An argument is not what it must be.
    """
    check_resolution(grid_resolution)
    require(x is not None or y is None, "y", "left out where `x` is", y, "Pass the samples as `x`.")
    columns = list(getattr(x, "columns", [f"x[:, {i}]" for i in range(n)]))
    table = x
    if x is not None:
        data.samples(x, y)
        x = np.asarray(x, float)
        is_fit = x.ndim == 2 and x.shape[1] == n
        require(is_fit, "x", f"of shape (sample, {n})", x, "Select the features that the model takes.")
    if projection is not None:
        onto, back, names, note = _projected(n, table, features, fixed, projection)
    else:
        onto, back, names, note = _held(n, x, columns, features, fixed)
    seen = None if x is None else onto(x)
    both = (_limits("xlim", xlim, seen, 0), _limits("ylim", ylim, seen, 1))
    xx0, xx1 = np.meshgrid(*(np.linspace(*ends, int(grid_resolution)) for ends in both))
    points = back(np.column_stack((xx0.ravel(), xx1.ravel()))).astype("float32")
    return {"xx0": xx0, "xx1": xx1, "points": points, "x": seen, "names": names, "note": note}


def _held(n: int, x: Any, columns: list, features: Any, fixed: Any) -> tuple[Callable, Callable, tuple, str]:
    """Returns the plane of two features, the others held at values: the ways onto it and back, names and a note."""
    accepted = f"given where the model takes {n} features: `features`, `fixed` or a `projection`"
    step = "Pass for example `features=(0, 1)`, which holds the others at the samples' medians."
    require(n == 2 or features is not None or fixed is not None, "features", accepted, features, step)
    is_mapping = fixed is None or isinstance(fixed, Mapping)
    step = "Pass for example `fixed={2: 0.5}`."
    require(is_mapping, "fixed", "a dict from feature to value", fixed, step, TypeError)
    held = {_number("fixed", key, columns): value for key, value in (fixed or {}).items()}
    for value in held.values():
        is_number = isinstance(value, numbers.Real) and np.isfinite(float(value))
        require(is_number, "fixed", "a dict from feature to a finite number", fixed, step)
    free = [i for i in range(n) if i not in held]
    drawn = free[:2] if features is None else _pair(features, columns)
    is_apart = len(drawn) == 2 and len({*drawn}) == 2 and not {*drawn} & {*held}
    accepted = "two features that differ, none of them in `fixed`"
    require(is_apart, "features", accepted, features, f"The model takes {n} features: fix at most {n - 2}.")
    others = [i for i in free if i not in drawn]
    step = "Pass `x`, or a value for each of them."
    accepted = f"given for features {others}, as there is no `x` to take medians from"
    require(not others or x is not None, "fixed", accepted, fixed, step)
    base = np.zeros(n) if x is None else np.median(x, axis=0)
    base[list(held)] = list(held.values())

    def back(places: np.ndarray) -> np.ndarray:
        points = np.tile(base, (len(places), 1))
        points[:, drawn] = places
        return points

    note = ", ".join(f"{shortened(columns[i])} = {base[i]:.3g}" for i in range(n) if i not in drawn)
    if n - 2 > SHOWN:
        note = f"{n - 2} other features held" + (" at their medians" if not held else "")
    return lambda x: x[:, drawn], back, tuple(str(columns[i]) for i in drawn), note


def _pair(features: Any, columns: list) -> list[int]:
    is_pair = isinstance(features, Sequence) and not isinstance(features, str) and len(features) == 2
    require(is_pair, "features", "a pair of features", features, "Pass for example `features=(0, 1)`.")
    return [_number("features", each, columns) for each in features]


def _number(name: str, feature: Any, columns: list) -> int:
    """Returns the number of a feature that is given by number or by the name of its column."""
    if isinstance(feature, str) and feature in columns:
        return columns.index(feature)
    is_number = isinstance(feature, int | np.integer) and 0 <= feature < len(columns)
    named = "" if str(columns[0]).startswith("x[") else " or the columns " + ", ".join(map(repr, columns))
    accepted = f"of features 0 to {len(columns) - 1}{named}"
    require(is_number, name, accepted, feature, "Count the features from 0.")
    return int(feature)


def _projected(n: int, x: Any, features: Any, fixed: Any, projection: Any) -> tuple[Callable, Callable, tuple, str]:
    """Returns the plane of a projection: the ways onto it and back, names of its axes and a note."""
    is_alone = features is None and fixed is None
    step = "A projection moves all features: leave `features` and `fixed` out."
    require(is_alone, "projection", "the only choice of a plane", projection, step)
    is_projection = hasattr(projection, "transform") and hasattr(projection, "inverse_transform")
    step = "Pass for example `sklearn.decomposition.PCA(2).fit(x)`."
    accepted = "a fitted projection with `transform` and `inverse_transform`"
    require(is_projection, "projection", accepted, projection, step, TypeError)
    require(x is not None, "x", "given with a `projection`", x, "The samples say which part of the plane to draw.")
    seen = np.asarray(projection.transform(x))  # as it came: scikit-learn looks at the names of the columns
    require(seen.shape[1:] == (2,), "projection", "onto two components", projection, step)
    shares = getattr(projection, "explained_variance_ratio_", None)
    names = tuple(
        f"component {i + 1}" + ("" if shares is None else f" ({100 * shares[i]:.3g} % of the variance)") for i in (0, 1)
    )
    return lambda _: seen, projection.inverse_transform, names, f"plane of two components of {n} features"


def flat(name: str, values: Any) -> np.ndarray | None:
    """Returns samples of one number as an array (sample,)."""
    if values is None:
        return None
    data.samples(values)
    array = np.asarray(values, float)
    step = "Of more features draw `kohort.plot.decision_boundary`."
    require(array.ndim == 1 or array.shape[1:] == (1,), name, "of shape (sample,) or (sample, 1)", values, step)
    return array.reshape(len(array))


def ends_along(xlim: Any, x: np.ndarray | None) -> tuple[float, float]:
    """Returns the limits of the one feature, those of samples (sample,) and a margin where none are given."""
    return _limits("xlim", xlim, None if x is None else x[:, None], 0)


def check_resolution(grid_resolution: Any, example: int = 100) -> None:
    """Raises unless this is a number of grid points along an axis."""
    is_enough = isinstance(grid_resolution, int | np.integer) and grid_resolution >= 2
    step = f"Pass for example {example}."
    require(is_enough, "grid_resolution", "an integer of at least 2", grid_resolution, step)


def _limits(name: str, limits: Any, x: np.ndarray | None, axis: int) -> tuple[float, float]:
    if limits is None and x is not None:
        low, high = float(x[:, axis].min()), float(x[:, axis].max())
        margin = MARGIN * (high - low) or 1.0
        return low - margin, high + margin
    ends = np.asarray(limits)
    is_pair = ends.shape == (2,) and ends.dtype.kind in "iuf" and -np.inf < ends[0] < ends[1] < np.inf
    accepted = "two finite numbers, the lower first" + (" (without `x` there is no default)" if limits is None else "")
    require(is_pair, name, accepted, limits, f"Pass for example `{name}=(-0.5, 1.5)`.")
    return float(ends[0]), float(ends[1])
