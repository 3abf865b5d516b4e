"""The numbers behind the figures: points of curves averaged over seeds, references, and what collapsed.

Easy to get wrong: several unlearning seeds of one trained target are not several samples. Values are averaged over
``seed`` within ``pair_seed`` first; mean, standard deviation and n are over ``pair_seed``. And which alpha runs along a
curve is not a property of the study: one call can give three offset runs and one direct run evaluated at three alphas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from . import statistics
from .goals import better, goal
from .runs import INTERVAL, Study, StudyError
from .state import collapsed as collapsed_rows

COSTS = ("seconds/train", "peak_memory_mb", "trainable")
UNBOUNDED = ("forget_quality_log10", *COSTS)  # all other metrics with a better side lie between 0 and 1
SETTING = ["pair", "data"]  # what references belong to


def curves(study: Study, *metrics: str, over: str = "alpha") -> pd.DataFrame:
    """One row per point of a curve: its curve's settings, ``along``, the metrics, and n, how many pair seeds.

    ``gone`` is the share of its runs that collapsed there. For each metric there are ``sd/<metric>`` over pair seeds,
    and the ends of what is drawn around it, ``low/<metric>`` and ``high/<metric>``: Student's 95 % interval where there
    are several pair seeds, as in tables; otherwise that over people or questions as evaluated, NaN where there is none.
    """
    table = units(study, *metrics, over=over)
    points = table.groupby([*curve_columns(study, over), "along"], dropna=False, sort=False)
    means = points[[c for c in table.columns if c.removeprefix("low/").removeprefix("high/") in metrics]].mean()
    means["n"], means["gone"] = points.size(), points["gone"].mean()
    several = means["n"] > 1
    for metric in metrics:
        means[f"sd/{metric}"] = points[metric].std()
        half = statistics.half(means[f"sd/{metric}"], means["n"])
        for end, sign in zip(INTERVAL, (-1, 1), strict=True):
            ends = (means[metric] + sign * half).where(several, means[end + metric])
            means[end + metric] = ends.clip(0, 1) if is_share(metric) else ends
    return means.reset_index()


def units(study: Study, *metrics: str, over: str = "alpha") -> pd.DataFrame:
    """One row per curve, ``along`` and pair seed, the mean over unlearning seeds; sorted along the curves.

    ``over`` is what runs along the curves: "alpha", or "steps" of training with the metrics that were logged then.
    """
    rows = _with(rows_of(study, *metrics, over=over), ends := _ends(metrics))
    keys = [*curve_columns(study, over), "along", "pair_seed"]
    groups = rows.groupby(keys, dropna=False, sort=False)
    table = groups[[*metrics, *ends]].mean()
    table["world"], table["gone"] = groups["world"].first(), groups["gone"].mean()
    return table.reset_index().sort_values(keys, key=_sortable, kind="stable", ignore_index=True)


def _ends(metrics: Sequence[str]) -> list[str]:
    return [end + metric for metric in metrics for end in INTERVAL]


def _with(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The table with these columns, NaN where it has none."""
    return table.reindex(columns=[*table.columns, *(c for c in columns if c not in table.columns)])


def _both(metrics: Sequence[str]) -> str:
    return ("both " if len(metrics) == 2 else "") + " and ".join(repr(m) for m in metrics)


def rows_of(study: Study, *metrics: str, over: str = "alpha") -> pd.DataFrame:
    """The rows of finished runs behind ``units``: those with a number for each metric, and ``along``.

    The training alpha is NaN where it is along the curve.
    """
    if over == "steps":
        check(study, metrics, step_metrics(study))
        said = finished(study).drop_duplicates("folder")[["folder", "world", *study.varied]]
        steps = study.trajectories[study.trajectories["status"] == "done"]
        rows = steps.rename(columns={"step": "along"}).merge(said, on="folder").assign(gone=0.0)
    else:
        check(study, metrics, numbers(study))
        rows, seen = finished(study), over_inference(study)
        rows = rows.assign(along=rows["eval_alpha"].where(seen, rows["alpha"]), alpha=rows["alpha"].where(seen))
        rows["gone"] = collapsed_rows(study).reindex(rows.index).astype(float)
    rows = rows.dropna(subset=list(metrics))
    if rows.empty:
        raise StudyError(f"study {study.name!r}: no finished run has a number for {_both(metrics)}")
    return rows


def finished(study: Study) -> pd.DataFrame:
    """The rows of the runs that are done."""
    return study.runs[study.runs["status"] == "done"]


def step_metrics(study: Study) -> list[str]:
    """Names of the metrics that were measured while runs trained, as in ``metrics.jsonl``."""
    return [c for c in study.trajectories.columns if "/" in c and not c.startswith("train/")]


def at_training_alpha(study: Study, alpha: float | None = None) -> pd.DataFrame:
    """One row per finished run: that evaluated at ``alpha``, or else nearest to the alpha it was trained with."""
    done = finished(study).dropna(subset=["eval_alpha"])
    if alpha is None:
        away = (done["eval_alpha"] - done["alpha"]).abs()
        return done.assign(away=away).sort_values("away", kind="stable").drop_duplicates("folder").sort_index()
    if alpha not in set(done["eval_alpha"]):
        choices = ", ".join(f"{a:g}" for a in sorted(done["eval_alpha"].unique())) or "none: nothing is evaluated yet"
        raise StudyError(f"study {study.name!r}: no run was evaluated at α = {alpha:g}; choices: {choices}")
    return done[done["eval_alpha"] == alpha]


def at_one_alpha(study: Study, *metrics: str, alpha: float | None = None) -> pd.DataFrame:
    """As ``curves``, but one row per training: the point at ``alpha``, or nearest to the ``alpha`` of the training.

    The training alpha is in the column ``alpha``, the last of those that distinguish trainings: ``training_columns``.
    """
    return curves(only_at(study, alpha), *metrics).rename(columns={"along": "alpha"})


def only_at(study: Study, alpha: float | None = None) -> Study:
    """The study with one row per finished run: see ``at_training_alpha``."""
    check(study, [], [])
    return replace(study, runs=at_training_alpha(study, alpha))


def training_columns(study: Study) -> list[str]:
    """The columns that distinguish trainings, seeds left out."""
    return [*group_columns(study), "alpha"]


def numbers(study: Study) -> list[str]:
    """What can be drawn of a run: its metrics and what it cost."""
    return [*study.metrics, *(c for c in COSTS if c in study.runs.columns)]


def over_inference(study: Study) -> pd.Series:
    """For each finished row, whether its curve runs along the alpha at inference.

    So it is for all runs of an algorithm, method and setting as soon as one training alpha was evaluated at several.
    """
    rows, group = finished(study), group_columns(study)
    several = rows.groupby([*group, "alpha"], dropna=False, sort=False)["eval_alpha"].transform("nunique") > 1
    return several.groupby([rows[c] for c in group], dropna=False, sort=False).transform("any").astype(bool)


def curve_columns(study: Study, over: str = "alpha") -> list[str]:
    """The columns whose values tell one curve from another; the training alpha is NaN where it is along the curve."""
    return [*group_columns(study), *(["alpha"] if over == "steps" or over_inference(study).any() else [])]


def group_columns(study: Study) -> list[str]:
    """The columns that distinguish runs, alphas and seeds left out."""
    return ["algo", "method", *SETTING, *study.varied]


def _sortable(column: pd.Series) -> pd.Series:
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)


def check(study: Study, metrics: Sequence[str], known: Sequence[str]) -> None:
    """Refuses a study without finished runs, and metrics that it does not have."""
    if finished(study).empty:
        counts = study.runs.drop_duplicates("folder")["status"].value_counts()
        found = ", ".join(f"{n} {status}" for status, n in counts.items()) or "no run folders"
        first = next((f"; first error: {e.strip().splitlines()[-1]}" for e in study.runs["error"] if e.strip()), "")
        raise StudyError(f"study {study.name!r} in {study.folder} has no finished runs ({found}){first}")
    unknown = [m for m in metrics if m not in known]
    if unknown:
        choices = ", ".join(known) or "none: nothing is evaluated yet"
        raise StudyError(f"study {study.name!r} has no metric {unknown[0]!r}; choices: {choices}")
    twice = [m for m in metrics if list(metrics).count(m) > 1]
    if twice:
        raise StudyError(f"x and y are both {twice[0]!r}; a trade-off needs two metrics")


def references(study: Study, *metrics: str) -> pd.DataFrame:
    """The points of target, guess level (which has a forget set alone) and retrained model: one per pair and data, the
    mean over pair seeds.

    Where one pair seed has several worlds, they differ by more than the seed, so each is a point of its own
    (``apart`` is its name, otherwise ""). The ends of the intervals over people or questions are
    there as ``low/`` and ``high/``.
    """
    table = study.references
    if table.empty or not set(metrics) <= set(table.columns):
        return pd.DataFrame(columns=["reference", "apart", *metrics])
    worlds = table.groupby(["reference", *SETTING, "pair_seed"])["world"].transform("nunique")
    mixed = worlds.groupby([table[c] for c in SETTING]).transform("max") > 1
    apart = table["world"].where(mixed, "")
    rows = _with(table.assign(apart=apart), ends := _ends(metrics))
    means = rows.groupby(["reference", *SETTING, "apart"])[[*metrics, *ends]].mean()
    return means.dropna(subset=list(metrics)).reset_index()


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1, one of them its best."""
    return better(metric) is not None and metric not in UNBOUNDED


def losses(study: Study, table: pd.DataFrame, metric: str) -> pd.Series:
    """For each row of a table of curves or references, how far the metric is from the best: 0 there, 1 at the worst.

    On the forget set the best is the retrained model's value, of the same world where the table has it: too far is as
    wrong as too little. For a metric that ``is_share``: others have no worst value.
    """
    theirs = study.references[study.references["reference"] == "retrained"]
    if goal(metric) == "retrained" and metric in theirs and theirs[metric].notna().any():
        keys = [c for c in (*SETTING, "pair_seed", "world") if c in table]
        best = table[keys].merge(theirs.groupby(keys, as_index=False)[metric].mean(), "left", keys)[metric]
        best = best.set_axis(table.index)
        worst = (1 - best) if better(metric) == "lower" else best
        return ((table[metric] - best).abs() / worst).clip(upper=1).round(12)  # as far on both sides is as good
    return table[metric] if better(metric) == "lower" else 1 - table[metric]


def collapsed(study: Study) -> int:
    """Finished runs that had collapsed at the evaluated alpha nearest to the one they were trained with."""
    return int(collapsed_rows(study).reindex(at_training_alpha(study).index).sum())
