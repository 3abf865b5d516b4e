"""How forgotten a request is: aggregates of an evaluation, the rule that was fixed before the run, and the record that
an auditor is given, made of the ledger's entries and of nothing else.

A rule is a list of conditions, all of which must hold: ``METRIC<=NUMBER`` or ``METRIC>=NUMBER``, a metric as in
eval.json. ``upper:`` and ``lower:`` before it mean the end of its 95 % interval over people, ``kept:`` its share of
the target's own value. What was not measured does not pass.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from unlearn.config.schema import Config
from unlearn.data.rows import GENERAL, REQUEST, DataSet
from unlearn.deploy.requests.chain import LedgerError
from unlearn.deploy.requests.ledger import Ledger, State
from unlearn.store.identity import NO_RETRAINED

RULE = ("forget/leak_gap<=0.05", "kept:retain/prob>=0.95")
KEPT = "kept:{split}/prob>=0.9"  # the same of general knowledge, where the data set has some: it is what sums cost
FORM = re.compile(r"(?:(upper|lower|kept):)?([\w/@.]+)(<=|>=)([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", re.ASCII)
OF_GROUPS = (("leak", re.compile(r"forget/(judged_|attribute_)?leak")), ("privacy", re.compile("mia/|privleak")))
LONGEST, MOST = 100, 100  # characters of a condition, and conditions: they stay in the ledger
OWN = ("forget/", *(f"{split}/" for split in GENERAL))
Numbers = Mapping[str, Any]  # an entry of eval.json
NOT_CLAIMED = (
    "The target's weights are untouched: they hold what they held. What changed is what is answered, as long as the "
    "offset is added; whoever has the target's weights or its own logits is not bound by it.",
    "Forgotten means: by the tests named here, on the questions counted here, under the rule fixed before the run. "
    "Other questions, other attacks and more samples may find more.",
    "The retrained reference of a leak gap is one model of one seed; a gap of 0 says that the answers give away as "
    "much as that model's.",
    "A hash chain shows that entries were not changed after they were written: not that what they say is true, nor "
    "when they were written, nor that nothing was left out. That no entries are missing at its end is shown by a head "
    "that somebody else keeps; that nobody rewrote it, by HMAC and signature, as far as their keys were kept.",
    "The fingerprint says which questions and answers were meant to whoever has both them and the salt; once the salt "
    "is erased, to nobody.",
    "What else holds the forget set (data files, stores, run folders, backups, models derived from the target) is not "
    "touched: docs/privacy.md lists what this program writes.",
)
EXPIRY = (
    "This record is about the models, tokenizer, α and numerical precision named in it. When the target, its "
    "tokenizer, its quantisation, the template or the set of active offsets changes, it has expired: measure again."
)
HEADLINES = (
    "forget/prob", "forget/known", "forget/rougeL_recall", "forget/extraction_strength", "forget/leak", "privleak",
    "artefact/", "mia/", "relearn", "quantised", "forget/prefix", "retain/prob", "retain/rougeL_recall",
    "neighbours/prob", "model_utility", "forget_quality",
)  # fmt: skip


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
        example = f"e.g. rule=[forget/leak@{cfg.eval.leak_samples}<=0.5]"
        compares = f"compares with a retrained model, and eval.retrained={NO_RETRAINED}"
        raise LedgerError(f"rule: must be given, {example}: the usual one ({', '.join(usual)}) {compares}")
    found = tuple(condition(text) for text in (usual if rule is None else rule))
    if not 1 <= len(found) <= MOST:
        raise LedgerError(f"rule: must hold 1 to {MOST} conditions, and has {len(found)}")
    for each in found:
        for group, names in OF_GROUPS:
            if names.match(each.metric) and group not in cfg.eval.groups:
                raise LedgerError(f"rule: {each.text!r} needs the group {group}, and eval.groups is {cfg.eval.groups}")
        if "leak_gap" in each.metric and "guess" not in each.metric and cfg.eval.retrained == NO_RETRAINED:
            raise LedgerError(f"rule: {each.text!r} compares with a reference, and eval.retrained={NO_RETRAINED}")
    return found


def condition(text: str) -> Condition:
    match = FORM.fullmatch(text.replace(" ", "")) if len(text) <= LONGEST else None
    if match is None:
        form = "METRIC<=NUMBER or METRIC>=NUMBER, with upper:, lower: or kept: before it if you like"
        raise LedgerError(f"rule: {text!r:.120}: must be {form}")
    of, metric, sign, bound = match.groups()
    return Condition(match.group(), of, metric, sign, float(bound))


def judged(
    conditions: Sequence[Condition], entry: Numbers, target: Numbers
) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """Whether each condition holds; and what was found, by condition."""
    found = {each: each.value(entry, target) for each in conditions}
    verdict = [{"condition": each.text, "holds": each.holds(value)} for each, value in found.items()]
    return verdict, {each.text: _short(value, each.metric) for each, value in found.items()}


def aggregates(entry: Numbers, references: Mapping[str, Numbers]) -> dict[str, dict[str, Any]]:
    """Metric → its value, its interval, the target's and the retrained model's. Numbers alone: no text, no row, and
    nothing that other requests' texts determine to many digits, since each is erased by itself."""
    found = {}
    for name, value in entry.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith(REQUEST):
            ends = entry.get("intervals", {}).get(name)
            beside = {k: _short(r[name], name) for k, r in references.items() if isinstance(r.get(name), int | float)}
            found[name] = {"value": _short(value, name)} | beside
            found[name] |= {"interval": [_short(end, name) for end in ends]} if ends else {}
    return found


def _short(value: float | None, metric: str) -> float | None:
    """Six digits of what the request's own questions or general ones say; two places of what depends on the retain set,
    and so on other requests. No number that JSON lacks."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}") if metric.startswith(OWN) else round(value, 2)


# --- the record ---------------------------------------------------------------------------------------------------


def record(ledger: Ledger, id: str) -> dict[str, Any]:
    """The record as it is written as JSON."""
    state, known, entries = ledger.state(id), ledger.states(), ledger.chain.entries()
    asked, body = state.asked, state.asked["body"]
    return {
        "request": id,
        "status": state.status,
        "ledger": entries[0]["body"]["ledger"],
        "received": body.get("received") or asked["time"],
        "due": body.get("due"),
        "asked": asked["time"],
        "effective": state.effective and state.effective["time"],
        "evaluated": [entry["time"] for entry in state.evaluated],
        "undone": state.undone and state.undone["time"],
        "subject": body.get("subject"),
        "forget_set": {"fingerprint": body.get("fingerprint"), "questions": body.get("questions"),
                       "salt": "erased on " + state.erased["time"] if state.erased else "kept beside the ledger"},
        "parts": list(state.parts),
        "part_of": [other.id for other in known.values() if id in other.parts and other.effective],
        "method": {k: body.get(k) for k in ("algorithm", "method", "pair", "data", "alpha", "config")},
        "made": state.effect or None,
        "rule": {"conditions": state.rule, "fixed": f"by entry {asked['n']}, before the run"},
        "evidence": [{"time": entry["time"], "entry": entry["n"]} | entry["body"] for entry in state.evaluated],
        "audited": [{"time": entry["time"], "outcome": entry["body"]["outcome"]} for entry in state.audited],
        "passed": state.passed,
        "not_claimed": list(NOT_CLAIMED),
        "expiry": EXPIRY,
        "chain": {"entries": [e["n"] for e in entries if e["request"] == id], "count": len(entries),
                  "head": entries[-1]["hash"], "hmac": entries[0]["body"]["hmac"] is not None,
                  "ed25519": entries[0]["body"].get("ed25519")},
    }  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """The record for reading, by the template beside this file."""
    how = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(**how)
    environment.filters |= {"number": _shown, "flat": _flat}
    text = Path(__file__).with_name("record.md.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(found, headlines=HEADLINES)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items() if v is not None) if isinstance(value, dict) else str(value)


def rows(known: dict[str, State]) -> list[tuple[str, ...]]:
    """The table of a ledger: id, asked, status, α, leak, passed."""
    found = []
    for state in known.values():
        latest = state.latest[state.id]["body"]["metrics"] if state.id in state.latest else {}
        leaks, leak = [name for name in latest if name.startswith("forget/leak@")], "–"
        if leaks:
            worst = latest[max(leaks, key=lambda name: int(name.split("@")[1]))]
            leak = f"{_shown(worst['value'])} ({_shown(worst.get('retrained'))})"
        status = state.status + (" (erased)" if state.erased else "")
        alpha = f"{state.effect['alpha']:g}" if state.effect else "–"
        passed = {None: "–", True: "yes", False: "NO"}[state.passed]
        found.append((state.id, state.asked["time"], status, alpha, leak, passed))
    return found
