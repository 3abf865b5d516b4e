"""TOFU's two aggregates (arXiv 2401.06121): model utility, a harmonic mean of nine values, and forget quality."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

PARTS = (
    "retain/prob", "retain/rougeL_recall", "retain/truth_ratio",
    "real_authors/prob_options", "real_authors/rougeL_recall", "real_authors/truth_ratio",
    "world_facts/prob_options", "world_facts/rougeL_recall", "world_facts/truth_ratio",
)  # fmt: skip


def forget_quality(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """``forget_quality`` = p of a two-sided Kolmogorov–Smirnov test: can truth ratios on the forget set be told from
    those of a model that never saw it? predictions: the model's truth ratios; references: the retrained model's.

    p spans tens of orders of magnitude and has a floor that depends on n alone, so log₁₀ p and the statistic stand
    beside it.
    """
    from scipy.stats import ks_2samp

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
    """Harmonic mean over the first axis, [parts, …] → […]: one number per bootstrap resample where each part is [R].

    A single 0 makes it 0. Values below 0 and NaN are refused.
    """
    parts = np.asarray(values, dtype=np.float64)
    if len(parts) == 0 or not (parts >= 0).all():
        raise ValueError(f"harmonic mean of {values!r}: must be at least one value, none of them negative or NaN")
    # a part that is 0 is replaced before it is inverted; the result there is set to 0
    inverse = 1 / np.where(parts == 0, 1.0, parts)
    return np.where((parts == 0).any(axis=0), 0.0, len(parts) / inverse.sum(axis=0))
