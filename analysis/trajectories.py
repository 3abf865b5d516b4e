"""What training does, step by step: a row per metric, a column per method, a line per algorithm and training alpha.

    python -m analysis.trajectories STUDY

Easy to get wrong: these are the values logged while runs trained, on at most ``trainer.eval_examples`` questions per
split, so the last step need not equal ``eval.json``; and methods with another learning rate go at another speed, so a
slower fall of the retain split says nothing before forgetting is equal (``analysis.tradeoff --over steps``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import caption, command, panels, style
from .curves import curve_columns, curves, rows_of
from .runs import Study

METRICS = ("forget/prob", "retain/prob")
EXAMPLES = """\
  python -m analysis.trajectories demo                                           forget/prob and retain/prob
  python -m analysis.trajectories demo --metrics forget/prob real_authors/prob world_facts/prob
"""


def figure(study: Study, metrics: Sequence[str] = METRICS) -> Figure:
    """The metrics over the steps of training, methods side by side, with the lines of target and retrained."""
    table = curves(study, *metrics, over="steps")
    methods = caption.in_order(table["method"])
    names, looks = _lines(study, table)
    with style.look():
        fig = panels.make(
            study, max(3.4, 2.6 * len(methods)) + 2.3, max(2.0 * len(metrics) + 0.9, 1.9 + 0.19 * len(names))
        )
        axes = fig.subplots(len(metrics), len(methods), squeeze=False, sharex=True, sharey="row")
        known = [_draw(axes[i][j], study, table, m, method, looks)
                 for i, m in enumerate(metrics) for j, method in enumerate(methods)]  # fmt: skip
        for row in axes:
            panels.limit(*(ax.yaxis for ax in row))
        for method, ax in zip(methods, axes[0], strict=True):
            ax.set_title(method, loc="left")
        for ax in axes[-1]:
            ax.set_xlabel("training step")
        most = max(known, key=len)
        handles = panels.reference_handles(most)
        panels.legend(fig, handles + [Line2D([], [], label=names[line], **looks[line]) for line in names])
        seeds = caption.spread(study, table, metrics, "bands")
        caption.footnote(fig, [seeds, caption.STEPS, *caption.left_out(study, rows_of(study, *metrics, over="steps"))])
    return fig


def _lines(study: Study, table: pd.DataFrame) -> tuple[dict, dict]:
    """Names and looks of lines that differ without their method, which the panel says."""
    columns = [c for c in curve_columns(study, "steps") if c != "method"]
    names = caption.names(table[[*columns, *table.columns.difference(columns, sort=False)]].assign(method=""), columns)
    return names, caption.looks(names)


def _draw(ax, study: Study, table: pd.DataFrame, metric: str, method: str, looks: dict) -> tuple[str, ...]:
    """Draws one panel; returns the references that have a line in it."""
    known = panels.reference_lines(ax, study, metric)
    own = table[table["method"] == method].drop(columns="method")
    for line, look in looks.items():
        points = own[caption.member(own, line)]
        panels.curve(ax, points, "along", metric, look, markersize=3)
    if ax.get_subplotspec().is_first_col():
        caption.axis_label(ax.yaxis, study, metric)
    return tuple(known)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 for a study that cannot be drawn."""
    parser = command.parser(
        "trajectories", "Draws metrics over the steps of training, methods side by side, as PNG and PDF.", EXAMPLES
    )
    parser.add_argument(
        "--metrics", nargs="+", metavar="METRIC", help=f"metrics logged in training (default: {' '.join(METRICS)})"
    )
    return command.run(
        parser,
        arguments,
        lambda study, asked: figure(study, asked.metrics or METRICS),
        lambda asked: command.stem("trajectories", *(asked.metrics or ())),
    )


if __name__ == "__main__":
    sys.exit(main())
