"""How each run of a study ended: what is done, what failed, what collapsed, and what its manifest says beside.

Easy to get wrong: a run that was evaluated at several alphas may have collapsed at some of them only. The verdict that
a run logged is about its training, so it counts at the alpha it trained at; everywhere else the evaluation decides.
"""

from __future__ import annotations

import pandas as pd

from .runs import Study

KEPT = 0.5  # a model that keeps less than this share of the target's probability has collapsed
PROBS = ("retain/prob", "real_authors/prob", "world_facts/prob")
WORLD = ["pair", "pair_seed", "data", "world"]


def manifests(study: Study) -> dict[str, dict]:
    """What each run logged about itself, by the value of ``folder``."""
    return {record.place: record.manifest for record in study.records}


def collapsed(study: Study) -> pd.Series:
    """For each row of ``study.runs``, whether the model as evaluated there has collapsed.

    It has where less than half of the target's probability outside the forget set is kept (mean over the splits, each
    counting at most 1), and at its training alpha where the run itself says so.
    """
    shares = {m: (study.runs[m] / reference(study, "target", m)).clip(upper=1) for m in PROBS if m in study.metrics}
    kept = pd.DataFrame(shares, index=study.runs.index).mean(axis=1)
    said = {place: bool(m.get("collapsed")) and m.get("kept") != "best" for place, m in manifests(study).items()}
    trained = study.runs["eval_alpha"] == study.runs["alpha"]
    return evaluated(study) & ((kept < KEPT) | (trained & study.runs["folder"].map(said).eq(True)))


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
