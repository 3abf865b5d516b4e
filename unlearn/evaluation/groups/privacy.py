"""Membership: does the forget set differ from rows that no model saw? Six attacks, PrivLeak, and which rows give in.

Per attack ``mia/<attack>``, the AUC with the forget set as 0 and the holdout as 1: 1 means that the forget set still
looks like training data, 0.5 that the attack sees nothing. ``privleak`` and ``privleak/<attack>`` compare with the
retrained model's AUC, as do ``mia/vulnerable`` (share of forget rows that a per-sample likelihood ratio finds at 5 %
false positives) and the reference attack, whose reference model is the retrained one.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.metrics import membership
from unlearn.evaluation.metrics.membership import ATTACKS
from unlearn.evaluation.metrics.statistics import Weights, interval

NEEDS = ("holdout", "moments")
SPLITS = ("forget", "holdout")
FALSE_POSITIVES = 0.05


def measure(ctx: Context) -> Found:
    columns = {split: _attacks(ctx, split) for split in SPLITS}
    forget, holdout = columns.values()
    metrics = {f"mia/{a}": membership.auc(forget[a], holdout[a]) for a in forget}
    how = {split: ctx.suite.split(split).people for split in SPLITS}, ctx.suite.cfg.resamples
    attacks = forget if ctx.suite.cfg.resamples > 1 else ()
    drawn = {f"mia/{a}": interval(weighted_aucs(forget[a], holdout[a]), *how) for a in attacks}
    if ctx.retrained is not None:
        for attack in ATTACKS:
            theirs = ctx.retrained.metrics.get(f"mia/{attack}")
            if theirs is not None:
                metrics[f"privleak/{attack}"] = membership.privleak(metrics[f"mia/{attack}"], theirs)
        metrics["privleak"] = membership.privleak(metrics["mia/min_k"], ctx.retrained.metrics["mia/min_k"])
        # fewer holdout rows cannot say what 5 % are
        if "reference" in forget and len(holdout) >= 1 / FALSE_POSITIVES - 1:
            nll = [values for s in SPLITS for values in (columns[s]["loss"], ctx.retrained.column(s, "nll"))]
            metrics["mia/vulnerable"] = float(membership.vulnerable(*nll, rate=FALSE_POSITIVES).mean())
    intervals = {name: ends for name, ends in drawn.items() if ends is not None}
    return Found({}, metrics, intervals, {s: c.add_prefix("mia_") for s, c in columns.items()})


def _attacks(ctx: Context, name: str) -> pd.DataFrame:
    split, scores = ctx.suite.split(name), ctx.scores[name]
    nll = scores.mean_nll[split.right]
    per_token = (scores.before_eos(values) for values in (scores.logp, scores.mean, scores.variance))
    logp, mean, variance = ([values[i] for i in split.right] for values in per_token)
    found = {
        "loss": nll,
        "zlib": membership.zlib(nll, split.labels),
        "min_k": membership.min_k(logp),
        "min_k_plus_plus": membership.min_k_plus_plus(logp, mean, variance),
    }
    if ctx.retrained is not None and ctx.retrained.has(name, "nll"):
        found["reference"] = membership.reference(nll, ctx.retrained.column(name, "nll"))
    return pd.DataFrame(found)


def weighted_aucs(forget: ArrayLike, holdout: ArrayLike) -> Callable[[Weights], np.ndarray]:
    """``membership.auc`` with weights of its rows: AUCs of resamples, [R]."""
    forget, holdout = np.asarray(forget), np.asarray(holdout)
    wins = (holdout > forget[:, None]) + (holdout == forget[:, None]) / 2

    def aucs(weights: Weights) -> np.ndarray:
        ours, theirs = weights["forget"], weights["holdout"]
        return (ours @ wins * theirs).sum(-1) / (ours.sum(-1) * theirs.sum(-1))

    return aucs
