"""W&B runs, as ``unlearn/store/mirror.py`` fills them, back to records, for files and server alike."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .record import Record, flatten, merge, numbers

JOB_TYPE, OVERVIEW = "unlearn", "summary"  # of a run; of what a grid logs about its study, which is not a run
REWIND, TIME = "resumed_from", "_timestamp"  # columns of the history
SPOKEN = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}  # how W&B writes them in JSON
TABLES = {"run": "examples.parquet", "references": "references.parquet"}


@dataclass(frozen=True)
class WandbRun:
    """What one W&B run holds; ``place`` is where messages say that it is."""

    place: str
    id: str
    group: str
    name: str
    job_type: str
    started: float  # seconds since 1970; of two runs that mirror the same folder, the later counts
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    examples: Callable[[], dict[str, pd.DataFrame]]


def records(runs: Iterable[WandbRun]) -> tuple[list[Record], list[str]]:
    """The records of a study's runs by name, and what is to be said of those that are none."""
    found: dict[tuple[str, str], WandbRun] = {}
    skipped: Counter[str] = Counter()
    for run in sorted(runs, key=lambda r: r.started):
        if run.job_type == OVERVIEW:
            continue
        if run.job_type != JOB_TYPE:
            skipped["that were not made by unlearn"] += 1
            continue
        skipped["made again later, of which the last counts"] += (run.group, run.name) in found
        found[run.group, run.name] = run
    several = len({group for group, _ in found}) > 1  # then a name alone may be two runs'
    places = {f"{group}/{name}" if several else name: run for (group, name), run in found.items()}
    notes = [f"{number} W&B runs {why}: left out" for why, number in skipped.items() if number]
    return [_record(place, run) for place, run in sorted(places.items())], notes


def _record(place: str, run: WandbRun) -> Record:
    config = dict(flatten({k: v for k, v in run.config.items() if not k.startswith("_wandb")}))
    return Record(
        place=place,
        config=config,
        manifest=_whole(run.summary.get("manifest")),
        evaluation={
            "alphas": _sorted(_whole(run.summary.get("alphas"))),
            "references": _whole(run.summary.get("references")),
        },
        steps=merge(_rows(run.history)),
        examples=run.examples,
        config_at=f"the config of {run.place}",
        evaluation_at=f"the summary of {run.place}",
    )


def _whole(value: Any) -> Any:
    """A part of the summary: JSON, which W&B's pages show in one line; of older runs what it says."""
    return (json.loads(value) if isinstance(value, str) else value) or {}


def _sorted(alphas: Any) -> Any:
    return dict(sorted(alphas.items(), key=_alpha)) if isinstance(alphas, Mapping) else alphas


def _alpha(entry: tuple[str, Any]) -> float:
    try:
        return float(entry[0])
    except ValueError:
        return float("inf")  # it is refused where tables are made


def _rows(history: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Logged steps in the order of time: the parts of a resumed run may have been synced in any.

    What such a run had logged after its checkpoint does not count, as in ``metrics.jsonl``.
    """
    rows: list[dict[str, float]] = []
    for row in sorted(history, key=_time):
        values = numbers({k: v for k, v in row.items() if k[:1] != "_"})
        if REWIND in values:
            rows = [r for r in rows if r["step"] <= values[REWIND]]
        elif math.isfinite(values.get("step", math.nan)):
            rows.append(values)
    return rows


def _time(row: Mapping[str, Any]) -> float:
    return numbers(row).get(TIME, 0.0)


def plain(value: Any) -> Any:
    """A decoded JSON value, with W&B's words for numbers that JSON lacks as numbers."""
    if isinstance(value, str):
        return SPOKEN.get(value, value)
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list) else value
