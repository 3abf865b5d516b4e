"""Forget-versus-retain curves of a study: how much of the rest is lost for how much is forgotten.

    python -m analysis.tradeoff STUDY

Which alpha runs along a curve depends on the runs of its algorithm and method. When they were evaluated at several
alphas, a curve is one training (algorithm, method, training alpha) seen at every inference alpha. Otherwise it is one
algorithm and method over the training alphas. A figure may hold curves of both kinds.

Easy to get wrong: the best forgetting is the retrained model's (the vertical line), not zero; methods compare fairly
where their curves meet that line, and an end point alone mixes how far with how well.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.curves import SETTING, collapsed, curve_columns, curves, finished, over_inference, references
from analysis.goals import better
from analysis.others import load_others
from analysis.runs import Study, StudyError, load

PANELS = (("forget/prob", "retain/prob"), ("forget/rougeL_recall", "retain/rougeL_recall"))
WORDS = {"higher": "   (better →)", "lower": "   (← better)", None: ""}  # on the y axis "→" is turned upwards
EPILOG = """examples:
  python -m analysis.tradeoff demo                          the study runs/demo: two panels, prob and ROUGE-L recall
  python -m analysis.tradeoff demo --y model_utility        one panel: forget/prob against model_utility
  python -m analysis.tradeoff /data/old/demo --out figures  a study elsewhere, figures to ./figures
  python -m analysis.tradeoff demo --others converted/*.json  with results that are no runs of the study
"""


def figure(study: Study, x: str | None = None, y: str | None = None, others: pd.DataFrame | None = None) -> Figure:
    """The trade-off figure of one pair of metrics; of both default pairs when neither ``x`` nor ``y`` is given.

    ``others`` (``analysis.others.load_others``) are marked as single points.
    """
    panels = [(x or PANELS[0][0], y or PANELS[0][1])]
    if x is None and y is None:
        panels += [p for p in PANELS[1:] if set(p) <= set(study.metrics)]
    tables = [curves(study, *panel) for panel in panels]
    names = _names(study, pd.concat(tables))
    looks = _looks(names)
    others = _with_numbers(others, panels[0]) if others is not None else []
    with style.look():
        fig = Figure(figsize=(3.5 * len(panels) + 1.9, max(4.0, 1.6 + 0.17 * len(names))), layout="constrained")
        fig.get_layout_engine().set(wspace=0.05)
        axes = fig.subplots(1, len(panels), squeeze=False)[0]
        drawn = [_draw(ax, study, *p, table, looks, others) for ax, p, table in zip(axes, panels, tables, strict=True)]
        _legend(fig, study, names, looks, others)
        fig.suptitle(_title(study), x=0.01, ha="left", fontsize=9)
        note = fig.supxlabel(_footnote(fig, study, panels[0]), x=0.01, ha="left", fontsize=6.5, color="#555555")
        crowded = sum(style.place_labels(ax, *things) for ax, things in zip(axes, drawn, strict=True))
        note.set_text(_footnote(fig, study, panels[0], crowded))
    return fig


def _with_numbers(others: pd.DataFrame, panel: tuple[str, str]) -> list[dict]:
    """The results from elsewhere; one that has no place in the first panel is refused."""
    for row in others.to_dict("records"):
        absent = [metric for metric in panel if pd.isna(row.get(metric))]
        if absent:
            has = ", ".join(k for k, v in row.items() if k not in ("model", "file") and pd.notna(v)) or "none"
            raise StudyError(f"{row['file']} has no metric {absent[0]!r}; choices: {has}")
    return others.to_dict("records")


def _draw(ax, study: Study, x: str, y: str, table: pd.DataFrame, looks: dict, others: list[dict]) -> tuple:
    """Draws one panel but for its labels; returns the labels and the points and lines they must keep clear of."""
    marks = _draw_references(ax, study, x, y)
    for place, row in enumerate(others):
        point = row.get(x, math.nan), row.get(y, math.nan)
        ax.plot(*([value] for value in point), **style.other(place))
        marks += [] if math.isnan(sum(point)) else [point]
    lines = _draw_curves(ax, x, y, table, looks)
    for axis, metric in ((ax.xaxis, x), (ax.yaxis, y)):
        axis.set_label_text(metric + WORDS[better(metric)])
        _limit(axis)
    return _labels(table, (x, y), looks), marks, lines


def _names(study: Study, table: pd.DataFrame) -> dict[tuple, str]:
    """Curve → its name in the legend, made of what differs between the curves only."""
    columns = curve_columns(study)
    told = [
        c
        for c in columns
        if c == "algo" or (c == "method" and "none" in set(table["algo"])) or table[c].nunique(dropna=c == "alpha") > 1
    ]
    repeated = table["n"].max() > 1
    names = {}
    for curve, points in table.groupby(columns, dropna=False, sort=False):
        own = [c for c in told if c != "alpha" or points[c].notna().all()]  # a curve over training alphas has no own
        settings = zip(columns, curve, strict=True)
        said = [_say(c, value) for c, value in settings if c in own and (c, value) != ("algo", "none")]
        low, high = points["n"].min(), points["n"].max()
        curve = tuple(None if pd.isna(value) else value for value in curve)  # unlike NaN, None equals itself
        names[curve] = ", ".join(said) + (f" (n={low if low == high else f'{low}–{high}'})" if repeated else "")
    return names


def _say(column: str, value) -> str:
    if column in ("algo", "method", *SETTING):
        return str(value)
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    shown = "default" if pd.isna(value) else shown
    return f"trained at α={shown}" if column == "alpha" else f"{column.split('.')[-1]}={shown}"


def _looks(names: dict[tuple, str]) -> dict[tuple, dict]:
    """Colour and marker tell the algorithm, line and filling the rest; with one algorithm, both tell the rest."""
    algos = list(dict.fromkeys(curve[0] for curve in names))
    rest = list(dict.fromkeys(curve[1:] for curve in names))
    if len(algos) == 1 or len(rest) == 1:
        return {
            curve: style.series(i, i) | {"markerfacecolor": style.series(i)["color"]} for i, curve in enumerate(names)
        }
    return {curve: style.series(algos.index(curve[0]), rest.index(curve[1:])) for curve in names}


def _draw_curves(ax, x: str, y: str, table: pd.DataFrame, looks: dict) -> list[list[tuple]]:
    """Draws the curves and their spread; returns what was drawn as polylines, for the labels to keep clear of."""
    drawn = []
    for curve, look in looks.items():
        points = table[_member(table, curve)]
        ax.plot(points[x], points[y], zorder=3, **look | {"marker": ""})
        ax.plot(points[x], points[y], zorder=4, **look | {"linestyle": ""})  # no line crosses another curve's point
        drawn.append(list(zip(points[x], points[y], strict=True)))
        spread = points[points["n"] > 1]
        bars = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.8, "alpha": 0.55, "zorder": 2}
        ax.errorbar(spread[x], spread[y], xerr=spread["sd_x"], yerr=spread["sd_y"], **bars)
        for a, b, da, db in spread[[x, y, "sd_x", "sd_y"]].itertuples(index=False):
            drawn += [[(a - da, b), (a + da, b)], [(a, b - db), (a, b + db)]]
    return [line for line in drawn if line]


def _member(table: pd.DataFrame, curve: tuple) -> pd.Series:
    same = pd.Series(True, index=table.index)
    for column, value in zip(table.columns, curve, strict=False):  # the first columns are the curve's
        same &= table[column].isna() if pd.isna(value) else table[column] == value
    return same


def _draw_references(ax, study: Study, x: str, y: str) -> list[tuple]:
    """Marks target and retrained (means over pair seeds, but each world that differs by more); returns the points."""
    marks, means = [], references(study, x, y)
    for name in style.REFERENCES:
        points = means[means["reference"] == name]
        ax.plot(points[x], points[y], **style.reference(name))
        marks += list(zip(points[x], points[y], strict=True))
        if name == "retrained" and len(points) == 1:  # methods compare fairly at the forgetting of the retrained model
            ax.axvline(points[x].iloc[0], color="#999999", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    return marks


def _labels(table: pd.DataFrame, panel: tuple[str, str], looks: dict) -> list[tuple]:
    """(x, y, text, colour) of every point, for its alpha."""
    labels = []
    for curve, look in looks.items():
        points = table[_member(table, curve)]
        labels += [
            (a, b, f"{alpha:g}", look["color"]) for a, b, alpha in points[[*panel, "along"]].itertuples(index=False)
        ]
    return labels


def _limit(axis) -> None:
    """Room around the data for the labels, but no ticks outside 0 to 1 where nothing can lie there."""
    low, high = axis.get_data_interval()
    share = 0 <= low and high <= 1
    span = max(high - low, 0.2)  # less would blow up noise
    middle = (low + high) / 2
    if share:
        middle = min(max(middle, span / 2), 1 - span / 2)
    limits = (middle - 0.6 * span, middle + 0.6 * span)
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(limits)
    if share:
        axis.set_ticks([t for t in axis.get_ticklocs() if max(0, limits[0]) <= round(t, 9) <= min(1, limits[1])])


def _legend(fig: Figure, study: Study, names: dict[tuple, str], looks: dict, others: list[dict]) -> None:
    known = set(study.references["reference"])
    handles = [Line2D([], [], label=name, **style.reference(name)) for name in style.REFERENCES if name in known]
    handles += [Line2D([], [], label=label, **looks[curve]) for curve, label in names.items()]
    handles += [Line2D([], [], label=row["model"], **style.other(place)) for place, row in enumerate(others)]
    place = {"loc": "outside right upper", "alignment": "left", "handlelength": 3.2, "labelspacing": 0.6}
    fig.legend(handles=handles, title=_legend_title(study) + "\n", **place)


def _title(study: Study) -> str:
    done = finished(study)
    setting = "; ".join(f"{c} {', '.join(sorted(done[c].unique()))}" for c in SETTING)
    return f"{study.name}   ({setting})"


def _legend_title(study: Study) -> str:
    """Which alpha the numbers beside the points are."""
    seen = over_inference(study)
    joined = finished(study)[~seen].dropna(subset=["eval_alpha"])  # rows of curves that join trainings
    if joined.empty:
        return "numbers: α at inference"
    evaluated = ", ".join(f"{alpha:g}" for alpha in sorted(joined["eval_alpha"].unique()))
    same = (joined["eval_alpha"] == joined["alpha"]).all()
    if seen.any():
        more = "in training, too" if same else f"α in training (at inference: {evaluated})"
        return f"numbers: α at inference;\n{more}, where each\npoint is a training of its own"
    return "numbers: α in training\n" + ("and at inference" if same else f"(α at inference: {evaluated})")


def _footnote(fig: Figure, study: Study, panel: tuple[str, str], crowded: int = 0) -> str:
    """What the curves do not show: spread, runs not drawn, collapsed runs, labels without room."""
    done, y = finished(study), panel[1]
    worlds, seeds = done["pair_seed"].nunique(), done["seed"].nunique()
    said = [f"bars: ± 1 sd over {worlds} pair seeds" if worlds > 1 else f"1 pair seed, unlearning seeds: {seeds}"]
    marks = references(study, *panel)
    if (marks["reference"] == "retrained").sum() == 1:
        said.append("vertical line: the retrained model's forgetting")
    if not marks.empty and (marks["apart"] != "").any():
        said.append("target and retrained are marked once per world")
    absent = [f"{study.count(status)} {status}" for status in study.runs["status"].unique() if status != "done"]
    unseen = done.loc[done["eval_alpha"].isna(), "folder"].nunique()
    absent += [f"{unseen} done but not evaluated"] if unseen else []
    if absent:
        said.append(f"not drawn: {', '.join(absent)} of {study.runs['folder'].nunique()} runs")
    if gone := collapsed(study, y):
        said.append(f"collapsed ({y} not a number or below half of the target's): {gone} of {study.count('done')} done")
    if (difference := study.references["disagreement"].max()) > 0.005:
        said.append(f"runs report references that differ by up to {difference:.2g}")
    if crowded:
        said.append(f"{crowded} α left out for want of room (α is in order along a curve)")
    return textwrap.fill(" · ".join(said), int(fig.get_figwidth() * 22))  # characters that fit


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 for a study that cannot be drawn."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.tradeoff",
        description="Draws the forget-versus-retain curves of a study, as PNG and PDF.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", metavar="STUDY", help="a study's name under --runs, or a path to its folder")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="the folder of all studies (default: runs)")
    parser.add_argument("--x", metavar="METRIC", help="metric of the x axis (default: forget/prob)")
    parser.add_argument("--y", metavar="METRIC", help="metric of the y axis (default: retain/prob)")
    parser.add_argument(
        "--others", nargs="+", default=[], metavar="FILE", help="results from elsewhere, as grey points (python -m "
        "unlearn.compare writes the files)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="where to write (default: figures/ in the study's folder)")
    asked = parser.parse_args(arguments)
    name = "-".join(["tradeoff", *(m.replace("/", "_") for m in (asked.x, asked.y) if m)])  # keeps the default figure
    try:
        study = load(asked.study, asked.runs)
        drawn = figure(study, asked.x, asked.y, load_others(asked.others))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in style.save(drawn, Path(asked.out) if asked.out else study.folder / "figures", name):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
