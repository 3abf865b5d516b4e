"""Extraction strength: how much of an answer the model completes by itself under teacher forcing.

1 − k/L with k the first token from which every argmax is right (Carlini et al. 2021; as in OpenUnlearning, arXiv
2506.12618). It counts only an unbroken end of the answer, where exact memorisation counts every right token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def extraction_strength(right: Sequence[ArrayLike], ou: bool = False) -> dict:
    """``extraction_strength`` = mean of 1 − k/L over answers; per answer under ``values``, [B].

    ``right``: per answer whether each token's argmax is right, [L] booleans *without the EOS*. An answer whose last
    token is wrong has no right suffix: k = L and the value is 0. ``ou`` reproduces OpenUnlearning's quirk, whose
    search stops at k = L − 1: never below 1/L. Answers without tokens are refused.
    """
    if len(right) == 0:
        raise ValueError("extraction strength needs at least one answer; there are none")
    values = np.array([_strength(i, np.asarray(r), ou) for i, r in enumerate(right)])
    return {"extraction_strength": float(values.mean()), "values": values}


def _strength(index: int, right: np.ndarray, ou: bool) -> float:
    if right.dtype != bool or right.ndim != 1 or len(right) == 0:
        raise ValueError(
            f"answer {index}: {right.dtype} of shape {right.shape}; must be one boolean per token, at least one"
        )
    wrong = np.flatnonzero(~right)
    suffix = len(right) - 1 - wrong[-1] if wrong.size else len(right)  # tokens after the last wrong one: L − k
    return max(suffix, int(ou)) / len(right)
