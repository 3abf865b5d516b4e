"""Differences between settings that share everything else, paired by pair seed: ``--differences method=direct``.

Where the runs logged their examples and a metric is the mean of them, the same questions are compared and resampled
within worlds, too (``statistics.hierarchical``), and in one world the people they are about are the unit; a metric of
whole models, such as the utility, is resampled over worlds alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from . import statistics
from .runs import Study, StudyError
from .state import collapsed, evaluated, reference, with_kept
from .statistics import Interval
from .table_rows import Row, Table, choose_by, choose_metrics, groups, told

SAME = 1e-6  # a metric is the mean of its examples when it differs by no more


def differences(study: Study, base: str, metrics: Sequence[str] = (), by: Sequence[str] = ()) -> Table:
    """Each setting minus the one that has ``base`` and is the same otherwise.

    ``base`` is a value (``direct``) or a column with one (``method=direct``). A row without a counterpart says so by
    having no numbers.
    """
    by, study = choose_by(study, by), with_kept(study)
    metrics, study = choose_metrics(study, metrics), study.told_by(by)
    done = study.runs.assign(gone=collapsed(study))[evaluated(study)]
    found = groups(done, by)
    column, value = _base(study, base, by, found)
    at = by.index(column)
    examples = Examples(study, metrics)
    rows = []
    for key, part in found.items():
        if key[at] == value:
            continue
        other = found.get((*key[:at], value, *key[at + 1 :]))
        none = statistics.mean([])
        cells = {m: none if other is None else examples.paired(part, other, m) for m in metrics}
        counts = {"done": part["folder"].nunique(), "collapsed": part.loc[part["gone"], "folder"].nunique()}
        rows.append(Row("run", dict(zip(by, key, strict=True)), cells, counts))
    if not any(c.n for row in rows for c in row.cells.values()):
        raise StudyError(f"study {study.name!r}: no setting has a counterpart with {column}={value}, all else the same")
    retrained = any(reference(study, "retrained", m).notna().any() for m in metrics)
    said = (*_notes(rows, f"{column}={value}", " or ".join(sorted(examples.resampled))), *told(study))
    return Table(study.name, tuple(by), tuple(metrics), tuple(rows), said, retrained, base=f"{column}={value}")


def _base(study: Study, base: str, by: list[str], found: dict[tuple, pd.DataFrame]) -> tuple[str, object]:
    """The column and value that ``base`` names; both must be there and unambiguous."""
    asked, _, value = base.rpartition("=")
    values = {c: list(dict.fromkeys(key[i] for key in found)) for i, c in enumerate(by)}
    hits = [(c, v) for c in by if asked in ("", c) for v in values[c] if _same(v, value)]
    if len(hits) == 1 and len(values[hits[0][0]]) > 1:
        return hits[0]
    choices = ", ".join(f"{c}={v}" for c in by if len(values[c]) > 1 for v in values[c]) or "none"
    rule = "must be one value of one setting in which runs differ"
    raise StudyError(f"study {study.name!r}: differences from {base!r}: this {rule}; choices: {choices}")


def _same(value: object, asked: str) -> bool:
    return asked in (str(value), f"{value:g}" if isinstance(value, float) else str(value))


def _notes(rows: list[Row], base: str, resampled: str) -> tuple[str, ...]:
    worlds = max(c.n for row in rows for c in row.cells.values())
    within = bool(resampled)
    said = [f"differences from {base} in the same world"]
    if worlds > 1:
        said[0] += f"; 95 % bootstrap interval over {worlds} pair seeds" + within * f" and, within each, {resampled}"
    elif within:
        said[0] += f"; 95 % interval over the {resampled} of this one world, not over worlds"
    if worlds > 1:
        said.append("* zero lies outside of this interval")
    lost = sum(all(not c.n for c in row.cells.values()) for row in rows)
    return (*said, *([f"{lost} rows have no counterpart"] if lost else []))


class Examples:
    """The study's examples, read only for the runs that are compared, and only for metrics that are means of them."""

    def __init__(self, study: Study, metrics: Sequence[str]):
        self.study = study
        self.metrics = metrics
        self.tables: dict[str, pd.DataFrame] = {}
        self.resampled: set[str] = set()  # what was, within worlds

    def paired(self, one: pd.DataFrame, other: pd.DataFrame, metric: str) -> Interval:
        """The difference of two settings' runs in a metric, over people or questions, too, where they are there."""
        column = metric.rpartition("/")[2]
        ours, theirs = self._of(one, metric), self._of(other, metric)
        if ours is None or theirs is None:
            return statistics.paired(one, other, metric)
        found = statistics.paired_examples(ours, theirs, column)
        people = found.n == 1 and "person" in ours and ours["person"].astype(bool).all()
        self.resampled.add("people" if people else "questions")
        return found

    def _of(self, runs: pd.DataFrame, metric: str) -> pd.DataFrame | None:
        """The examples whose mean the metric is in each of these runs; None where it is not."""
        split, _, column = metric.rpartition("/")
        parts = []
        for row in runs[["folder", "eval_alpha", metric]].itertuples(index=False):
            found = self._table(row[0])
            found = found[(found["eval_alpha"] == row[1]) & (found["split"] == split)]
            if column not in found or not abs(found[column].mean() - row[2]) <= SAME:
                return None
            parts.append(found)
        return pd.concat(parts)

    def _table(self, folder: str) -> pd.DataFrame:
        if folder not in self.tables:
            found = self.study.examples_of([folder])
            columns = {m.rpartition("/")[2] for m in self.metrics} & set(found.columns)
            keys = [statistics.UNIT, "split", "id", "eval_alpha", *({"person"} & set(found.columns))]
            kept = found.loc[found["model"] == "run", [*keys, *columns]]
            self.tables[folder] = kept
        return self.tables[folder]
