"""TOFU's metrics (arXiv 2401.06121): probability of an answer, truth ratio R, model utility, forget quality.

R = exp(NLL_right − mean_j NLL_wrong,j), both in the paraphrase's wording: near 0 for a model that knows the fact, near
1 for one that never saw it. The mean over wrong answers is *geometric*: an arithmetic one is also in circulation and
differs by more than most methods do. OpenUnlearning adds ``epsilon`` = 1e-10 to denominators, which decides R once the
right answer's NLL passes 23. All NLLs are per token, in nats.
"""

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import ks_2samp

from unlearn.data.rows import REQUEST

RATIO = "truth_ratio"  # in examples the raw R; the metric averages a function of it
LARGEST = 700.0  # exponent; a collapsed model's R would overflow to infinity
PARTS = (
    "retain/prob", "retain/rougeL_recall", "retain/truth_ratio",
    "real_authors/prob_options", "real_authors/rougeL_recall", "real_authors/truth_ratio",
    "world_facts/prob_options", "world_facts/rougeL_recall", "world_facts/truth_ratio",
)  # fmt: skip


def probability(nll: ArrayLike) -> np.ndarray:
    """exp(−NLL) of each answer, [B]."""
    return np.exp(-np.asarray(nll))


def probability_with_options(right: ArrayLike, wrong: Sequence[ArrayLike], epsilon: float = 0.0) -> np.ndarray:
    """p / (p + Σ p_wrong + ε), [B]: the right answer's share of its options, from NLLs ``right`` [B] and ``wrong``."""
    if epsilon:
        p = probability(right)
        return p / (p + [probability(w).sum() for w in wrong] + epsilon)
    # 1 / (1 + Σ exp(NLL_right − NLL_wrong)): no 0 / 0 where a collapsed model gives every option nothing
    pairs = zip(right, wrong, strict=True)
    return 1 / (1 + np.array([np.exp(np.clip(r - np.asarray(w), -LARGEST, LARGEST)).sum() for r, w in pairs]))


def truth_ratio(right: ArrayLike, wrong: Sequence[ArrayLike], epsilon: float = 0.0) -> np.ndarray:
    """R of each row, [B], from NLLs ``right`` [B] and ``wrong``; the metric is the mean of ``ratio_scores``."""
    right, wrong = np.asarray(right), np.array([np.mean(w) for w in wrong])
    if epsilon:
        return np.exp(-wrong) / (np.exp(-right) + epsilon)
    return np.exp(np.clip(right - wrong, -LARGEST, LARGEST))


def ratio_scores(split: str, values: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """What is averaged of R: min(R, 1/R) on a forget set, max(0, 1 − R) elsewhere; closer to 1 is better."""
    forget = split == "forget" or split.startswith(REQUEST)  # of this request or, before or after it, of another
    return np.minimum(values, 1 / (values + epsilon)) if forget else np.maximum(0, 1 - values)


def aggregates(split: str, found: Mapping[str, np.ndarray], epsilon: float = 0.0) -> dict[str, float]:
    """Metrics of a split from values per example: their means without NaN, if any; of R also the finite median."""
    metrics = {}
    for name, values in found.items():
        scores = ratio_scores(split, values, epsilon) if name == RATIO else values
        metrics |= means({f"{split}/{name}": scores})
        if name == RATIO:
            metrics[f"{split}/{RATIO}_median"] = float(np.median(values))
    return metrics


def means(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each metric's values, NaN left out; no entry where there are no others."""
    seen = {name: values[~np.isnan(values)] for name, values in found.items()}
    return {name: float(values.mean()) for name, values in seen.items() if len(values)}


def forget_quality(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """``forget_quality`` = p of a two-sided Kolmogorov–Smirnov test of truth ratios on the forget set: the model's
    (``predictions``) against the retrained model's. p spans tens of orders of magnitude and has a floor that depends on
    n alone, so log₁₀ p and the statistic stand beside it."""
    test = ks_2samp(predictions, references)
    p = float(test.pvalue)
    log10 = math.log10(max(p, sys.float_info.min))
    return {"forget_quality": p, "forget_quality_log10": log10, "forget_quality_ks": float(test.statistic)}


def model_utility(metrics: Mapping[str, float]) -> float:
    """Harmonic mean of ``PARTS``; one that is missing is an error, never a shorter mean."""
    missing = [name for name in PARTS if name not in metrics]
    if missing:
        raise ValueError(f"model utility needs {', '.join(PARTS)}; missing: {', '.join(missing)}")
    return float(harmonic_mean([metrics[name] for name in PARTS]))


def harmonic_mean(values: Sequence[ArrayLike]) -> np.ndarray:
    """Harmonic mean over the first axis, [parts, …] → […]. One 0 makes it 0; values below 0 and NaN are refused."""
    parts = np.asarray(values, dtype=np.float64)
    if len(parts) == 0 or not (parts >= 0).all():
        raise ValueError(f"harmonic mean of {values!r}: must be at least one value, none of them negative or NaN")
    # a part that is 0 is replaced before it is inverted; the result there is set to 0
    inverse = 1 / np.where(parts == 0, 1.0, parts)
    return np.where((parts == 0).any(axis=0), 0.0, len(parts) / inverse.sum(axis=0))
