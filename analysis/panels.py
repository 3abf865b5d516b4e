"""What figures draw alike: limits with room, spread around curves, lines of target and retrained, the legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import caption, style
from .curves import references
from .runs import Study

END = 0.005  # added to both sides of the odds, so that 0 and 1 have a place
TICKS = (0, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 1)


def make(study: Study, width: float, height: float) -> Figure:
    """An empty figure with the study's title; to be called, as all drawing, within ``style.look()``."""
    fig = Figure(figsize=(width, height))
    fig.set_layout_engine("constrained", wspace=0.04, hspace=0.04)
    fig.suptitle(caption.title(study), x=0.01, ha="left", fontsize=9)
    return fig


def limit(*axis) -> None:
    """Room around the data for the labels, but no ticks outside 0 to 1 where nothing can lie there.

    Panels that share their limits are given together: their data are different.
    """
    found = [one.get_data_interval() for one in axis]
    low, high = min(low for low, _ in found), max(high for _, high in found)
    share = 0 <= low and high <= 1
    span = max(high - low, 0.2)  # less would blow up noise
    middle = (low + high) / 2
    if share:
        middle = min(max(middle, span / 2), 1 - span / 2)
    limits = (middle - 0.6 * span, middle + 0.6 * span)
    for one in axis:
        (one.axes.set_xlim if one.axis_name == "x" else one.axes.set_ylim)(limits)
        if share:
            one.set_ticks([t for t in one.get_ticklocs() if max(0, limits[0]) <= round(t, 9) <= min(1, limits[1])])


def odds(*axis, ticks: Sequence[float] = TICKS) -> None:
    """Axes in odds for shares: values near 0 and 1, where good methods lie, are distinguished. Limits as ``limit``'s,
    which is called for data beyond 0 and 1."""
    found = np.array([one.get_data_interval() for one in axis])
    if found.min() < 0 or found.max() > 1:
        return limit(*axis)
    low, high = _log_odds(found.min()), _log_odds(found.max())
    span = max(high - low, 2.0)  # less would blow up noise
    middle, far = (low + high) / 2, _log_odds(1.0)
    middle = min(max(middle, span / 2 - far), far - span / 2)
    limits = _share(np.array([middle - 0.58 * span, middle + 0.58 * span]))
    for one in axis:
        across = one.axis_name == "x"
        (one.axes.set_xscale if across else one.axes.set_yscale)("function", functions=(_log_odds, _share))
        (one.axes.set_xlim if across else one.axes.set_ylim)(limits)
        one.set_ticks([t for t in ticks if limits[0] <= t <= limits[1]], minor=False)
        one.set_major_formatter("{x:g}")


def _log_odds(share):
    return np.log((share + END) / (1 + END - share))


def _share(log_odds):
    return (1 + END) - (1 + 2 * END) / (1 + np.exp(log_odds))


def shares(axis) -> None:
    """The limits of something between 0 and 1, with room for what lies on them."""
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(-0.03, 1.03)
    axis.set_ticks([0, 0.2, 0.4, 0.6, 0.8, 1])


def curve(ax, points: pd.DataFrame, x: str, y: str, look: dict, **more) -> None:
    """A line with its markers, and a band where the spread of y is known."""
    ax.plot(points[x], points[y], **{"zorder": 3} | look | more)
    known = points.dropna(subset=[f"low/{y}", f"high/{y}"])
    if len(known):
        band = {"color": look["color"], "alpha": 0.16, "linewidth": 0, "zorder": 1.5}
        ax.fill_between(known[x], known[f"low/{y}"], known[f"high/{y}"], **band)


def around(points: pd.DataFrame, metric: str) -> list[pd.Series]:
    """The lengths of the error bars of a metric, downwards and upwards."""
    low, high = (points[metric] - points[f"low/{metric}"], points[f"high/{metric}"] - points[metric])
    return [low.clip(lower=0), high.clip(lower=0)]  # rounding, or a mean outside its interval of quantiles


def reference_lines(ax, study: Study, metric: str, vertical: bool = False) -> list[str]:
    """A line where each reference lies, each world's where one pair seed has several; which were drawn."""
    means = references(study, metric)
    draw = ax.axvline if vertical else ax.axhline
    for name, value in zip(means["reference"], means.get(metric, ()), strict=True):
        if name in style.LINES_OF:
            draw(value, **style.reference_line(name))
    return [name for name in style.LINES_OF if name in set(means["reference"])]


def reference_handles(names: Iterable[str]) -> list[Line2D]:
    """Legend entries of lines of references."""
    return [Line2D([], [], label=name, **style.reference_line(name)) for name in names]


def legend(fig: Figure, handles: list, title: str | None = None) -> None:
    """The legend beside the panels."""
    place: dict[str, Any] = {
        "loc": "outside right upper",
        "alignment": "left",
        "handlelength": 3.2,
        "labelspacing": 0.6,
    }
    fig.legend(handles=handles, title=f"{title}\n" if title else None, **place)
