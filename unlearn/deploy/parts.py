"""Several trained runs over one target: what each adds to it, and whether that can be added up.

What is served and what is exported are made of the same parts, and checked by the same rules.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from unlearn.config.schema import ConfigError
from unlearn.data.encoding import Encoder
from unlearn.ensemble.combination import SUM
from unlearn.ensemble.ensemble import Ensemble
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
            is_not = f"has a tokenizer with the fingerprint {own}, and that of run= is {tokens[0]}"
            raise ConfigError(f"offsets: {part.name} {is_not}")
