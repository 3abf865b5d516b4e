"""How forgotten a request is: aggregates of an evaluation, and the rule that was fixed before the run.

A rule is a list of conditions, all of which must hold: ``METRIC<=NUMBER`` or ``METRIC>=NUMBER``, a metric as in
eval.json. ``upper:`` and ``lower:`` before it mean the end of its 95 % interval over questions, ``kept:`` its share of
the target's own value. What was not measured does not pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn.config.schema import Config
from unlearn.data.rows import GENERAL, DataSet
from unlearn.deploy.requests.chain import LedgerError
from unlearn.store.identity import NO_RETRAINED

RULE = ("forget/leak_gap<=0.05", "kept:retain/prob>=0.95")
KEPT = "kept:{split}/prob>=0.9"  # the same of general knowledge, where the data set has some: it is what sums cost
FORM = re.compile(r"(?:(upper|lower|kept):)?([\w/@.]+)(<=|>=)([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", re.ASCII)
OF_GROUPS = (("leak", re.compile(r"forget/(judged_|attribute_)?leak")), ("privacy", re.compile("mia/|privleak")))
Numbers = Mapping[str, Any]  # an entry of eval.json


@dataclass(frozen=True)
class Condition:
    """One line of a rule."""

    text: str
    of: str | None  # upper, lower, kept; None: the metric itself
    metric: str
    sign: str
    bound: float

    def value(self, entry: Numbers, target: Numbers) -> float | None:
        """What is compared with the bound; None where it was not measured."""
        if self.of in ("upper", "lower"):
            ends = entry.get("intervals", {}).get(self.metric)
            return None if ends is None else ends[self.of == "upper"]
        value, whole = entry.get(self.metric), target.get(self.metric)
        if self.of == "kept" and value is not None:
            return value / whole if whole else None
        return value

    def holds(self, value: float | None) -> bool:
        return value is not None and (value <= self.bound if self.sign == "<=" else value >= self.bound)


def conditions(rule: Sequence[str] | None, cfg: Config, data: DataSet) -> tuple[Condition, ...]:
    """Those of a rule, or of the usual one; ``LedgerError`` for one that nothing could meet."""
    usual = (*RULE, *(KEPT.format(split=split) for split in GENERAL if data.splits.get(split)))
    if rule is None and cfg.eval.retrained == NO_RETRAINED:
        raise LedgerError(
            f"rule: must be given: the usual one ({', '.join(usual)}) compares with a retrained reference, and "
            f"eval.retrained={NO_RETRAINED} leaves it out; e.g. rule=[forget/leak@{cfg.eval.leak_samples}<=0.5]"
        )
    found = tuple(condition(text) for text in (usual if rule is None else rule))
    if not found:
        raise LedgerError("rule=[]: must hold one condition at least")
    for each in found:
        for group, names in OF_GROUPS:
            if names.match(each.metric) and group not in cfg.eval.groups:
                raise LedgerError(f"rule: {each.text!r} needs the group {group}, and eval.groups is {cfg.eval.groups}")
        if "leak_gap" in each.metric and cfg.eval.retrained == NO_RETRAINED:
            raise LedgerError(f"rule: {each.text!r} compares with a reference, and eval.retrained={NO_RETRAINED}")
    return found


def condition(text: str) -> Condition:
    match = FORM.fullmatch(text.replace(" ", ""))
    if match is None:
        form = "METRIC<=NUMBER or METRIC>=NUMBER, with upper:, lower: or kept: before it if you like"
        raise LedgerError(f"rule: {text!r}: must be {form}")
    of, metric, sign, bound = match.groups()
    return Condition(match.group(), of, metric, sign, float(bound))


def judged(conditions: Sequence[Condition], entry: Numbers, target: Numbers) -> list[dict[str, Any]]:
    """Each condition with what was found, and whether it holds."""
    found = [(each, each.value(entry, target)) for each in conditions]
    return [{"condition": c.text, "value": _short(value), "holds": c.holds(value)} for c, value in found]


def aggregates(entry: Numbers, references: Mapping[str, Numbers]) -> dict[str, dict[str, Any]]:
    """Metric → its value, its interval, the target's and the retrained model's. Numbers alone: no text, no row."""
    found = {}
    for name, value in entry.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            ends = entry.get("intervals", {}).get(name)
            beside = {k: _short(r[name]) for k, r in references.items() if isinstance(r.get(name), int | float)}
            found[name] = {"value": _short(value)} | ({"interval": [_short(e) for e in ends]} if ends else {}) | beside
    return found


def _short(value: float | None) -> float | None:
    """Six digits; no number that JSON lacks."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
