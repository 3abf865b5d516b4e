"""The sum of several trained offsets as one ensemble: target + Σ_j α_j (offset_j − anchor).

Every run of one target and pair gives a member; what they share is there once, so m offsets cost m + 2 forward passes
a token, and one offset 3. Evaluated at α = 1; any other α scales all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unlearn.combination import SUM
from unlearn.config import ConfigError
from unlearn.ensemble import Ensemble, Member
from unlearn.identity import Job
from unlearn.job import members
from unlearn.models import llama
from unlearn.world import World


class SumError(ConfigError):
    """Runs whose answers cannot be added up."""


@dataclass(frozen=True)
class Part:
    """One run's offset and its weight."""

    job: Job
    alpha: float


def summed(parts: Sequence[Part], world: World) -> Ensemble:
    """The members of all parts. The offsets no longer learn and have the fingerprints of their weights, so their rows
    are found in the store like any frozen model's.

    Raises ``SumError`` for a method that is no weighted sum, or that changes the target itself; ``ConfigError`` where
    a run was made with other models than the world's.
    """
    return add([_frozen(part, number, world) for number, part in enumerate(parts, 1)], [part.alpha for part in parts])


def add(ensembles: Sequence[Ensemble], alphas: Sequence[float]) -> Ensemble:
    """base + Σ_j α_j · change_j of ensembles that have their base in common; equal members are added up into one."""
    base = _base(ensembles[0])
    total: dict[str, Member] = {m.fingerprint: m for m in base}
    for ensemble, alpha in zip(ensembles, alphas, strict=True):
        if _described(_base(ensemble)) != _described(base):
            raise SumError(
                f"offsets of different targets cannot be added: {_described(base)} and {_described(_base(ensemble))}"
            )
        for m in ensemble.members:
            if m.slope:
                before = total.get(m.fingerprint) or replace(m, constant=0.0, slope=0.0)
                total[m.fingerprint] = replace(before, slope=before.slope + alpha * m.slope)
    return Ensemble(tuple(_named(list(total.values()))))


def _frozen(part: Part, number: int, world: World) -> Ensemble:
    ensemble = members(part.job.cfg, world, part.job.folder)
    trained, place = ensemble.trained, part.job.folder
    if ensemble.rule is not SUM:
        raise SumError(f"{place}: method.rule={ensemble.rule.name!r}: only plain sums can be added up")
    if trained is not None and trained.constant:
        raise SumError(f"{place}: method={part.job.cfg.method.name!r} changes the target: there is no offset to add")
    if trained is None:
        return ensemble
    own = replace(trained, name=f"offset_{number}", fingerprint=llama.fingerprint(trained.model), trained=False)
    return Ensemble(tuple(own if m.trained else m for m in ensemble.members))


def _base(ensemble: Ensemble) -> list[Member]:
    return [replace(m, slope=0.0) for m in ensemble.members if m.constant]


def _described(found: Sequence[Member]) -> list[tuple[str, float]]:
    return sorted((m.fingerprint, m.constant) for m in found)


def _named(found: Sequence[Member]) -> list[Member]:
    """No two with one name: runs of different pairs each call theirs ``anchor``."""
    names: dict[str, int] = {}
    result = []
    for m in found:
        names[m.name] = names.get(m.name, 0) + 1
        result.append(m if names[m.name] == 1 else replace(m, name=f"{m.name}_{names[m.name]}"))
    return result
