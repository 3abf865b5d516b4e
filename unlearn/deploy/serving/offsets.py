"""Several offsets of one target: target + Σ_j α_j (offset_j − anchor), each on or off for every request.

``Blend`` has the models, as one ensemble for each ``Mix``, which is what one answer is made with, from its first token
to its last. Which offsets are on, and with which α, may change while the server runs.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from unlearn.deploy.parts import Part, check
from unlearn.ensemble.ensemble import Ensemble, Member, add

MIXES = 256  # whose sums are kept: requests may bring any α
Mix = tuple[tuple[str, float], ...]  # the offsets that are on, with their α's


class Blend:
    """The models of all parts, their sums, and what is on. ``ConfigError`` for parts that cannot be added to one
    target."""

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
