"""Six membership attacks, and how well their scores separate the forget set from rows that no model saw.

Scores are higher for what looks *less* like training data. Semantics of OpenUnlearning (arXiv 2506.12618).
Easy to get wrong: mean NLLs count the EOS; the per-token arrays of min-k and min-k++ come *without* it.
"""

from __future__ import annotations

import zlib as compression
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from unlearn.evaluation.metrics.arrays import finite, numbers, same_length, share

K = 0.4  # share of an answer's tokens that min-k and min-k++ look at
LEAST_VARIANCE = 1e-6  # of min-k++: where the model is certain the variance is rounding error


def loss(mean_nll: ArrayLike) -> np.ndarray:
    """Mean NLL per token, EOS included, nats, [B]. (Yeom et al. 2018)"""
    return numbers("mean_nll", mean_nll)


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
    return np.array([-_lowest(numbers(f"log_probs of answer {i}", lp), k) for i, lp in enumerate(_some(log_probs))])


def min_k_plus_plus(
    log_probs: Sequence[ArrayLike], means: Sequence[ArrayLike], variances: Sequence[ArrayLike], k: float = K
) -> np.ndarray:
    """Min-K %++: as ``min_k`` on z-scores (log p − μ) / σ, [B]. (arXiv 2404.02936)

    Per answer and token without the EOS, [L]: μ = Σ_v p_v log p_v and σ² = Σ_v p_v (log p_v − μ)² of the model's own
    next-token distribution (``moments.log_prob_moments``).
    """
    same_length(log_probs=_some(log_probs), means=means, variances=variances)
    scores = []
    for i, (lp, mean, variance) in enumerate(zip(log_probs, means, variances, strict=True)):
        same_length(log_probs=lp, means=mean, variances=variance)
        spread = np.sqrt(np.maximum(finite(f"variances of answer {i}", variance), LEAST_VARIANCE))
        z = (numbers(f"log_probs of answer {i}", lp) - finite(f"means of answer {i}", mean)) / spread
        scores.append(-_lowest(z, k))
    return np.array(scores)


def gradnorm(norms: ArrayLike) -> np.ndarray:
    """The norm of the gradient of each answer's loss, as given, [B]: what was trained on has a small one.

    (arXiv 2402.17012.)
    """
    return numbers("norms", norms)


def auc(forget: ArrayLike, holdout: ArrayLike) -> float:
    """P(score of a holdout row > score of a forget row), ties counted half: the area under the ROC curve.

    The forget set is labelled 0 and the holdout 1: 1 means that every forget row looks like training data, .5 that
    the attack sees no difference.
    """
    forget, holdout = numbers("forget scores", forget), numbers("holdout scores", holdout)
    ranks = rankdata(np.concatenate([forget, holdout]))[len(forget) :]  # mid-ranks: a tie is half a win
    n = len(holdout)
    return float((ranks.sum() - n * (n + 1) / 2) / (len(forget) * n))


def _some(answers: Sequence) -> Sequence:
    if len(answers) == 0:
        raise ValueError("an attack needs at least one answer; there are none")
    return answers


def _lowest(values: np.ndarray, k: float) -> float:
    count = max(1, int(len(values) * share("k", k)))
    return float(np.partition(values, count - 1)[:count].mean())
