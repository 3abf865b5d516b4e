"""Which greedy decisions any way of computing the same logits would share.

A token's logits differ in their last digits with the shape of the computation: many positions at once or one, this
batch or another. So a decision made in another shape than plain decoding stands only where it does not hang on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from unlearn.ensemble.combination import SUM
from unlearn.ensemble.ensemble import Ensemble, Member

LEAST = 1e-4  # of fp32 logits, some ten times what shapes were seen to change
NUDGES = 2


def decide(ensemble: Ensemble, rows: Mapping[str, Tensor], alpha: float) -> tuple[Tensor, Tensor]:
    """The likeliest token of each row [N], and whether that is beyond doubt [N]; ``rows`` [N, V] by member.

    A sum is beyond doubt where its best logit leads by more than its members may be wrong by. Another rule may jump
    (a token that just is, or is not, among those pushed out), so there the choice must also survive nudges of the
    members' rows: random ones and their opposites, since of two tokens that tie one of the two then flips them.
    """
    members = ensemble.needed([alpha])
    logits = ensemble.logits(rows, alpha)
    token = logits.argmax(-1)
    if ensemble.rule is SUM:
        best = logits.topk(2, dim=-1).values
        return token, best[:, 0] - best[:, 1] > 2 * sum(abs(m.weight(alpha)) * tolerance(m) for m in members)
    sure = torch.ones_like(token, dtype=torch.bool)
    for moved in nudged(members, rows):
        sure &= ensemble.logits(moved, alpha).argmax(-1) == token
    return token, sure


def nudged(members: Sequence[Member], rows: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Rows that might as well have been computed."""
    random = torch.Generator(rows[members[0].name].device).manual_seed(0)
    for _ in range(NUDGES):
        nudge = {m.name: tolerance(m) * _noise(rows[m.name], random) for m in members}
        for sign in (1, -1):
            yield {name: rows[name] + sign * by for name, by in nudge.items()}


def tolerance(member: Member) -> float:
    """What a logit of the member may be wrong by. In half precision plain decoding itself is not the same in every
    batch where tokens are as near as that."""
    return max(LEAST, 4 * torch.finfo(member.model.dtype).eps)


def _noise(like: Tensor, random: torch.Generator) -> Tensor:
    """Uniform in ±1."""
    return 2 * torch.rand(like.shape, generator=random, device=like.device) - 1
