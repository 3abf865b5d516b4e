"""Membership: can the forget set be told from rows that no model saw? Six attacks, PrivLeak, and which rows give in.

Per attack ``mia/<attack>``, the AUC with the forget set as 0 and the holdout as 1: 1 means that the forget set still
looks like training data, 0.5 that the attack sees nothing. ``privleak`` and ``privleak/<attack>`` compare with the
retrained model's AUC, as do ``mia/vulnerable`` (share of forget rows that a per-sample likelihood ratio finds at 5 %
false positives) and the reference attack, whose reference model is the retrained one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.metrics import membership
from unlearn.evaluation.metrics.membership import ATTACKS
from unlearn.evaluation.metrics.statistics import interval

NEEDS = ("holdout", "moments")
SPLITS = ("forget", "holdout")
FALSE_POSITIVES = 0.05


def measure(ctx: Context) -> Found:
    columns = {split: _attacks(ctx, split) for split in SPLITS}
    forget, holdout = columns.values()
    metrics = {f"mia/{a}": membership.auc(forget[a], holdout[a]) for a in forget}
    intervals, resamples = {}, min(ctx.suite.cfg.resamples, 200)
    for attack in forget if resamples else ():
        scores = {f"{split}/scores": columns[split][attack] for split in SPLITS}
        intervals[f"mia/{attack}"] = tuple(interval(scores, _aucs, resamples))
    if ctx.retrained is not None:
        for attack in ATTACKS:
            theirs = ctx.retrained.metrics.get(f"mia/{attack}")
            if theirs is not None:
                metrics[f"privleak/{attack}"] = membership.privleak(metrics[f"mia/{attack}"], theirs)
        metrics["privleak"] = membership.privleak(metrics["mia/min_k"], ctx.retrained.metrics["mia/min_k"])
        # fewer holdout rows cannot say what 5 % are
        if "reference" in forget and len(holdout) >= 1 / FALSE_POSITIVES - 1:
            nll = [values for s in SPLITS for values in (columns[s]["loss"], ctx.retrained.column(s, "nll"))]
            metrics["mia/vulnerable"] = float(membership.vulnerable(*nll, FALSE_POSITIVES).mean())
    return Found({}, metrics, intervals, {s: c.add_prefix("mia_") for s, c in columns.items()})


def _attacks(ctx: Context, name: str) -> pd.DataFrame:
    """Score of each row under each attack."""
    split, scores = ctx.suite.split(name), ctx.scores[name]
    nll = scores.mean_nll[split.right]
    per_token = (scores.before_eos(values) for values in (scores.logp, scores.mean, scores.variance))
    logp, mean, variance = ([values[i] for i in split.right] for values in per_token)
    found = {
        "loss": nll,
        "zlib": membership.zlib(nll, split.answers),
        "min_k": membership.min_k(logp),
        "min_k_plus_plus": membership.min_k_plus_plus(logp, mean, variance),
    }
    if ctx.retrained is not None and ctx.retrained.has(name, "nll"):
        found["reference"] = membership.reference(nll, ctx.retrained.column(name, "nll"))
    return pd.DataFrame(found)


def _aucs(drawn: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.array([membership.auc(f, h) for f, h in zip(*drawn.values(), strict=True)])
