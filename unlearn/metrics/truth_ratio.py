"""Truth ratio R: how likely the wrong answers are relative to the right one, both in the paraphrase's wording.

R = exp(−mean_j NLL_wrong,j) / (exp(−NLL_right) + 1e-10), all NLL per token: a *geometric* mean over wrong answers
(OpenUnlearning's definition; an arithmetic one is also in circulation and differs by more than most methods do).
A model that knows the fact has R near 0, one that never saw it has R near 1.
"""

from __future__ import annotations

import numpy as np

from unlearn.metrics.base import LISTS, LocalMetric

EPSILON = 1e-10


class TruthRatio(LocalMetric):
    """``truth_ratio``: on the forget set mean min(R, 1/R), closer to 1 is better; elsewhere mean max(0, 1 − R).

    predictions: mean NLL of the right answer; references: list of mean NLLs of the wrong answers.
    ``values`` are the raw R, which forget quality compares; ``truth_ratio_median`` does not overflow as means do.
    """

    references = LISTS

    def _compute(self, predictions, references, forget: bool = False):
        values = ratios(predictions, references)
        per_example = np.minimum(values, 1 / (values + EPSILON)) if forget else np.maximum(0, 1 - values)
        return {
            "truth_ratio": float(per_example.mean()),
            "truth_ratio_median": float(np.median(values)),
            "values": values,
        }


def ratios(right, wrong) -> np.ndarray:
    mean_wrong = np.array([np.mean(w) for w in wrong])
    return np.exp(-mean_wrong) / (np.exp(-np.asarray(right)) + EPSILON)
