"""How each run of a study ended: what is done, what failed, what collapsed, and what its manifest says beside.

Easy to get wrong: a run that was evaluated at several alphas may have collapsed at some of them only. What is ``kept``
at each decides (``unlearn/grid/table.py`` has the same rule); a loss that ran away counts at the alpha it trained at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pandas as pd

from .runs import Study

KEPT = 0.5  # a model that keeps less than this share of the target's probability has collapsed
PROBS = ("retain/prob", "neighbours/prob", "real_authors/prob", "world_facts/prob")
BY_KEPT = "keeps "  # begins the verdict of a run whose trajectory said so: there the evaluation knows better
WORLD = ["pair", "pair_seed", "data", "world"]


def manifests(study: Study) -> dict[str, Mapping[str, Any]]:
    """What each run logged about itself, by the value of ``folder``."""
    return {record.place: record.manifest for record in study.records}


def collapsed(study: Study) -> pd.Series:
    """For each row of ``study.runs``, whether the model as evaluated there has collapsed.

    It has where less than half is ``kept``, and at its training alpha where its loss ran away.
    """
    said = {place: m.get("collapsed") for place, m in manifests(study).items() if m.get("kept") != "best"}
    left, words = kept(study), study.runs["folder"].map(said)
    ran_away = words.notna() & (left.isna() | ~words.astype(str).str.startswith(BY_KEPT))
    trained = study.runs["eval_alpha"] == study.runs["alpha"]
    return evaluated(study) & ((left < KEPT) | (trained & ran_away))


@lru_cache(maxsize=4)  # every panel of a figure asks
def kept(study: Study) -> pd.Series:
    """For each row of ``study.runs``, the share of the target's probability that is left outside the forget set.

    The mean over retain set, neighbours, real authors and world facts, each at most 1; NaN where none was measured.
    """
    shares = {m: (study.runs[m] / reference(study, "target", m)).clip(upper=1) for m in PROBS if m in study.metrics}
    return pd.DataFrame(shares, index=study.runs.index).mean(axis=1)


def with_kept(study: Study) -> Study:
    """The study with a column ``kept`` of its runs and references, where it was measured."""
    left = kept(study)
    if left.isna().all():
        return study
    target = study.references[study.references["reference"] == "target"].set_index(WORLD)
    theirs = study.references.set_index(WORLD)
    shares = [(theirs[m] / target[m].reindex(theirs.index)).clip(upper=1) for m in PROBS if m in theirs]
    found = pd.concat(shares, axis=1).mean(axis=1).to_numpy()
    return replace(study, runs=study.runs.assign(kept=left), references=study.references.assign(kept=found))


def evaluated(study: Study) -> pd.Series:
    """For each row of ``study.runs``, whether it holds results: the run is done, and was evaluated."""
    return (study.runs["status"] == "done") & study.runs["eval_alpha"].notna()


def status(study: Study) -> pd.Series:
    """For each row of ``study.runs``, its status; a run that is done without any result is "not evaluated"."""
    unseen = (study.runs["status"] == "done") & study.runs["eval_alpha"].isna()
    return study.runs["status"].mask(unseen, "not evaluated")


def reference(study: Study, name: str, metric: str) -> pd.Series:
    """For each row of ``study.runs``, the target's or the retrained model's value in the same world; else NaN."""
    found = study.references[study.references["reference"] == name]
    if metric not in found.columns:
        return pd.Series(float("nan"), index=study.runs.index)
    values = study.runs[WORLD].merge(found[[*WORLD, metric]], on=WORLD, how="left")[metric]
    return values.set_axis(study.runs.index)
