"""An attacker who sees the target's logits beside the unlearned ones (prior-checkpoint attack, arXiv 2505.24379).

What unlearning took away is the difference of the two; the attacker adds it once more: l_t + w (l_t − l_u) for each w
of ``eval.contrast_weights``. ``forget/contrast_rougeL_recall@w`` and ``forget/contrast_prob@w`` are what that extracts;
w = 0 is the target, and for an offset the same as an α that the attacker may set: at α = 0 the whole target is there.
So α must be fixed on the server's side, and this group shows what hiding the target is worth. ``forget/detected`` is
the AUC with which the fall of an answer's log-probability tells forget from retain questions: .5 hides which they were.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unlearn.ensemble.combination import SUM
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.groups.behaviour import probs, recalls
from unlearn.evaluation.groups.context import Context, Found, MissingRetrained, aggregate
from unlearn.evaluation.metrics.membership import auc


def measure(ctx: Context) -> Found:
    if ctx.retrained is None and not ctx.itself or ctx.retrained is not None and "target" not in ctx.retrained.models:
        raise MissingRetrained("eval.groups: contrast needs the target as a model; a result file holds none")
    if ctx.itself or ctx.ensemble.rule is not SUM:
        return Found({})
    target = ctx.retrained.models["target"]()
    values: dict[str, np.ndarray] = {}
    for weight in ctx.suite.cfg.contrast_weights:
        found = _extracted(ctx, _attack(target, ctx.ensemble, ctx.alpha, weight))
        values |= {f"forget/contrast_{name}@{weight:g}": v for name, v in found.items()}
    metrics, intervals = aggregate(values, ctx.suite.cfg.resamples)
    return Found(metrics | {"forget/detected": _detected(ctx, target)}, intervals=intervals)


def _attack(target: Ensemble, own: Ensemble, alpha: float, weight: float) -> Ensemble:
    """l_t + w (l_t − l_u) as one more sum of members; the target twice where it is a member of both."""
    known = tuple(replace(m, name=f"known {m.name}", constant=1 + weight, slope=0.0) for m in target.members)
    taken = tuple(replace(m, constant=-weight * m.weight(alpha), slope=0.0) for m in own.members)
    return Ensemble(known + taken)


def _extracted(ctx: Context, attack: Ensemble) -> dict[str, np.ndarray]:
    split = ctx.suite.split("forget")
    return {"prob": probs(ctx.suite, attack, 1.0, split), "rougeL_recall": recalls(ctx.suite, attack, 1.0, split)}


def _detected(ctx: Context, target: Ensemble) -> float:
    falls = {}
    for name in ("forget", "retain"):
        split = ctx.suite.split(name)
        before = -np.log(probs(ctx.suite, target, 1.0, split))
        falls[name] = ctx.scores[name].mean_nll[split.right] - before
    return auc(falls["retain"], falls["forget"])
