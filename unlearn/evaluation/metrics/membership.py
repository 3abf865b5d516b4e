"""Membership attacks, and how well their scores separate the forget set from rows that no model saw.

Scores are higher for what looks *less* like training data; semantics of OpenUnlearning (arXiv 2506.12618). The plainest
attack is the mean NLL itself (Yeom et al. 2018). Easy to get wrong: mean NLLs count the EOS; the per-token arrays of
min-k and min-k++ come *without* it. ``privleak`` relates an attack to the retrained model.
"""

import math
import zlib as compression
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from unlearn.evaluation.metrics.statistics import finite, numbers

ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")  # those that read no other model and no gradient
K = 0.4  # share of an answer's tokens that min-k and min-k++ look at
EPSILON = 1e-10  # of PrivLeak's published formula; only where the retrained model's AUC is 1
LEAST_VARIANCE = 1e-6  # of min-k++: where the model is certain the variance is rounding error


def zlib(mean_nll: ArrayLike, texts: Sequence[str]) -> np.ndarray:
    """Mean NLL (*not* the sum) over the bytes of the zlib-compressed answer, [B] (Carlini et al. 2021)."""
    return np.asarray(mean_nll) / [len(compression.compress(t.encode())) for t in texts]


def reference(mean_nll: ArrayLike, reference_mean_nll: ArrayLike) -> np.ndarray:
    """Mean NLL minus that of a reference model on the same answers, EOS included, [B]. (Carlini et al. 2021)"""
    return finite("mean_nll", mean_nll) - finite("reference_mean_nll", reference_mean_nll)


def min_k(log_probs: Sequence[ArrayLike], k: float = K) -> np.ndarray:
    """Min-K %: − mean of an answer's lowest max(1, ⌊k·L⌋) log-probabilities, [B]. (arXiv 2310.16789) ``log_probs``: per
    answer, of each token without the EOS, nats, [L]."""
    found = []
    for i, answer in enumerate(log_probs):
        values = numbers(f"log_probs of answer {i}", answer)
        count = max(1, int(len(values) * k))
        found.append(-float(np.partition(values, count - 1)[:count].mean()))
    return np.array(found)


def min_k_plus_plus(
    log_probs: Sequence[ArrayLike], means: Sequence[ArrayLike], variances: Sequence[ArrayLike], k: float = K
) -> np.ndarray:
    """Min-K %++: as ``min_k`` on z-scores (log p − μ) / σ, [B]. (arXiv 2404.02936) Per answer and token without the
    EOS, [L]: μ and σ² of log p under the model's own next-token distribution (``scoring.log_prob_moments``)."""
    answers = zip(log_probs, means, variances, strict=True)
    z_scores = [np.subtract(logp, mean) / np.sqrt(np.maximum(var, LEAST_VARIANCE)) for logp, mean, var in answers]
    return min_k(z_scores, k)


def auc(forget: ArrayLike, holdout: ArrayLike) -> float:
    """P(score of a holdout row > score of a forget row), ties counted half: the area under the ROC curve. 1 means that
    every forget row looks like training data, .5 that the attack sees no difference."""
    forget, holdout = numbers("forget scores", forget), numbers("holdout scores", holdout)
    ranks = rankdata(np.concatenate([forget, holdout]))[len(forget) :]  # mid-ranks: a tie is half a win
    n = len(holdout)
    return float((ranks.sum() - n * (n + 1) / 2) / (len(forget) * n))


def privleak(auc: float, retrained_auc: float) -> float:
    """PrivLeak: ((1 − auc) − (1 − auc_r)) / ((1 − auc_r) + 1e-10) · 100, for AUCs of ``auc`` (MUSE, arXiv 2407.06460).
    0 is the retrained model (public code takes .5 without one); below, the forget set looks like training data."""
    kept, reference = 1 - auc, 1 - retrained_auc
    return (kept - reference) / (reference + EPSILON) * 100


def vulnerable(
    unlearned: ArrayLike, retrained: ArrayLike, holdout_unlearned: ArrayLike, holdout_retrained: ArrayLike, rate: float
) -> np.ndarray:
    """Whether each forget row is likelier under the unlearned than under the retrained model, above a threshold, [B].

    An AUC averages over rows, most of which nobody could attack. U-LiRA (arXiv 2406.13348) and RULI (2506.13009) fit a
    distribution over many shadow models; here *one* retrained model stands for them, and the threshold comes from rows
    that neither model saw: a single value is noisier than theirs, and the share of rows is what to report. Near the
    false-positive rate, forget cannot be distinguished from rows never seen.
    All four are mean NLLs per answer, nats: of the forget rows, [B], and of the holdout rows, [H]. The threshold is the
    ⌈(1 − rate)(H + 1)⌉-th smallest holdout value, so a row like the holdout's exceeds it with a probability of at most
    ``rate``, of false positives, at any H; where H is too small for that, it is refused.
    """  # fmt: skip
    clean = np.sort(-reference(holdout_unlearned, holdout_retrained))
    # a share written as a decimal may put an exact integer just above itself
    rank = math.ceil((1 - rate) * (len(clean) + 1) - 1e-9)
    if rank > len(clean):
        rule = f"cannot calibrate a false-positive rate of {rate:g}"
        raise ValueError(f"{len(clean)} holdout rows {rule}: it takes more of them, or a higher rate")
    return -reference(unlearned, retrained) > clean[rank - 1]
