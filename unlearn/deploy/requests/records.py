"""The evidence record of a request: what an auditor is given, made of the ledger's entries and of nothing else. Its
limits are ``NOT_CLAIMED``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from unlearn.deploy.requests.ledger import Ledger, State

NOT_CLAIMED = (
    "The target's weights are untouched: they hold what they held. What changed is what is answered, as long as the "
    "offset is added; whoever has the target's weights or its own logits is not bound by it.",
    "Forgotten means: by the tests named here, on the questions counted here, under the rule fixed before the run. "
    "Other questions, other attacks and more samples may find more.",
    "The retrained reference of a leak gap is one model of one seed; a gap of 0 says that the answers give away as "
    "much as that model's.",
    "A hash chain shows that entries were not changed after they were written: not that what they say is true, nor "
    "when they were written, nor that nothing was left out. That no entries are missing at its end is shown by a head "
    "that somebody else keeps; that nobody wrote it anew, by the HMAC, as far as its key was kept.",
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
    "forget/prob", "forget/rougeL_recall", "forget/extraction_strength", "forget/leak", "privleak", "mia/", "relearn",
    "quantised", "forget/prefix", "retain/prob", "retain/rougeL_recall", "model_utility", "forget_quality",
)  # fmt: skip


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
        "passed": state.passed,
        "not_claimed": list(NOT_CLAIMED),
        "expiry": EXPIRY,
        "chain": {"entries": [e["n"] for e in entries if e["request"] == id], "count": len(entries),
                  "head": entries[-1]["hash"], "hmac": entries[0]["body"]["hmac"] is not None},
    }  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """The record for reading, by the template beside this file."""
    how = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(**how)
    environment.filters |= {"number": _number, "flat": _flat}
    text = Path(__file__).with_name("record.md.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(found, headlines=HEADLINES)


def _number(value: float | None) -> str:
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
            leak = f"{_number(worst['value'])} ({_number(worst.get('retrained'))})"
        status = state.status + (" (erased)" if state.erased else "")
        alpha = f"{state.effect['alpha']:g}" if state.effect else "–"
        passed = {None: "–", True: "yes", False: "NO"}[state.passed]
        found.append((state.id, state.asked["time"], status, alpha, leak, passed))
    return found
