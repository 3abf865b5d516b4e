"""Model utility: harmonic mean of nine values (TOFU, arXiv 2401.06121).

{retain, real authors, world facts} × {probability (with options for the last two), ROUGE-L recall, truth ratio}.
A single 0 makes it 0; a value that a data set does not have is an error, never a shorter mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unlearn.evaluation.metrics.harmonic import harmonic_mean

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
