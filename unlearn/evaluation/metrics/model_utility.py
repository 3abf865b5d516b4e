"""Model utility: harmonic mean of nine values (TOFU, arXiv 2401.06121).

{retain, real authors, world facts} × {probability (with options for the last two), ROUGE-L recall, truth ratio}.
A single 0 makes it 0; a value that a data set does not have is an error, never a shorter mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

PARTS = (
    "retain/prob", "retain/rougeL_recall", "retain/truth_ratio",
    "real_authors/prob_options", "real_authors/rougeL_recall", "real_authors/truth_ratio",
    "world_facts/prob_options", "world_facts/rougeL_recall", "world_facts/truth_ratio",
)  # fmt: skip


def model_utility(metrics: Mapping[str, float]) -> float:
    missing = [name for name in PARTS if name not in metrics]
    if missing:
        raise ValueError(f"model utility needs {', '.join(PARTS)}; missing: {', '.join(missing)}")
    return float(harmonic_mean([metrics[name] for name in PARTS]))


def of_means(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Model utility of each resample, [R], from per-example values drawn, [R, n] by name in ``PARTS``."""
    return harmonic_mean([values[name].mean(axis=-1) for name in PARTS])


def harmonic_mean(values: Sequence[ArrayLike]) -> np.ndarray:
    """Harmonic mean over the first axis, [parts, …] → […]: one number per bootstrap resample where each part is [R].

    A single 0 makes it 0. Values below 0 and NaN are refused.
    """
    parts = np.asarray(values, dtype=np.float64)
    if len(parts) == 0 or not (parts >= 0).all():
        raise ValueError(f"harmonic mean of {values!r}: must be at least one value, none of them negative or NaN")
    some_zero = (parts == 0).any(axis=0)
    # a part that is 0 is replaced before it is inverted; the result there is set to 0
    inverse = 1 / np.where(parts == 0, 1.0, parts)
    return np.where(some_zero, 0.0, len(parts) / inverse.sum(axis=0))
