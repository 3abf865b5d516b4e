"""Which points no other point beats in both metrics, and how large an area such points beat.

The area (hypervolume in two dimensions) is that between the points and a stated worst point, for instance forget 1 and
retain 0. Easy to get wrong: both reward forgetting *further* than the retrained model, which is not an aim.
"""

from __future__ import annotations

import numpy as np

SIGN = {"higher": 1.0, "lower": -1.0}


def front(points: np.ndarray, better: tuple[str, str]) -> np.ndarray:
    """Indices of the points, [n, 2], that no other is at least as good as in both metrics and better in one.

    In the order of the first metric. ``better``: "higher" or "lower" for each. Of equal points the first is kept.
    """
    gains = points * [SIGN[b] for b in better]
    kept, best = [], -np.inf
    for i in np.lexsort((-gains[:, 1], -gains[:, 0])):  # best first metric first; among those, best second first
        if gains[i, 1] > best:
            kept.append(i)
            best = gains[i, 1]
    return np.array(sorted(kept, key=lambda i: points[i, 0]), dtype=int)


def hypervolume(points: np.ndarray, better: tuple[str, str], worst: tuple[float, float]) -> float:
    """Area of what is beaten by at least one of the points, [n, 2], and beats ``worst``; 0 without points."""
    gains = (points - np.asarray(worst)) * [SIGN[b] for b in better]
    gains = gains[(gains > 0).all(axis=1)]
    area, reached = 0.0, 0.0
    for first, second in sorted(gains.tolist(), reverse=True):
        area += first * max(second - reached, 0.0)
        reached = max(reached, second)
    return area
