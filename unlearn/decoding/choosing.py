"""The next token of each row: the likeliest, or one that is drawn, and whether any way of computing it would agree.

A token's logits differ in their last digits with the shape of the computation: many positions at once or one, this
batch or another. So a choice made in another shape than plain decoding stands only where it does not hang on them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unlearn.ensemble.combination import SUM
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.store.identity import digest

LEAST = 1e-4  # of fp32 logits, some ten times what shapes were seen to change
NUDGES = 2


def key(seed: int, prompt: Sequence[int], index: int) -> int:
    """Of a drawn answer's random numbers: a seed, its prompt, and which of the prompt's answers it is."""
    return int(digest([seed, list(prompt), index]), 16)


@dataclass
class Draw:
    """How the tokens of one answer are chosen: with temperature 0 the likeliest, else at random by the answer's own
    stream of numbers. Its noise depends on key and step alone, whatever is drawn beside it."""

    temperature: float
    top_p: float
    key: int
    _made: int = field(default=0, init=False, repr=False, compare=False)  # steps whose noise was made

    def noise(self, step: int, width: int) -> Tensor:
        """Exponential noise [V] of token number ``step``; minus its logarithm is Gumbel's. It is made step by step: the
        same step again, or the next, costs one; an earlier one begins again."""
        if not self._made or step < self._made - 1:
            self._random, self._made = torch.Generator().manual_seed(self.key), 0
        elif step == self._made - 1:
            self._random.set_state(self._before)
            self._made = step
        for _ in range(self._made, step + 1):
            self._before: Tensor = self._random.get_state()
            noise = torch.empty(width).exponential_(generator=self._random)
        self._made = step + 1
        return noise


def decide(
    ensemble: Ensemble,
    rows: Mapping[str, Tensor],
    alpha: float,
    draws: Sequence[Draw] = (),
    steps: Sequence[int] = (),
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The token of each row [N] as ``choose`` has it, and whether that is beyond doubt [N]; ``rows`` [N, V] by member,
    and the ensemble's ``logits`` where they are known.

    A choice is beyond doubt where the best logit leads by more than the members may be wrong by. Any other rule
    may jump (a token that just is, or is not, among those pushed out), so there the choice must also survive nudges of
    the members' rows: random ones and their opposites, since of two tokens that tie one of the two then flips them.
    """
    members = ensemble.needed([alpha])
    logits = ensemble.logits(rows, alpha) if logits is None else logits
    plain = ensemble.rule is SUM  # only in a sum constant and slope cancel
    weights = [m.weight(alpha) if plain else max(m.weight(alpha), m.constant, key=abs) for m in members]
    error = sum(abs(weight) * tolerance(m) for weight, m in zip(weights, members, strict=True))
    token, sure = choose(logits, draws, steps, error)
    if plain:
        return token, sure
    random = torch.Generator(logits.device).manual_seed(0)
    for _ in range(NUDGES):
        uniform = {m.name: torch.rand(rows[m.name].shape, generator=random, device=logits.device) for m in members}
        nudge = {m.name: tolerance(m) * (2 * uniform[m.name] - 1) for m in members}
        for sign in (1, -1):
            moved = {name: rows[name] + sign * by for name, by in nudge.items()}
            sure &= choose(ensemble.logits(moved, alpha), draws, steps, error)[0] == token
    return token, sure


def choose(logits: Tensor, draws: Sequence[Draw], steps: Sequence[int], error: float) -> tuple[Tensor, Tensor]:
    """Tokens [B] of logits [B, V], which may be wrong by ``error``, and whether each is sure [B]. ``steps``: how many
    tokens each answer has. Without ``draws`` the likeliest.

    A token is drawn as the argmax of l / T + Gumbel noise, whose two best differ by less than a small d with a
    probability of about d: a draw seldom hangs on last digits, where a point of the cumulated probabilities often
    does, since each digit moves all boundaries after it.
    """
    inner = outer = logits
    core = None
    if any(d.temperature for d in draws):
        heat = _heat(logits, draws)
        inner = outer = perturbed(logits, draws, steps)
        error = error / heat[:, 0]
        if any(d.top_p < 1 and d.temperature for d in draws):
            top_p = torch.tensor([d.top_p if d.temperature else 1.0 for d in draws])
            wide = error[:, None].double()  # type: ignore[index]
            inside, within, core = nucleus(logits.double() / heat, top_p, wide)
            inner, outer = inner.masked_fill(~inside, -torch.inf), outer.masked_fill(~within, -torch.inf)
    token = inner.argmax(-1)
    best, at = outer.topk(2, dim=-1)
    sure = (best[:, 0] - best[:, 1] > 2 * error) & (at[:, 0] == token)
    return token, sure if core is None else sure & core.gather(-1, token[:, None])[:, 0]


def perturbed(logits: Tensor, draws: Sequence[Draw], steps: Sequence[int]) -> Tensor:
    """l / T + Gumbel noise [B, V]: their likeliest token comes as often as softmax(l / T) says; with T = 0 l itself."""
    width = logits.shape[-1]
    noise = [d.noise(step, width) if d.temperature else torch.ones(width) for d, step in zip(draws, steps, strict=True)]
    return logits / _heat(logits, draws) - torch.stack(noise).to(logits.device).log()


def _heat(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    return torch.tensor([d.temperature or 1.0 for d in draws], dtype=logits.dtype, device=logits.device)[:, None]


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


def tolerance(member: Member) -> float:
    """What a logit of the member may be wrong by: in half precision even plain decoding differs from batch to batch."""
    return max(LEAST, 4 * torch.finfo(member.model.dtype).eps)  # type: ignore[call-overload]


def full_precision(members: Iterable[Member]) -> bool:
    """Whether logits differ from shape to shape in last digits alone, so that near ties are rare: no member is in half
    precision."""
    return all(tolerance(m) == LEAST for m in members)
