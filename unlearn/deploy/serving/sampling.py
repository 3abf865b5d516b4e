"""The next token of each row of a batch: the likeliest, or one that is drawn, and whether that is beyond doubt.

A row's logits differ in their last digits with what is computed beside it. So a choice is sure only where it would
be the same whatever those digits are; the others are for the caller to make with the row alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unlearn.store.identity import digest


@dataclass(frozen=True)
class Draw:
    """How tokens are chosen; with temperature 0 the likeliest."""

    temperature: float
    top_p: float
    key: int  # of this answer's own random numbers


def key(seed: int, prompt: Sequence[int], index: int) -> int:
    """Of an answer: the seed of its request, its prompt, and which of the prompt's n answers it is."""
    return int(digest([seed, list(prompt), index]), 16)


def decide(
    logits: Tensor, variants: Iterable[Tensor], draws: Sequence[Draw], steps: Sequence[int], error: float
) -> tuple[Tensor, Tensor]:
    """Tokens [B] of logits [B, V], and whether each is sure [B].

    ``steps``: how many tokens each answer has; ``error``: what a logit may be wrong by; ``variants``: logits that might
    as well have been found, for rules that jump, so that no bound on the error says enough.
    """
    token, sure = choose(logits, draws, steps, error)
    for other in variants:
        sure &= choose(other, draws, steps, error)[0] == token
    return token, sure


def choose(logits: Tensor, draws: Sequence[Draw], steps: Sequence[int], error: float) -> tuple[Tensor, Tensor]:
    """As ``decide``, of these logits alone.

    A token is drawn as the argmax of l + T · Gumbel noise, whose two best differ by less than a small d with a
    probability of about d / T: a draw seldom hangs on last digits, where a point of the cumulated probabilities often
    does, since each digit moves all boundaries after it. The noise depends on the answer's key and step alone.
    """
    drawn = [i for i, d in enumerate(draws) if d.temperature > 0]
    if not drawn:
        best = logits.topk(2, dim=-1).values
        return logits.argmax(-1), best[:, 0] - best[:, 1] > 2 * error
    scores, rows, some = logits.double(), torch.tensor(drawn, device=logits.device), [draws[i] for i in drawn]
    heat = torch.tensor([d.temperature for d in some], dtype=torch.double, device=logits.device)[:, None]
    masks = None
    if any(d.top_p < 1 for d in some):
        masks = nucleus(scores[rows] / heat, torch.tensor([d.top_p for d in some]), error / heat)
    noise = np.stack([gumbel(d.key, steps[i], logits.shape[-1]) for i, d in zip(drawn, some, strict=True)])
    scores[rows] += heat * torch.from_numpy(noise).to(logits.device)
    outer = scores
    if masks is not None:
        outer = scores.index_copy(0, rows, scores[rows].masked_fill(~masks[1], -torch.inf))
        scores = scores.index_copy(0, rows, scores[rows].masked_fill(~masks[0], -torch.inf))
    token = scores.argmax(-1)
    best, at = outer.topk(2, dim=-1)
    sure = (best[:, 0] - best[:, 1] > 2 * error) & (at[:, 0] == token)
    if masks is not None:
        sure[rows] &= masks[2].gather(-1, token[rows][:, None])[:, 0]
    return token, sure


def gumbel(key: int, step: int, width: int) -> np.ndarray:
    """Noise [V] of an answer's token number ``step``: by a counter, so that it can be made again at any time."""
    random = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, step]))
    return -np.log(random.standard_exponential(width))  # in fp64: in fp32 every eight millionth would be log 0


def nucleus(scores: Tensor, top_p: Tensor, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The fewest likeliest tokens that have ``top_p`` of the probability together, [B, V] of scores l / T in fp64;
    those that may belong to them by other last digits; those that do by any.

    ``top_p`` [B]; ``error`` [B, 1] of the scores.
    """
    values, order = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = values.cumsum(-1) - values
    limit = top_p.to(scores)[:, None]
    whole, near = limit >= 1, (4 * error).exp()
    inside = (before < limit) | whole
    # Sums of the likeliest move by less than twice the error, and tokens that are as near as `near` may change places.
    least_in = values.masked_fill(before >= limit + 2 * error, 2.0).amin(-1, keepdim=True)
    most_out = values.masked_fill(before < limit - 2 * error, 0.0).amax(-1, keepdim=True)
    outer, core = (values * near >= least_in) | whole, (values > most_out * near) | whole
    back = order.argsort(-1)
    return inside.gather(-1, back), outer.gather(-1, back), core.gather(-1, back)
