"""Forget quality: can the truth ratios on the forget set be told from those of a model that never saw it?

Two-sided Kolmogorov–Smirnov test (TOFU, arXiv 2401.06121). The p-value spans tens of orders of magnitude and has a
floor that depends on n alone, so its logarithm and the statistic are reported beside it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from scipy.stats import ks_2samp


def forget_quality(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """``forget_quality`` = p-value. predictions: truth ratios of the model; references: of the retrained model."""
    test = ks_2samp(predictions, references)
    p = float(test.pvalue)
    return {
        "forget_quality": p,
        "forget_quality_log10": math.log10(max(p, sys.float_info.min)),
        "forget_quality_ks": float(test.statistic),
    }
