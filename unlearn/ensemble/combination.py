"""Rules that join the members' logits: pure functions of base, change (both [N, V]) and α.

``base`` is Σ constant_i · l_i (mostly the target), ``change`` is Σ slope_i · l_i; a rule that takes ``watched`` also
gets Σ watch_i · l_i. No rule notices a constant added to a row (logits are only known up to one), and none is asked at
α = 0, where an ensemble is ``base``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from unlearn.config.own import functions, required, signature

Logits = Annotated[Tensor, "[N, V]"]


def sum(base: Logits, change: Logits, alpha: float) -> Logits:
    """base + α · change. (arXiv 2404.11045, Eq. 1; linear divergence decoding, arXiv 2605.31293)"""
    return base + alpha * change


def plausible(base: Logits, change: Logits, alpha: float, rate: float, top: float) -> Logits:
    """The sum among plausible tokens; all others keep the probability that ``base`` gives them. (arXiv 2406.08607)

    Plausible are tokens with at least ``rate`` times the probability of the likeliest, and always the ``top`` share
    of the vocabulary. Published code sets the change of the others to 0 on raw logits, where 0 means something else
    in every row; here the plausible tokens are renormalised to the mass they had, so no row constant matters.
    """
    keep = max(1, round(top * base.shape[-1]))
    likely = base.amax(-1, keepdim=True) + torch.tensor(rate).log().item()
    floor = torch.minimum(base.topk(keep, dim=-1).values[..., -1:], likely)
    inside = base >= floor
    moved = base + alpha * change
    mass = base.masked_fill(~inside, -torch.inf).logsumexp(-1, keepdim=True)
    moved_mass = moved.masked_fill(~inside, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.where(inside, moved + (mass - moved_mass), base)


def rank(base: Logits, change: Logits, alpha: float, k: float) -> Logits:
    """Push out the round(k · α) tokens with the most negative change (rank divergence decoding, arXiv 2605.31293):
    lowered, so that every answer keeps a likelihood, to just below the largest logit of ``base`` after its first
    round(k · α), and none is raised. (The paper's generation sets them to −∞.)"""
    n = min(round(k * alpha), base.shape[-1] - 1)
    if n < 1:
        return base
    out = torch.zeros_like(base, dtype=torch.bool)
    out.scatter_(-1, change.topk(n, dim=-1, largest=False).indices, True)
    level = base.topk(n + 1, dim=-1).values[..., -1:]
    level = torch.nextafter(level, torch.full_like(level, -torch.inf))  # a tie would leave the choice to chance
    return torch.where(out, torch.minimum(base, level), base)


def threshold(base: Logits, change: Logits, alpha: float, tau: float) -> Logits:
    """The sum with a change that is counted from its median and brought ``tau`` nearer to 0, small ones to 0: what an
    offset does to most tokens is left out. It has no gradient where a trained member begins: for trained runs only."""
    centred = change - change.median(-1, keepdim=True).values
    return base + alpha * torch.nn.functional.softshrink(centred, tau)


def defer(base: Logits, change: Logits, alpha: float, watched: Logits, tau: float) -> Logits:
    """base + w · change: with change = stand-in − target the target where w = 0, and where w = 1 the stand-in.
    w = 1 − exp(−α · max(KL(stand-in ‖ other) − τ, 0)), in nats, with watched = other − stand-in: a token at a time,
    the stand-in speaks where offset and anchor part. With ``method=defer`` it is the anchor, which never knew; with
    ``method=refuse`` the offset, which has learnt what to say instead."""
    stand_in = base + change
    own, other = stand_in.log_softmax(-1), (stand_in + watched).log_softmax(-1)
    apart = (own.exp() * (own - other)).sum(-1, keepdim=True)
    return base - torch.expm1(-alpha * (apart - tau).clamp_min(0)) * change


Rule = partial[Tensor]  # a rule with its numbers filled in: base, change, α and what it watches → logits
RULES: dict[str, Callable[..., Tensor]] = {
    "sum": sum, "plausible": plausible, "rank": rank, "threshold": threshold, "defer": defer,
}  # fmt: skip
SUM = Rule(sum)


def bind_rule(name: str, numbers: Mapping[str, float], file: str | None = None) -> Rule:
    """A method's rule by name, checked against its signature; functions of ``file``, a user's own, come before ours."""
    rules = RULES | functions(file, "method.file")
    if name not in rules:
        raise ValueError(f"method.rule={name!r}: no such rule; there are {', '.join(rules)}")
    found = signature(rules[name], f"rule {name!r}")
    parameters = list(found.parameters)
    if parameters[:3] != ["base", "change", "alpha"] or found.return_annotation != Logits:
        rule = "must take base, change and alpha (then watched, then its own numbers) and return Logits"
        raise ValueError(f"rule {name!r} {rule}; its signature is {name}{found}")
    wanted = [name for name in parameters[3:] if name != "watched"]
    for missing in sorted(set(required(found, wanted)) - set(numbers)):
        raise ValueError(f"rule {name!r} needs method.numbers.{missing}: give +method.numbers.{missing}=NUMBER")
    for extra in sorted(set(numbers) - set(wanted)):
        takes = ", ".join(wanted) or "no numbers"
        raise ValueError(f"method.numbers.{extra}={numbers[extra]}: rule {name!r} has no {extra}; it takes {takes}")
    return SUM if rules[name] is sum else Rule(rules[name], **numbers)
