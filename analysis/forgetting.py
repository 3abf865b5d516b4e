"""What happens to single questions: how their metric changes, and the truth ratios behind forget quality.

    python -m analysis.forgetting STUDY

Panels per split: the share of questions whose metric changed by at most x, from the target to the unlearned model.
The last panel: the distribution of the forget set's truth ratios beside the retrained model's, which the two-sided
Kolmogorov–Smirnov test compares; its p-value is the forget quality of eval.json (TOFU, arXiv 2401.06121).

Easy to get wrong: a mean can hide that some questions are ruined and the others untouched, which is why these are
distributions; and the aim is the retrained model's curve, not the largest change.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import ks_2samp

from . import caption, command, goals, panels, statistics, style
from .curves import at_training_alpha, check, training_columns
from .runs import Study, StudyError

SPLITS = ("forget", "retain", "neighbours", "real_authors", "world_facts")
RATIO = "truth_ratio"
RETRAINED = {**style.reference_line("retrained"), "linewidth": 1.8}
EXAMPLES = """\
  python -m analysis.forgetting demo                          change of every question's probability
  python -m analysis.forgetting demo --metric rougeL_recall   of another metric
  python -m analysis.forgetting demo --alpha 0.5              of what was evaluated at α = 0.5
"""


def figure(study: Study, metric: str = "prob", alpha: float | None = None) -> Figure:
    """Distributions of the per-question change of ``metric`` on every split, and of the forget set's truth ratios."""
    table = questions(study, metric, alpha)
    columns = training_columns(study)
    names = caption.names(table.assign(n=_seeds(table, columns)), columns)
    looks = caption.looks(names)
    splits = [split for split in SPLITS if split in set(table["split"])]
    with style.look():
        columns_of = max(3, -(-(len(splits) + 2) // 2))  # beside the splits the ratios and the legend
        fig = panels.make(study, 3.0 * columns_of, 5.6)
        axes = list(fig.subplots(2, columns_of, squeeze=False).flat)
        for ax, split in zip(axes, splits, strict=False):
            _draw_changes(ax, table[table["split"] == split], f"{split}/{metric}", columns, looks)
        tests = quality(table, columns)
        if len(tests):
            _draw_ratios(axes[len(splits)], table, columns, looks)
        for ax in axes[len(splits) + (len(tests) > 0) :]:
            ax.set_axis_off()
        _legend(axes[-1], names, looks, tests)
        caption.footnote(fig, _notes(study, table, tests, alpha))
    return fig


def questions(study: Study, metric: str = "prob", alpha: float | None = None) -> pd.DataFrame:
    """One row per question of each finished run at ``alpha`` (see ``curves.at_training_alpha``) and of its retrained.

    First the columns of ``training_columns``; then ``pair_seed``, ``folder``, ``model`` ("run" or "retrained"),
    ``split``, ``id``, ``change`` (of the metric, from the target's) and ``truth_ratio``.
    """
    check(study, [], [])
    chosen = at_training_alpha(study, alpha)[["folder", "eval_alpha"]]
    found = study.examples_of(chosen["folder"])
    _check(study, found, metric)
    own = found[found["model"] == "run"].merge(chosen, on=["folder", "eval_alpha"])
    both = pd.concat([own, found[found["model"] == "retrained"]], ignore_index=True)
    target = found.loc[found["model"] == "target", ["folder", "split", "id", metric]]
    table = both.merge(target, on=["folder", "split", "id"], suffixes=("", " of target"))
    table["change"] = table[metric] - table[f"{metric} of target"]
    kept = [*training_columns(study), "pair_seed", "folder", "model", "split", "id", "change"]
    return table.reindex(columns=[*kept, RATIO])


def _check(study: Study, found: pd.DataFrame, metric: str) -> None:
    """Refuses examples without the metric, or without the target's own."""
    known = [c for c in found.select_dtypes("number").columns if c not in study.runs.columns]
    if metric not in known:
        choices = ", ".join(known) or "none: no examples.parquet"
        raise StudyError(f"study {study.name!r} has no metric {metric!r} per question; choices: {choices}")
    if not (found["model"] == "target").any():
        raise StudyError(
            f"study {study.name!r} has no examples of the target (references.parquet in a run's folder); they are "
            f"written with the next α: python -m unlearn.evaluate run=FOLDER eval.alphas=[0]"
        )


def quality(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """One row per run: its training's columns, ``folder``, and ``p`` of the test of its truth ratios."""
    forget = table[(table["split"] == "forget") & table[RATIO].notna()]
    rows = []
    for (*training, folder), own in forget.groupby([*columns, "folder"], dropna=False, sort=False):
        run, retrained = (own.loc[own["model"] == model, RATIO] for model in ("run", "retrained"))
        if len(run) and len(retrained):
            named = dict(zip(columns, training, strict=True))
            rows.append(named | {"folder": folder, "p": float(ks_2samp(run, retrained).pvalue)})
    return pd.DataFrame(rows, columns=[*columns, "folder", "p"])


def distribution(groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values that occur, the share of values up to each (mean over groups), and half its 95 % interval over groups."""
    values = np.unique(np.concatenate(groups))
    shares = np.array([np.searchsorted(np.sort(g), values, side="right") / len(g) for g in groups])
    n = len(groups)
    half = statistics.half(shares.std(axis=0, ddof=1), n) if n > 1 else np.full(len(values), np.nan)
    return values, shares.mean(axis=0), half


def _seeds(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    return table.groupby(list(columns), dropna=False)["pair_seed"].transform("nunique")


def _by_seed(rows: pd.DataFrame, column: str) -> list[np.ndarray]:
    return [own[column].to_numpy() for _, own in rows.dropna(subset=[column]).groupby("pair_seed")]


def _step(ax, rows: pd.DataFrame, column: str, look: dict, at: float = 0.0) -> None:
    """One distribution as steps, from a share of 0 on; a few markers, the first ``at`` this share of the way."""
    groups = _by_seed(rows, column)
    if not groups:
        return
    values, share, half = distribution(groups)
    values, share, half = np.r_[values[0], values], np.r_[0.0, share], np.r_[np.nan, half]
    marks = np.unique(np.searchsorted(share, at + np.array([0.05, 0.35, 0.65]))).clip(max=len(share) - 1).tolist()
    ax.plot(values, share, drawstyle="steps-post", markevery=marks, **{"zorder": 3, "markersize": 4} | look)
    if len(groups) > 1:
        band = {"color": look["color"], "alpha": 0.14, "linewidth": 0, "zorder": 1.5, "step": "post"}
        ax.fill_between(values, (share - half).clip(0, 1), (share + half).clip(0, 1), **band)


def _draw_changes(ax, rows: pd.DataFrame, metric: str, columns: Sequence[str], looks: dict) -> None:
    retrained = rows[rows["model"] == "retrained"]
    _step(ax, retrained, "change", RETRAINED)
    for place, (curve, look) in enumerate(looks.items()):
        own = rows[caption.member(rows, curve) & (rows["model"] == "run")]
        _step(ax, own, "change", look, 0.3 * place / len(looks))
    per_seed = rows[rows["model"] == "run"].groupby("folder")["id"].nunique()
    ax.set_title(f"{goals.split_of(metric)}, {per_seed.max()} questions", loc="left")
    ax.set_xlabel(f"change of {goals.named(metric)}")
    panels.limit(ax.xaxis)
    _shares(ax)


def _draw_ratios(ax, table: pd.DataFrame, columns: Sequence[str], looks: dict) -> None:
    rows = table[(table["split"] == "forget") & table[RATIO].notna()]
    retrained = rows[rows["model"] == "retrained"]
    _step(ax, retrained, RATIO, RETRAINED)
    for place, (curve, look) in enumerate(looks.items()):
        _step(ax, rows[caption.member(rows, curve) & (rows["model"] == "run")], RATIO, look, 0.3 * place / len(looks))
    ax.set_xscale("log")
    ax.set_xlim(*np.quantile(rows[RATIO], [0.005, 0.995]))
    ax.set_title("forget set, behind forget quality", loc="left")
    ax.set_xlabel("truth ratio R, wrong / right   (aim: retrained)")
    _shares(ax)


def _shares(ax) -> None:
    panels.shares(ax.yaxis)
    if ax.get_subplotspec().is_first_col():
        ax.set_ylabel("share of questions up to x")


def _legend(ax, names: dict, looks: dict, tests: pd.DataFrame) -> None:
    handles = [Line2D([], [], label="retrained", **RETRAINED)]
    for curve, name in names.items():
        p = tests.loc[caption.member(tests, curve), "p"]
        said = "" if p.empty else f"   {p.min():.2g}" + (f" – {p.max():.2g}" if len(p) > 1 else "")
        handles.append(Line2D([], [], label=name + said, **looks[curve] | {"markersize": 4}))
    title = "behind names: p of the KS test\nagainst retrained (forget quality)" if len(tests) else None
    place = {"loc": "upper left", "alignment": "left", "handlelength": 3.0, "borderaxespad": 0.0}
    ax.legend(handles=handles, title=title, ncols=1 + (len(handles) > 13), **place)


def _notes(study: Study, table: pd.DataFrame, tests: pd.DataFrame, alpha: float | None) -> list[str]:
    worlds = table["pair_seed"].nunique()
    said = [f"bands: 95 % over {worlds} pair seeds" if worlds > 1 else "1 pair seed", caption.at(alpha)]
    evaluated = at_training_alpha(study, alpha)
    if "forget_quality" in evaluated.columns:
        both = tests.merge(evaluated[["folder", "forget_quality"]], on="folder").dropna()
        if odd := int((~np.isclose(both["p"], both["forget_quality"], rtol=1e-6, atol=0)).sum()):
            said.append(f"another forget quality in eval.json (other semantics): {odd} of {len(both)} runs")
    return said + caption.left_out(study, table)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 for a study that cannot be drawn."""
    parser = command.parser(
        "forgetting", "Draws how single questions change, and their truth ratios, as PNG and PDF.", EXAMPLES
    )
    parser.add_argument("--metric", default="prob", help="a metric per question (default: prob)")
    command.add_alpha(parser)
    return command.run(
        parser,
        arguments,
        lambda study, asked: figure(study, asked.metric, asked.alpha),
        lambda asked: command.stem(
            "forgetting", None if asked.metric == "prob" else asked.metric, command.said(asked.alpha)
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
