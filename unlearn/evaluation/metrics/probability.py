"""Probability of an answer: exp(−NLL / n) over its tokens and EOS; plain, or relative to the wrong options."""

from __future__ import annotations

import numpy as np

from unlearn.evaluation.metrics.base import LISTS, LocalMetric


class Probability(LocalMetric):
    """``prob`` = mean of exp(−mean NLL). predictions: mean NLL per token of each answer, in nats."""

    def _compute(self, predictions):
        values = np.exp(-np.asarray(predictions))
        return {"prob": float(values.mean()), "values": values}


class ProbabilityWithOptions(LocalMetric):
    """``prob_options`` = mean of p / (p + Σ p_wrong): the share of the right answer among its options.

    predictions: mean NLL of the right answer; references: list of mean NLLs of its wrong answers.
    """

    references = LISTS

    def _compute(self, predictions, references, epsilon: float = 0.0):
        if epsilon:  # OpenUnlearning's p / (p + Σ p_wrong + ε)
            p = np.exp(-np.asarray(predictions))
            values = p / (p + [np.exp(-np.asarray(w)).sum() for w in references] + epsilon)
            return {"prob_options": float(values.mean()), "values": values}
        # 1 / (1 + Σ exp(NLL_right − NLL_wrong)): no 0 / 0 where a collapsed model gives every option nothing
        odds = [
            np.exp(np.clip(right - np.asarray(w), -700, 700)).sum()
            for right, w in zip(predictions, references, strict=True)
        ]
        values = 1 / (1 + np.array(odds))
        return {"prob_options": float(values.mean()), "values": values}
