"""Probability of an answer: exp(−NLL / n) over its tokens and EOS; plain, or relative to the wrong options."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unlearn.evaluation.metrics.arrays import averaged


def probability(predictions: Sequence[float]) -> dict:
    """``prob`` = mean of exp(−mean NLL). predictions: mean NLL per token of each answer, in nats."""
    return averaged("prob", np.exp(-np.asarray(predictions)))


def probability_with_options(
    predictions: Sequence[float], references: Sequence[Sequence[float]], epsilon: float = 0.0
) -> dict:
    """``prob_options`` = mean of p / (p + Σ p_wrong): the share of the right answer among its options.

    predictions: mean NLL of the right answer; references: list of mean NLLs of its wrong answers. ``epsilon``:
    OpenUnlearning's p / (p + Σ p_wrong + ε).
    """
    if epsilon:
        p = np.exp(-np.asarray(predictions))
        return averaged("prob_options", p / (p + [np.exp(-np.asarray(w)).sum() for w in references] + epsilon))
    # 1 / (1 + Σ exp(NLL_right − NLL_wrong)): no 0 / 0 where a collapsed model gives every option nothing
    pairs = zip(predictions, references, strict=True)
    odds = [np.exp(np.clip(right - np.asarray(wrong), -700, 700)).sum() for right, wrong in pairs]
    return averaged("prob_options", 1 / (1 + np.array(odds)))
