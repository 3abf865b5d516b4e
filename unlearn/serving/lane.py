"""Answers that read the same members, as one batch that they join and leave between any two tokens.

Padded on the left, so that all end together; a KV cache for each member. B answers, S tokens that are read next, W
columns of the caches with these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from unlearn.chunks import block
from unlearn.ensemble import Member
from unlearn.generation import padded, positions, read
from unlearn.models.llama import head, vocabulary
from unlearn.serving.offsets import Blend, Mix

States = Mapping[str, Tensor]  # last hidden states [B, S, D] by member


class Lane:
    """``rows`` are whatever the caller keeps of each answer, in the order of the batch."""

    def __init__(self, members: Sequence[Member], prompts: Sequence[Sequence[int]], rows: Sequence[Any], pad_id: int):
        self.members, self.rows = members, list(rows)
        self.device = next(members[0].model.parameters()).device
        self._ids, self._mask = padded(prompts, pad_id, self.device)  # [B, S] next, [B, W] with what was read
        self._at = positions(self._mask)
        # Caches keep every position whatever a model's window is: only then do those of two batches fit together.
        self._caches = {m.name: DynamicCache() for m in members}

    def read(self) -> States:
        """Read what is next."""
        return {m.name: read(m.model, self._ids, self._mask, self._at, self._caches[m.name]) for m in self.members}

    def last(self, states: States) -> dict[str, Tensor]:
        """Logits [B, V] of the token after the last by member."""
        return {m.name: head(m.model, states[m.name][:, -1]).to(self.device) for m in self.members}

    def go_on(self, tokens: Sequence[int], keep: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order, each with its token [B] as what is read next.

        A row may be kept several times, or the batch be empty.
        """
        keep = list(keep)
        self.rows = [self.rows[i] for i in keep]
        if not keep:
            return
        mask, at = self._mask, self._at
        if keep != list(range(len(mask))):
            for cache in self._caches.values():
                cache.batch_select_indices(torch.tensor(keep))  # a cache may lie on another device, or on several
            mask, at = mask[keep], at[keep]
        self._drop(int(mask.any(0).int().argmax()))
        mask = mask[:, -(self._caches[self.members[0].name].get_seq_length()) :]
        self._ids = torch.tensor([[tokens[i]] for i in keep], device=self.device)
        self._mask = torch.cat([mask, mask.new_ones(len(keep), 1)], dim=1)
        self._at = at[:, -1:] + 1

    def leave(self, keep: Sequence[int]) -> None:
        """Between two tokens: keep these rows alone."""
        self.rows = [self.rows[i] for i in keep]
        if keep:
            for cache in self._caches.values():
                cache.batch_select_indices(torch.tensor(keep))
            self._ids, self._mask, self._at = self._ids[keep], self._mask[keep], self._at[keep]

    def join(self, other: Lane) -> None:
        """Take over the rows of another batch of the same members, each of which has one token to read."""
        mine, theirs = self._mask.shape[1], other._mask.shape[1]
        for m in self.members:
            _join(self._caches[m.name], other._caches[m.name], max(0, theirs - mine), max(0, mine - theirs))
        masks = [_wider(b._mask, max(mine, theirs), 1) for b in (self, other)]
        self._mask, self._ids = torch.cat(masks), torch.cat([self._ids, other._ids])
        self._at, self.rows = torch.cat([self._at, other._at]), self.rows + other.rows

    def _drop(self, columns: int) -> None:
        """Forget the first columns, which are padding in all rows."""
        if columns:
            for cache in self._caches.values():
                for layer in cache.layers:
                    layer.keys, layer.values = layer.keys[:, :, columns:], layer.values[:, :, columns:]


def _join(cache: DynamicCache, other: DynamicCache, more: int, fewer: int) -> None:
    """Append the rows of ``other``; ``more`` columns are put before those of ``cache``, ``fewer`` before its own."""
    for mine, theirs in zip(cache.layers, other.layers, strict=True):
        for name in ("keys", "values"):
            a, b = getattr(mine, name), getattr(theirs, name)
            parts = [_wider(a, a.shape[2] + more, 2), _wider(b, b.shape[2] + fewer, 2)]
            setattr(mine, name, torch.cat(parts))


def _wider(values: Tensor, width: int, dim: int) -> Tensor:
    """With zeros before what is there along ``dim``."""
    shape = list(values.shape)
    shape[dim] = width - shape[dim]
    return torch.cat([values.new_zeros(shape), values], dim=dim) if shape[dim] else values


# --- log-probabilities ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """A token that is there, and the likeliest at its place, best first."""

    token: int
    logprob: float
    rank: int  # 1: none is likelier
    top: tuple[tuple[int, float], ...]


def scored(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[Scored]:
    """Of each row of logits [N, V] its token, and as many of the likeliest as ``counts`` says (−1: all)."""
    width = logits.shape[-1]
    counts = [width if k < 0 else min(k, width) for k in counts]
    logp = logits.log_softmax(-1)
    own = logp.gather(-1, torch.tensor(tokens, device=logp.device)[:, None])
    rank = (logp > own).sum(-1) + 1
    values, ids = logp.topk(max(counts, default=0), dim=-1)
    rows = zip(tokens, own[:, 0].tolist(), rank.tolist(), ids.tolist(), values.tolist(), counts, strict=True)
    return [Scored(t, p, r, tuple(zip(i[:k], v[:k], strict=True))) for t, p, r, i, v, k in rows]


def scored_prompt(lane: Lane, states: States, prompt: Sequence[int], k: int, blend: Blend, mix: Mix) -> list[Scored]:
    """Of a batch of one: each token of its prompt but the first, a block of rows at a time."""
    at_once, found = block(vocabulary(lane.members[0].model), lane.device), []
    for start in range(0, len(prompt) - 1, at_once):
        part = slice(start, min(start + at_once, len(prompt) - 1))
        rows = {m.name: head(m.model, states[m.name][0, part]).to(lane.device) for m in lane.members}
        tokens = list(prompt[part.start + 1 : part.stop + 1])
        found += scored(blend.logits(rows, mix), tokens, [k] * len(tokens))
    return found
