"""How far the unlearned model is from the retrained one, metric by metric.

A low forget probability is not the goal; the retrained model's is, and it still guesses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Distance(NamedTuple):
    signed: float  # unlearned − retrained
    absolute: float


def distances(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> dict[str, Distance]:
    """Distance of each metric of the unlearned model to the retrained model's, in the metric's own unit, by name."""
    missing = [name for name in unlearned if name not in retrained]
    if missing:
        raise ValueError(f"the retrained model has no {', '.join(missing)}; it has {', '.join(retrained) or 'nothing'}")
    result = {}
    for name, value in unlearned.items():
        signed = value - retrained[name]
        if not math.isfinite(signed):
            raise ValueError(f"{name}: {value} (unlearned) and {retrained[name]} (retrained) must both be finite")
        result[name] = Distance(signed, abs(signed))
    return result
