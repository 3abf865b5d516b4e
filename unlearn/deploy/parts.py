"""Several trained runs over one target: what each adds to it, and whether that can be added up.

What is served and what is exported are made of the same parts, and checked by the same rules.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from unlearn.config.schema import ConfigError
from unlearn.data.encoding import Encoder
from unlearn.ensemble.combination import SUM
from unlearn.ensemble.ensemble import Ensemble, Member, add
from unlearn.models import llama
from unlearn.runs.opened import Opened
from unlearn.store.identity import digest


@dataclass(frozen=True)
class Part:
    """What one run adds to the target: its whole ensemble, whose frozen members other parts may share."""

    name: str
    ensemble: Ensemble
    weights: str | None  # fingerprint of the trained weights; None where the method trains none
    alpha: float

    @property
    def whole(self) -> bool:
        """Whether the trained weights are the model itself: then there is nothing that could be added or left out."""
        return self.ensemble.trained is not None and self.ensemble.trained.constant != 0

    @property
    def named(self) -> Ensemble:
        """Frozen members are shared by their names and fingerprints; every part's trained one gets its own."""
        own = f"{self.name}/{{}}".format
        members = self.ensemble.members
        named = (replace(m, name=own(m.name), fingerprint=own(m.fingerprint)) if m.trained else m for m in members)
        return replace(self.ensemble, members=tuple(named))


def parts_of(runs: Iterable[Opened], alphas: Sequence[float | None]) -> list[Part]:
    """The runs' parts, each run with the models of the one before that are the same; α None: the run's own."""
    found, before = [], None
    for run, alpha in zip(runs, alphas, strict=True):
        if before is not None:
            run.bench.adopt(before)
        before, trained = run.bench, run.ensemble.trained
        weights = None if trained is None else llama.fingerprint(trained.model)  # as an export says it
        found.append(Part(run.folder.name, run.ensemble, weights, run.cfg.alpha if alpha is None else alpha))
    return found


def check(parts: Sequence[Part]) -> None:
    """Raise ``ConfigError`` for parts that cannot be added to one target."""
    names = [p.name for p in parts]
    if len(set(names)) < len(names):
        raise ConfigError(f"offsets={names}: each may be given once; the folder's name is the offset's")
    known: dict[str, str] = {}  # fingerprints by frozen member
    for p in parts if len(parts) > 1 else ():
        if p.ensemble.rule is not SUM:
            raise ConfigError(f"{p.name}: its rule is {p.ensemble.rule.func.__name__!r}, and only sums can be added")
        if p.whole:
            raise ConfigError(f"{p.name}: its trained weights are a whole model, and no offset that could be added")
        for m in p.ensemble.members:
            if not m.trained and known.setdefault(m.name, m.fingerprint) != m.fingerprint:
                beside = f"was trained beside a {m.name} with the fingerprint {m.fingerprint}"
                rule = f"and that of the runs before it is {known[m.name]}; only offsets of one pair can be added"
                raise ConfigError(f"offsets: {p.name} {beside}, {rule}")


def check_tokens(parts: Sequence[Part], encoders: Sequence[Encoder]) -> None:
    """Raise ``ConfigError`` for parts that do not read the ids of the first one's tokenizer."""
    tokens = [digest(encoder.tokenizer.get_vocab()) for encoder in encoders]
    for part, own in zip(parts, tokens, strict=True):
        if own != tokens[0]:
            raise ConfigError(f"offsets: {part.name} has the tokenizer {own} (fingerprint), and run= has {tokens[0]}")


MIXES = 256  # whose sums are kept: requests may bring any α
Mix = tuple[tuple[str, float], ...]  # the offsets that are on, with their α's


class Blend:
    """The models of all parts, their sums, and what is on. ``ConfigError`` for parts that cannot be added."""

    def __init__(self, parts: Sequence[Part]):
        check(parts)
        members = parts[0].ensemble.members
        self.target = next((m for m in members if m.constant and not m.trained), members[0])
        self.parts = {p.name: replace(p, ensemble=p.named) for p in parts}
        self._base = Ensemble(tuple(m for m in self.parts[parts[0].name].ensemble.members if m.constant))
        self._switched = {p.name: (True, p.alpha) for p in parts}  # for requests that come from now on
        self.joined = lru_cache(MIXES)(self._joined)

    def _joined(self, mix: Mix) -> tuple[Ensemble, float]:
        """What answers with a mix, and the α at which it does: a single part as it is, several as one sum."""
        if not mix:
            return self._base, 0.0
        parts = [self.parts[name].ensemble for name, _ in mix]
        ensemble, alpha = (parts[0], mix[0][1]) if len(mix) == 1 else (add(parts, [alpha for _, alpha in mix]), 1.0)
        return ensemble.once, alpha

    def members(self, mix: Mix) -> list[Member]:
        """Those that must be run; of what is off, or has no weight, none."""
        ensemble, alpha = self.joined(mix)
        return ensemble.needed([alpha])

    def attested(self, mix: Mix) -> dict[str, Any]:
        """What answers with this mix: fingerprints of the target and of the offsets that are on, with their α's."""
        offsets = [{"name": n, "alpha": a, "weights": self.parts[n].weights} for n, a in mix]
        return {"target": self.target.fingerprint, "offsets": offsets}

    def switches(self) -> list[dict[str, Any]]:
        found = self._switched.items()
        return [{"name": n, "on": on, "alpha": a, "weights": self.parts[n].weights} for n, (on, a) in found]

    def switch(self, name: str, on: bool | None, alpha: float | None) -> None:
        """None leaves it as it is. ``ValueError`` for a model that is not an offset."""
        if on is False and self.parts[name].whole:
            raise ValueError(f"{name}: its trained weights are the model itself, which cannot be switched off")
        was_on, was = self._switched[name]
        self._switched |= {name: (was_on if on is None else on, was if alpha is None else alpha)}

    def mix(self, names: Sequence[str] | None = None, alpha: float | None = None) -> Mix:
        """What is on; or the offsets of these names, and all at this α. ``ValueError`` for a model that is none."""
        whole = next((n for n, p in self.parts.items() if p.whole), None)
        if whole is not None and names is not None and whole not in names:
            raise ValueError(f"{whole}: its trained weights are the model itself, which cannot be left out")
        chosen = [(n, a) for n, (on, a) in self._switched.items() if (on if names is None else n in names)]
        return tuple((n, a if alpha is None else alpha) for n, a in chosen)
