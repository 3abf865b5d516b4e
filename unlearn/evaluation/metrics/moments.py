"""Mean and variance of log p under the model's own next-token distribution: what min-k++ compares a token with."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def log_prob_moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(μ, σ²) per row, [N, V] → two [N] fp32: μ = Σ_v p_v log p_v, σ² = Σ_v p_v (log p_v − μ)². (arXiv 2404.02936)

    Centred before it is squared, so that a nearly certain row has no negative variance. Tokens of probability 0 count
    as 0.
    """
    logp = logits.float().log_softmax(-1)
    p = logp.exp()
    logp = torch.where(p > 0, logp, 0.0)  # 0 · log 0 = 0
    mean = (p * logp).sum(-1)
    return mean, (p * (logp - mean[:, None]) ** 2).sum(-1)
