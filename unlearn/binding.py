"""From an objective's names and numbers to terms that can be called, checked against their signatures."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unlearn.answers import Answers, ObjectiveError, PerAnswer, PerToken
from unlearn.losses import FORGET, RETAIN, Term

REFUSALS = {"refusal": "forget", "retain_refusal": "retain"}  # refusals to the questions of which split
READS = ("forget", "refusal", "retain", "retain_refusal")


@dataclass(frozen=True)
class BoundTerm:
    """A term with its numbers filled in and its weight."""

    name: str
    function: Term
    reads: tuple[str, ...]  # which answers; the first decides what the mean is taken over
    per_token: bool  # its values are per answer token, not per answer
    numbers: Mapping[str, float]
    weight: float

    def __call__(self, answers: Mapping[str, Answers]) -> Tensor:
        return self.function(**{name: answers[name] for name in self.reads}, **self.numbers)


def bind(
    forget: str,
    retain: str,
    forget_weight: float,
    retain_weight: float,
    numbers: Mapping[str, float | None],
    file: str | None = None,
) -> list[BoundTerm]:
    """The terms of an objective by name, checked against their signatures.

    ``numbers`` holds the settings by name (β, γ …), None where not given. One that no term takes is refused, as is a
    term that misses one of its own. Functions of ``file``, a user's own, come before ours.
    """
    own = _functions(file) if file is not None else {}
    forgets, retains = FORGET | own, RETAIN | own
    for name, kind, table in ((forget, "forget", forgets), (retain, "retain", retains)):
        if name not in table:
            raise ObjectiveError(f"algo.{kind}={name!r}: no such {kind} term; there are {', '.join(table)}")
    given = {k: v for k, v in numbers.items() if v is not None}
    terms = [_bound(forget, forgets[forget], given, forget_weight)]
    if retains[retain] is not None:
        terms.append(_bound(retain, retains[retain], given, retain_weight))
    taken = {k for t in terms for k in t.numbers}
    for extra in sorted(set(given) - taken):
        raise ObjectiveError(
            f"algo.{extra}={given[extra]}: neither {forget!r} nor {retain!r} has a {extra}; "
            f"they take {', '.join(sorted(taken)) or 'no numbers'}"
        )
    return terms


def _functions(file: str) -> dict[str, Term]:
    """The public functions that a user's file defines itself."""
    spec = importlib.util.spec_from_file_location(f"unlearn_user_{Path(file).stem}", file)
    if spec is None or spec.loader is None:
        raise ObjectiveError(f"algo.file={file!r}: not a Python file, its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ObjectiveError(f"algo.file={file!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = inspect.getmembers(module, inspect.isfunction)
    return {name: f for name, f in found if f.__module__ == module.__name__ and not name.startswith("_")}


def _bound(name: str, function: Term, given: Mapping[str, float], weight: float) -> BoundTerm:
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError as error:
        raise ObjectiveError(f"term {name!r}: its annotations cannot be read: {error}") from error
    reads = tuple(p for p in signature.parameters if p in READS)
    if not reads or signature.return_annotation not in (PerToken, PerAnswer):
        raise ObjectiveError(
            f"term {name!r} must take one or more of {', '.join(READS)} and return PerToken or "
            f"PerAnswer; its signature is {name}{signature}"
        )
    wanted = [p for p in signature.parameters if p not in READS]
    for p in wanted:
        if p not in given:
            raise ObjectiveError(f"term {name!r} needs algo.{p}, which is not set")
    return BoundTerm(
        name, function, reads, signature.return_annotation == PerToken, {p: given[p] for p in wanted}, weight
    )
