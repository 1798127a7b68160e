"""What networks answer over a plane, as pixels: the regions and lines of a surface, without an artist for each.

In come raw answers of many members; out go their cells as images. The room exists because a film has thousands of
cells, and Matplotlib takes some ten milliseconds for the regions of one.
"""

import math
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.colors import to_rgba_array

from kohort.plot.style import NUMBERS, tints
from kohort.plot.surface import Surface, scores_of, two_best, undecided

STRIPE = 8  # pixels from one stripe of an undecided region to the next


def pixels(surface: Surface, responses: np.ndarray, size: int, line: float) -> np.ndarray:
    """Returns one image a member, (member, size, size, 3), from 0 to 255, the first row at the top.

    Args:
        surface: What the answers mean.
        responses: Raw answers (member, grid, grid) or (member, grid, grid, class).
        size: Pixels along each side.
        line: Width of the lines where the answer changes, in pixels.
    """
    known = np.isfinite(responses).all(axis=tuple(range(1, responses.ndim)), keepdims=True)
    responses = np.where(known, responses, 0).astype("float32")
    known = known.reshape(-1, 1, 1)
    with np.errstate(over="ignore", invalid="ignore"):  # on its way to divergence a member may answer anything
        zones, lines, heights, palette = (_classes if surface.levels is None else _levels)(surface, responses, size)
        beside = np.nonzero(known & lines & _beside_a_change(zones, math.ceil((line - 1) / 2)))
        depth = _heights_above(surface, heights[beside]) / _slopes(heights, *beside)
    ground, text, black = 255 * to_rgba_array([rcParams["axes.facecolor"], rcParams["text.color"], "black"])[:, :3]
    stripes = (np.arange(size)[:, None] - np.arange(size)) % STRIPE == 0
    zones[(zones == len(palette)) & stripes] += 1
    zones[~np.broadcast_to(known, zones.shape)] = len(palette)
    colours = np.vstack([255 * palette[:, :3], [ground, 0.6 * ground + 0.4 * text]])
    images = np.rint(colours).astype("uint8")[zones]
    covered = np.clip((1 + line) / 2 - depth, 0, 1)[:, None]  # how much of each pixel a line covers
    under = colours[zones[beside]]
    images[beside] = np.rint(under + covered * ((text if surface.levels is None else black) - under))
    return images[:, ::-1]


def _classes(surface: Surface, responses: np.ndarray, size: int) -> tuple:
    """Returns the class of each pixel (one more: undecided), where lines may be, the leads, and the colours."""
    from scipy.ndimage import binary_dilation

    scores = scores_of(responses, surface.threshold)
    open_ = undecided(scores)
    around: Any = binary_dilation(open_, np.ones((1, 3, 3))) if open_.any() else open_
    nearest = np.rint(np.linspace(0, open_.shape[-1] - 1, size)).astype(int)
    open_, around = (np.asarray(of)[:, nearest][:, :, nearest] for of in (open_, around))
    scores = enlarged(scores, size)
    first, second = two_best(scores)
    zones = np.zeros(first.shape, "uint8")
    for k in reversed(range(len(scores))):  # of equal ones the first
        zones[scores[k] == first] = k
    zones[open_] = len(scores)
    return zones, ~around, first - second, tints(len(scores))  # no line is drawn where it would be rounding


def _levels(surface: Surface, responses: np.ndarray, size: int) -> tuple:
    """Returns between which levels each pixel is, where lines may be, the heights, and the colours between levels."""
    heights, levels = enlarged(responses, size), np.asarray(surface.levels, "float32")
    zones = np.searchsorted(levels, heights).astype("uint8")
    middles = (levels[:-1] + levels[1:]) / 2
    shades = np.concatenate([[0], (middles - levels[0]) / (levels[-1] - levels[0]), [1]])
    return zones, np.True_, heights, colormaps[NUMBERS](shades)


def _heights_above(surface: Surface, heights: np.ndarray) -> np.ndarray:
    """Returns how far heights are from the next line: leads from 0, answers from a level."""
    if surface.levels is None:
        return heights
    levels = np.asarray(surface.levels, "float32")
    zones = np.searchsorted(levels, heights)
    return np.minimum(*(np.abs(heights - levels[np.clip(zones - below, 0, len(levels) - 1)]) for below in (0, 1)))


def enlarged(values: np.ndarray, size: int) -> np.ndarray:
    """Returns values (..., grid, grid) at (..., size, size) pixels from edge to edge, linear between grid points."""
    places = np.linspace(0, values.shape[-1] - 1, size)
    low = np.minimum(places.astype(int), values.shape[-1] - 2)
    share = (places - low).astype("float32")
    across = values[..., low] * (1 - share) + values[..., low + 1] * share
    share = share[:, None]
    return across[..., low, :] * (1 - share) + across[..., low + 1, :] * share


def _beside_a_change(zones: np.ndarray, far: int) -> np.ndarray:
    """Says which pixels have another zone beside them, or so many pixels further."""
    from scipy.ndimage import binary_dilation

    beside = np.zeros(zones.shape, bool)
    for pixels, marks in ((zones, beside), (zones.swapaxes(1, 2), beside.swapaxes(1, 2))):
        change = pixels[:, 1:] != pixels[:, :-1]
        marks[:, 1:] |= change
        marks[:, :-1] |= change
    return binary_dilation(beside, np.ones((1, 3, 3)), iterations=far) if far else beside


def _slopes(heights: np.ndarray, member: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Returns how steep the heights are at some pixels: along each axis by the steeper step, also across a kink."""
    last, own = heights.shape[-1] - 1, heights[member, row, column]

    def step(rows: int, columns: int) -> np.ndarray:
        beside = (row + rows).clip(0, last), (column + columns).clip(0, last)
        return np.abs(heights[member, *beside] - own)

    steps = [np.maximum(step(*to), step(-to[0], -to[1])) for to in ((1, 0), (0, 1))]
    return np.maximum(np.hypot(*steps), np.finfo("float32").tiny)
