"""Methods at matched forgetting: what is kept at the α where a curve has forgotten as far as the retrained model.

    python -m analysis.matched STUDY

An end point mixes how far with how well; here all are equally far. Between the evaluated α nearest to the match,
values are interpolated, and α = 0 is the target. Easy to get wrong: of several matching α the smallest is taken; where
a curve never reaches the retrained model's level there is no match, which is said, not extrapolated.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import caption, command, goals, panels, statistics, style
from .curves import SETTING, curve_columns, is_share, rows_of, units
from .runs import INTERVAL, Study, StudyError

SPLITS = ("retain", "neighbours", "real_authors", "world_facts")
LEAK, PROB = "forget/leak_gap", "forget/prob"
ALPHA = "α of the match"
WHERE = {LEAK: "drawn answers leak as much", PROB: "forget answers are as probable"}
FEW = (0, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 1)  # ticks for which a narrow panel has room
WORDY = 3  # marks in a row among which there is room for words
EXAMPLES = """\
  python -m analysis.matched demo                                probability kept, where leak_gap is 0
  python -m analysis.matched demo --metrics model_utility        another metric at the same match
  python -m analysis.matched demo --forget forget/rougeL_recall  matched by another metric
"""


def figure(study: Study, metrics: Sequence[str] | None = None, forget: str | None = None) -> Figure:
    """A row per algorithm, a mark per method and setting, a panel per metric; the last panel shows the α.

    ``forget``: what is matched; None: ``forget/leak_gap`` where it was measured, since a mean probability can be
    matched by answers of which some are wholly kept and others wholly gone; else ``forget/prob``.
    """
    forget = forget or next((m for m in (LEAK, PROB) if m in study.metrics), PROB)
    same = "prob" if forget == LEAK else forget.rpartition("/")[2]
    shown = list(metrics or (m for m in (f"{split}/{same}" for split in SPLITS) if m in study.metrics))
    rows = match(study, shown, forget)
    rows["series"] = _series(rows, [c for c in curve_columns(study) if c != "algo"])
    with style.look():
        height = max(3.2, 0.14 * len(rows) + 0.25 * rows["algo"].nunique() + 1.6)
        fig = panels.make(study, 2.2 * (len(shown) + 1) + 1.9, height)
        axes = fig.subplots(1, len(shown) + 1, sharey=True)
        known: set[str] = set()
        for ax, metric in zip(axes, shown, strict=False):
            known |= set(panels.reference_lines(ax, study, metric, vertical=True))
        handles = draw(axes, rows, {m: f"{goals.named(m)}   (better →)" for m in shown} | {"at": ALPHA})
        handles = panels.reference_handles(name for name in style.LINES_OF if name in known) + handles
        panels.legend(
            fig, handles, textwrap.fill(f"where {WHERE.get(forget, goals.named(forget))} as in the retrained model", 24)
        )
        caption.footnote(fig, _notes(study, rows, shown, forget))
    return fig


def match(study: Study, metrics: Sequence[str], forget: str = PROB) -> pd.DataFrame:
    """One row per curve: its settings, the metrics where its ``forget`` is the retrained model's, and ``at``, that α.

    Means over the ``n`` of ``of`` pair seeds whose curve reaches that value; ``low/`` and ``high/`` as in
    ``curves.curves``. ``nearest`` is what the others come to at best: the least distance to it, mean over them.
    """
    found = pd.DataFrame(_matches(study, list(metrics), forget))
    values = [*metrics, *(end + m for m in metrics for end in INTERVAL), "at"]
    groups = found.groupby(curve_columns(study), dropna=False, sort=False)
    table = groups[[*values, "nearest"]].mean()
    table["n"], table["of"] = groups["at"].count(), groups.size()
    for metric in (*metrics, "at"):
        half = statistics.half(groups[metric].std(), table["n"])
        for end, sign in zip(INTERVAL, (-1, 1), strict=True):
            alone = table.get(end + metric, math.nan)
            ends = (table[metric] + sign * half).where(table["n"] > 1, alone)
            table[end + metric] = ends.clip(0, 1) if is_share(metric) else ends
    return table.reset_index()


def _matches(study: Study, metrics: list[str], forget: str) -> list[dict]:
    """One entry per curve and pair seed, its values NaN where the curve does not reach the retrained model's."""
    points = units(study, forget, *metrics)
    known = _by_world(study)
    if not any(name == "retrained" and pd.notna(row.get(forget)) for (name, *_), row in known.items()):
        raise StudyError(f"study {study.name!r} has no retrained model's {forget!r}, at which methods would be matched")
    values = [forget, *metrics, *(end + m for m in metrics for end in INTERVAL)]
    found = []
    keys = [*curve_columns(study), "pair_seed"]
    for unit, along in points.groupby(keys, dropna=False, sort=False):
        world = tuple(along[[*SETTING, "pair_seed", "world"]].iloc[0])
        retrained, target = (known.get((name, *world), {}) for name in ("retrained", "target"))
        along = along[["along", *values]]
        if target and not (along["along"] == 0).any():
            along = pd.concat([pd.DataFrame([{"along": 0.0, **{v: target.get(v, math.nan) for v in values}}]), along])
        found.append(dict(zip(keys, unit, strict=True)) | _cross(along, forget, retrained.get(forget, math.nan)))
    return found


def _by_world(study: Study) -> dict[tuple, dict]:
    """(target or retrained, pair, data, pair seed, world) → its values."""
    rows = study.references.to_dict("records")
    return {(r["reference"], *(r[c] for c in SETTING), r["pair_seed"], r["world"]): r for r in rows}


def _cross(along: pd.DataFrame, forget: str, goal: float) -> dict:
    """Values where the forget metric first comes to ``goal``, linear between neighbouring α."""
    numbers = along.sort_values("along", kind="stable").astype(float)
    away = numbers[forget].to_numpy() - goal
    for i in range(len(away) - 1):
        if away[i] * away[i + 1] <= 0:
            share = 0.0 if away[i] == away[i + 1] else away[i] / (away[i] - away[i + 1])
            values = numbers.iloc[i] + share * (numbers.iloc[i + 1] - numbers.iloc[i])
            return values.drop("along").to_dict() | {"at": values["along"], "nearest": math.nan}
    return dict.fromkeys((*numbers.columns[1:], "at"), math.nan) | {"nearest": float(np.abs(away).min())}


def draw(axes: Sequence, rows: pd.DataFrame, shown: Mapping[str, str | None]) -> list[Line2D]:
    """A row per ``algo``, a mark per ``series``, a panel per column of ``shown`` (its words); the legend's entries.

    Around each value its ``low/`` and ``high/``. A mark is open where only ``n`` of ``of`` reach the match, and absent
    where none does; where there is room for words, these numbers and what is not reached stand in the row.
    """
    algos, series = list(dict.fromkeys(rows["algo"]))[::-1], list(dict.fromkeys(rows["series"]))
    looks = {name: _look(place) for place, name in enumerate(series)}
    for ax, (column, words) in zip(axes, shown.items(), strict=True):
        for row in rows.to_dict("records"):
            own = [name for name in series if ((rows["algo"] == row["algo"]) & (rows["series"] == name)).any()]
            shift = (len(own) - 1) / 2 - own.index(row["series"])
            y = algos.index(row["algo"]) + shift * 0.8 / max(len(own), 2)
            _mark(ax, row, column, y, looks[row["series"]], len(own) <= WORDY)
        _finish(ax, column, words)
    for metric in {column.rpartition("/")[2] for column in shown} - {"at"}:  # panels of one metric have one axis
        alike = {column: ax.xaxis for ax, column in zip(axes, shown, strict=True) if column.endswith(metric)}
        panels.odds(*alike.values(), ticks=FEW) if all(map(is_share, alike)) else panels.limit(*alike.values())
    axes[0].set_yticks(range(len(algos)), ["no objective" if algo == "none" else algo for algo in algos])
    axes[0].set_ylim(-0.6, len(algos) - 0.4)
    for ax in axes[0], *axes:
        ax.grid(axis="y", visible=False)
        for edge in range(1, len(algos)):
            ax.axhline(edge - 0.5, color="#DDDDDD", linewidth=0.6, zorder=0.5)
    return [Line2D([], [], label=name, **look) for name, look in looks.items()]


def _look(place: int) -> dict:
    look = style.series(place)
    return {k: look[k] for k in ("color", "marker", "markeredgecolor", "markeredgewidth")} | {"linestyle": "none"}


def _mark(ax, row: dict, column: str, y: float, look: dict, wordy: bool) -> None:
    value, text = row[column], {"fontsize": 6.5, "color": "#555555", "va": "center", "zorder": 5}
    if math.isnan(value):
        if wordy and ax.get_subplotspec().is_first_col():
            near = f", nearest: {row['nearest']:.2g} away" if pd.notna(row.get("nearest")) else ""
            place = {"xytext": (3, 0), "textcoords": "offset points"}
            ax.annotate(f"not reached{near}", (0, y), xycoords=("axes fraction", "data"), **place, **text)
        return
    ends = [row[f"low/{column}"], row[f"high/{column}"]]
    if not any(math.isnan(end) for end in ends):
        ax.plot(ends, [y, y], color=look["color"], linewidth=1.0, zorder=2.6)
    whole = row["n"] == row["of"]
    ax.plot([value], [y], **look, markersize=4.5, markerfacecolor=look["color"] if whole else "white", zorder=3)
    if wordy and not whole:
        ax.annotate(
            f"{row['n']}/{row['of']}", (value, y), xytext=(0, 6), textcoords="offset points", ha="center", **text
        )


def _finish(ax, column: str, words: str | None) -> None:
    if column == "at":
        ax.set_xlabel(words)
        ax.set_xlim(0, 1.08 * max(ax.dataLim.x1, 0.1))
        return
    ax.set_xlabel(textwrap.fill(words or column, 26))


def _series(rows: pd.DataFrame, columns: list[str]) -> pd.Series:
    """What tells the curves of one algorithm apart; the method where nothing does."""
    told = [c for c in columns if c == "method" or rows[c].nunique(dropna=False) > 1]
    return rows[told].apply(lambda row: ", ".join(caption.say(c, row[c]) for c in told), axis=1)


def _notes(study: Study, rows: pd.DataFrame, shown: Sequence[str], forget: str) -> list[str]:
    said = [caption.spread(study, rows, shown)]
    if (missed := int((rows["of"] - rows["n"]).sum())) > 0:
        said.append(f"not reached: {missed} of {rows['of'].sum()} curves; open marks: reached in n/of pair seeds")
    said.append("shares have axes in odds; linear between evaluated α; α = 0 is the target")
    return said + caption.left_out(study, rows_of(study, forget, *shown))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 for a study that cannot be drawn."""
    parser = command.parser("matched", "Draws what methods keep at matched forgetting, as PNG and PDF.", EXAMPLES)
    parser.add_argument(
        "--forget", metavar="METRIC", help="what is matched (default: forget/leak_gap if measured, else forget/prob)"
    )
    parser.add_argument(
        "--metrics", nargs="+", metavar="METRIC", help="what is shown (default: the same of other splits)"
    )
    return command.run(
        parser,
        arguments,
        lambda study, asked: figure(study, asked.metrics, asked.forget),
        lambda asked: command.stem("matched", *(asked.metrics or ()), asked.forget),
    )


if __name__ == "__main__":
    sys.exit(main())
