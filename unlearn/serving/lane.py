"""Answers that read the same members, as one batch that they join and leave between any two tokens.

Padded on the left, so that all end together; a state for each member. B answers, S tokens that are read next, W
columns of the states with these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn.chunks import block
from unlearn.ensemble import Member
from unlearn.generation import padded, positions
from unlearn.models.llama import device_of, vocabulary
from unlearn.serving.offsets import Blend, Mix
from unlearn.states import Reader, padded_before, state_of

Read = Mapping[str, Reader]  # by member, the logits after what was read


class Lane:
    """``rows`` are whatever the caller keeps of each answer, in the order of the batch."""

    def __init__(self, members: Sequence[Member], prompts: Sequence[Sequence[int]], rows: Sequence[Any], pad_id: int):
        self.members, self.rows = members, list(rows)
        self.device = device_of(members[0].model)
        self._ids, self._mask = padded(prompts, pad_id, self.device)  # [B, S] next, [B, W] with what was read
        self._at = positions(self._mask)
        # Every position is kept, whatever a model's window is: only then do the states of two batches fit together.
        self._states = {m.name: state_of(m.model, whole=True) for m in members}

    def read(self) -> Read:
        """Read what is next."""
        return {name: state.rows(self._ids, self._mask, self._at) for name, state in self._states.items()}

    def last(self, found: Read) -> dict[str, Tensor]:
        """Logits [B, V] of the token after the last by member."""
        return {name: rows(slice(-1, None))[:, -1].to(self.device) for name, rows in found.items()}

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
            for state in self._states.values():
                state.select(keep)
            mask, at = mask[keep], at[keep]
        empty = int(mask.any(0).int().argmax())  # columns that are padding in all rows
        if empty:
            for state in self._states.values():
                state.drop(empty)
        mask = mask[:, empty:]
        self._ids = torch.tensor([[tokens[i]] for i in keep], device=self.device)
        self._mask = torch.cat([mask, mask.new_ones(len(keep), 1)], dim=1)
        self._at = at[:, -1:] + 1

    def leave(self, keep: Sequence[int]) -> None:
        """Between two tokens: keep these rows alone."""
        self.rows = [self.rows[i] for i in keep]
        if keep:
            for state in self._states.values():
                state.select(list(keep))
            self._ids, self._mask, self._at = self._ids[keep], self._mask[keep], self._at[keep]

    def join(self, other: Lane) -> None:
        """Take over the rows of another batch of the same members, each of which has one token to read."""
        mine, theirs = self._mask.shape[1], other._mask.shape[1]
        more, fewer = max(0, theirs - mine), max(0, mine - theirs)
        for name, state in self._states.items():
            state.join(other._states[name], more, fewer)
        masks = [padded_before(self._mask, more, 1), padded_before(other._mask, fewer, 1)]
        self._mask, self._ids = torch.cat(masks), torch.cat([self._ids, other._ids])
        self._at, self.rows = torch.cat([self._at, other._at]), self.rows + other.rows


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


def scored_prompt(lane: Lane, read: Read, prompt: Sequence[int], k: int, blend: Blend, mix: Mix) -> list[Scored]:
    """Of a batch of one: each token of its prompt but the first, a block of rows at a time."""
    at_once, found = block(vocabulary(lane.members[0].model), lane.device), []
    for start in range(0, len(prompt) - 1, at_once):
        part = slice(start, min(start + at_once, len(prompt) - 1))
        rows = {name: rows(part)[0].to(lane.device) for name, rows in read.items()}
        tokens = list(prompt[part.start + 1 : part.stop + 1])
        found += scored(blend.logits(rows, mix), tokens, [k] * len(tokens))
    return found
