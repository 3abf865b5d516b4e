"""The four aggregates of OpenUnlearning's paper (arXiv 2506.12618): Mem, Priv, Util, Agg.

``ou/mem``, ``ou/util`` and, for each reading of s_MIA, ``ou/priv/<reading>`` and ``ou/agg/<reading>``. Fluency is the
n-gram entropy of retain answers relative to the gold answers': the paper's classifier is not part of it, so ``ou/util``
and ``ou/agg/<reading>`` compare runs of this framework with each other, not with the paper's table.

All are harmonic means in [0, 1]. Their authors published no code, and two parts are read in several ways:
- the truth ratio inside Mem is the paper's p / (p + p_wrong), high where the answer is remembered
  (``truth_ratio_share``), not the min(R, 1/R) of the forget set, where high is good;
- how far an attack's AUC is from the retrained model's, s_MIA: ``S_MIA`` has the three readings, by name.
"""

import numpy as np

from unlearn.config.schema import ConfigError
from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.metrics.membership import ATTACKS
from unlearn.evaluation.metrics.texts import relative_fluency
from unlearn.evaluation.metrics.tofu import harmonic_mean

NEEDS = ("privacy",)


def measure(ctx: Context) -> Found:
    m, by_split = ctx.metrics, dict(tuple(ctx.examples.groupby("split")))
    needed = ("model_utility", "forget/paraphrased_prob", "forget/truth_ratio", *(f"mia/{a}" for a in ATTACKS))
    missing = [name for name in needed if name not in m]
    if missing:
        raise ConfigError(f"eval.groups: summary lacks {', '.join(missing)}; list privacy before summary")
    if ctx.retrained is None and not ctx.itself:
        raise ConfigError("eval.groups: summary compares with attacks on the retrained model; give retrained=")
    remembered = ["extraction_strength", "exact_memorization", "paraphrased_prob"]
    share = truth_ratio_share(by_split["forget"]["truth_ratio"].to_numpy())
    mem = harmonic_mean([1 - value for value in (*(m[f"forget/{name}"] for name in remembered), share)])
    retain = by_split["retain"]
    reads = relative_fluency(list(retain["generation"]), list(retain["gold"])).mean()
    util = harmonic_mean([m["model_utility"], reads])
    found = {"ou/mem": mem, "ou/util": util, "ou/fluency": reads}
    own, theirs = ([r[f"mia/{a}"] for a in ATTACKS] for r in (m, m if ctx.itself else ctx.retrained.metrics))
    for reading, s_mia in S_MIA.items():
        found[f"ou/priv/{reading}"] = priv = harmonic_mean([s_mia(auc, r) for auc, r in zip(own, theirs, strict=True)])
        found[f"ou/agg/{reading}"] = harmonic_mean([mem, priv, util])
    return Found(metrics={name: float(value) for name, value in found.items()})


def truth_ratio_share(ratios: np.ndarray) -> float:
    """Mean of p / (p + p_wrong) = 1 / (1 + R), from the raw truth ratios R = p_wrong / p of ``truth_ratio``, [B]."""
    return float((1 / (1 + ratios)).mean())


S_MIA = {  # 1 where an attack has the retrained model's AUC r, down to 0
    # clip(1 − |auc − r| / r, 0, 1): an AUC above 2 r scores 0
    "clipped": lambda auc, r: max(0.0, 1 - abs(auc - r) / r) if r > 0 else float(auc == r),
    # 0 only at the end of [0, 1] that is farther from r
    "larger_side": lambda auc, r: 1 - abs(auc - r) / max(r, 1 - r),
    "ratio": lambda auc, r: min(auc, r) / max(auc, r) if max(auc, r) > 0 else 1.0,
}
