"""Decoding of an ensemble, greedy or sampled: batched, a KV cache per member, rows dropped as soon as they end.

What a member has read is its own (``states.py``): sharing one cache between models, as public code does, decodes from
another model's keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from unlearn.decoding.states import state_of
from unlearn.ensemble.ensemble import Ensemble
from unlearn.models.llama import device_of
from unlearn.store.identity import digest

Rows = Mapping[str, Tensor]  # next-token logits by member
Choose = Callable[[Rows, Sequence[int]], Tensor]  # members' rows [B, V], and which prompt each row is, to tokens [B]


@torch.no_grad()
def greedy(
    ensemble: Ensemble,
    prompts: Sequence[Sequence[int]],
    alpha: float,
    pad_id: int,
    eos_id: int,
    max_new_tokens: int,
    batch_size: int,
    hide_pad: bool = False,
) -> list[list[int]]:
    """The likeliest token at each step; tokens after each prompt, without EOS, at most ``max_new_tokens``.

    ``hide_pad`` also masks tokens of the prompt that are the padding token, and does not count them as positions:
    wrong, and what public code does.
    """
    ends, limits, choose = ends_of(ensemble, eos_id), [max_new_tokens] * len(prompts), likeliest(ensemble, alpha)
    found = decode(ensemble, prompts, alpha, pad_id, ends, limits, batch_size, choose, hide_pad)
    return [without_end(answer, ends) for answer in found]


def instead(
    found: list[list[int] | None],
    which: Sequence[int],
    ensemble: Ensemble,
    prompts: Sequence[Sequence[int]],
    *settings: float,
) -> list[list[int]]:
    """What was found, with ``greedy``'s own answers in these places; ``settings`` are those of ``greedy``."""
    for i, answer in zip(which, greedy(ensemble, [prompts[i] for i in which], *settings), strict=True):
        found[i] = answer
    return found


@torch.no_grad()
def sample(
    ensemble: Ensemble,
    prompts: Sequence[Sequence[int]],
    alpha: float,
    pad_id: int,
    eos_id: int,
    max_new_tokens: int,
    batch_size: int,
    temperature: float,
    seed: int,
) -> list[list[int]]:
    """As ``greedy``, drawn from softmax(l / temperature). Every draw has its own stream of random numbers, keyed by the
    prompt's ids and by which of the draws for this prompt it is: neither batch size, nor the order of the prompts, nor
    the other prompts change what is drawn."""
    own = streams(prompts, seed)

    def choose(rows: Rows, which: Sequence[int]) -> Tensor:
        return draw(ensemble.logits(rows, alpha) / temperature, [own[i] for i in which])

    ends, limits = ends_of(ensemble, eos_id), [max_new_tokens] * len(prompts)
    found = decode(ensemble, prompts, alpha, pad_id, ends, limits, batch_size, choose)
    return [without_end(answer, ends) for answer in found]


def likeliest(ensemble: Ensemble, alpha: float) -> Choose:
    """The likeliest token of the ensemble, for ``decode``."""

    def choose(rows: Rows, which: Sequence[int]) -> Tensor:
        return ensemble.logits(rows, alpha).argmax(-1)

    return choose


def draw(logits: Tensor, streams: Sequence[torch.Generator]) -> Tensor:
    """A token [B] from the softmax of each row of logits [B, V], by the row's own stream of random numbers."""
    noise = torch.stack([torch.empty(logits.shape[-1]).exponential_(generator=stream) for stream in streams])
    return (logits - noise.to(logits.device).log()).argmax(-1)  # − log of Exp(1) is Gumbel noise


def streams(prompts: Sequence[Sequence[int]], seed: int) -> list[torch.Generator]:
    """A stream of random numbers for each answer that is drawn."""
    drawn: Counter[tuple[int, ...]] = Counter()  # how often each prompt has come
    found = []
    for prompt in map(tuple, prompts):
        found.append(torch.Generator().manual_seed(int(digest([seed, prompt, drawn[prompt]]), 16)))
        drawn[prompt] += 1
    return found


def decode(
    ensemble: Ensemble,
    prompts: Sequence[Sequence[int]],
    alpha: float,
    pad_id: int,
    ends: Collection[int],
    limits: Sequence[int],
    batch_size: int,
    choose: Choose,
    hide_pad: bool = False,
) -> list[list[int]]:
    """Tokens after each prompt, at most its limit, up to and with the first of ``ends``."""
    order = sorted((i for i in range(len(prompts)) if limits[i] > 0), key=lambda i: -len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = _Decoding(ensemble, [prompts[i] for i in indices], alpha, pad_id, hide_pad)
        while batch.rows:
            token = choose(batch.next_rows(), [indices[row] for row in batch.rows])
            keep = []
            for place, (row, t) in enumerate(zip(batch.rows, token.tolist(), strict=True)):
                answer = answers[indices[row]]
                answer.append(t)
                if t not in ends and len(answer) < limits[indices[row]]:
                    keep.append(place)
            batch.go_on(token, keep)
    return answers


def ends_of(ensemble: Ensemble, eos_id: int) -> set[int]:
    """Tokens that end an answer: the tokenizer's EOS, and what the first member names (chat models have several)."""
    named = getattr(getattr(ensemble.members[0].model, "generation_config", None), "eos_token_id", None)
    return {eos_id} | ({named} if isinstance(named, int) else set(named or ()))


def without_end(answer: list[int], ends: Collection[int]) -> list[int]:
    return answer[:-1] if answer and answer[-1] in ends else answer


def padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, S], padded on the left, so that all prompts end where the answers begin."""
    longest = max(map(len, prompts))
    ids = [[pad_id] * (longest - len(p)) + list(p) for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return tuple(torch.tensor(rows, dtype=torch.long, device=device) for rows in (ids, mask))


def positions(mask: Tensor) -> Tensor:
    """Of each token among those that the mask shows, [B, S]."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


class _Decoding:
    """The state of one batch: next tokens to read, mask, and what each member has read."""

    def __init__(self, ensemble: Ensemble, prompts: list[Sequence[int]], alpha: float, pad_id: int, hide_pad: bool):
        self.members = ensemble.needed([alpha])
        for m in self.members:
            m.model.eval()
        self.device = device_of(self.members[0].model)
        self.ids, self.mask = padded(prompts, pad_id, self.device)
        if hide_pad:
            self.mask = (self.ids != pad_id).long()
        self.positions = positions(self.mask)
        self.states = {m.name: state_of(m.model) for m in self.members}
        self.rows = list(range(len(prompts)))  # which prompt each row of the batch is

    def next_rows(self) -> Rows:
        """Logits of the next token by member, [B, V]."""
        read = self.ids, self.mask, self.positions
        return {name: state.next(*read).to(self.device) for name, state in self.states.items()}

    def go_on(self, token: Tensor, keep: list[int]) -> None:
        """Append the tokens [B], and keep these rows of the batch alone."""
        if not keep:
            self.rows = []
            return
        if len(keep) < len(token):
            for state in self.states.values():
                state.select(keep)
            self.rows = [self.rows[i] for i in keep]
            token, self.mask, self.positions = token[keep], self.mask[keep], self.positions[keep]
        self.ids = token[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1
