"""Answer-row quantities: all that an objective may see of a batch.

N answer tokens of the batch, B answers (sequences). Values are computed when a term first asks for them, and once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

PerToken = Annotated[Tensor, "[N]"]
PerAnswer = Annotated[Tensor, "[B]"]


class ObjectiveError(ValueError):
    """An objective that is put together wrongly."""


@dataclass(frozen=True)
class Answers:
    """What an objective may know about some answers: logits of their rows under P and under the target."""

    logits: Tensor  # [N, V] of the ensemble, with gradient
    labels: Tensor  # [N]
    owner: Tensor  # [N] answer that each row belongs to, 0 … B − 1
    # [N, V] of the target, the reference model (P = P_target at step 0); a function is called when a term asks
    target_logits: Tensor | Callable[[], Tensor] | None = None
    teacher_logits: Callable[[], Tensor] | None = None  # [N, V] of the ensemble that `distill` learns from
    # [N, D] hidden states after one layer, of the trained model and of the target: only where they are one white box
    hidden: Tensor | None = None
    target_hidden: Tensor | None = None

    @cached_property
    def logp(self) -> Tensor:
        """log P(label) per token, [N]."""
        return -F.cross_entropy(self.logits, self.labels, reduction="none")

    @cached_property
    def target_logp(self) -> Tensor:
        """log P_target(label) per token, [N]."""
        return -F.cross_entropy(self.target, self.labels, reduction="none")

    @cached_property
    def kl(self) -> Tensor:
        """KL(P_target ‖ P) per token, [N]: summed over the vocabulary."""
        target = self.target.log_softmax(-1)
        return (target.exp() * (target - self.logits.log_softmax(-1))).sum(-1)

    @cached_property
    def lengths(self) -> Tensor:
        """Answer tokens per answer, [B]."""
        return torch.bincount(self.owner)

    @cached_property
    def position(self) -> Tensor:
        """0, 1, 2 … within each answer, [N]."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.owner), device=self.owner.device) - starts[self.owner]

    @property
    def logp_of_answer(self) -> Tensor:
        """log P of each whole answer, [B]."""
        return self.per_answer(self.logp)

    @property
    def log_ratio(self) -> Tensor:
        """log P / P_target of each whole answer, [B]."""
        return self.per_answer(self.logp - self.target_logp)

    def cross_entropy(self, soft: Tensor) -> Tensor:
        """− Σ_v q_v log P_v against soft labels q [N, V], per token, [N]."""
        return -(soft * self.logits.log_softmax(-1)).sum(-1)

    def per_answer(self, per_token: Tensor) -> Tensor:
        """Sums over the tokens of each answer, [N] → [B]."""
        return per_token.new_zeros(len(self.lengths)).index_add(0, self.owner, per_token)

    @cached_property
    def target(self) -> Tensor:
        """Logits of the target, [N, V], whether they were given or are fetched now."""
        if self.target_logits is None:
            raise ObjectiveError("this term compares with the target, whose rows were not given")
        return self.target_logits() if callable(self.target_logits) else self.target_logits

    @property
    def teacher(self) -> Tensor:
        """Logits of the teacher, [N, V]."""
        if self.teacher_logits is None:
            raise ObjectiveError("this term learns from a teacher, and algo.teacher names none")
        return self.teacher_logits()
