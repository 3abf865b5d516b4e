"""Which forget rows still betray themselves when the retrained model is known: a likelihood ratio per sample.

An AUC against a holdout averages over rows, most of which nobody could attack. U-LiRA (arXiv 2406.13348) and RULI
(2506.13009) ask it per sample: is this row likelier under the unlearned model than under models that never saw it?
They fit a distribution over many shadow models; here *one* retrained model stands for them, and the threshold comes
from rows that neither model saw. So a single value is noisier than theirs; the share of rows is what to report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from unlearn.evaluation.metrics.arrays import finite, same_length


@dataclass(frozen=True)
class Vulnerability:
    """``share`` near ``false_positive_rate``: the forget rows cannot be told from rows that were never seen."""

    values: np.ndarray  # [B] mean log(P_unlearned / P_retrained) per token of each forget row, nats
    vulnerable: np.ndarray  # [B] whether the row's value is above the threshold
    threshold: float
    share: float  # of vulnerable rows
    false_positive_rate: float  # what the threshold was chosen for


def vulnerability(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    holdout_unlearned: ArrayLike,
    holdout_retrained: ArrayLike,
    false_positive_rate: float = 0.05,
) -> Vulnerability:
    """Share of forget rows that are likelier under the unlearned than under the retrained model, above a threshold.

    All four are mean NLLs per answer, nats: of the forget rows, [B], and of the holdout rows, [H]. The threshold is the
    ⌈(1 − rate)(H + 1)⌉-th smallest holdout value, so a row like the holdout's exceeds it with a probability of at most
    ``false_positive_rate`` at any H; where H is too small for that, it is refused.
    """
    values = _log_ratio(unlearned, retrained, "forget")
    clean = np.sort(_log_ratio(holdout_unlearned, holdout_retrained, "holdout"))
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate={false_positive_rate!r}: must lie between 0 and 1")
    # a share written as a decimal may put an exact integer just above itself
    rank = math.ceil((1 - false_positive_rate) * (len(clean) + 1) - 1e-9)
    if rank > len(clean):
        needed = math.ceil(1 / false_positive_rate - 1e-9) - 1
        raise ValueError(
            f"{len(clean)} holdout rows cannot calibrate a false-positive rate of {false_positive_rate:g}: "
            f"it takes at least {needed}, or a higher rate"
        )
    threshold = float(clean[rank - 1])
    vulnerable = values > threshold
    return Vulnerability(values, vulnerable, threshold, float(vulnerable.mean()), false_positive_rate)


def _log_ratio(unlearned: ArrayLike, retrained: ArrayLike, rows: str) -> np.ndarray:
    u, r = finite(f"{rows} NLLs, unlearned", unlearned), finite(f"{rows} NLLs, retrained", retrained)
    same_length(unlearned=u, retrained=r)
    return r - u
