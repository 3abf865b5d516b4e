"""Decoding of an ensemble, greedy or sampled: batched, a KV cache per member, rows dropped as soon as they end.

Each member reads its own cache: sharing one between models (as public code does) decodes from another model's keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from unlearn.ensemble import Ensemble
from unlearn.identity import digest
from unlearn.models.llama import head


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

    def choose(logits: Tensor, rows: Sequence[int]) -> Tensor:
        return logits.argmax(-1)

    return _decode(ensemble, prompts, alpha, pad_id, eos_id, max_new_tokens, batch_size, choose, hide_pad)


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
    streams = _streams(prompts, seed)

    def choose(logits: Tensor, rows: Sequence[int]) -> Tensor:
        noise = torch.stack([torch.empty(logits.shape[-1]).exponential_(generator=streams[i]) for i in rows])
        return (logits / temperature - noise.to(logits.device).log()).argmax(-1)  # − log of Exp(1) is Gumbel noise

    return _decode(ensemble, prompts, alpha, pad_id, eos_id, max_new_tokens, batch_size, choose)


def _streams(prompts: Sequence[Sequence[int]], seed: int) -> list[torch.Generator]:
    drawn: Counter[tuple[int, ...]] = Counter()
    streams = []
    for prompt in map(tuple, prompts):
        streams.append(torch.Generator().manual_seed(int(digest([seed, prompt, drawn[prompt]]), 16)))
        drawn[prompt] += 1
    return streams


def _decode(
    ensemble: Ensemble,
    prompts: Sequence[Sequence[int]],
    alpha: float,
    pad_id: int,
    eos_id: int,
    max_new_tokens: int,
    batch_size: int,
    choose: Callable[[Tensor, Sequence[int]], Tensor],
    hide_pad: bool = False,
) -> list[list[int]]:
    """``choose`` maps logits [B, V] and which prompt each row is to tokens [B]."""
    ends = torch.tensor(sorted(_ends(ensemble, eos_id)))
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = _Decoding(ensemble, [prompts[i] for i in indices], alpha, pad_id, hide_pad)
        for _ in range(max_new_tokens):
            token = choose(batch.logits(), [indices[row] for row in batch.rows])
            ended = torch.isin(token, ends.to(token.device))
            for row, t, over in zip(batch.rows, token.tolist(), ended.tolist(), strict=True):
                if not over:
                    answers[indices[row]].append(t)
            if not batch.go_on(token, ended):
                break
    return answers


def _ends(ensemble: Ensemble, eos_id: int) -> set[int]:
    """Tokens that end an answer: the tokenizer's EOS, and what the first member names (chat models have several)."""
    named = getattr(getattr(ensemble.members[0].model, "generation_config", None), "eos_token_id", None)
    return {eos_id} | ({named} if isinstance(named, int) else set(named or ()))


class _Decoding:
    """The state of one batch: next tokens to read, mask, and a cache per member."""

    def __init__(self, ensemble: Ensemble, prompts: list[Sequence[int]], alpha: float, pad_id: int, hide_pad: bool):
        self.ensemble, self.alpha, self.pad_id = ensemble, alpha, pad_id
        self.members = ensemble.needed([alpha])
        for m in self.members:
            m.model.eval()
        self.device = next(self.members[0].model.parameters()).device
        longest = max(map(len, prompts))
        # Padded on the left, so that all prompts end where the answers begin.
        self.ids = torch.tensor([[pad_id] * (longest - len(p)) + list(p) for p in prompts], device=self.device)
        self.mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        if hide_pad:
            self.mask = (self.ids != pad_id).long()
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.caches = {m.name: DynamicCache(config=m.model.config) for m in self.members}
        self.rows = list(range(len(prompts)))  # which prompt each row of the batch is

    def logits(self) -> Tensor:
        """Ensemble logits of the next token, [B, V]."""
        last = {}
        for m in self.members:
            place = next(m.model.parameters()).device
            hidden = m.model.base_model(
                input_ids=self.ids.to(place),
                attention_mask=self.mask.to(place),
                position_ids=self.positions.to(place),
                past_key_values=self.caches[m.name],
                use_cache=True,
            ).last_hidden_state
            last[m.name] = head(m.model, hidden[:, -1]).to(self.device)
        return self.ensemble.logits(last, self.alpha)

    def go_on(self, token: Tensor, ended: Tensor) -> bool:
        """Append the tokens and drop ended rows; False when none is left."""
        keep = (~ended).nonzero().flatten()
        if len(keep) == 0:
            return False
        if len(keep) < len(token):
            for cache in self.caches.values():
                cache.batch_select_indices(keep.cpu())  # a cache may lie on another device, or on several
            self.rows = [self.rows[i] for i in keep.tolist()]
            token, self.mask, self.positions = token[keep], self.mask[keep], self.positions[keep]
        self.ids = token[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1
        return True
