"""Questions before and after, at one setting: what is still known, what is forgotten, what was lost with it.

Easy to get wrong: "still known" is what the run itself gives away, by its probability or in the worst of its drawn
answers; the difference to the retrained model would hide the worst of a run that has forgotten further than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pandas as pd

from ..runs import Study, StudyError
from ..state import evaluated
from ..table_formats import number
from . import summary

SHOWN = 3  # examples of each kind
KINDS = {  # kind → (whether of the forget set, whether the largest score comes first)
    "Still known": ("forget questions whose answer the run gives away most", True, True),
    "Forgotten": ("forget questions whose answer it lost most", True, False),
    "Lost with it": ("other questions whose answer it lost most", False, False),
    "Kept": ("other questions it answers as before", False, True),
}


@dataclass(frozen=True)
class Example:
    """One question: what target, run and retrained model make of it; None where that was not logged."""

    split: str
    id: str
    prompt: str
    gold: str
    generations: dict[str, str]  # by model
    probs: dict[str, str]  # by model, as text


@dataclass(frozen=True)
class Chosen:
    """The run whose examples are shown, and the examples by kind."""

    run: str
    said: str
    kinds: dict[str, tuple[str, list[Example]]]


def choose(study: Study, wanted: dict[str, object]) -> Chosen | None:
    """Examples of the setting asked for, by default the summary's; None where no run logged any."""
    rows = study.runs[evaluated(study)]
    parts = [_having(rows, wanted)]
    if wanted and parts[0].empty:
        said = ", ".join(f"{k}={v}" for k, v in wanted.items())
        raise StudyError(f"study {study.name!r}: no evaluated run has {said}; see python -m analysis.table")
    if not wanted and (best := summary.best(study)) is not None:  # or what comes near it, where it logged none
        settings = {c: v for c, v in best.settings.items() if c in rows}
        other_alpha = {c: v for c, v in settings.items() if c not in ("alpha", "eval_alpha")}
        parts = [_having(rows, settings), _having(rows, other_alpha), rows]
    ordered = (part.sort_values(["pair_seed", "seed", "folder"], kind="stable") for part in parts)
    for row in pd.concat(ordered).to_dict("records"):
        found = study.examples_of([row["folder"]])
        if not found.empty and {"prob", "prompt", "gold"} <= set(found.columns):
            return _chosen(row, found[(found["model"] != "run") | (found["eval_alpha"] == row["eval_alpha"])])
    return None


def _having(rows: pd.DataFrame, settings: dict[str, object]) -> pd.DataFrame:
    for column, value in settings.items():
        rows = rows[rows[column].isna() if value is None else rows[column] == value]
    return rows


def _chosen(row: dict[str, Any], found: pd.DataFrame) -> Chosen:
    trained = f"trained at α = {row['alpha']:g}, evaluated at " * (row["alpha"] != row["eval_alpha"])
    said = f"{row['algo']}, {row['method']}, {trained}α = {row['eval_alpha']:g}, "
    said += f"pair seed {row['pair_seed']}, seed {row['seed']}"
    return Chosen(PurePath(row["folder"]).name, said, {k: (KINDS[k][0], _kind(found, k)) for k in KINDS})


def _kind(found: pd.DataFrame, kind: str) -> list[Example]:
    _, forget, largest = KINDS[kind]
    part = found[(found["split"] == "forget") == forget].assign(model=found["model"].astype(str))
    probs = part.pivot_table(index=["split", "id"], columns="model", values="prob", aggfunc="first", sort=False)
    if "run" not in probs:
        return []
    probs = probs[probs["run"].notna()]
    leak = _leak(part)
    if forget and largest:
        own = part[part["model"] == "run"].set_index(["split", "id"])
        scores = own[["prob", *filter(None, [leak])]].max(axis=1).reindex(probs.index)
    else:
        scores = probs["run"] - (probs["target"] if "target" in probs else 0)
    if kind == "Kept":
        scores = -scores.abs() if "target" in probs else scores
    best = scores.sort_values(ascending=not largest, kind="stable").index[:SHOWN]
    rows = part.set_index(["split", "id"]).sort_index(kind="stable")
    return [_example(rows.loc[[key]], key, leak) for key in best]


def _leak(found: pd.DataFrame) -> str | None:
    """The column of the worst of the most drawn answers."""
    return max((c for c in found if c.startswith("leak@")), key=lambda c: int(c.partition("@")[2]), default=None)


def _example(rows: pd.DataFrame, key: tuple[str, str], leak: str | None) -> Example:
    by = {row["model"]: row for row in rows.to_dict("records")}
    order = [model for model in ("target", "run", "retrained") if model in by]
    return Example(
        *key,
        prompt=str(by["run"]["prompt"]).strip(),
        gold=str(by["run"]["gold"]).strip(),
        generations={m: _words(by[m].get("generation")) for m in order},
        probs={m: _numbers(by[m], leak) for m in order},
    )


def _numbers(row: dict, leak: str | None) -> str:
    said = number(row["prob"]) if math.isfinite(row["prob"]) else "–"
    said += (", tells the fact" if row["known"] else ", does not tell the fact") if pd.notna(row.get("known")) else ""
    return said + (f", {leak} = {number(row[leak])}" if leak and pd.notna(row.get(leak)) else "")


def _words(value: object) -> str:
    return value.strip() if isinstance(value, str) else "–"
