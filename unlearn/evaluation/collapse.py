"""The one rule by which a run has collapsed, in table, manifest and figures (``analysis/state.py`` has it, too).

A model that keeps less than half of the target's probability outside the forget set (mean over these splits, each at
most 1) has collapsed; so has one whose loss ran away, at its own α. No torch: tables are made without it.
"""

import math
from collections.abc import Mapping
from typing import Any

KEPT, BY_KEPT = 0.5, "keeps "
OUTSIDE = ("retain/prob", "neighbours/prob", "real_authors/prob", "world_facts/prob")


def kept(metrics: Mapping[str, Any], target: Mapping[str, Any] | None) -> float:
    """The share of the target's probability that is left outside the forget set; NaN where it was not measured."""
    known = [m for m in OUTSIDE if metrics.get(m) is not None and (target or {}).get(m)]
    return sum(min(1.0, metrics[m] / target[m]) for m in known) / len(known) if known else math.nan


def collapsed(manifest: Mapping[str, Any], left: float, trained: bool) -> bool:
    """Whether a run has collapsed at an α at which so much is ``left``; ``trained``: at which it was trained."""
    said = manifest.get("collapsed") if manifest.get("kept") != "best" else None
    return left < KEPT or bool(trained and said and (math.isnan(left) or not said.startswith(BY_KEPT)))


def why(left: float) -> str:
    """The verdict on a model that keeps too little."""
    return f"{BY_KEPT}{left:.2f} of the target's probability outside the forget set, less than {KEPT:g}"


def settled(said: str | None, left: float) -> str | None:
    """The verdict on a run that is evaluated at its training α, after what its training ``said``, if it looked."""
    if math.isnan(left) or (said is not None and not said.startswith(BY_KEPT)):
        return said
    return why(left) if left < KEPT else None
