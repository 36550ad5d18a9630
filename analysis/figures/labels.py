"""Labels beside points that do not lie on each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DIRECTIONS = (20, 340, 160, 200, 90, 270, 55, 125, 305, 235)
"""Where a label may go, in degrees; the first that is free is taken."""

RADII = (6, 12, 20, 30, 42, 56)
"""How far from the point, in points (1/72 inch)."""


def _overlap(box: np.ndarray, others: np.ndarray) -> float:
    """Summed area that `box` (x0, y0, x1, y1) shares with each row of `others`."""
    if not len(others):
        return 0.0
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return float((width.clip(0) * height.clip(0)).sum())


def _line_boxes(axes: Axes, lines: np.ndarray, half_width: float) -> np.ndarray:
    """Boxes [M, 4] in pixels around lines in data units."""
    ends = axes.transData.transform(lines.reshape(-1, 2)).reshape(-1, 2, 2)
    return np.concatenate([ends.min(axis=1) - half_width, ends.max(axis=1) + half_width], axis=1)


def _outside(box: np.ndarray, frame: Any) -> float:
    over = [frame.x0 - box[0], frame.y0 - box[1], box[2] - frame.x1, box[3] - frame.y1]
    return float(sum(max(0.0, d) for d in over))


def _candidate(point: Sequence[float], size: tuple[float, float], degrees: float, radius: float) -> np.ndarray:
    """Box of a text of this size whose nearest side lies `radius` away from the point."""
    dx, dy = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = point[0] + radius * dx, point[1] + radius * dy
    x0 = x if dx > 0.3 else x - size[0] if dx < -0.3 else x - size[0] / 2
    return np.array([x0, y - size[1] * (1 - dy) / 2, x0 + size[0], y + size[1] * (1 + dy) / 2])


def _distance(box: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Of each point [N, 2] from the box (x0, y0, x1, y1); 0 inside."""
    across, along = np.maximum(np.maximum(box[:2] - points, points - box[2:]), 0).T
    return np.asarray(np.hypot(across, along))


def place_labels(
    figure: Figure,
    axes: Axes,
    texts: Sequence[str],
    points: np.ndarray,
    colours: Sequence[str],
    lines: np.ndarray | None = None,
    unnamed: np.ndarray | None = None,
) -> None:
    """Write each text near its point [N, 2], where the least lies already. One that is far, or nearer to another point
    than to its own, gets a thin line to its own.

    `lines`: horizontal and vertical lines to stay off, as [M, 4] of x0, y0, x1, y1 in data units; `unnamed`: further
    points [K, 2]. Call it last: it freezes the layout, because positions on the paper are what it compares.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    scale = figure.dpi / 72
    pixels = axes.transData.transform(points)
    every = pixels if unnamed is None else np.vstack([pixels, axes.transData.transform(unnamed.reshape(-1, 2))])
    marks = np.concatenate([every - 4 * scale, every + 4 * scale], axis=1)
    taken = marks if lines is None else np.vstack([marks, _line_boxes(axes, lines, scale)])
    for index in np.argsort(-pixels[:, 1]):
        text = axes.annotate(texts[index], points[index], fontsize=7, color="#222222", xycoords="data")
        extent = text.get_window_extent()
        text.remove()
        frame = axes.get_window_extent()
        best = min(
            (
                (_overlap(box, taken) + 50 * _outside(box, frame) + radius * scale, i, box, radius)
                for i, (radius, degrees) in enumerate(itertools.product(RADII, DIRECTIONS))
                for box in [_candidate(pixels[index], (extent.width, extent.height), degrees, radius * scale)]
            ),
            key=lambda c: c[:2],
        )
        _, _, box, radius = best
        others = np.delete(every, index, axis=0)
        strayed = radius > RADII[0] or (_distance(box, others) <= _distance(box, pixels[[index]])).any()
        taken = np.vstack([taken, box])
        offset = (np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]) - pixels[index]) / scale
        axes.annotate(
            texts[index],
            points[index],
            xytext=tuple(offset),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7,
            color="#222222",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colours[index], "shrinkB": 3} if strayed else None,
        )
