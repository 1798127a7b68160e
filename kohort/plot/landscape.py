"""The landscape of the loss around a trained network, along two random directions.

In come a compiled Keras model and its data; out comes a record of the loss at a grid of weights. The room exists
because a minimum has a shape (narrow, wide, a plateau), and numbers of one point do not show it.
"""

import numbers
from dataclasses import dataclass, field
from typing import Any

import jax
import keras
import numpy as np
from matplotlib import rcParams
from matplotlib.ticker import LogLocator, MaxNLocator

from kohort import keras_internals
from kohort.checks import Recipe, check_backend, check_data
from kohort.data import inputs, pass_cut
from kohort.engine import State
from kohort.fit import check_model
from kohort.plot.sources import check_single
from kohort.plot.style import NUMBERS, Display, check_axes, fit_labels, halo, on_axes, require, set_ticks
from kohort.programs import local_programs_of

BYTES_AT_ONCE = 2**28  # of weights and activations, about: bounds the memory of one call
MOST_POINTS = 4096  # in one call


@dataclass(kw_only=True, eq=False, repr=False)
class LossLandscape(Display):
    """The loss at weights `center + a * first + b * second`; `loss_landscape` computes it.

    Example:
        >>> import numpy as np, kohort
        >>> aa, bb = np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0])
        >>> flat = {"center": [np.zeros(2)], "first": [np.ones(2)], "second": [np.array([1.0, -1.0])]}
        >>> landscape = kohort.plot.LossLandscape(aa=aa, bb=bb, loss=1 + aa**2 + bb**2, **flat).plot()
        >>> landscape.weights(1, 2)
        [array([ 3., -1.])]
    """

    aa: np.ndarray  # steps along the first direction, (grid, grid)
    bb: np.ndarray  # steps along the second
    loss: np.ndarray  # there, (grid, grid)
    center: list  # the trained weights, as in `model.trainable_weights`
    first: list  # a direction, likewise
    second: list  # another
    ax_: Any = field(default=None, init=False)  # once drawn
    figure_: Any = field(default=None, init=False)  # once drawn

    def weights(self, a: float | int, b: float | int) -> list[np.ndarray]:
        """Returns the trainable weights so many steps from the trained ones."""
        directions = zip(self.center, self.first, self.second, strict=True)
        return [w + np.float32(a) * u + np.float32(b) * v for w, u, v in directions]

    def plot(self, ax: Any = None) -> "LossLandscape":
        """Draws the record on `ax`, or in a figure made here, and returns it."""
        self.ax_ = on_axes(ax, (5.8, 4.6))
        self.figure_ = self.ax_.figure
        known = np.ma.masked_invalid(self.loss)
        lowest, highest = (float(known.min()), float(known.max())) if known.count() else (0.0, 0.0)
        is_wide = 0 < lowest and 10 * lowest < highest
        ticks = LogLocator(subs=(1, 2, 5)) if is_wide else MaxNLocator(9)
        levels = ticks.tick_values(lowest, highest) if lowest < highest else np.array([lowest, lowest + 1])
        style = {"cmap": NUMBERS, "zorder": 0, "norm": "log" if is_wide else "linear"}
        style["extend"] = "max" if is_wide else "both"  # on a logarithmic scale nothing is below the lowest level
        region = self.ax_.contourf(self.aa, self.bb, known, levels=levels, **style)
        if lowest < highest:
            lines = self.ax_.contour(self.aa, self.bb, known, levels=levels, colors="black", linewidths=0.6)
            outer = lines.levels[lines.levels > np.quantile(known.compressed(), 0.2)]  # inner ones have no room
            labels = self.ax_.clabel(lines, outer[::2], fontsize=7, fmt="%g", colors=rcParams["text.color"])
            for label in labels:
                label.set_path_effects(halo())
        style = {"marker": "P", "markersize": 11, "linestyle": "none", "label": "the trained network"}
        edges = {"color": rcParams["axes.facecolor"], "markeredgecolor": rcParams["text.color"]}
        self.ax_.plot(0, 0, **style, **edges, zorder=3)
        if not known.count():
            look = {"transform": self.ax_.transAxes, "ha": "center", "va": "center"}
            self.ax_.text(0.5, 0.65, "not finite", **look)
        elif known.count() < known.size:
            empty = {"marker": "s", "linestyle": "none", "markersize": 9, "label": "blank: not finite"}
            self.ax_.plot([], [], **empty, **edges)
        names = [f"direction {k}, in norms of each unit's weights" for k in (1, 2)]
        self.ax_.set(xlabel=names[0], ylabel=names[1])
        for axis in (self.ax_.xaxis, self.ax_.yaxis):
            set_ticks(axis, nbins=5)
        fit_labels(self.ax_)
        if ax is None:
            if known.count():
                self.figure_.colorbar(region, ax=self.ax_, label="loss", format="%g")
            self.figure_.legend(loc="outside upper center", frameon=False, ncols=2)
        return self


def loss_landscape(
    model: Any,
    x: Any,
    y: Any,
    *,
    span: float | int = 1.0,
    grid_resolution: int = 51,
    seed: int = 0,
    ax: Any = None,
) -> LossLandscape:
    """Computes and draws the loss around a trained network, along two random directions.

    For each unit (or filter) w of a layer a direction d is drawn from a normal distribution and scaled to its length,
    d ← d ‖w‖ / ‖d‖, so that networks whose layers are scaled otherwise can be compared; biases and other vectors stay.
    All points of the grid are one mapped program over Keras's own test step, with the losses of its layers.

    Args:
        model: A compiled Keras model; it stays as it is.
        x: Samples, as for `model.evaluate`.
        y: Targets, likewise.
        span: How far to go on each side, in norms of each unit's weights.
        grid_resolution: Grid points along each direction, at least 2; an odd number has the network itself among them.
        seed: Of the two directions.
        ax: Matplotlib axes to draw on; None makes a figure.

    Returns:
        The record, drawn: `aa`, `bb`, `loss`, the directions, and `weights(a, b)`.

    Raises:
        TypeError, ValueError: An argument is not what it must be.
        RuntimeError: Keras runs on another backend than JAX.

    Example:
        >>> import kohort, keras
        >>> x, y = kohort.data.xor()
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "relu"), keras.layers.Dense(1)])
        >>> model.compile(loss="mse")
        >>> kohort.plot.loss_landscape(model, x, y, grid_resolution=5).loss.shape
        (5, 5)

    Source:
        Li, Xu, Taylor, Studer and Goldstein, Visualizing the loss landscape of neural nets (2018), section 4; as in
        their code, vectors such as biases are not moved.
    """
    check_backend("kohort.plot.loss_landscape")
    check_axes(ax)
    check_single(model)
    check_model(model)
    require(model.built, "model", "a built model", model, "Begin it with `keras.Input(shape=...)`.")
    is_enough = isinstance(grid_resolution, numbers.Integral) and grid_resolution >= 2
    require(is_enough, "grid_resolution", "an integer of at least 2", grid_resolution, "Pass for example 51.")
    is_span = isinstance(span, numbers.Real) and 0 < span < np.inf
    require(is_span, "span", "a finite number above 0", span, "Pass for example 1.")
    is_seed = isinstance(seed, numbers.Integral) and seed >= 0
    require(is_seed, "seed", "an integer of at least 0", seed, "Pass for example 0.")
    recipe = Recipe(shuffle=False)
    check_data(model, x, y, None, None, recipe)
    center = [np.asarray(weights.value) for weights in model.trainable_variables]
    generator = np.random.default_rng(int(seed))
    first, second = ([_direction(weights, generator) for weights in center] for _ in range(2))
    steps = np.linspace(-span, span, int(grid_resolution))
    aa, bb = np.meshgrid(steps, steps)
    record = LossLandscape(aa=aa, bb=bb, loss=np.zeros_like(aa), center=center, first=first, second=second)
    record.loss = _losses(model, inputs(model, x, y, None, None, recipe), record)
    return record.plot(ax)


def _direction(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns a random direction in which each unit, the last axis of the weights, has the length of its weights."""
    if weights.ndim < 2:
        return np.zeros_like(weights)
    drawn = generator.standard_normal(weights.shape).astype(weights.dtype)
    of_unit = tuple(range(weights.ndim - 1))
    large = weights.astype(float)  # the squares of those that exploded have no room in 32 bits
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt((large**2).sum(axis=of_unit) / (drawn**2).sum(axis=of_unit))
        return (drawn * lengths).astype(weights.dtype)


def _losses(model: keras.Model, data: Any, record: LossLandscape) -> np.ndarray:
    """Evaluates the model at all weights of the record: each point of the grid is a member of one program."""
    keras_internals.symbolic_build(model, data.build_iterator)
    state = keras_internals.read_state(model)
    a, b = record.aa.ravel(), record.bb.ravel()
    per_point = 4 * sum(weights.size for weights in record.center) + 1024 * 4
    width = int(max(1, min(len(a), MOST_POINTS, BYTES_AT_ONCE // per_point)))
    program = local_programs_of(model).evaluate(pass_cut(data.training.rows, None), members=True)
    losses = []
    for i in range(0, len(a), width):
        places = np.minimum(np.arange(i, i + width), len(a) - 1)  # the last call is filled up: one shape, one program
        losses.append(np.asarray(program(_states(record, state, a[places], b[places]), data.training.batch)["loss"]))
    return np.concatenate(losses)[: len(a)].reshape(record.aa.shape)


def _states(record: LossLandscape, state: State, a: np.ndarray, b: np.ndarray) -> State:
    """Returns the state of the network at each of the places: leading axis member."""

    def moved(weights: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        along = (len(a), *[1] * weights.ndim)
        with np.errstate(over="ignore", invalid="ignore"):  # of a network that diverged: its loss says it
            return weights + a.astype("float32").reshape(along) * first + b.astype("float32").reshape(along) * second

    def repeated(value: Any) -> Any:
        return jax.numpy.broadcast_to(value, (len(a), *value.shape))

    trainable = [moved(*each) for each in zip(record.center, record.first, record.second, strict=True)]
    return State(trainable, *jax.tree.map(repeated, (state[1], [], state[3])))
