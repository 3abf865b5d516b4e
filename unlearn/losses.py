"""Objectives: pure functions of answer-row quantities.

N answer tokens of the batch, B answers (sequences). A term's signature says everything about it: it takes one
``Answers``, named by what it reads (``forget``, ``retain`` or ``refusal``), and its own numbers; it returns one value
per answer token (``PerToken``) or per answer (``PerAnswer``). The trainer takes the mean over the whole optimiser
step, however that was split into micro-batches. A term sees no model, no config, no device and no padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

READS = ("forget", "retain", "refusal")
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

    @cached_property
    def logp(self) -> Tensor:
        """log P(label) per token, [N]."""
        return -F.cross_entropy(self.logits, self.labels, reduction="none")

    @cached_property
    def target_logp(self) -> Tensor:
        """log P_target(label) per token, [N]."""
        return -F.cross_entropy(self._target, self.labels, reduction="none")

    @cached_property
    def kl(self) -> Tensor:
        """KL(P_target ‖ P) per token, [N]: summed over the vocabulary."""
        target = self._target.log_softmax(-1)
        return (target.exp() * (target - self.logits.log_softmax(-1))).sum(-1)

    @cached_property
    def lengths(self) -> Tensor:
        """Answer tokens per answer, [B]."""
        return torch.bincount(self.owner)

    def per_answer(self, per_token: Tensor) -> Tensor:
        """Sums over the tokens of each answer, [N] → [B]."""
        return per_token.new_zeros(len(self.lengths)).index_add(0, self.owner, per_token)

    @cached_property
    def _target(self) -> Tensor:
        if self.target_logits is None:
            raise ObjectiveError("this term compares with the target, whose rows were not given")
        return self.target_logits() if callable(self.target_logits) else self.target_logits


def ga(forget: Answers) -> PerToken:
    """Gradient ascent: minimise + log P(y_t), per token. Unbounded. (arXiv 2401.06121; 2404.11045 on P)"""
    return forget.logp


def idk(refusal: Answers) -> PerToken:
    """Data relabeling: − log P of a refusal given the forget question, per token. (arXiv 2401.06121)"""
    return -refusal.logp


def npo(forget: Answers, beta: float) -> PerAnswer:
    """−(2/β) log σ(−β log(P/P_target)(y)), on the log-probability of the whole answer. (arXiv 2404.05868, Eq. 3)"""
    ratio = forget.per_answer(forget.logp - forget.target_logp)
    return 2 / beta * F.softplus(beta * ratio)  # −log σ(−x) = softplus(x)


def simnpo(forget: Answers, beta: float, gamma: float) -> PerAnswer:
    """−(2/β) log σ(−(β/|y|) log P(y) − γ): no reference, mean over the answer's tokens. (arXiv 2410.07163, Eq. 4)"""
    return 2 / beta * F.softplus(beta * forget.per_answer(forget.logp) / forget.lengths + gamma)


def nll(retain: Answers) -> PerToken:
    """− log P(y_t) on the retain answers, per token."""
    return -retain.logp


def kl(retain: Answers) -> PerToken:
    """KL(P_target ‖ P) on the retain answers, per token; the reference is the target itself, no extra model."""
    return retain.kl


Term = Callable[..., Tensor]
FORGET: dict[str, Term] = {"ga": ga, "idk": idk, "npo": npo, "simnpo": simnpo}
RETAIN: dict[str, Term | None] = {"none": None, "nll": nll, "kl": kl}


@dataclass(frozen=True)
class BoundTerm:
    """A term with its numbers filled in and its weight."""

    name: str
    function: Term
    reads: str  # which answers: forget, retain or refusal
    per_token: bool  # its values are per answer token, not per answer
    numbers: Mapping[str, float]
    weight: float

    def __call__(self, answers: Answers) -> Tensor:
        return self.function(**{self.reads: answers}, **self.numbers)


def bind(
    forget: str, retain: str, forget_weight: float, retain_weight: float, numbers: Mapping[str, float | None]
) -> list[BoundTerm]:
    """The terms of an objective by name, checked against their signatures.

    ``numbers`` holds the settings by name (β, γ …), None where not given. One that no term takes is refused, as is a
    term that misses one of its own.
    """
    for name, kind, table in ((forget, "forget", FORGET), (retain, "retain", RETAIN)):
        if name not in table:
            raise ObjectiveError(f"algo.{kind}={name!r}: no such {kind} term; there are {', '.join(table)}")
    given = {k: v for k, v in numbers.items() if v is not None}
    terms = [_bound(forget, FORGET[forget], given, forget_weight)]
    if RETAIN[retain] is not None:
        terms.append(_bound(retain, RETAIN[retain], given, retain_weight))
    taken = {k for t in terms for k in t.numbers}
    for extra in sorted(set(given) - taken):
        raise ObjectiveError(
            f"algo.{extra}={given[extra]}: neither {forget!r} nor {retain!r} has a {extra}; "
            f"they take {', '.join(sorted(taken)) or 'no numbers'}"
        )
    return terms


def _bound(name: str, function: Term, given: Mapping[str, float], weight: float) -> BoundTerm:
    signature = inspect.signature(function, eval_str=True)
    reads = [p for p in signature.parameters if p in READS]
    if len(reads) != 1 or signature.return_annotation not in (PerToken, PerAnswer):
        raise ObjectiveError(
            f"term {name!r} must take exactly one of {', '.join(READS)} and return PerToken or "
            f"PerAnswer; its signature is {name}{signature}"
        )
    wanted = [p for p in signature.parameters if p not in READS]
    for p in wanted:
        if p not in given:
            raise ObjectiveError(f"term {name!r} needs algo.{p}, which is not set")
    return BoundTerm(
        name, function, reads[0], signature.return_annotation == PerToken, {p: given[p] for p in wanted}, weight
    )
