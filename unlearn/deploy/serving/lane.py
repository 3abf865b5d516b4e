"""Answers that read the same members, as one batch that they join and leave between any two tokens.

Padded on the left, so that all end together; each member keeps what it has read (``states.py``: a KV cache, or, of a
black box, the texts). B answers, S tokens that are read next, W columns that were read with these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn.decoding.generation import padded, positions
from unlearn.decoding.states import Cached, state_of, wider
from unlearn.deploy.serving.offsets import Blend, Mix
from unlearn.ensemble.chunks import block
from unlearn.ensemble.ensemble import Member
from unlearn.models.llama import device_of, head, vocabulary

RowsOf = Callable[[slice], Tensor]  # logits [n, V] at some places of a text


class Lane:
    """``rows`` are whatever the caller keeps of each answer, in the order of the batch."""

    def __init__(self, members: Sequence[Member], prompts: Sequence[Sequence[int]], rows: Sequence[Any], pad_id: int):
        self.members, self.rows = members, list(rows)
        self.device = device_of(members[0].model)
        self._ids, self._mask = padded(prompts, pad_id, self.device)  # [B, S] next, [B, W] with what was read
        self._at = positions(self._mask)
        # Every column is kept, whatever a model's window is: only then do the caches of two batches fit together.
        self._states = {m.name: state_of(m.model, whole=True) for m in members}

    def next(self) -> dict[str, Tensor]:
        """Read what is next; logits [B, V] of the token after it by member."""
        asked = self._ids, self._mask, self._at
        return {name: state.next(*asked).to(self.device) for name, state in self._states.items()}

    def take(self) -> None:
        """Read what is next, whose rows nobody needs."""
        for state in self._states.values():
            state.take(self._ids, self._mask, self._at)

    def whole(self) -> dict[str, RowsOf]:
        """Of a batch of one: read what is next; by member, its logits at any places of it."""
        return {m.name: self._rows_of(m) for m in self.members}

    def _rows_of(self, member: Member) -> RowsOf:
        state, asked = self._states[member.name], (self._ids, self._mask, self._at)
        if isinstance(state, Cached):  # [S, V] need not be in memory at once
            hidden = state.take(*asked)[0]
            return lambda part: head(member.model, hidden[part]).to(self.device)
        rows = state.read(*asked)[0]
        return lambda part: rows[part].to(self.device)

    def go_on(self, tokens: Sequence[int], keep: Sequence[int]) -> None:
        """Keep these rows of the batch, each with its token [B] as what is read next."""
        self.leave(keep)
        if not keep:
            return
        first = int(self._mask.any(0).int().argmax())
        if first:  # columns that are padding in all rows
            self._mask = self._mask[:, first:]
            columns = torch.arange(first, first + self._mask.shape[1], device=self.device)
            for state in self._states.values():
                state.rewind(list(range(len(keep))), columns.expand(len(keep), -1)[..., None])
        self._ids = torch.tensor([[tokens[i]] for i in keep], device=self.device)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(keep), 1)], dim=1)
        self._at = self._at[:, -1:] + 1

    def leave(self, keep: Sequence[int]) -> None:
        """Keep these rows alone, in this order; one may be kept several times."""
        keep = list(keep)
        if keep and keep != list(range(len(self._mask))):
            for state in self._states.values():
                state.select(keep)
            self._ids, self._mask, self._at = self._ids[keep], self._mask[keep], self._at[keep]
        self.rows = [self.rows[i] for i in keep]

    def join(self, other: Lane) -> None:
        """Take over the rows of another batch of the same members, each of which has one token to read."""
        more = other._mask.shape[1] - self._mask.shape[1]
        mine, theirs = max(0, more), max(0, -more)
        for name, state in self._states.items():
            state.join(other._states[name], mine, theirs)
        self._mask = torch.cat([wider(self._mask, mine, 1), wider(other._mask, theirs, 1)])
        self._ids = torch.cat([self._ids, other._ids])
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


def scored_prompt(lane: Lane, rows: dict[str, RowsOf], prompt: Sequence[int], k: int, blend: Blend, mix: Mix) -> list:
    """Of a batch of one: each token of its prompt but the first, a block of rows at a time."""
    at_once, found = block(vocabulary(lane.members[0].model), lane.device), []
    for start in range(0, len(prompt) - 1, at_once):
        part = slice(start, min(start + at_once, len(prompt) - 1))
        logits = blend.logits({name: of(part) for name, of in rows.items()}, mix)
        tokens = list(prompt[part.start + 1 : part.stop + 1])
        found += scored(logits, tokens, [k] * len(tokens))
    return found
