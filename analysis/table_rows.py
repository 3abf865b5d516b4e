"""What a table of a study says: rows of settings, means with intervals over seeds, what is best, what is missing.

Easy to get wrong: a failed run has no evaluated alpha. It is counted in every row of its training settings, and has a
row of its own where no other run gave that row; nothing is dropped. A mark for the best says that the intervals of
all others lie apart from it, so a study with one pair seed has no marks.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from . import goals, statistics
from .runs import SEEDS, Study, StudyError
from .state import collapsed, evaluated, reference, status, with_kept
from .statistics import Interval

COST = ("seconds", "peak_memory_mb", "trainable")  # columns of runs that a table may show beside metrics


@dataclass(frozen=True)
class Row:
    """One line: a setting of the study's runs, or a reference model."""

    kind: str  # "run", "target", "guess" or "retrained"
    settings: dict[str, object]  # None where a setting says nothing about this row
    cells: dict[str, Interval]  # by metric
    counts: dict[str, int] = field(default_factory=dict)  # runs by status; "collapsed" is part of "done"
    best: frozenset[str] = frozenset()  # metrics

    @property
    def units(self) -> int:
        """The most pair seeds that a cell has."""
        return max((c.n for c in self.cells.values()), default=0)


@dataclass(frozen=True)
class Table:
    """Rows with the same columns."""

    study: str
    by: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    retrained: bool  # whether there is a retrained model that forgetting is compared with
    base: str = ""  # of differences: what was subtracted


def table(study: Study, metrics: Sequence[str] = (), by: Sequence[str] = ()) -> Table:
    """Means over pair seeds: a row per setting, and the target's and the retrained model's.

    ``metrics`` may hold patterns (``retain/*``); by default the headline metrics that the study has. ``by`` are columns
    of ``study.runs``; by default whatever distinguishes experiments.
    """
    if study.runs.empty:
        raise StudyError(f"study {study.name!r} in {study.folder} has no runs")
    by, study = choose_by(study, by), with_kept(study)
    metrics, study = choose_metrics(study, metrics), study.told_by(by)
    references = _references(study, by, metrics)
    compared = any(row.kind == "retrained" for row in references)
    rows = _mark(study, _runs(study, by, metrics), by, metrics)
    return Table(study.name, tuple(by), tuple(metrics), (*references, *rows), notes(study), compared)


def choose_metrics(study: Study, asked: Sequence[str]) -> list[str]:
    """The metrics of that name or pattern, in the order asked for."""
    known = [*study.metrics, *COST]
    if not asked:
        return [m for m in goals.HEADLINE if m in study.metrics] or study.metrics[:7]
    chosen = [m for pattern in asked for m in (fnmatch.filter(known, pattern) or [pattern])]
    unknown = [m for m in chosen if m not in known]
    if unknown:
        raise StudyError(f"study {study.name!r} has no metric {unknown[0]!r}; choices: {', '.join(known)}")
    return list(dict.fromkeys(chosen))


def choose_by(study: Study, asked: Sequence[str]) -> list[str]:
    """The columns whose values make a row."""
    choices = ["algo", "method", "pair", "data", *study.varied, "alpha", "eval_alpha"]
    settings = {key for record in study.records for key in record.config}
    unknown = [c for c in asked if c not in (*choices, *SEEDS) and c not in settings]
    if unknown:
        known = f"{', '.join([*choices, *SEEDS])}, or any setting of its runs, e.g. trainer.lr"
        raise StudyError(f"study {study.name!r} has no column {unknown[0]!r}; choices: {known}")
    return list(dict.fromkeys(asked)) or choices


def groups(frame: pd.DataFrame, by: Sequence[str]) -> dict[tuple, pd.DataFrame]:
    """The frame's parts by the values of ``by``, in order of these values; NaN is None, which equals itself."""
    ordered = frame.sort_values(list(by), key=_sortable, kind="stable") if by else frame
    parts = ordered.groupby(list(by), dropna=False, sort=False) if by else [((), ordered)]
    return {tuple(None if pd.isna(v) else v for v in key): part for key, part in parts}


def _sortable(column: pd.Series) -> pd.Series:
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)


def _runs(study: Study, by: list[str], metrics: list[str]) -> list[Row]:
    """A row per setting, whatever became of its runs."""
    frame = study.runs.assign(gone=collapsed(study), state=status(study))
    seen = evaluated(study)
    found, unseen = groups(frame[seen], by), groups(frame[~seen].drop_duplicates("folder"), _trained(by))
    rows = []
    units_of = groups(statistics.per_unit(frame[seen], by, metrics), by)
    for key, part in found.items():
        settings, units = dict(zip(by, key, strict=True)), units_of[key]
        cells = {m: statistics.mean(units[m]) for m in metrics}
        lost = unseen.get(tuple(settings[c] for c in _trained(by)))
        rows.append(Row("run", settings, cells, _counts(part, lost)))
    there = {tuple(row.settings[c] for c in _trained(by)) for row in rows}
    empty = {m: statistics.mean([]) for m in metrics}
    for key, part in unseen.items():
        if key not in there:
            settings = dict.fromkeys(by) | dict(zip(_trained(by), key, strict=True))
            rows.append(Row("run", settings, empty, _counts(part.iloc[:0], part)))
    return sorted(rows, key=lambda row: [_place(value) for value in row.settings.values()])


def _place(value: object) -> tuple:
    """A key that sorts numbers by value, words by letters, and nothing last."""
    return (value is None, str(value), 0) if isinstance(value, str | None) else (False, "", value)


def _trained(by: Sequence[str]) -> list[str]:
    """The settings that a run has before it is evaluated."""
    return [c for c in by if c != "eval_alpha"]


def _counts(done: pd.DataFrame, lost: pd.DataFrame | None) -> dict[str, int]:
    counts = {"done": done["folder"].nunique(), "collapsed": done.loc[done["gone"], "folder"].nunique()}
    return counts | (lost["state"].value_counts().to_dict() if lost is not None else {})


def _references(study: Study, by: list[str], metrics: list[str]) -> list[Row]:
    """Target and retrained model, once for each setting that makes other worlds; means over pair seeds."""
    columns = [c for c in _world_columns(study) if c in by]
    worlds = study.runs[["world", *columns]].drop_duplicates("world").drop(columns=["pair", "data"], errors="ignore")
    frame = study.references.merge(worlds, on="world", how="left")
    rows = []
    for name in ("target", "guess", "retrained"):
        for key, part in groups(frame[frame["reference"] == name], columns).items():
            if part.empty:
                continue
            units = part.reindex(columns=[statistics.UNIT, *metrics]).groupby(statistics.UNIT).mean()
            settings = dict.fromkeys(by) | dict(zip(columns, key, strict=True))
            rows.append(Row(name, settings, {m: statistics.mean(units[m]) for m in metrics}))
    return rows


def _world_columns(study: Study) -> list[str]:
    """Settings that say which world a run belongs to."""
    rows = study.runs[study.runs["world"] != ""]
    settings = [c for c in study.varied if c.startswith(("pair.", "data."))]
    return ["pair", "data", *(c for c in settings if (rows.groupby("world")[c].nunique(dropna=False) <= 1).all())]


def _mark(study: Study, rows: list[Row], by: list[str], metrics: list[str]) -> list[Row]:
    """The rows, each with the metrics in which it is best among those of the same world that have not collapsed."""
    worlds = [c for c in _world_columns(study) if c in by]
    best: dict[int, set[str]] = {}
    whole = [i for i, row in enumerate(rows) if row.counts["done"] > row.counts["collapsed"]]
    away = _away(study, by, metrics)
    for world in {tuple(rows[i].settings[c] for c in worlds) for i in whole}:
        rivals = [i for i in whole if tuple(rows[i].settings[c] for c in worlds) == world]
        for metric in metrics:
            known = [(away[metric][tuple(rows[i].settings.values())], i) for i in rivals if away[metric]]
            ranked = sorted([(d.mean, d.high, d.low, i) for d, i in known if d.n])
            if len(ranked) > 1 and all(ranked[0][1] < low for _, _, low, _ in ranked[1:]):
                best.setdefault(ranked[0][3], set()).add(metric)
    return [
        Row(row.kind, row.settings, row.cells, row.counts, frozenset(best.get(i, ()))) for i, row in enumerate(rows)
    ]


def _away(study: Study, by: list[str], metrics: list[str]) -> dict[str, dict[tuple, Interval]]:
    """By metric and the settings of a row, how far its runs are from the best value; {} for a metric without a goal."""
    theirs = pd.DataFrame({f"retrained/{m}": reference(study, "retrained", m) for m in metrics})
    own = study.runs[list(dict.fromkeys([*by, statistics.UNIT, *metrics]))]
    frame = pd.concat([own, theirs], axis=1)[evaluated(study)]
    parts = groups(statistics.per_unit(frame, by, [*metrics, *theirs]), by)
    found = {}
    for metric in metrics:
        compared = theirs[f"retrained/{metric}"].notna().any()
        known = goals.goal(metric, compared) is not None
        found[metric] = {
            key: statistics.mean(
                goals.distance(metric, units[metric], units[f"retrained/{metric}"] if compared else None)
            )
            for key, units in (parts.items() if known else ())
        }
    return found


def notes(study: Study) -> tuple[str, ...]:
    """What a reader of the numbers must know."""
    worlds, seeds = (study.runs.loc[evaluated(study), c].nunique() for c in (statistics.UNIT, "seed"))
    if worlds > 1:
        said = [f"± is half the 95 % interval (Student's t) of the mean over n = {worlds} pair seeds"]
        said.append("* is best: the intervals of the distances from the best value lie apart from all others'")
    else:
        said = ["1 pair seed: there is no interval over worlds, and nothing is marked best"]
        said = said if worlds else ["no run is evaluated"]
    said += [f"{seeds} unlearning seeds, averaged within a pair seed"] if seeds > 1 else []
    return (*said, *told(study))


def told(study: Study) -> list[str]:
    """What became of the study's runs, so that none is missing in silence."""
    states = status(study)[~study.runs["folder"].duplicated()].value_counts()
    said = [f"{states.sum()} runs: " + ", ".join(f"{n} {state}" for state, n in states.items())]
    if gone := study.runs.loc[collapsed(study), "folder"].nunique():
        said.append(f"{gone} collapsed at some α: kept is below one half (or the loss ran away)")
    if (spread := study.references["disagreement"].max()) > 0.005:
        said.append(f"runs report references that differ by up to {spread:.2g}")
    if "guess" in set(study.references["reference"]):
        said.append("guess: the target asked the same about names that no model can know")
    if "kept" in study.runs:
        said.append("kept: share of the target's probability left outside the forget set, each split at most 1")
    return [*said, *study.notes]
