"""From an objective's names and numbers to terms that can be called, checked against their signatures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from unlearn.config.own import functions, required, signature
from unlearn.config.schema import NUMBERS
from unlearn.learning.answers import PerAnswer, PerLaterToken, PerToken
from unlearn.learning.losses import FORGET, RETAIN, Term

REFUSALS = ("refusal", "retain_refusal")
PAIRED = {"refusal": "forget", "retain_refusal": "retain", "alternates": "forget"}  # answers to which split's questions
TEXTS = {"forget_text": "forget"}  # whole texts, prompt included, of which split
Numbers = Mapping[str, float | None]
READS = ("forget", "refusal", "alternates", "forget_text", "retain", "retain_refusal")


@dataclass(frozen=True)
class BoundTerm:
    """A term with its numbers filled in and its weight."""

    name: str
    function: partial[Tensor]  # of the answers that it reads, by name
    reads: tuple[str, ...]  # which answers; the first decides what the mean is taken over
    per_token: bool  # its values are per answer token, not per answer
    first: bool  # the first token of an answer counts, too
    weight: float

    @property
    def layer(self) -> int | None:
        """The layer whose hidden states the term reads; None for terms of the logits alone."""
        return int(self.function.keywords["layer"]) if "layer" in self.function.keywords else None


def read_by(terms: Iterable[BoundTerm]) -> list[str]:
    """Names of the answers that terms read, in the order of the terms: a set's differs between processes, and with it
    the last digits of a sum."""
    return list(dict.fromkeys(name for term in terms for name in term.reads))


def bind(
    forget: str, retain: str, forget_weight: float, retain_weight: float, numbers: Numbers, file: str | None = None
) -> list[BoundTerm]:
    """The terms of an objective by name, checked against their signatures; functions of ``file``, a user's own, come
    first. ``numbers``: settings by name (β, γ …), None where not given; what no term takes, or one lacks, is
    refused."""
    own, terms = functions(file, "algo.file"), []
    given = {k: v for k, v in numbers.items() if v is not None}
    kinds = (("forget", forget, FORGET | own, forget_weight), ("retain", retain, RETAIN | own, retain_weight))
    for kind, name, table, weight in kinds:
        if name not in table:
            raise ValueError(f"algo.{kind}={name!r}: no such {kind} term; there are {', '.join(table)}")
        if table[name] is not None:
            terms.append(_bound(name, table[name], given, weight))
    taken = {k for t in terms for k in t.function.keywords}
    for extra in sorted(set(given) - taken):
        take = ", ".join(sorted(taken)) or "no numbers"
        raise ValueError(f"algo.{extra}={given[extra]}: neither {forget!r} nor {retain!r} has it; they take {take}")
    return terms


def _bound(name: str, function: Term, given: Mapping[str, float], weight: float) -> BoundTerm:
    found = signature(function, f"term {name!r}")
    reads = tuple(p for p in found.parameters if p in READS)
    if not reads or found.return_annotation not in (PerToken, PerLaterToken, PerAnswer):
        rule = f"must take one or more of {', '.join(READS)} and return PerToken or PerAnswer"
        raise ValueError(f"term {name!r} {rule}; its signature is {name}{found}")
    if len({(PAIRED | TEXTS).get(p, p) for p in reads}) > 1:  # they are drawn and split separately
        raise ValueError(f"term {name!r} reads {', '.join(reads)}: forget and retain questions need a term each")
    wanted = [p for p in found.parameters if p not in READS]
    for p in required(found, wanted):
        if p not in given:
            place, sign = (f"algo.{p}", "") if p in NUMBERS else (f"algo.numbers.{p}", "++")  # in the file or not
            raise ValueError(f"term {name!r} needs {place}, which is not set: give {sign}{place}=NUMBER")
    numbers = {p: given.get(p, found.parameters[p].default) for p in wanted}
    gives = found.return_annotation
    per_token, first = gives != PerAnswer, gives != PerLaterToken
    return BoundTerm(name, partial(function, **numbers), reads, per_token, first, weight)
