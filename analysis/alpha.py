"""All splits over α: a panel per algorithm, method and training α, a line per split.

    python -m analysis.alpha STUDY

Where runs were evaluated at several α, a panel is one training seen at every inference α; otherwise it joins the
trainings of one algorithm and method, and α is that of training (and of inference with it). Easy to get wrong: α at
inference rescales one trained offset, α in training trains another; the axis says which one it is.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import caption, command, panels, style
from .curves import check, curve_columns, curves, finished, references, rows_of
from .goals import ARROWS, goal, metric_of, split_of
from .runs import Study, StudyError

SPLITS = ("forget", "retain", "neighbours", "real_authors", "world_facts")
AIMS = ("guess", "retrained")
ACROSS = 4  # panels beside each other, at most
WIDEST = 24  # characters below one of them
EXAMPLES = """\
  python -m analysis.alpha demo                         probability of the right answer on every split
  python -m analysis.alpha demo --metric rougeL_recall  another metric of the splits
"""


def figure(study: Study, metric: str = "prob") -> Figure:
    """``<split>/<metric>`` of every split over α, with the lines of the retrained model and α = 0, the target."""
    shown = _splits(study, metric)
    table, columns = curves(study, *shown), curve_columns(study)
    levels = {metric: references(study, metric) for metric in shown}
    names = caption.names(table, columns)
    down = math.ceil(len(names) / ACROSS)
    across = math.ceil(len(names) / down)
    with style.look():
        fig = panels.make(study, max(3.6, 2.2 * across) + 1.7, max(2.0 * down + 1.0, 3.4))
        axes = list(fig.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
        for ax, (curve, name) in zip(axes, names.items(), strict=False):
            _draw(ax, table[caption.member(table, curve)], levels)
            ax.set_title(textwrap.fill(name, WIDEST + 3), loc="left")
        for ax in axes[len(names) :]:
            ax.set_visible(False)
        for ax in axes[::across]:
            ax.set_ylabel(metric_of(metric))
        panels.limit(*(ax.yaxis for ax in axes[: len(names)]))
        axes[0].set_xlim(*(f * max(table["along"].max(), 0.1) for f in (-0.05, 1.05)))
        words = [_which(study, dict(zip(columns, curve, strict=True)), name) for curve, name in names.items()]
        _label_alphas(axes[: len(names)], words)
        _legend(fig, study, shown)
        seeds = caption.spread(study, table, shown, "bands")
        aim = f"aim: {split_of(shown[0])} as the retrained model, all else high"
        caption.footnote(fig, [seeds, aim, *caption.left_out(study, rows_of(study, *shown))])
    return fig


def _splits(study: Study, metric: str) -> list[str]:
    """The metric of every split that has it, forget first."""
    shown = [f"{split}/{metric}" for split in SPLITS if f"{split}/{metric}" in study.metrics]
    check(study, shown or [f"forget/{metric}"], study.metrics)
    if shown[0] != f"forget/{metric}" or len(shown) == 1:
        raise StudyError(f"study {study.name!r} has {shown[0]!r} alone; needed: forget/{metric} and another split's")
    return shown


def _which(study: Study, curve: dict, name: str) -> str:
    """Which α runs along a curve; its name may say the training's."""
    if curve.get("alpha") is not None:
        return "α at inference" + f" (in training: {curve['alpha']:g})" * ("trained at" not in name)
    done = finished(study).dropna(subset=["eval_alpha"])
    rows = done[(done["algo"] == curve["algo"]) & (done["method"] == curve["method"])]
    return "α in training" + (" and at inference" if (rows["alpha"] == rows["eval_alpha"]).all() else "")


def _label_alphas(axes: list, words: list[str]) -> None:
    """Writes which α it is once, below the last row; below each panel where they differ."""
    columns = axes[0].get_subplotspec().get_gridspec().ncols
    for ax, said in zip(axes, words, strict=True):
        if len(set(words)) > 1:
            ax.set_xlabel(textwrap.fill(said, WIDEST))
        if len(set(words)) > 1 or ax in axes[-columns:]:
            ax.tick_params(labelbottom=True)
    if len(set(words)) == 1:
        last = axes[-((len(axes) - 1) % columns + 1) :]
        last[len(last) // 2].set_xlabel(words[0])


def _look(place: int) -> dict:
    return style.series(place, place) | {"markersize": 3.5}


def _draw(ax, points: pd.DataFrame, levels: Mapping[str, pd.DataFrame]) -> None:
    """One panel: a line per split, the retrained model's values and the guess level across it, stars the target's,
    which is α = 0."""
    for place, (metric, means) in enumerate(levels.items()):
        look = _look(place)
        panels.curve(ax, points, "along", metric, look)
        for name in AIMS:
            for value in means.loc[means["reference"] == name, metric]:
                ax.axhline(value, **style.reference_line(name) | {"color": look["color"]})
        if not (points["along"] == 0).any():
            own = means.loc[means["reference"] == "target", metric]
            ax.plot([0.0] * len(own), own, **style.reference("target") | {"markersize": 7, "color": look["color"]})


def _legend(fig: Figure, study: Study, shown: Sequence[str]) -> None:
    known = set(study.references["reference"])
    handles = [
        Line2D([], [], label=f"{split_of(metric)} {ARROWS[goal(metric, 'retrained' in known)]}".strip(), **_look(place))
        for place, metric in enumerate(shown)
    ]
    if "target" in known:
        handles.append(Line2D([], [], label="target (α = 0)", **style.reference("target") | {"markersize": 7}))
    handles += panels.reference_handles(name for name in AIMS if name in known)
    panels.legend(fig, handles, "↑ higher is better" + ", → retr.: as the retrained model" * ("retrained" in known))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 for a study that cannot be drawn."""
    parser = command.parser("alpha", "Draws a metric of all splits over α, as PNG and PDF.", EXAMPLES)
    parser.add_argument("--metric", default="prob", help="a metric that splits have (default: prob)")
    return command.run(
        parser,
        arguments,
        lambda study, asked: figure(study, asked.metric),
        lambda asked: command.stem("alpha", None if asked.metric == "prob" else asked.metric),
    )


if __name__ == "__main__":
    sys.exit(main())
