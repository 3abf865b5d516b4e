"""The one rule by which a model has collapsed: it lost more of what it should keep than forgetting asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping

from unlearn.data.rows import GENERAL

KEPT = 0.5  # a model that keeps less than this of the target's probability has collapsed


def kept(probs: Mapping[str, float], target: Mapping[str, float]) -> float:
    """Mean share of the target's probability that is left outside the forget set, each split counting at most 1.

    Of the retain data only the part that no step sees counts, where it is measured.
    """
    retain = "held_out" if "held_out/prob" in target else "retain"
    names = [f"{split}/prob" for split in (retain, *GENERAL) if f"{split}/prob" in target]
    return sum(share(probs[name], target[name]) for name in names) / len(names)


def share(value: float, target: float) -> float:
    """Share of the target's probability that is left, at most 1; of a value that is no number, nothing is."""
    if not math.isfinite(value):
        return 0.0
    return min(1.0, value / target) if target > 0 else 1.0
