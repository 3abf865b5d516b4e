"""Exact memorisation: the share of answer tokens (EOS excluded) that are the argmax under teacher forcing.

Unlike ROUGE it does not collapse when one greedy token goes wrong, so it shows forgetting that ROUGE claims too early.
"""

from __future__ import annotations

import numpy as np

from unlearn.evaluation.metrics.base import LocalMetric


class ExactMemorization(LocalMetric):
    """``exact_memorization`` = mean share. predictions: share of right tokens per answer."""

    def _compute(self, predictions):
        return {"exact_memorization": float(np.mean(predictions)), "values": np.asarray(predictions)}
