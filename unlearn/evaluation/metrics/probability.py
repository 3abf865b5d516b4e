"""Probability of an answer, exp(−NLL / n) over its tokens and EOS: plain, among its options, and as truth ratio R.

R = exp(NLL_right − mean_j NLL_wrong,j), both in the paraphrase's wording: near 0 for a model that knows the fact, near
1 for one that never saw it. The mean over wrong answers is *geometric*: an arithmetic one is also in circulation and
differs by more than most methods do. OpenUnlearning adds ``epsilon`` = 1e-10 to denominators, which decides R once the
right answer's NLL passes 23. All NLLs are per token, in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unlearn.evaluation.metrics.arrays import averaged

LARGEST = 700.0  # exponent; a collapsed model's R would overflow to infinity


def probability(predictions: Sequence[float]) -> dict:
    """``prob`` = mean of exp(−mean NLL). predictions: mean NLL per token of each answer, in nats."""
    return averaged("prob", np.exp(-np.asarray(predictions)))


def probability_with_options(
    predictions: Sequence[float], references: Sequence[Sequence[float]], epsilon: float = 0.0
) -> dict:
    """``prob_options`` = mean of p / (p + Σ p_wrong + ε): the share of the right answer among its options.

    predictions: mean NLL of the right answer; references: list of mean NLLs of its wrong answers.
    """
    if epsilon:
        p = np.exp(-np.asarray(predictions))
        return averaged("prob_options", p / (p + [np.exp(-np.asarray(w)).sum() for w in references] + epsilon))
    # 1 / (1 + Σ exp(NLL_right − NLL_wrong)): no 0 / 0 where a collapsed model gives every option nothing
    pairs = zip(predictions, references, strict=True)
    odds = [np.exp(np.clip(right - np.asarray(wrong), -LARGEST, LARGEST)).sum() for right, wrong in pairs]
    return averaged("prob_options", 1 / (1 + np.array(odds)))


def truth_ratio(
    predictions: Sequence[float], references: Sequence[Sequence[float]], forget: bool = False, epsilon: float = 0.0
) -> dict:
    """``truth_ratio``: mean of ``ratio_scores``, closer to 1 is better.

    predictions: mean NLL of the right answer; references: list of mean NLLs of the wrong answers.
    ``values`` are the raw R, which forget quality compares; ``truth_ratio_median`` does not overflow as means do.
    """
    right, wrong = np.asarray(predictions), np.array([np.mean(w) for w in references])
    if epsilon:
        values = np.exp(-wrong) / (np.exp(-right) + epsilon)
    else:
        values = np.exp(np.clip(right - wrong, -LARGEST, LARGEST))
    mean = float(ratio_scores(values, forget, epsilon).mean())
    return {"truth_ratio": mean, "truth_ratio_median": float(np.median(values)), "values": values}


def ratio_scores(values: np.ndarray, forget: bool, epsilon: float = 0.0) -> np.ndarray:
    """What is averaged of R: min(R, 1/R) on the forget set, max(0, 1 − R) elsewhere."""
    return np.minimum(values, 1 / (values + epsilon)) if forget else np.maximum(0, 1 - values)
