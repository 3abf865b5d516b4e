"""The four aggregates of OpenUnlearning's paper (arXiv 2506.12618): Mem, Priv, Util, Agg.

``ou/mem``, ``ou/util`` and, for each reading of s_MIA, ``ou/priv/<reading>`` and ``ou/agg/<reading>``. Fluency is the
n-gram entropy of retain answers relative to the gold answers': the paper's classifier is not part of it, so ``ou/util``
and ``ou/agg/<reading>`` compare runs of this framework with each other, not with the paper's table.

All are harmonic means in [0, 1]. Their authors published no code, and two parts are read in several ways:
- the truth ratio inside Mem is the paper's p / (p + p_wrong), high where the answer is remembered
  (``truth_ratio_share``), not the min(R, 1/R) of the forget set, where high is good;
- how far an attack's AUC is from the retrained model's, s_MIA: ``S_MIA`` has the three readings, by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from numpy.typing import ArrayLike

from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.metrics.arrays import numbers, share
from unlearn.evaluation.metrics.membership import ATTACKS
from unlearn.evaluation.metrics.texts import relative_fluency
from unlearn.evaluation.metrics.tofu import harmonic_mean
from unlearn.evaluation.retrained import MissingRetrained

NEEDS = ("privacy",)
AGGREGATES = {
    "Mem": ("extraction_strength", "exact_memorization", "paraphrase_prob", "truth_ratio_share"),
    "Util": ("model_utility", "fluency"),
    "Agg": ("memorization", "privacy", "utility"),
}


def measure(ctx: Context) -> Found:
    m, by_split = ctx.metrics, dict(tuple(ctx.examples.groupby("split")))
    needed = ("model_utility", "forget/paraphrased_prob", "forget/truth_ratio", *(f"mia/{a}" for a in ATTACKS))
    missing = [name for name in needed if name not in m]
    if missing:
        raise MissingRetrained(
            f"eval.groups: summary needs {', '.join(needed)}; missing: {', '.join(missing)} "
            "(list privacy before summary)"
        )
    if ctx.retrained is None and not ctx.itself:
        raise MissingRetrained(
            "eval.groups: summary compares attacks with those on the retrained model; give retrained="
        )
    mem = aggregate("Mem", {
        "extraction_strength": m["forget/extraction_strength"],
        "exact_memorization": m["forget/exact_memorization"],
        "paraphrase_prob": m["forget/paraphrased_prob"],
        "truth_ratio_share": truth_ratio_share(by_split["forget"]["truth_ratio"]),
    })  # fmt: skip
    retain = by_split["retain"]
    reads = relative_fluency(list(retain["generation"]), list(retain["gold"]))["relative_fluency"]
    util = aggregate("Util", {"model_utility": m["model_utility"], "fluency": reads})
    found = {"ou/mem": mem, "ou/util": util, "ou/fluency": reads}
    own, theirs = ({a: r[f"mia/{a}"] for a in ATTACKS} for r in (m, m if ctx.itself else ctx.retrained.metrics))
    for reading in S_MIA:
        found[f"ou/priv/{reading}"] = priv = privacy(own, theirs, reading)
        found[f"ou/agg/{reading}"] = aggregate("Agg", {"memorization": mem, "privacy": priv, "utility": util})
    return Found(metrics=found)


# --- from numbers alone -----------------------------------------------------------------------------------------------
def truth_ratio_share(ratios: ArrayLike) -> float:
    """Mean of p / (p + p_wrong) = 1 / (1 + R), from the raw truth ratios R = p_wrong / p of ``truth_ratio``, [B]."""
    values = numbers("truth ratios", ratios)
    if (values < 0).any():
        raise ValueError(f"truth ratios: the least is {values.min():g}; they are ratios of probabilities, at least 0")
    return float((1 / (1 + values)).mean())


def aggregate(name: str, parts: Mapping[str, float]) -> float:
    """Harmonic mean of the parts of one of ``AGGREGATES``; Mem takes 1 − each: 1 where nothing is remembered."""
    values = _take(parts, AGGREGATES[name], name)
    return float(harmonic_mean([1 - value for value in values] if name == "Mem" else values))


def privacy(aucs: Mapping[str, float], retrained_aucs: Mapping[str, float], variant: str) -> float:
    """Priv = HM of s_MIA over ``ATTACKS``, from the AUCs of the model and of the retrained one, by attack."""
    found, expected = _take(aucs, ATTACKS, "Priv"), _take(retrained_aucs, ATTACKS, "Priv of the retrained model")
    return float(harmonic_mean([s_mia(auc, r, variant) for auc, r in zip(found, expected, strict=True)]))


def s_mia(auc: float, retrained_auc: float, variant: str) -> float:
    """1 where an attack has the retrained model's AUC, down to 0; ``variant`` is a name in ``S_MIA``."""
    if variant not in S_MIA:
        raise ValueError(f"s_MIA variant {variant!r}: must be one of {', '.join(S_MIA)}")
    return S_MIA[variant](share("auc", auc), share("retrained_auc", retrained_auc))


S_MIA = {
    # clip(1 − |auc − r| / r, 0, 1): an AUC above 2 r scores 0
    "clipped": lambda auc, r: max(0.0, 1 - abs(auc - r) / r) if r > 0 else float(auc == r),
    # 0 only at the end of [0, 1] that is farther from r
    "larger_side": lambda auc, r: 1 - abs(auc - r) / max(r, 1 - r),
    "ratio": lambda auc, r: min(auc, r) / max(auc, r) if max(auc, r) > 0 else 1.0,
}


def _take(parts: Mapping[str, float], names: Sequence[str], aggregate_name: str) -> list[float]:
    missing = [name for name in names if name not in parts]
    if missing:
        raise ValueError(f"{aggregate_name} needs {', '.join(names)}; missing: {', '.join(missing)}")
    return [share(name, parts[name]) for name in names]
