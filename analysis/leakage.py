"""What the worst of k drawn answers gives away, over k: a panel per method, beside target and retrained model.

    python -m analysis.leakage STUDY

Easy to get wrong: a greedy answer (k = 1, nearly) hides what sampling shows, and the aim is the retrained model's
curve, not zero: that model guesses, too, and more often right the more often it may.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from . import caption, command, panels, style
from .curves import at_one_alpha, check, only_at, references, rows_of, training_columns
from .runs import Study, StudyError

KINDS = {
    "leak": "largest ROUGE-L recall of k answers",
    "leaked": "share of questions with a leak in k answers",
    "attribute_leaked": "share of questions with all words that matter in one of k answers",
    "known_leaked": "share of questions whose fact one of k answers tells",
    "judged_leak": "largest score by the judge of k answers",
}
EXAMPLES = """\
  python -m analysis.leakage demo                          each run at its training alpha
  python -m analysis.leakage demo --alpha 0.5              … evaluated at α = 0.5
  python -m analysis.leakage demo --kind attribute_leaked  share of questions whose words that matter are told
"""


def figure(study: Study, kind: str = "leak", alpha: float | None = None) -> Figure:
    """``forget/<kind>@k`` over k, of every run at ``alpha`` or at the evaluated alpha nearest to its training's."""
    metrics = by_k(study, kind)
    table = at_one_alpha(study, *metrics.values(), alpha=alpha)
    methods = caption.in_order(table["method"])
    columns = [c for c in training_columns(study) if c != "method"]
    names = caption.names(table[[*columns, "n"]].assign(method=""), columns)
    looks = caption.looks(names)
    with style.look():
        fig = panels.make(study, max(3.4, 2.6 * len(methods)) + 2.3, max(3.6, 1.9 + 0.19 * len(names)))
        axes = fig.subplots(1, len(methods), squeeze=False, sharey=True)[0]
        for ax, method in zip(axes, methods, strict=True):
            known = _draw_references(ax, study, metrics)
            own = table[table["method"] == method].drop(columns="method")
            for line, look in looks.items():
                for row in own[caption.member(own, line)].to_dict("records"):
                    panels.curve(ax, _over_k(row, metrics), "k", "leak", look, markersize=4)
            _finish(ax, metrics)
            ax.set_title(method, loc="left")
        panels.limit(*(ax.yaxis for ax in axes))
        aim = "(aim: the retrained model's curve)" if "retrained" in known else "(less is better)"
        axes[0].set_ylabel(f"{textwrap.fill(KINDS[kind], 38)}\n{aim}")
        handles = panels.reference_handles(known)
        panels.legend(fig, handles + [Line2D([], [], label=names[line], **looks[line]) for line in names])
        drawn = rows_of(only_at(study, alpha), *metrics.values())
        seeds = caption.spread(study, table, list(metrics.values()), "bands")
        caption.footnote(fig, [seeds, caption.at(alpha), *caption.left_out(study, drawn)])
    return fig


def by_k(study: Study, kind: str = "leak") -> dict[int, str]:
    """k → the name of its metric, as evaluated; a study that was evaluated without any is refused."""
    check(study, [], study.metrics)
    matches = (re.fullmatch(rf"forget/{kind}@(\d+)", metric) for metric in study.metrics)
    found = {int(match[1]): match[0] for match in matches if match}
    if not found:
        raise StudyError(
            f"study {study.name!r} has no forget/{kind}@k; evaluate its runs with the group that draws answers: "
            f"python -m unlearn.evaluate run=FOLDER eval.groups=[leak]"
        )
    return dict(sorted(found.items()))


def _over_k(row: dict, metrics: dict[int, str]) -> pd.DataFrame:
    """One curve's points from the row that holds them beside each other."""
    points = [(k, row[m], row.get(f"low/{m}"), row.get(f"high/{m}")) for k, m in metrics.items()]
    return pd.DataFrame(points, columns=["k", "leak", "low/leak", "high/leak"])


def _draw_references(ax, study: Study, metrics: dict[int, str]) -> list[str]:
    """The curves of the references, each world's where one pair seed has several; which were drawn."""
    means = references(study, *metrics.values())
    for row in means.to_dict("records"):
        if row["reference"] in style.LINES_OF:
            panels.curve(ax, _over_k(row, metrics), "k", "leak", style.reference_line(row["reference"]))
    return [name for name in style.LINES_OF if name in set(means["reference"])]


def _finish(ax, metrics: dict[int, str]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(list(metrics), [str(k) for k in metrics])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("k, answers drawn to each question")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 for a study that cannot be drawn."""
    parser = command.parser("leakage", "Draws leak@k over k, methods side by side, as PNG and PDF.", EXAMPLES)
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="leak",
        help="; ".join(f"{k}: {v}" for k, v in KINDS.items()) + " (default: leak)",
    )
    command.add_alpha(parser)
    return command.run(
        parser,
        arguments,
        lambda study, asked: figure(study, asked.kind, asked.alpha),
        lambda asked: command.stem("leakage", None if asked.kind == "leak" else asked.kind, command.said(asked.alpha)),
    )


if __name__ == "__main__":
    sys.exit(main())
