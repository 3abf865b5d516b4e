"""How much of an answer the model completes by itself under teacher forcing.

Exact memorisation: the share of its tokens (EOS excluded) that are the argmax. Unlike ROUGE it does not collapse when
one greedy token goes wrong, so it shows forgetting that ROUGE claims too early. Extraction strength counts only an
unbroken end of the answer (Carlini et al. 2021; as in OpenUnlearning, arXiv 2506.12618).
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
    """``extraction_strength`` = mean of 1 − k/L, k the first token from which every argmax is right.

    ``right``: per answer whether each token's argmax is right, [L] booleans *without the EOS*. An answer whose last
    token is wrong has no right suffix: k = L and the value is 0. ``ou`` reproduces OpenUnlearning's quirk, whose
    search stops at k = L − 1: never below 1/L. Answers without tokens are refused.
    """
    if len(right) == 0:
        raise ValueError("extraction strength needs at least one answer; there are none")
    values = []
    for i, answer in enumerate(map(np.asarray, right)):
        if answer.dtype != bool or answer.ndim != 1 or len(answer) == 0:
            found = f"answer {i}: {answer.dtype} of shape {answer.shape}"
            raise ValueError(f"{found}; must be one boolean per token, at least one")
        wrong = np.flatnonzero(~answer)
        suffix = len(answer) - 1 - wrong[-1] if wrong.size else len(answer)  # tokens after the last wrong one: L − k
        values.append(max(suffix, int(ou)) / len(answer))
    return averaged("extraction_strength", np.array(values))
