"""What forgetting costs, seconds, memory and trainable parameters, against what comes out.

    python -m analysis.cost STUDY

Easy to get wrong: seconds are those of training alone. What all runs share (models, stored rows of frozen ones) is
made by whichever run comes first, methods that subtract small models have those trained beforehand, and evaluation
costs alike for all. Memory is the whole process's peak, evaluation included.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from . import caption, command, panels, style
from .curves import COSTS, at_one_alpha, check, only_at, rows_of, training_columns
from .runs import Study, StudyError

OUTCOMES = ("forget/prob", "retain/prob")
WORDS = {"seconds/train": "training, seconds", "peak_memory_mb": "peak memory, MB", "trainable": "trainable parameters"}
ALIKE = 1.05  # times the least: no difference that needs a panel
EXAMPLES = """\
  python -m analysis.cost demo                            against forget/prob and retain/prob
  python -m analysis.cost demo --y model_utility          against one outcome
  python -m analysis.cost demo --alpha 0.5                of what was evaluated at α = 0.5
"""


def figure(study: Study, outcomes: Sequence[str] = OUTCOMES, alpha: float | None = None) -> Figure:
    """A row of panels per outcome, a column per cost, a point per training (mean over seeds). A cost that is the same
    for all, or nearly, has no panel, and is named below."""
    costs = recorded(study)
    table = at_one_alpha(trained(study), *outcomes, *costs, alpha=alpha)
    same = [c for c in costs if len(table) > 1 and table[c].max() <= ALIKE * table[c].min()]
    costs = [c for c in costs if c not in same] or costs
    about = {c: " within 5 %" * (table[c].nunique() > 1) for c in same}
    alike = [f"the same for all{about[c]}: {WORDS[c]}, {table[c].mean():,.0f}" for c in same if c not in costs]
    names = caption.names(table, training_columns(study))
    looks = caption.looks(names)
    with style.look():
        height = max(2.1 * len(outcomes) + 0.9, 1.9 + 0.19 * len(names))
        fig = panels.make(study, 2.5 * len(costs) + 2.3, height)
        axes = fig.subplots(len(outcomes), len(costs), squeeze=False, sharex="col", sharey="row")
        known: set[str] = set()
        for row, y in zip(axes, outcomes, strict=True):
            caption.axis_label(row[0].yaxis, study, y)
            for ax, x in zip(row, costs, strict=True):
                known |= set(panels.reference_lines(ax, study, y))
                _draw(ax, table, x, y, looks)
            panels.limit(*(ax.yaxis for ax in row))
        for ax, x in zip(axes[-1], costs, strict=True):
            caption.axis_label(ax.xaxis, study, x, WORDS[x])
        handles = panels.reference_handles(name for name in style.LINES_OF if name in known)
        panels.legend(fig, handles + [Line2D([], [], label=n, **_point(looks[c])) for c, n in names.items()])
        drawn = rows_of(only_at(trained(study), alpha), *outcomes, *costs)
        seeds = caption.spread(study, table, outcomes)
        caption.footnote(fig, [seeds, caption.at(alpha), *alike, *caption.left_out(study, drawn)])
    return fig


def recorded(study: Study) -> list[str]:
    """The costs that the runs' manifests hold."""
    check(study, [], [])
    found = [c for c in COSTS if c in study.runs.columns and study.runs[c].notna().any()]
    if not found:
        raise StudyError(f"study {study.name!r} records none of {', '.join(COSTS)} in its runs' manifests")
    return found


def trained(study: Study) -> Study:
    """The study with the cost of runs that train nothing: no seconds, no parameters."""
    done = study.runs["status"] == "done"
    nothing = {c: study.runs[c].mask(done, study.runs[c].fillna(0.0)) for c in _learning(study)}
    return replace(study, runs=study.runs.assign(**nothing))


def _learning(study: Study) -> list[str]:
    return [c for c in ("seconds/train", "trainable") if c in recorded(study)]


def _point(look: dict) -> dict:
    return look | {"linestyle": "none"}


def _draw(ax, table: pd.DataFrame, x: str, y: str, looks: dict) -> None:
    for curve, look in looks.items():
        points = table[caption.member(table, curve)]
        ax.plot(points[x], points[y], zorder=4, **_point(look))
        known = points.dropna(subset=[f"low/{y}", f"high/{y}"])
        bars = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.8, "alpha": 0.55, "zorder": 2}
        ax.errorbar(known[x], known[y], yerr=panels.around(known, y), **bars)
        several = points.dropna(subset=[f"low/{x}", f"high/{x}"])
        ax.errorbar(several[x], several[y], xerr=panels.around(several, x), **bars)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}"))
    ax.set_xlim(0, 1.12 * table[x].max() or 1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 for a study that cannot be drawn."""
    parser = command.parser("cost", "Draws what runs cost against what comes out, as PNG and PDF.", EXAMPLES)
    parser.add_argument(
        "--y", nargs="+", metavar="METRIC", help=f"outcomes, a row of panels each (default: {' '.join(OUTCOMES)})"
    )
    command.add_alpha(parser)
    return command.run(
        parser,
        arguments,
        lambda study, asked: figure(study, asked.y or OUTCOMES, asked.alpha),
        lambda asked: command.stem("cost", *(asked.y or ()), command.said(asked.alpha)),
    )


if __name__ == "__main__":
    sys.exit(main())
