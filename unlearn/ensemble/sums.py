"""Sums of ensembles that have their base in common: base + Σ_j α_j · change_j, as one ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unlearn.config.schema import ConfigError
from unlearn.ensemble.ensemble import Ensemble, Member


class SumError(ConfigError):
    """Ensembles that cannot be added up."""


def add(ensembles: Sequence[Ensemble], alphas: Sequence[float]) -> Ensemble:
    """Their sum at α = 1; any other α scales all changes. Equal members, by their fingerprints, become one.

    Raises ``SumError`` for ensembles of different bases.
    """
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
