"""Decoding of an ensemble, greedy or sampled: batched, a KV cache per member, rows dropped as soon as they end."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn.decoding.choosing import Draw, key, perturbed
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.models.llama import device_of
from unlearn.models.seen import begun
from unlearn.models.states import Reader, wider
from unlearn.store import processes
from unlearn.store.progress import progress

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
        """As ``keep``, of a ``whole`` batch: each text without so many last tokens, and no column that only pads."""
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


# From members' rows [B, V], which prompt each row is, and how many tokens each has, to tokens [B].
Choose = Callable[[Rows, Sequence[int], int], Tensor]


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded: at most ``max_new_tokens``, up to EOS, so many prompts at a time. ``hide_pad`` masks
    tokens of the prompt that are the padding token, and gives them no positions: wrong, and what public code does."""

    pad_id: int
    eos_id: int
    max_new_tokens: int
    batch_size: int
    hide_pad: bool = False

    @classmethod
    def by(cls, tokenizer, max_new_tokens: int, batch_size: int = 1, hide_pad: bool = False) -> "Decoding":
        """With a tokenizer's own padding and EOS."""
        return cls(tokenizer.pad_token_id, tokenizer.eos_token_id, max_new_tokens, batch_size, hide_pad)


def greedy(ensemble: Ensemble, prompts: Sequence[Sequence[int]], alpha: float, how: Decoding) -> list[list[int]]:
    """The likeliest token at each step; tokens after each prompt, without EOS."""
    ensemble = ensemble.once

    def answer(own: list[int]) -> list[list[int]]:
        return decode(ensemble, [prompts[i] for i in own], alpha, how)

    return without_ends(processes.spread(list(map(tuple, prompts)), answer), ensemble, how)


def sample(
    ensemble: Ensemble, prompts: Sequence[Sequence[int]], alpha: float, how: Decoding, temperature: float, seed: int
) -> list[list[int]]:
    """As ``greedy``, drawn from softmax(l / temperature). Every draw has its own stream of random numbers, keyed by the
    prompt's ids and by which of the draws for this prompt it is: no batch size, order or other prompt changes it."""
    ensemble = ensemble.once
    drawn: Counter[tuple[int, ...]] = Counter()  # how often each prompt has come
    draws = []
    for prompt in map(tuple, prompts):
        draws.append(Draw(temperature, 1.0, key(seed, prompt, drawn[prompt])))
        drawn[prompt] += 1

    def answer(own: list[int]) -> list[list[int]]:
        def choose(rows: Rows, which: Sequence[int], step: int) -> Tensor:
            drawing = [draws[own[i]] for i in which]
            return perturbed(ensemble.logits(rows, alpha), drawing, [step] * len(which)).argmax(-1)

        return decode(ensemble, [prompts[i] for i in own], alpha, how, choose)

    return without_ends(processes.spread(list(map(tuple, prompts)), answer), ensemble, how)


@torch.no_grad()
def decode(
    ensemble: Ensemble,
    prompts: Sequence[Sequence[int]],
    alpha: float,
    how: Decoding,
    choose: Choose | None = None,
    limits: Sequence[int] | None = None,
) -> list[list[int]]:
    """Tokens after each prompt, at most its limit, with the first that ends an answer; likeliest, or ``choose``'s."""
    choose = choose or (lambda rows, which, step: ensemble.logits(rows, alpha).argmax(-1))
    ends, limits = ends_of(ensemble, how.eos_id), limits or [how.max_new_tokens] * len(prompts)
    answers: list[list[int]] = [[] for _ in prompts]
    with progress(len(prompts), "generating", "answer") as bar:
        for indices in batches(prompts, how.batch_size, limits):
            some = [prompts[i] for i in indices]
            batch = Batch(ensemble.needed([alpha]), some, how.pad_id, indices, hide_pad=how.hide_pad)
            step = 0
            while batch.rows:
                token = choose(batch.next(), batch.rows, step)
                for i, t in zip(batch.rows, token.tolist(), strict=True):
                    answers[i].append(t)
                keep = [place for place, i in enumerate(batch.rows) if not ended(answers[i], ends, limits[i])]
                bar.update(len(batch.rows) - len(keep))
                batch.keep(keep)
                batch.append(token[keep])
                step += 1
    return answers


def batches(prompts: Sequence[Sequence[int]], size: int, limits: Sequence[int]) -> list[list[int]]:
    """Which prompts are continued together: those of similar length, the longest first."""
    order = sorted((i for i in range(len(prompts)) if limits[i] > 0), key=lambda i: -len(prompts[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def ends_of(ensemble: Ensemble, eos_id: int) -> set[int]:
    """Tokens that end an answer: the tokenizer's EOS, and what the first member names (chat models have several)."""
    named = getattr(getattr(ensemble.members[0].model, "generation_config", None), "eos_token_id", None)
    return {eos_id} | ({named} if isinstance(named, int) else set(named or ()))


def ended(answer: list[int], ends: Collection[int], limit: int) -> bool:
    return len(answer) >= limit or (bool(answer) and answer[-1] in ends)


def without_ends(answers: list[list[int]], ensemble: Ensemble, how: Decoding) -> list[list[int]]:
    ends = ends_of(ensemble, how.eos_id)
    return [a[:-1] if a and a[-1] in ends else a for a in answers]
