"""SISA (Bourtoule et al., arXiv 1912.03817), a baseline of EUL's paper: models of disjoint shards of the people.

A request retrains those shards that held somebody who asked; all vote, by the mean of their probabilities.
One slice per shard: what is retrained begins with the pretrained model again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.ensemble.ensemble import Ensemble

SHARDS = 4


@dataclass(frozen=True)
class Vote(Ensemble):
    """Members with one vote each: P = mean_i softmax(l_i), whatever α. Its logits are log P."""

    def logits(self, rows: Mapping[str, Tensor], alpha: float) -> Tensor:
        logp = torch.stack([rows[m.name].log_softmax(-1) for m in self.members])
        return logp.logsumexp(0) - math.log(len(self.members))

    @torch.no_grad()
    def sweep(self, rows: Mapping[str, Tensor], alphas: Sequence[float]) -> Iterator[tuple[float, Tensor]]:
        yield from ((alpha, self.logits(rows, alpha)) for alpha in alphas)


def shard(person: int) -> int:
    return person % SHARDS


def outside(own: int, people: int) -> list[int]:
    """Everybody who is not in a shard."""
    return [i for i in range(people) if shard(i) != own]


def affected(asked: Sequence[int]) -> set[int]:
    """Shards that must be trained again."""
    return {shard(person) for person in asked}
