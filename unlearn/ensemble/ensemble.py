"""An unlearned model is a weighted sum of next-token logits: l = Σ_i w_i · l_i, with w_i = constant_i + slope_i · α.

δ-Unlearning (arXiv 2404.11045, Eq. 1) is target + α (offset − anchor). change = Σ slope_i · l_i is summed first: where
offset and anchor agree it is exactly zero, and the ensemble is the target bit for bit. Rules: ``combination.py``.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from unlearn.config.schema import ConfigError, MemberConfig
from unlearn.ensemble.combination import SUM, Rule
from unlearn.ensemble.kinds import Kind, kind_of


@dataclass(frozen=True)
class Member:
    name: str
    model: nn.Module
    fingerprint: str  # of the weights when the ensemble was made; says nothing about a trained member later
    constant: float = 1.0
    slope: float = 0.0
    trained: bool = False
    watch: float = 0.0

    @cached_property
    def kind(self) -> Kind:
        """The interface of its model: causal, encoder–decoder or black box."""
        return kind_of(self.model)

    def weight(self, alpha: float) -> float:
        return self.constant + self.slope * alpha


@dataclass(frozen=True)
class Ensemble:
    members: tuple[Member, ...]
    rule: Rule = SUM

    @property
    def trained(self) -> Member | None:
        """The member that learns; None where a method only combines what is there."""
        return next((m for m in self.members if m.trained), None)

    @property
    def encodes(self) -> bool:
        """Whether a member has an encoder: then prompts are read whole, and cannot be continued by a draft."""
        return any(m.kind.encodes for m in self.members)

    @cached_property
    def once(self) -> "Ensemble":
        """The same sum in which frozen members of one fingerprint are one member, with all their weight: read once, and
        not at all where it cancels. What is trained reads every member by itself, as runs always did."""
        found: dict[object, Member] = {}
        for m in self.members:
            key = m.name if m.trained or not m.fingerprint else (m.fingerprint,)
            same = found.get(key)
            if same is not None:
                total = {name: getattr(same, name) + getattr(m, name) for name in ("constant", "slope", "watch")}
                m = replace(same, **total)
            found[key] = m
        return self if len(found) == len(self.members) else replace(self, members=tuple(found.values()))

    def frozen(self, alpha: float) -> list[Member]:
        """Frozen members that count at this α."""
        return [m for m in self.members if not m.trained and self._counts(m, alpha)]

    def needed(self, alphas: Sequence[float]) -> list[Member]:
        """Members that count at one of the α's at least."""
        return [m for m in self.members if any(self._counts(m, a) for a in alphas)]

    def logits(self, rows: Mapping[str, Tensor], alpha: float) -> Tensor:
        """Logits of the ensemble, [N, V], from the rows of its members by name; those that do not count at this α may
        be missing. In a plain sum, a single member of weight 1 is returned as it is."""
        used = [m for m in self.members if self._counts(m, alpha) or (m.trained and m.name in rows)]
        if self.rule is SUM and len(used) == 1 and used[0].weight(alpha) == 1:
            return rows[used[0].name]
        base = _sum((m.constant, rows[m.name]) for m in used)
        change = _sum((m.slope, rows[m.name]) for m in used)
        if change is None:
            return base
        if base is None or self.rule is SUM:
            return alpha * change if base is None else base + alpha * change
        if alpha == 0:
            return base
        watched = _sum((m.watch, rows[m.name]) for m in used)
        return self.rule(base, change, alpha) if watched is None else self.rule(base, change, alpha, watched)

    @torch.no_grad()
    def sweep(self, rows: Mapping[str, Tensor], alphas: Sequence[float]) -> Iterator[tuple[float, Tensor]]:
        """As ``logits`` without gradient, at each α in turn; of a plain sum base and change are taken once. Logits may
        lie in memory that the next α overwrites; do not write into them."""
        if self.rule is not SUM:
            yield from ((alpha, self.logits(rows, alpha)) for alpha in alphas)
            return
        base = _sum((m.constant, rows[m.name]) for m in self.members if m.name in rows)
        change = _sum((m.slope, rows[m.name]) for m in self.members if m.name in rows)
        # fresh pages would cost more than the sum
        buffer = None if base is None or change is None else torch.empty_like(base)
        for alpha in alphas:
            if base is None:
                yield alpha, alpha * change
            else:
                yield alpha, base if change is None or alpha == 0 else torch.add(base, change, alpha=alpha, out=buffer)

    def _counts(self, member: Member, alpha: float) -> bool:
        if self.rule is SUM:  # only a sum lets a constant and a slope cancel
            return member.weight(alpha) != 0
        return member.constant != 0 or (alpha != 0 and (member.slope != 0 or member.watch != 0))


def _sum(terms) -> Tensor | None:
    total = None
    for factor, logits in terms:
        if factor != 0:
            term = logits if factor == 1 else factor * logits
            total = term if total is None else total + term
    return total


def build(
    members: Sequence[MemberConfig],
    models: Mapping[str, nn.Module],
    fingerprints: Mapping[str, str],
    widths: Mapping[str, int],
    rule: Rule = SUM,
) -> Ensemble:
    """An ensemble from models by member name; refuse vocabularies of different width."""
    if len(set(widths.values())) > 1:
        sizes = ", ".join(f"{name} {width:,}" for name, width in widths.items())
        raise ValueError(f"members must share one vocabulary, index for index; widths are: {sizes}")
    found = tuple(
        Member(m.name, models[m.name], fingerprints[m.name], m.constant, m.slope, m.trained, m.watch) for m in members
    )
    return Ensemble(found, rule)


def add(ensembles: Sequence[Ensemble], alphas: Sequence[float]) -> Ensemble:
    """base + Σ_j α_j · change_j of ensembles that have their base in common, as one ensemble at α = 1. Equal members,
    by their fingerprints, become one. ``ConfigError`` for ensembles of different bases."""
    base = _base(ensembles[0])
    total = {m.fingerprint: replace(m, slope=0.0) for m in ensembles[0].members if m.constant}
    for ensemble, alpha in zip(ensembles, alphas, strict=True):
        if _base(ensemble) != base:
            raise ConfigError(f"offsets of different targets cannot be added: {base} and {_base(ensemble)}")
        for m in ensemble.members:
            if m.slope:
                before = total.get(m.fingerprint) or replace(m, constant=0.0, slope=0.0)
                total[m.fingerprint] = replace(before, slope=before.slope + alpha * m.slope)
    names: Counter[str] = Counter()  # runs of different pairs each call theirs ``anchor``
    members = []
    for m in total.values():
        names[m.name] += 1
        members.append(m if names[m.name] == 1 else replace(m, name=f"{m.name}_{names[m.name]}"))
    return Ensemble(tuple(members))


def _base(ensemble: Ensemble) -> list[tuple[str, float]]:
    return sorted((m.fingerprint, m.constant) for m in ensemble.members if m.constant)
