"""Probability of an answer: exp(−NLL / n) over its tokens and EOS; plain, or relative to the wrong options."""

from __future__ import annotations

import numpy as np

from unlearn.metrics.base import LISTS, LocalMetric

EPSILON = 1e-10


class Probability(LocalMetric):
    """``prob`` = mean of exp(−mean NLL). predictions: mean NLL per token of each answer, in nats."""

    def _compute(self, predictions):
        values = np.exp(-np.asarray(predictions))
        return {"prob": float(values.mean()), "values": values}


class ProbabilityWithOptions(LocalMetric):
    """``prob_options`` = mean of p / (p + Σ p_wrong + 1e-10): the share of the right answer among its options.

    predictions: mean NLL of the right answer; references: list of mean NLLs of its wrong answers.
    """

    references = LISTS

    def _compute(self, predictions, references):
        right = np.exp(-np.asarray(predictions))
        wrong = np.array([np.exp(-np.asarray(r)).sum() for r in references])
        values = right / (right + wrong + EPSILON)
        return {"prob_options": float(values.mean()), "values": values}
