"""Texts that are continued together: their tokens, and what each member has read of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unlearn.ensemble.ensemble import Member
from unlearn.models.llama import device_of
from unlearn.models.seen import begun
from unlearn.models.states import Reader, wider

Rows = Mapping[str, Tensor]  # next-token logits by member


class Batch:
    """B texts of W columns, padded on the left, so that all end together. Each member has a state of its own
    (``models/states.py``), and reads what is new to it when it is asked for rows.

    ``rows`` are whatever the caller keeps of each text, in the order of the batch. ``whole``: texts may join, and
    tokens be taken back; then every column is kept, whatever a model's window is. ``hide_pad`` also masks tokens of a
    prompt that are the padding token. ``last``: the largest position that a model may be given.
    """

    def __init__(
        self,
        members: Sequence[Member],
        prompts: Sequence[Sequence[int]],
        pad_id: int,
        rows: Sequence[Any],
        whole: bool = False,
        hide_pad: bool = False,
        last: int | None = None,
    ):
        self.members, self.rows, self._whole, self._last = members, list(rows), whole, last
        self.device = device_of(members[0].model)
        longest = max(map(len, prompts))
        ids = [[pad_id] * (longest - len(p)) + list(p) for p in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        self.ids, self._mask = (torch.tensor(values, device=self.device) for values in (ids, mask))  # [B, W]
        if hide_pad:
            self._mask = (self.ids != pad_id).long()
        known = {m.name: None if hide_pad else begun(m.model, prompts) for m in members}
        self._states = {m.name: known[m.name] or m.kind.state(whole) for m in members}
        self._read = {name: state.columns if state else 0 for name, state in known.items()}
        for m in members:
            m.model.eval()

    def next(self) -> Rows:
        """Logits of the token after each text by member, [B, V]."""
        return {name: rows(-1) for name, rows in self.read().items()}

    def read(self, members: Sequence[Member] | None = None) -> dict[str, Reader]:
        """Let these members, or all, read what they have not; their rows after that, by name."""
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0, max=self._last)
        found = {}
        for name in (m.name for m in (self.members if members is None else members)):
            rows = self._states[name].read(self.ids, self._mask, positions, self._read[name])
            self._read[name] = self.ids.shape[1]
            found[name] = lambda part, rows=rows: rows(part).to(self.device)
        return found

    def append(self, tokens: Tensor) -> None:
        """One token [B] after each text; nothing where no text is left."""
        if not self.rows:
            return
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)

    def keep(self, places: Sequence[int]) -> None:
        """Keep these texts alone, in this order; one may be kept several times."""
        places = list(places)
        if places and places != list(range(len(self.ids))):
            for state in self._states.values():
                state.select(places)
            self.ids, self._mask = self.ids[places], self._mask[places]
        self.rows = [self.rows[i] for i in places]

    def rewind(self, places: Sequence[int], forget: Sequence[int] | None = None) -> None:
        """As ``keep``, without columns that are padding in all texts, and each text without so many of its last tokens,
        which all members have read. Of a ``whole`` batch."""
        forget = [0] * len(places) if forget is None else list(forget)
        if not places:
            return self.keep(places)
        # Columns move to the right until all texts end together again.
        width = self.ids.shape[1] - min(forget)
        moved = torch.tensor(forget, device=self.device)[:, None] - min(forget)
        columns = torch.arange(width, device=self.device) - moved  # [B, width] where each comes from
        mask = self._mask[places].gather(1, columns.clamp(min=0)) * (columns >= 0)
        first = int(mask.any(0).int().argmax())
        if not first and not any(forget):
            return self.keep(places)
        columns = columns.clamp(min=0)[:, first:]
        for name, state in self._states.items():
            unread = self.ids.shape[1] - self._read[name]
            self._read[name] = columns.shape[1] - unread
            state.rewind(list(places), columns[:, : self._read[name], None])
        self.ids, self._mask = self.ids[places].gather(1, columns), mask[:, first:]
        self.rows = [self.rows[i] for i in places]

    def join(self, other: "Batch") -> None:
        """Take over the texts of another batch of the same members, which have read as much of theirs."""
        more = other.ids.shape[1] - self.ids.shape[1]
        mine, theirs = max(0, more), max(0, -more)
        for name, state in self._states.items():
            state.join(other._states[name], mine, theirs)
            self._read[name] += mine
        self.ids = torch.cat([wider(self.ids, mine, 1), wider(other.ids, theirs, 1)])
        self._mask = torch.cat([wider(self._mask, mine, 1), wider(other._mask, theirs, 1)])
        self.rows += other.rows
