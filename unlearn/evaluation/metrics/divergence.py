"""How far two next-token distributions are apart, row by row."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ELEMENTS = 2**22  # rows are taken in blocks: several [rows, V] tensors live at once


@torch.no_grad()
def jensen_shannon(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """½ KL(p‖m) + ½ KL(q‖m) with m = (p + q)/2, per row, [N, V] twice → [N] fp32, nats, between 0 and log 2.

    Computed as ½ Σ_v p (log 2 − softplus(log q − log p)) + the same with p and q exchanged: no m, no logarithm of 0,
    and the same logits twice give 0. A logit of −∞ is a probability of 0. Rows with NaN, +∞ or only −∞ are refused.
    """
    if p_logits.shape != q_logits.shape or p_logits.ndim != 2:
        raise ValueError(f"logits of shapes {tuple(p_logits.shape)} and {tuple(q_logits.shape)}: both must be [N, V]")
    rows = max(1, CHUNK_ELEMENTS // max(1, p_logits.shape[1]))
    parts = [_rows(p, q) for p, q in zip(p_logits.split(rows), q_logits.split(rows), strict=True)]
    result = torch.cat(parts) if parts else p_logits.new_zeros(0, dtype=torch.float32)
    bad = (~result.isfinite()).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise ValueError(f"{len(bad)} of {len(result)} rows hold NaN, +inf or only -inf, the first is row {first}")
    return result.clamp(0, math.log(2))


def _rows(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    p, q = p_logits.float().log_softmax(-1), q_logits.float().log_softmax(-1)
    return (_half(p, q) + _half(q, p)) / 2


def _half(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖m) of log-probabilities, [N, V] → [N]."""
    term = p.exp() * (math.log(2) - F.softplus(q - p))
    # 0 · log 0 = 0; a NaN in p itself must stay, and it does: it is not −∞
    return torch.where(p == -torch.inf, 0.0, term).sum(-1)
