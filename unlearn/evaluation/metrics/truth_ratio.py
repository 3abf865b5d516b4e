"""Truth ratio R: how likely the wrong answers are relative to the right one, both in the paraphrase's wording.

R = exp(NLL_right − mean_j NLL_wrong,j), all NLL per token: a *geometric* mean over wrong answers. An arithmetic mean
is also in circulation and differs by more than most methods do. OpenUnlearning adds 1e-10 to the probability of the
right answer, which decides R once that NLL passes 23: only under its name (``epsilon``).
A model that knows the fact has R near 0, one that never saw it has R near 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LARGEST = 700.0  # exponent; a collapsed model's R would overflow to infinity


def truth_ratio(
    predictions: Sequence[float], references: Sequence[Sequence[float]], forget: bool = False, epsilon: float = 0.0
) -> dict:
    """``truth_ratio``: on the forget set mean min(R, 1/R), closer to 1 is better; elsewhere mean max(0, 1 − R).

    predictions: mean NLL of the right answer; references: list of mean NLLs of the wrong answers.
    ``values`` are the raw R, which forget quality compares; ``truth_ratio_median`` does not overflow as means do.
    """
    values = ratios(predictions, references, epsilon)
    return {
        "truth_ratio": float(scores(values, forget, epsilon).mean()),
        "truth_ratio_median": float(np.median(values)),
        "values": values,
    }


def ratios(right: Sequence[float], wrong: Sequence[Sequence[float]], epsilon: float = 0.0) -> np.ndarray:
    """Raw R per example, [B]."""
    wrong = np.array([np.mean(w) for w in wrong])
    if epsilon:
        return np.exp(-wrong) / (np.exp(-np.asarray(right)) + epsilon)
    return np.exp(np.clip(np.asarray(right) - wrong, -LARGEST, LARGEST))


def scores(values: np.ndarray, forget: bool, epsilon: float = 0.0) -> np.ndarray:
    """What is averaged: min(R, 1/R) on the forget set, max(0, 1 − R) elsewhere."""
    return np.minimum(values, 1 / (values + epsilon)) if forget else np.maximum(0, 1 - values)
