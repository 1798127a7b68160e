"""What a notebook shows of a result: a few lines of HTML with small curves.

In come a heading and arrays (member, epoch); out comes HTML that needs no script, no style sheet and no other library,
and takes the colour of the text around it, so that it reads on light and on dark ground. The room exists so that a
cohort and a history show themselves where they are the last line of a cell, in a few milliseconds.
"""

import html
from collections.abc import Iterable, Mapping

import numpy as np

WIDTH, HEIGHT = 180, 40  # of a curve, in pixels
MOST_EPOCHS, MOST_METRICS = 60, 12  # that are shown
BAND = (0.1, 0.5, 0.9)


def section(heading: str, metrics: Mapping[str, np.ndarray], notes: Iterable[str] = ()) -> str:
    """Returns a heading and a table: the last value and the curve of each metric.

    Args:
        heading: What it is; any text, which is escaped.
        metrics: Metric name to array (member, epoch).
        notes: Lines below the heading, likewise.

    Returns:
        HTML.
    """
    lines = [f"<strong>{html.escape(heading)}</strong>", *map(html.escape, notes)]
    shown = [name for name in metrics if np.ndim(metrics[name]) == 2 and np.size(metrics[name])]
    if len(shown) > MOST_METRICS:
        lines.append(f"the first {MOST_METRICS} of {len(shown)} metrics")
    rows = "".join(_row(name, np.asarray(metrics[name], float)) for name in shown[:MOST_METRICS])
    head = "".join(f"<th>{name}</th>" for name in ("metric", "last: median", "10 to 90 %", "by epoch"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
    return f"<div>{'<br>'.join(lines)}{table}</div>"


def line(text: str) -> str:
    """Returns what reads as a sentence, as HTML."""
    return f"<div>{html.escape(text)}</div>"


def _row(name: str, values: np.ndarray) -> str:
    low, middle, high = _quantiles(values[:, _recorded(values)][:, -1:])[:, 0]
    curve = _curve(name, values)
    return f"<tr><td>{html.escape(name)}</td><td>{middle:.4g}</td><td>{low:.4g} to {high:.4g}</td><td>{curve}</td></tr>"


def _recorded(values: np.ndarray) -> np.ndarray:
    """Returns the epochs in which any member has a finite value; of none, the last epoch."""
    epochs = np.flatnonzero(np.isfinite(values).any(axis=0))
    return epochs if epochs.size else np.array([values.shape[1] - 1])


def _quantiles(values: np.ndarray) -> np.ndarray:
    """Returns the quantiles over the members with a finite value, (3, epoch), NaN where there is none."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.full((3, values.shape[1]), np.nan)
    return np.nanquantile(np.where(finite, values, np.nan), BAND, axis=0)


def _curve(name: str, values: np.ndarray) -> str:
    """Draws the median as a line and the middle 80 % of the members as a band; logarithmic over decades."""
    epochs = _recorded(values)
    epochs = epochs[np.unique(np.linspace(0, len(epochs) - 1, MOST_EPOCHS).round().astype(int))]
    heights = _quantiles(values[:, epochs])
    if len(epochs) < 2 or not np.isfinite(heights).all():
        return "–"
    is_logarithmic = heights.min() > 0 and heights.max() > 10 * heights.min()
    scaled = np.log10(heights) if is_logarithmic else heights
    low, span = scaled.min(), np.ptp(scaled) or 1.0
    across = 2 + (WIDTH - 4) * (epochs - epochs[0]) / (epochs[-1] - epochs[0])
    down = HEIGHT - 3 - (HEIGHT - 6) * (scaled - low) / span
    band = _points(np.append(across, across[::-1]), np.append(down[0], down[2, ::-1]))
    first, last = (f"{heights[1, i]:.3g}" for i in (0, -1))
    scale = ", logarithmic" if is_logarithmic else ""
    said = html.escape(
        f"median {name} from {first} in epoch {epochs[0] + 1} to {last} in epoch {epochs[-1] + 1}{scale}"
    )
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
        f'<title>{said}</title><polygon points="{band}" fill="currentColor" opacity="0.25"/>'
        f'<polyline points="{_points(across, down[1])}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def _points(across: np.ndarray, down: np.ndarray) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
