"""Membership attacks, and how well their scores separate the forget set from rows that no model saw.

Scores are higher for what looks *less* like training data; semantics of OpenUnlearning (arXiv 2506.12618). The plainest
attack is the mean NLL itself (Yeom et al. 2018). Easy to get wrong: mean NLLs count the EOS; the per-token arrays of
min-k and min-k++ come *without* it. ``privleak`` relates an attack to the retrained model.
"""

from __future__ import annotations

import math
import zlib as compression
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from unlearn.evaluation.metrics.arrays import finite, numbers, same_length, share

ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")  # those that read no other model and no gradient
K = 0.4  # share of an answer's tokens that min-k and min-k++ look at
EPSILON = 1e-10  # of PrivLeak's published formula; only where the retrained model's AUC is 1
LEAST_VARIANCE = 1e-6  # of min-k++: where the model is certain the variance is rounding error


def zlib(mean_nll: ArrayLike, texts: Sequence[str]) -> np.ndarray:
    """Mean NLL over the bytes of the zlib-compressed answer, [B]. (Carlini et al. 2021: log-perplexity / zlib)

    The *mean*, not the sum, of the NLL: what the paper and OpenUnlearning do.
    """
    same_length(mean_nll=mean_nll, texts=texts)
    return numbers("mean_nll", mean_nll) / [len(compression.compress(t.encode())) for t in texts]


def reference(mean_nll: ArrayLike, reference_mean_nll: ArrayLike) -> np.ndarray:
    """Mean NLL minus that of a reference model on the same answers, EOS included, [B]. (Carlini et al. 2021)"""
    same_length(mean_nll=mean_nll, reference_mean_nll=reference_mean_nll)
    return finite("mean_nll", mean_nll) - finite("reference_mean_nll", reference_mean_nll)


def min_k(log_probs: Sequence[ArrayLike], k: float = K) -> np.ndarray:
    """Min-K %: − mean of an answer's lowest max(1, ⌊k·L⌋) log-probabilities, [B]. (arXiv 2310.16789)

    ``log_probs``: per answer, of each token without the EOS, nats, [L].
    """
    if len(log_probs) == 0:
        raise ValueError("an attack needs at least one answer; there are none")
    found = []
    for i, answer in enumerate(log_probs):
        values = numbers(f"log_probs of answer {i}", answer)
        count = max(1, int(len(values) * share("k", k)))
        found.append(-float(np.partition(values, count - 1)[:count].mean()))
    return np.array(found)


def min_k_plus_plus(
    log_probs: Sequence[ArrayLike], means: Sequence[ArrayLike], variances: Sequence[ArrayLike], k: float = K
) -> np.ndarray:
    """Min-K %++: as ``min_k`` on z-scores (log p − μ) / σ, [B]. (arXiv 2404.02936)

    Per answer and token without the EOS, [L]: μ = Σ_v p_v log p_v and σ² = Σ_v p_v (log p_v − μ)² of the model's own
    next-token distribution (``scoring.log_prob_moments``).
    """
    same_length(log_probs=log_probs, means=means, variances=variances)
    z_scores = []
    for i, (lp, mean, variance) in enumerate(zip(log_probs, means, variances, strict=True)):
        same_length(log_probs=lp, means=mean, variances=variance)
        spread = np.sqrt(np.maximum(finite(f"variances of answer {i}", variance), LEAST_VARIANCE))
        z_scores.append((numbers(f"log_probs of answer {i}", lp) - finite(f"means of answer {i}", mean)) / spread)
    return min_k(z_scores, k)


def auc(forget: ArrayLike, holdout: ArrayLike) -> float:
    """P(score of a holdout row > score of a forget row), ties counted half: the area under the ROC curve.

    The forget set is labelled 0 and the holdout 1: 1 means that every forget row looks like training data, .5 that
    the attack sees no difference.
    """
    forget, holdout = numbers("forget scores", forget), numbers("holdout scores", holdout)
    ranks = rankdata(np.concatenate([forget, holdout]))[len(forget) :]  # mid-ranks: a tie is half a win
    n = len(holdout)
    return float((ranks.sum() - n * (n + 1) / 2) / (len(forget) * n))


def privleak(auc: float, retrained_auc: float | None) -> float:
    """PrivLeak: an attack's AUC relative to the retrained model's, in per cent (MUSE, arXiv 2407.06460).

    ((1 − auc) − (1 − auc_r)) / ((1 − auc_r) + 1e-10) · 100, for AUCs of ``auc`` (usually of min-k). 0 is the
    retrained model; below it the forget set still looks like training data, above it more forgotten than never seen.
    Public code takes .5 where there is no retrained model; that is refused here.
    """
    if retrained_auc is None:
        raise ValueError(
            "PrivLeak is relative to the retrained model's AUC, and there is none: make a model that never saw the "
            "forget set (python -m unlearn.prepare trains it) and score it on the same forget and holdout rows"
        )
    kept, reference = 1 - share("auc", auc), 1 - share("retrained_auc", retrained_auc)
    return (kept - reference) / (reference + EPSILON) * 100


class Vulnerability(NamedTuple):
    values: np.ndarray  # [B] mean log(P_unlearned / P_retrained) per token of each forget row, nats
    vulnerable: np.ndarray  # [B] whether the row's value is above the threshold
    threshold: float
    share: float  # of vulnerable rows: near the false-positive rate, forget cannot be told from rows never seen


def vulnerability(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    holdout_unlearned: ArrayLike,
    holdout_retrained: ArrayLike,
    false_positive_rate: float = 0.05,
) -> Vulnerability:
    """Share of forget rows that are likelier under the unlearned than under the retrained model, above a threshold.

    An AUC averages over rows, most of which nobody could attack. U-LiRA (arXiv 2406.13348) and RULI (2506.13009) fit a
    distribution over many shadow models; here *one* retrained model stands for them, and the threshold comes from rows
    that neither model saw: a single value is noisier than theirs, and the share of rows is what to report.
    All four are mean NLLs per answer, nats: of the forget rows, [B], and of the holdout rows, [H]. The threshold is the
    ⌈(1 − rate)(H + 1)⌉-th smallest holdout value, so a row like the holdout's exceeds it with a probability of at most
    ``false_positive_rate`` at any H; where H is too small for that, it is refused.
    """
    same_length(unlearned=unlearned, retrained=retrained)
    values = -reference(unlearned, retrained)
    clean = np.sort(-reference(holdout_unlearned, holdout_retrained))
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate={false_positive_rate!r}: must lie between 0 and 1")
    # a share written as a decimal may put an exact integer just above itself
    rank = math.ceil((1 - false_positive_rate) * (len(clean) + 1) - 1e-9)
    if rank > len(clean):
        needed = math.ceil(1 / false_positive_rate - 1e-9) - 1
        rule = f"cannot calibrate a false-positive rate of {false_positive_rate:g}"
        raise ValueError(f"{len(clean)} holdout rows {rule}: it takes at least {needed}, or a higher rate")
    threshold = float(clean[rank - 1])
    vulnerable = values > threshold
    return Vulnerability(values, vulnerable, threshold, float(vulnerable.mean()))
