"""Decoding of an ensemble, greedy or sampled: batched, a KV cache per member, rows dropped as soon as they end."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.decoding.batch import Batch, Rows
from unlearn.decoding.choosing import Draw, key, perturbed
from unlearn.ensemble.ensemble import Ensemble
from unlearn.store import processes
from unlearn.store.progress import progress

# From members' rows [B, V], which prompt each row is, and how many tokens each has, to tokens [B].
Choose = Callable[[Rows, Sequence[int], int], Tensor]


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded: at most ``max_new_tokens``, up to EOS, so many prompts at a time. ``hide_pad`` masks
    tokens of the prompt that are the padding token, and does not count them as positions: wrong, and what public code
    does."""

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
        return decode(ensemble, [prompts[i] for i in own], alpha, how, likeliest(ensemble, alpha))

    return without_ends(processes.spread(list(map(tuple, prompts)), answer), ensemble, how)


def sample(
    ensemble: Ensemble, prompts: Sequence[Sequence[int]], alpha: float, how: Decoding, temperature: float, seed: int
) -> list[list[int]]:
    """As ``greedy``, drawn from softmax(l / temperature). Every draw has its own stream of random numbers, keyed by the
    prompt's ids and by which of the draws for this prompt it is: neither batch size, nor the order of the prompts, nor
    the other prompts change what is drawn."""
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


def likeliest(ensemble: Ensemble, alpha: float) -> Choose:
    """The likeliest token of the ensemble, for ``decode``."""
    return lambda rows, which, step: ensemble.logits(rows, alpha).argmax(-1)


@torch.no_grad()
def decode(
    ensemble: Ensemble,
    prompts: Sequence[Sequence[int]],
    alpha: float,
    how: Decoding,
    choose: Choose,
    limits: Sequence[int] | None = None,
) -> list[list[int]]:
    """Tokens after each prompt, at most its limit, up to and with the first that ends an answer."""
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
