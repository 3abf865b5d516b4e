"""Forget-versus-retain curves of a study: how much of the rest is lost for how much is forgotten.

    python -m analysis.tradeoff STUDY

Which alpha runs along a curve depends on the runs of its algorithm and method. When they were evaluated at several
alphas, a curve is one training (algorithm, method, training alpha) seen at every inference alpha. Otherwise it is one
algorithm and method over the training alphas. A figure may hold curves of both kinds. ``--over steps`` draws each
training's way instead, by what was logged during it.

Shares have axes in odds: good methods differ between .9 and 1. Easy to get wrong: the best forgetting is the retrained
model's (the vertical line; without one the guess level), not zero; methods compare fairly where their curves meet that
line, and an end point alone mixes how far with how well.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import caption, command, panels, pareto, statistics, style
from .caption import member
from .curves import curve_columns, curves, is_share, losses, references, rows_of, step_metrics, units
from .goals import goal
from .others import load_others
from .runs import Study, StudyError

PANELS = (("forget/prob", "retain/prob"), ("forget/rougeL_recall", "retain/rougeL_recall"))
STEP_PANELS = (("forget/prob", "retain/prob"), ("forget/exact_memorization", "retain/exact_memorization"))
WORST = (("lower", "lower"), (1.0, 1.0))  # of two losses
AIMS = {"retrained": "aim: as the retrained model", "guess": "aim: the guess level, of names that no model can know"}
MANY = 30  # points in a panel from which on not each one's α is written beside it
FRONT: dict[str, Any] = {
    "color": "#BBBBBB",
    "linestyle": "none",
    "marker": "o",
    "markersize": 13,
    "markeredgewidth": 0,
    "alpha": 0.6,
    "zorder": 1.2,
    "linewidth": 5.0,
}  # fmt: skip
EXAMPLES = """\
  python -m analysis.tradeoff demo                          the study runs/demo: two panels, prob and ROUGE-L recall
  python -m analysis.tradeoff demo --y model_utility        one panel: forget/prob against model_utility
  python -m analysis.tradeoff real --retain neighbours      against what lies beside the topic, not the retain set
  python -m analysis.tradeoff demo --over steps             each training's way, from the target on
  python -m analysis.tradeoff /data/old/demo --out figures  a study elsewhere, figures to ./figures
  python -m analysis.tradeoff demo --others converted/*.json  with results that are not runs of the study
"""


def figure(
    study: Study, x: str | None = None, y: str | None = None, others: pd.DataFrame | None = None, over: str = "alpha",
    retain: str = "retain",
) -> Figure:  # fmt: skip
    """The trade-off figure of one pair of metrics; of both default pairs when neither ``x`` nor ``y`` is given.

    ``others`` (``analysis.others.load_others``) are marked as single points. ``over`` as in ``curves.curves``.
    ``retain``: the split of the default y axes.
    """
    panels_of, known = (STEP_PANELS, step_metrics(study)) if over == "steps" else (PANELS, study.metrics)
    pairs = [(of_x, of_y.replace("retain/", f"{retain}/")) for of_x, of_y in panels_of]
    shown = [(x or pairs[0][0], y or pairs[0][1])]
    if x is None and y is None:
        shown += [p for p in pairs[1:] if set(p) <= set(known)]
    tables = [curves(study, *panel, over=over) for panel in shown]
    names = caption.names(pd.concat(tables), curve_columns(study, over))
    looks = caption.looks(names)
    others = _with_numbers(others, shown[0]) if others is not None else []
    with style.look():
        areas = [hypervolumes(study, *panel, over=over) for panel in shown]
        longest = max(len(name + _area(areas, curve)) for curve, name in names.items())
        width = 3.6 * len(shown) + max(2.0, 0.6 + 0.065 * longest)  # the legend's letters are 0.065 inches wide
        fig = panels.make(study, width, max(4.0, 1.9 + 0.19 * len(names)))
        axes = fig.subplots(1, len(shown), squeeze=False)[0]
        drawn = [_draw(ax, study, *p, t, looks, others, over) for ax, p, t in zip(axes, shown, tables, strict=True)]
        gone = any((table["gone"] >= 0.5).any() for table in tables)
        _legend(fig, study, names, looks, others, areas, over, gone)
        said = _notes(study, shown[0], tables[0], areas, over)
        if any("function" in (ax.get_xscale(), ax.get_yscale()) for ax in axes):
            said.insert(1, "shares have axes in odds: those near 0 and 1 are drawn apart")
        caption.footnote(fig, said)
        crowded = sum(style.place_labels(ax, *things) for ax, things in zip(axes, drawn, strict=True))
        if crowded and over == "alpha":
            said.append(f"{crowded} α left out for want of room (α is in order along a curve)")
        caption.footnote(fig, said)
    return fig


def hypervolumes(study: Study, x: str, y: str, over: str = "alpha") -> dict | None:
    """Curve or reference → what its points beat, one number per pair seed; None for metrics without a worst value.

    The area is that between the points' losses (``curves.losses``) and the worst, 1 of both.
    """
    table, means = units(study, x, y, over=over), references(study, x, y)
    if not (is_share(x) and is_share(y)):
        return None
    columns, found = curve_columns(study, over), {}
    both = table.assign(x=losses(study, table, x), y=losses(study, table, y))
    for (*curve, _), points in both.groupby([*columns, "pair_seed"], dropna=False, sort=False):
        key = tuple(None if pd.isna(value) else value for value in curve)
        found.setdefault(key, []).append(pareto.hypervolume(points[["x", "y"]].to_numpy(), *WORST))
    for name, own in means.groupby("reference"):
        if len(own) == 1:
            points = np.column_stack([losses(study, own, x), losses(study, own, y)])
            found[name] = [pareto.hypervolume(points, *WORST)]
    return found


def _with_numbers(others: pd.DataFrame, panel: tuple[str, str]) -> list[dict]:
    """The results from elsewhere; one that has no place in the first panel is refused."""
    for row in others.to_dict("records"):
        absent = [metric for metric in panel if pd.isna(row.get(metric))]
        if absent:
            has = ", ".join(k for k, v in row.items() if k not in ("model", "file") and pd.notna(v)) or "none"
            raise StudyError(f"{row['file']} has no metric {absent[0]!r}; choices: {has}")
    return others.to_dict("records")


def _draw(
    ax, study: Study, x: str, y: str, table: pd.DataFrame, looks: dict, others: list[dict], over: str
) -> tuple[list, list, list]:
    """Draws one panel but for its labels; returns the labels and the points and lines they must keep clear of."""
    marks = _draw_references(ax, study, x, y)
    for place, row in enumerate(others):
        point = row.get(x, math.nan), row.get(y, math.nan)
        ax.plot(*([value] for value in point), **style.other(place))
        marks += [] if math.isnan(sum(point)) else [point]
    lines = _draw_curves(ax, x, y, table, looks, 1.0 if over == "alpha" else 0.6)
    _draw_front(ax, study, x, y, table)
    for axis, metric in ((ax.xaxis, x), (ax.yaxis, y)):
        caption.axis_label(axis, study, metric)
        (panels.odds if is_share(metric) else panels.limit)(axis)
    _say_aim(ax, study, x)
    return _labels(table, (x, y), looks, over), marks, lines


def _say_aim(ax, study: Study, x: str) -> None:
    """The vertical line of the best forgetting, and above it what it is; none where it is not one value."""
    means = references(study, x)
    name = "retrained" if "retrained" in set(means["reference"]) else "guess"
    found = means.loc[means["reference"] == name, x].to_numpy() if x in means else np.empty(0)
    if len(found) == 1 and goal(x) in ("retrained", "zero"):
        across = (ax.transData + ax.transAxes.inverted()).transform((found[0], 0))[0]
        text = {"va": "bottom", "ha": "left" if across < 0.25 else "center", "fontsize": style.LABEL_SIZE}
        ax.axvline(found[0], color="#999999", linewidth=0.8, linestyle=style.LINES_OF[name], zorder=1)
        ax.annotate(AIMS[name], (across, 1), xycoords="axes fraction", **text)


def _draw_curves(ax, x: str, y: str, table: pd.DataFrame, looks: dict, size: float) -> list[list[tuple]]:
    """Draws the curves and their spread; returns what was drawn as polylines, for the labels to keep clear of."""
    drawn, marker = [], {"linestyle": "", "markersize": style.RC["lines.markersize"] * size}
    for curve, look in looks.items():
        points = table[member(table, curve)]
        ax.plot(points[x], points[y], zorder=3, **look | {"marker": ""})
        ax.plot(points[x], points[y], zorder=4, **look | marker)  # no line crosses another curve's point
        drawn.append(list(zip(points[x], points[y], strict=True)))
        gone = points[points["gone"] >= 0.5]
        ax.plot(gone[x], gone[y], **style.COLLAPSED)
        known = points.dropna(subset=[f"low/{x}", f"low/{y}"])
        bars = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.8, "alpha": 0.55, "zorder": 2}
        ax.errorbar(known[x], known[y], xerr=panels.around(known, x), yerr=panels.around(known, y), **bars)
        ends = [f"{end}/{metric}" for metric in (x, y) for end in ("low", "high")]
        for a, b, left, right, down, up in known[[x, y, *ends]].itertuples(index=False):
            drawn += [[(left, b), (right, b)], [(a, down), (a, up)]]
    return [line for line in drawn if line]


def _draw_front(ax, study: Study, x: str, y: str, table: pd.DataFrame) -> None:
    """A grey halo around the points of all curves that no other point beats."""
    if is_share(x) and is_share(y):
        points = table[[x, y]].to_numpy()
        both = losses(study, table, x), losses(study, table, y)
        best = points[pareto.front(np.column_stack(both), WORST[0])]
        ax.plot(*best.T, **FRONT)


def _draw_references(ax, study: Study, x: str, y: str) -> list[tuple]:
    """Marks target and retrained (means over pair seeds, but each world that differs by more); returns the points."""
    marks, means = [], references(study, x, y)
    for name in style.REFERENCES:
        points = means[means["reference"] == name]
        ax.plot(points[x], points[y], **style.reference(name))
        marks += list(zip(points[x], points[y], strict=True))
    return marks


def _labels(table: pd.DataFrame, panel: tuple[str, str], looks: dict, over: str) -> list[tuple]:
    """(x, y, text, colour) of every point, for its alpha; of a curve's ends where points are many; of its last step."""
    labels = []
    for curve, look in looks.items():
        points = table[member(table, curve)]
        if over == "steps":
            points = points.iloc[-1:]
        elif len(table) > MANY:
            points = points.iloc[[0, -1]] if len(points) > 1 else points
        labels += [
            (a, b, f"{along:g}", look["color"]) for a, b, along in points[[*panel, "along"]].itertuples(index=False)
        ]
    return labels


def _legend(
    fig: Figure, study: Study, names: dict[tuple, str], looks: dict, others: list[dict], areas: list, over: str,
    gone: bool,
) -> None:  # fmt: skip
    known = set(study.references["reference"])
    entries: list[tuple] = [(name, name, style.reference(name)) for name in style.REFERENCES if name in known]
    entries += [(curve, label, looks[curve]) for curve, label in names.items()]
    handles = [Line2D([], [], label=label + _area(areas, key), **look) for key, label, look in entries]
    handles += [Line2D([], [], label=row["model"], **style.other(place)) for place, row in enumerate(others)]
    handles += [Line2D([], [], label="collapsed", **style.COLLAPSED)] if gone else []
    title = "numbers: " + ("last step of a training" if over == "steps" else caption.alphas(study))
    if any(area is not None for area in areas):
        handles.append(Line2D([], [], label="Pareto front of all curves", **FRONT))
        title += "\nbehind names: hypervolume" + (",\nleft | right" if len(areas) > 1 else "")
    panels.legend(fig, handles, title)


def _area(areas: list[dict | None], key: tuple | str) -> str:
    """The hypervolume of a curve or reference in each panel, mean ± half the 95 % interval over pair seeds."""
    found = [statistics.mean((area or {}).get(key, [])) for area in areas]
    said = [f"{a.mean:.3f}" + (f" ± {a.half:.3f}" if a.n > 1 else "") for a in found if a.n]
    return f"   {' | '.join(said)}" if said else ""


def _notes(study: Study, panel: tuple[str, str], table: pd.DataFrame, areas: list, over: str) -> list[str]:
    """What the curves do not show: spread, what the areas are, runs not drawn and collapsed."""
    marks = references(study, *panel)
    said = [caption.spread(study, table, panel)]
    if not marks.empty and (marks["apart"] != "").any():
        said.append("target and retrained are marked once per world")
    if areas[0] is not None:
        aim = "the retrained model's" if (marks["reference"] == "retrained").any() else "none"
        said.append(f"hypervolume: area beaten, 1 is best; forgetting counts by its distance from the best, {aim}")
    if over == "steps":
        said.append(caption.STEPS)
    elif len(table) > MANY:
        said.append(f"α at the ends of curves only; all α: {', '.join(f'{a:g}' for a in sorted(set(table['along'])))}")
    return said + caption.left_out(study, rows_of(study, *panel, over=over))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 for a study that cannot be drawn."""
    parser = command.parser("tradeoff", "Draws the forget-versus-retain curves of a study, as PNG and PDF.", EXAMPLES)
    parser.add_argument("--x", metavar="METRIC", help="metric of the x axis (default: forget/prob)")
    parser.add_argument("--y", metavar="METRIC", help="metric of the y axis (default: retain/prob)")
    parser.add_argument(
        "--retain", default="retain", metavar="SPLIT", help="the split of the default y axes, e.g. neighbours"
    )
    parser.add_argument(
        "--over", choices=("alpha", "steps"), default="alpha",
        help="what runs along a curve: α, or the steps of training (default: alpha)",
    )  # fmt: skip
    parser.add_argument(
        "--others", nargs="+", default=[], metavar="FILE", help="results from elsewhere, as grey points (python -m "
        "unlearn.compare writes the files)",
    )  # fmt: skip
    return command.run(
        parser,
        arguments,
        lambda study, asked: figure(study, asked.x, asked.y, load_others(asked.others), asked.over, asked.retain),
        lambda asked: command.stem(
            "tradeoff", asked.x, asked.y, *(None if v in ("retain", "alpha") else v for v in (asked.retain, asked.over))
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
