"""Answer-row quantities: all that an objective may see of a batch.

N answer tokens of the batch, B answers (sequences). Values are computed when a term first asks for them, and once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

PerToken = Annotated[Tensor, "[N]"]
PerAnswer = Annotated[Tensor, "[B]"]
PerLaterToken = Annotated[Tensor, "[N], 0 at the first token of each answer, which is not counted"]


Reader = Callable[[slice], Tensor]  # which rows → their logits, [n, V]
LACKING = {
    "reference_logits": "compares with the reference model, whose rows were not given",
    "teacher_logits": "learns from a teacher, and algo.teacher names none",
}


class Pieces(Protocol):
    """Logits [N, V] that are never there all at once: ``ensemble.chunks.LongRows``, which says more."""

    def map(self, function: Callable[[Tensor, slice], Tensor]) -> Tensor: ...

    def pieces(self) -> Iterator[slice]: ...

    def whole(self) -> Tensor: ...


@dataclass(frozen=True)
class Answers:
    """What an objective may know about some answers: logits of their rows under P and under the reference model."""

    rows: Tensor | Pieces  # [N, V] of the ensemble, with gradient
    labels: Tensor  # [N]
    owner: Tensor  # [N] answer that each row belongs to, 0 … B − 1
    # [N, V] of the reference model, most often the target (P = P_ref at step 0); a reader is called when a term asks
    reference_logits: Tensor | Reader | None = None
    teacher_logits: Reader | None = None  # [N, V] of the ensemble that `distill` learns from
    # [N, D] hidden states after one layer, of the trained model and of the reference: only where they are one white box
    hidden: Tensor | None = None
    reference_hidden: Tensor | None = None

    def each(self, value: Callable[["Answers"], Tensor]) -> Tensor:
        """One value per row, [N], by a function of the logits, labels, reference and teacher of that row alone: over a
        long vocabulary it is given some rows at a time, so that no full [N, V] is there, and no lengths or positions
        are."""
        if isinstance(self.rows, Tensor):
            return value(self)
        whole = replace(self)  # it holds none of the values that were computed, so that a value does not hold itself

        def of_part(logits: Tensor, here: slice) -> Tensor:
            beside = [lambda _, name=name: whole._beside(name, here) for name in LACKING]
            return value(Answers(logits, whole.labels[here], whole.owner[here], *beside))

        return self.rows.map(of_part)

    @cached_property
    def logits(self) -> Tensor:
        """Of the ensemble, [N, V]: all at once, which ``each`` avoids."""
        return self.rows if isinstance(self.rows, Tensor) else self.rows.whole()

    @cached_property
    def logp(self) -> Tensor:
        """log P(label) per token, [N]."""
        return self.each(lambda rows: _logp(rows.logits, rows.labels))

    @cached_property
    def reference_logp(self) -> Tensor:
        """log P_ref(label) per token, [N]."""
        if isinstance(self.rows, Tensor):
            return _logp(self.reference, self.labels)
        parts = ((self._beside("reference_logits", here), self.labels[here]) for here in self.rows.pieces())
        return torch.cat([_logp(*part) for part in parts])

    @cached_property
    def kl(self) -> Tensor:
        """KL(P_ref ‖ P) per token, [N]: summed over the vocabulary."""

        def value(rows: Answers) -> Tensor:
            reference = rows.reference.log_softmax(-1)
            return (reference.exp() * (reference - rows.logits.log_softmax(-1))).sum(-1)

        return self.each(value)

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
        """log P / P_ref of each whole answer, [B]."""
        return self.per_answer(self.logp - self.reference_logp)

    def cross_entropy(self, soft: Tensor) -> Tensor:
        """− Σ_v q_v log P_v against soft labels q [N, V], per token, [N]. Of long vocabularies: inside ``each``."""
        return -(soft * self.logits.log_softmax(-1)).sum(-1)

    def per_answer(self, per_token: Tensor) -> Tensor:
        """Sums over the tokens of each answer, [N] → [B]."""
        return per_token.new_zeros(len(self.lengths)).index_add(0, self.owner, per_token)

    def mean(self, per_token: Tensor) -> Tensor:
        """Means over the tokens of each answer, [N] → [B]."""
        return self.per_answer(per_token) / self.lengths

    @cached_property
    def mean_p(self) -> Tensor:
        """Mean probability of each answer's tokens, [B]."""
        return self.mean(self.logp.exp())

    @cached_property
    def reference(self) -> Tensor:
        """Logits of the reference model, [N, V], whether they were given or are fetched now."""
        return self._beside("reference_logits")

    @property
    def teacher(self) -> Tensor:
        """Logits of the teacher, [N, V]."""
        return self._beside("teacher_logits")

    def _beside(self, name: str, here: slice = slice(None)) -> Tensor:
        given = getattr(self, name)
        if given is None:
            raise ValueError(f"this term {LACKING[name]}")
        return given(here) if callable(given) else given[here]


def _logp(logits: Tensor, labels: Tensor) -> Tensor:
    return -F.cross_entropy(logits, labels, reduction="none")
