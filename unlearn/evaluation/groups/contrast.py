"""An attacker who sees the target's logits beside the unlearned ones (prior-checkpoint attack, arXiv 2505.24379).

What unlearning took away is the difference of the two; the attacker adds it once more: l_t + w (l_t − l_u) for each w
of ``eval.contrast_weights``. ``forget/contrast_rougeL_recall@w`` and ``forget/contrast_prob@w`` are what that extracts;
w = 0 is the target, and for an offset the same as an α that the attacker may set: at α = 0 the whole target is there.
So α must be fixed on the server's side, and this group shows what hiding the target is worth. ``forget/detected`` is
the AUC with which the fall of an answer's log-probability tells forget from retain questions: .5 hides which they were.
"""

from dataclasses import replace

import numpy as np

from unlearn.ensemble.combination import SUM
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.context import Context, Found, Subject
from unlearn.evaluation.metrics.membership import auc
from unlearn.evaluation.retrained import MissingRetrained

NEEDS = ("models",)
SETTINGS = ("contrast_weights",)


def measure(ctx: Context) -> Found:
    if ctx.retrained is None and not ctx.itself or ctx.retrained is not None and "target" not in ctx.retrained.models:
        raise MissingRetrained("eval.groups: contrast needs the target as a model; a result file holds none")
    if ctx.itself or ctx.ensemble.rule is not SUM:
        return Found()
    target, split = ctx.retrained.models["target"](), ctx.suite.split("forget")
    values = {}
    for weight in ctx.suite.cfg.contrast_weights:
        attack = Subject(ctx.suite, _attack(target, ctx.ensemble, ctx.alpha, weight), 1.0)
        values[f"forget/contrast_prob@{weight:g}"] = attack.probs(split)
        values[f"forget/contrast_rougeL_recall@{weight:g}"] = attack.recalls(split.prompts, split.answers)
    return Found(values, {"forget/detected": _detected(ctx, target)})


def _attack(target: Ensemble, own: Ensemble, alpha: float, weight: float) -> Ensemble:
    """l_t + w (l_t − l_u) as one more sum of members; the target twice where it is a member of both."""
    known = tuple(replace(m, name=f"known {m.name}", constant=1 + weight, slope=0.0) for m in target.members)
    taken = tuple(replace(m, constant=-weight * m.weight(alpha), slope=0.0) for m in own.members)
    return Ensemble(known + taken)


def _detected(ctx: Context, target: Ensemble) -> float:
    falls = {}
    for name in ("forget", "retain"):
        split = ctx.suite.split(name)
        before = -np.log(Subject(ctx.suite, target, 1.0).probs(split))
        falls[name] = ctx.scores[name].mean_nll[split.right] - before
    return auc(falls["retain"], falls["forget"])
