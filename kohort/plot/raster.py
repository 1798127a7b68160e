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
    known = np.asarray(np.isfinite(responses).all(axis=tuple(range(1, responses.ndim))))
    responses = np.where(known.reshape(-1, *[1] * (responses.ndim - 1)), responses, 0).astype("float32")
    with np.errstate(over="ignore", invalid="ignore"):  # on its way to divergence a member may answer anything
        zones, depth, palette = (_classes if surface.levels is None else _levels)(surface, responses, size)
    depth[~known[:, None, None] | ~_beside_a_change(zones, math.ceil((line - 1) / 2))] = np.inf
    ground, text, black = 255 * to_rgba_array([rcParams["axes.facecolor"], rcParams["text.color"], "black"])[:, :3]
    stripes = (np.arange(size)[:, None] - np.arange(size)) % STRIPE == 0
    zones[(zones == len(palette)) & stripes] += 1
    zones[~known] = len(palette)
    images = np.vstack([255 * palette[:, :3], [ground, 0.6 * ground + 0.4 * text]]).astype("float32")[zones]
    covered = np.clip((1 + line) / 2 - depth, 0, 1)[..., None]  # how much of each pixel a line covers
    images += covered * ((text if surface.levels is None else black).astype("float32") - images)
    return np.rint(images).astype("uint8")[:, ::-1]


def _classes(surface: Surface, responses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the class of each pixel (one more: undecided), its distance from a boundary, and the classes' colours."""
    from scipy.ndimage import binary_dilation

    scores = scores_of(responses, surface.threshold)
    open_ = undecided(scores)
    around: Any = binary_dilation(open_, np.ones((1, 3, 3))) if open_.any() else open_
    nearest = np.rint(np.linspace(0, open_.shape[-1] - 1, size)).astype(int)
    open_, around = (np.asarray(of)[:, nearest][:, :, nearest] for of in (open_, around))
    scores = enlarged(scores, size)
    first, second = two_best(scores)
    zones, depth = scores.argmax(axis=0), _distance(first - second, first - second)
    zones[open_], depth[around] = len(scores), np.inf  # no line is drawn where it would be rounding
    return zones, depth, tints(len(scores))


def _levels(surface: Surface, responses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns between which levels each pixel is, its distance from one of them, and the colours between them."""
    heights, levels = enlarged(responses, size), np.asarray(surface.levels, "float32")
    zones = np.searchsorted(levels, heights)
    ends = [levels[np.clip(zones - below, 0, len(levels) - 1)] for below in (0, 1)]
    nearest = np.minimum(*(np.abs(heights - end) for end in ends))
    middles = (levels[:-1] + levels[1:]) / 2
    shades = np.concatenate([[0], (middles - levels[0]) / (levels[-1] - levels[0]), [1]])
    return zones, _distance(nearest, heights), colormaps[NUMBERS](shades)


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


def _distance(values: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Returns how many pixels it is from each to where `values` is 0, by the slope of the heights there."""
    slopes = [_slope(heights, axis) for axis in (-2, -1)]
    return values / np.maximum(np.hypot(*slopes), np.finfo("float32").tiny)


def _slope(heights: np.ndarray, axis: int) -> np.ndarray:
    """Returns the steeper of the steps to the pixel before and to the one after, also across a kink."""
    steps = np.abs(np.diff(heights, axis=axis))
    none = [(0, 0)] * (heights.ndim - 1)
    none = [*none, (1, 0)] if axis == -1 else [*none[:-1], (1, 0), (0, 0)]
    before = np.pad(steps, none)
    after = np.pad(steps, [pair[::-1] for pair in none])
    return np.maximum(before, after)
