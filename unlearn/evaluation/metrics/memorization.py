"""How much of an answer the model completes by itself under teacher forcing.

Exact memorisation: the share of its tokens (EOS excluded) that are the argmax. Unlike ROUGE it does not collapse when
one greedy token goes wrong, so it shows forgetting that ROUGE claims too early.
Extraction strength: 1 − k/L with k the first token from which every argmax is right (Carlini et al. 2021; as in
OpenUnlearning, arXiv 2506.12618). It counts only an unbroken end of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from unlearn.evaluation.metrics.arrays import averaged


def exact_memorization(predictions: Sequence[float]) -> dict:
    """``exact_memorization`` = mean share. predictions: share of right tokens per answer."""
    return averaged("exact_memorization", np.asarray(predictions))


def extraction_strength(right: Sequence[ArrayLike], ou: bool = False) -> dict:
    """``extraction_strength`` = mean of 1 − k/L over answers; per answer under ``values``, [B].

    ``right``: per answer whether each token's argmax is right, [L] booleans *without the EOS*. An answer whose last
    token is wrong has no right suffix: k = L and the value is 0. ``ou`` reproduces OpenUnlearning's quirk, whose
    search stops at k = L − 1: never below 1/L. Answers without tokens are refused.
    """
    if len(right) == 0:
        raise ValueError("extraction strength needs at least one answer; there are none")
    return averaged("extraction_strength", np.array([_strength(i, np.asarray(r), ou) for i, r in enumerate(right)]))


def _strength(index: int, right: np.ndarray, ou: bool) -> float:
    if right.dtype != bool or right.ndim != 1 or len(right) == 0:
        raise ValueError(
            f"answer {index}: {right.dtype} of shape {right.shape}; must be one boolean per token, at least one"
        )
    wrong = np.flatnonzero(~right)
    suffix = len(right) - 1 - wrong[-1] if wrong.size else len(right)  # tokens after the last wrong one: L − k
    return max(suffix, int(ou)) / len(right)
