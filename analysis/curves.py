"""The numbers behind the trade-off figure: points of a curve averaged over seeds, and what collapsed.

Easy to get wrong: several unlearning seeds of one trained target are not several samples. Values are averaged over
``seed`` within ``pair_seed`` first; mean, standard deviation and n are over ``pair_seed``. And which alpha runs along a
curve is no property of the study: one call can give three offset runs and one direct run evaluated at three alphas.
"""

from __future__ import annotations

import pandas as pd

from analysis.goals import better
from analysis.runs import Study, StudyError

SETTING = ["pair", "data"]  # what references belong to


def curves(study: Study, x: str, y: str) -> pd.DataFrame:
    """One row per point of a curve: its curve's settings, ``along`` (the alpha), x, y, ``sd_x``, ``sd_y`` and ``n``."""
    check(study, x, y)
    rows, seen = finished(study), over_inference(study)
    rows = rows.assign(along=rows["eval_alpha"].where(seen, rows["alpha"]), alpha=rows["alpha"].where(seen))
    rows = rows.dropna(subset=[x, y])
    if rows.empty:
        raise StudyError(f"study {study.name!r}: no finished run has a number for both {x!r} and {y!r}")
    curve = curve_columns(study)
    units = rows.groupby([*curve, "along", "pair_seed"], dropna=False, sort=False)[[x, y]].mean()
    points = units.groupby([*curve, "along"], dropna=False, sort=False)
    table = points.mean()
    table[["sd_x", "sd_y"]] = points.std().to_numpy()
    table["n"] = points.size()
    return table.reset_index().sort_values([*curve, "along"], key=_sortable, kind="stable", ignore_index=True)


def finished(study: Study) -> pd.DataFrame:
    """The rows of the runs that are done."""
    return study.runs[study.runs["status"] == "done"]


def over_inference(study: Study) -> pd.Series:
    """For each finished row, whether its curve runs along the alpha at inference.

    So it is for all runs of an algorithm, method and setting as soon as one training alpha was evaluated at several.
    """
    rows, group = finished(study), _group_columns(study)
    several = rows.groupby([*group, "alpha"], dropna=False, sort=False)["eval_alpha"].transform("nunique") > 1
    return several.groupby([rows[c] for c in group], dropna=False, sort=False).transform("any").astype(bool)


def curve_columns(study: Study) -> list[str]:
    """The columns whose values tell one curve from another; the training alpha is NaN where it is along the curve."""
    return [*_group_columns(study), *(["alpha"] if over_inference(study).any() else [])]


def _group_columns(study: Study) -> list[str]:
    return ["algo", "method", *SETTING, *study.varied]


def _sortable(column: pd.Series) -> pd.Series:
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)


def check(study: Study, x: str, y: str) -> None:
    """Refuses a study without finished runs, and metrics that it does not have."""
    if finished(study).empty:
        counts = study.runs.drop_duplicates("folder")["status"].value_counts()
        found = ", ".join(f"{n} {status}" for status, n in counts.items()) or "no run folders"
        first = next((f"; first error: {e.strip().splitlines()[-1]}" for e in study.runs["error"] if e.strip()), "")
        raise StudyError(f"study {study.name!r} in {study.folder} has no finished runs ({found}){first}")
    unknown = [m for m in (x, y) if m not in study.metrics]
    if unknown:
        choices = ", ".join(study.metrics) or "none: nothing is evaluated yet"
        raise StudyError(f"study {study.name!r} has no metric {unknown[0]!r}; choices: {choices}")
    if x == y:
        raise StudyError(f"x and y are both {x!r}; a trade-off needs two metrics")


def references(study: Study, x: str, y: str) -> pd.DataFrame:
    """The points of target and retrained: one per pair and data, the mean over pair seeds.

    Where one pair seed has several worlds, they differ by more than the seed, so each is a point of its own.
    """
    table = study.references
    if table.empty or not {x, y} <= set(table.columns):
        return pd.DataFrame(columns=["reference", x, y])
    worlds = table.groupby(["reference", *SETTING, "pair_seed"])["world"].transform("nunique")
    mixed = worlds.groupby([table[c] for c in SETTING]).transform("max") > 1
    apart = table["world"].where(mixed, "")
    return table.assign(apart=apart).groupby(["reference", *SETTING, "apart"])[[x, y]].mean().dropna().reset_index()


def collapsed(study: Study, y: str) -> int:
    """Finished runs that, at the evaluated alpha nearest to their training alpha, lost half of the target's ``y``."""
    done = finished(study)
    nearest = done.assign(away=(done["eval_alpha"] - done["alpha"]).abs()).sort_values("away", kind="stable")
    nearest = nearest.drop_duplicates("folder").dropna(subset=["eval_alpha"])
    lost = nearest[y].isna()
    if y in study.references.columns and better(y) == "higher":
        targets = study.references[study.references["reference"] == "target"]
        keys = ["pair", "pair_seed", "data", "world"]
        target = nearest[keys].merge(targets[[*keys, y]], on=keys, how="left")[y]
        lost |= nearest[y] < 0.5 * target.to_numpy()
    return int(lost.sum())
