"""One look for all figures: colours, markers, labels that find room, and saving.

Every series differs from the others in colour and in marker or line, so a figure also reads in grey and for
colour-blind readers (colours of Okabe & Ito, 2008). Figures are made without pyplot: no window, no global state.

Easy to get wrong: ``place_labels`` measures the laid-out axes, so call it last, when limits and legend are final.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from .output import whole

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
MARKERS = ("o", "s", "^", "v", "P", "X", "h", "<")  # seven colours, eight markers: 56 series before a pair repeats
LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
INK = "#222222"
REFERENCES = {  # never the look of a run
    "target": {"marker": "*", "markersize": 13, "markerfacecolor": INK},
    "retrained": {"marker": "D", "markersize": 8.5, "markerfacecolor": "white"},
}
LINES_OF = {"target": (0, (7, 2)), "guess": (0, (5, 2, 1, 2)), "retrained": (0, (1.5, 1.5))}  # across a panel
COLLAPSED: dict[str, Any] = {
    "linestyle": "none",
    "marker": "x",
    "color": INK,
    "markersize": 8,
    "markeredgewidth": 1.3,
    "zorder": 5,
}
OTHERS = ("d", "p", "8", ">")  # markers of results that are not runs of the study: grey, and no line
RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "lines.linewidth": 1.3,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # letters stay letters: journals refuse type 3 fonts
    "savefig.dpi": 200,
}
LABEL_SIZE = 7  # points
MARKER_ROOM = 4.5  # points around a marker's centre that no label may touch


def look():
    """Context in which every figure is made and saved."""
    return matplotlib.rc_context(RC)


def series(colour: int, variant: int = 0) -> dict:
    """Line properties of a series: ``colour`` picks colour and marker, ``variant`` line and filling."""
    shade = COLOURS[colour % len(COLOURS)]
    return {
        "color": shade,
        "marker": MARKERS[colour % len(MARKERS)],
        "linestyle": LINES[variant % len(LINES)],
        "markerfacecolor": (shade, "white", tuple(0.4 * c + 0.6 for c in to_rgb(shade)))[variant % 3],
        "markeredgecolor": shade,
        "markeredgewidth": 1.1,
    }


def reference(name: str) -> dict:
    """Line properties of the target's or the retrained model's point: large, and behind runs that come to lie on it."""
    return {"linestyle": "none", "markeredgecolor": INK, "markeredgewidth": 1.0, "zorder": 2.5, **REFERENCES[name]}


def reference_line(name: str) -> dict:
    """Line properties of a reference's value, across a panel."""
    return {"color": INK, "linewidth": 1.0, "linestyle": LINES_OF[name], "zorder": 2}


def other(place: int) -> dict:
    """Line properties of a result from elsewhere."""
    grey = "#666666"
    look = {"marker": OTHERS[place % len(OTHERS)], "markersize": 7.5, "markerfacecolor": "#DDDDDD"}
    return {"linestyle": "none", "markeredgecolor": grey, "markeredgewidth": 1.0, "zorder": 2.4, **look}


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Writes ``name.png`` and ``name.pdf``; the same figure always gives the same bytes, so no dates and versions."""
    folder = Path(folder)
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        path = folder / f"{name}.{kind}"
        with whole(path) as half, look():
            figure.savefig(half, format=kind, metadata=metadata)
        paths.append(path)
    return paths


def place_labels(ax, labels: list[tuple], obstacles: Iterable = (), lines: Iterable = ()) -> int:
    """Writes each (x, y, text, colour) beside its point where there is room; returns how many found none.

    ``obstacles`` are further points (x, y) and ``lines`` further polylines [(x, y), …] to keep clear of.
    """
    ax.figure.draw_without_rendering()
    to_points = 72 / ax.figure.dpi

    def points(xy) -> np.ndarray:
        return ax.transData.transform(np.asarray(list(xy), dtype=float).reshape(-1, 2)) * to_points

    own = points((x, y) for x, y, _, _ in labels)
    taken = _Taken(
        markers=np.vstack([own, points(obstacles)]),
        lines=np.vstack([np.empty((0, 2)), *(_sample(points(line)) for line in lines)]),
        frame=np.asarray(ax.bbox.extents) * to_points,
    )
    crowd = [(np.hypot(*(taken.markers - at).T) < 25).sum() for at in own]
    for i in sorted(range(len(labels)), key=lambda i: -crowd[i]):  # where room is scarce, choose first
        costs = [(_cost(box, far, own[i], taken), box, far) for box, far in _candidates(own[i], labels[i][2])]
        cost, box, far = min(costs)
        if cost < 100:
            taken.boxes.append(box)
            if far:
                taken.leaders = np.vstack([taken.leaders, _sample(np.array([own[i], box[:2]]))])
            _write(ax, labels[i], np.array(box[:2]) - own[i], far)
    return len(labels) - len(taken.boxes)


@dataclass
class _Taken:
    """What is in the way of a label, in points on the page."""

    markers: np.ndarray  # [M, 2]
    lines: np.ndarray  # [L, 2], samples of all lines
    frame: np.ndarray  # left, bottom, right, top of the axes
    boxes: list[tuple] = field(default_factory=list)  # labels that are placed: x, y, width, height
    leaders: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))  # samples of their leader lines


def _write(ax, label: tuple, shift: np.ndarray, leader: bool) -> None:
    x, y, text, colour = label
    dark = tuple(0.7 * c for c in to_rgb(colour))
    ax.annotate(
        text,
        (x, y),
        xytext=tuple(shift),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=LABEL_SIZE,
        color=dark,
        zorder=6,
        path_effects=[withStroke(linewidth=1.6, foreground="white")],
        arrowprops={"arrowstyle": "-", "lw": 0.5, "color": dark, "shrinkA": 0, "shrinkB": 3} if leader else None,
    ).set_in_layout(False)  # a label must not move the axes it was measured in


def _size(text: str) -> tuple[float, float]:
    """Width and height of a label in points (digits of the default font are 0.64 of their size wide)."""
    return 0.64 * LABEL_SIZE * len(text), LABEL_SIZE


def _candidates(at: np.ndarray, text: str):
    """Boxes around a point, and whether they are so far from it that a line must lead there."""
    width, height = _size(text)
    for distance in (5.5, 11, 15):  # points between the marker's centre and the box
        for turn in range(16):
            angle = math.pi / 8 * turn
            x = at[0] + math.cos(angle) * (distance + width / 2)
            y = at[1] + math.sin(angle) * (distance + height / 2)
            yield (x, y, width, height), distance > 5.5


def _cost(box: tuple, far: bool, own: np.ndarray, taken: _Taken) -> float:
    """100 for each thing a label may never do; less for what only makes it harder to read."""
    x, y, width, height = box
    left, bottom, right, top = taken.frame
    overlaps = sum(abs(x - a) < (width + c) / 2 + 1 and abs(y - b) < (height + d) / 2 for a, b, c, d in taken.boxes)
    outside = x - width / 2 < left or x + width / 2 > right or y - height / 2 < bottom or y + height / 2 > top
    struck = _inside(taken.markers, box, MARKER_ROOM) + _inside(taken.leaders, box, 0.5)
    if far:
        leader = _sample(np.array([own, box[:2]]))
        struck += sum(_inside(leader, other, 0.5) for other in taken.boxes)
    strangers = (np.hypot(*(taken.markers - (x, y)).T) < math.hypot(x - own[0], y - own[1]) - 1e-6).sum()
    wrong = 100.0 * (overlaps + outside + struck)
    return wrong + 2 * _inside(taken.lines, box, 0.5) + (6 if far else 25) * int(strangers) + 5 * far


def _inside(points: np.ndarray, box: tuple, room: float) -> int:
    """How many of the points lie in the box or within ``room`` of it."""
    gap = np.abs(points - box[:2]) - (box[2] / 2 + room, box[3] / 2 + room)
    return int((gap < 0).all(axis=1).sum())


def _sample(line: np.ndarray) -> np.ndarray:
    """Points every two points along a polyline."""
    pieces = [line[:1]]
    for start, end in zip(line[:-1], line[1:], strict=True):
        steps = max(2, int(np.hypot(*(end - start)) / 2))
        pieces.append(start + (end - start) * np.linspace(0, 1, steps)[:, None])
    return np.vstack(pieces)
