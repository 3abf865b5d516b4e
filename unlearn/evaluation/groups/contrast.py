"""An attacker who sees the target's logits beside the unlearned ones (prior-checkpoint attack, arXiv 2505.24379).

What unlearning took away is the difference of the two; the attacker adds it once more: l_t + w (l_t − l_u) for each w
of ``eval.contrast_weights``. ``forget/contrast_rougeL_recall@w`` and ``forget/contrast_prob@w`` are what that extracts;
w = 0 is the target, and for an offset the same as an α that the attacker may set: at α = 0 the whole target is there.
So α must be fixed on the server's side, and this group shows what hiding the target is worth. ``forget/detected`` is
the AUC with which the fall of an answer's log-probability tells forget from retain questions: .5 hides which they were.
"""

from dataclasses import replace

import numpy as np

from unlearn.config.schema import ConfigError
from unlearn.ensemble.combination import SUM
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.context import Context, Found, Subject
from unlearn.evaluation.metrics.membership import auc

NEEDS = ("models",)
SETTINGS = ("contrast_weights",)


def measure(ctx: Context) -> Found:
    if ctx.retrained is None and not ctx.itself or ctx.retrained is not None and "target" not in ctx.retrained.models:
        raise ConfigError("eval.groups: contrast needs the target as a model; a result file holds none")
    if ctx.itself or ctx.ensemble.rule is not SUM:
        return Found()
    target, split = ctx.retrained.models["target"](), ctx.suite.split("forget")
    values = {}
    for weight in ctx.suite.cfg.contrast_weights:
        # l_t + w (l_t − l_u) as one more sum of members; the target twice where it is a member of both
        known = (replace(m, name=f"known {m.name}", constant=1 + weight, slope=0.0) for m in target.members)
        taken = (replace(m, constant=-weight * m.weight(ctx.alpha), slope=0.0) for m in ctx.ensemble.members)
        attack = Subject(ctx.suite, Ensemble((*known, *taken)), 1.0)
        values[f"forget/contrast_prob@{weight:g}"] = attack.probs(split)
        values[f"forget/contrast_rougeL_recall@{weight:g}"] = attack.recalls(split.prompts, split.answers)
    falls = {}
    for name in ("forget", "retain"):
        split = ctx.suite.split(name)
        before = -np.log(Subject(ctx.suite, target, 1.0).probs(split))
        falls[name] = ctx.scores[name].mean_nll[split.right] - before
    return Found(values, {"forget/detected": auc(falls["retain"], falls["forget"])})
