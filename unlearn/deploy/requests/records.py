"""The evidence record of a request: what an auditor is given, made of the ledger's entries and of nothing else. Its
limits are ``NOT_CLAIMED``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from unlearn.deploy.requests.ledger import Ledger
from unlearn.deploy.requests.states import State

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
        "effective": _time(state.effective),
        "evaluated": [entry["time"] for entry in state.evaluated],
        "undone": _time(state.undone),
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
    facts = {
        "received": found["received"], "due": found["due"], "asked": found["asked"], "effective": found["effective"],
        "undone": found["undone"], "subject (salted)": found["subject"],
        "forget set (salted)": found["forget_set"]["fingerprint"], "questions": found["forget_set"]["questions"],
        "salt": found["forget_set"]["salt"], "fuses": ", ".join(found["parts"]) or None,
        "part of": ", ".join(found["part_of"]) or None,
    }  # fmt: skip
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(Path(__file__).with_name("record.md.j2").read_text(encoding="utf-8"))
    return template.render(
        found,
        facts=[(k, v) for k, v in facts.items() if v is not None],
        what_answers=_what_answers(found),
        verdict=_verdict,
        headlines=_headlines,
    )


def _what_answers(found: dict[str, Any]) -> list[tuple[str, str]]:
    made = found["made"]
    if made is None:
        return []
    rows = [(k, v) for k, v in found["method"].items() if v is not None and k != "alpha"]
    rows += [("α", made["alpha"]), ("seeds", made["seeds"]), ("code", made["code"]), ("lineage", made["lineage"])]
    rows += [(f"weights {name}", f"sha256 {digest}") for name, digest in made["weights"].items()]
    rows += [(f"model {name}", print_) for name, print_ in (made["models"] or {}).items()]
    return [(k, _flat(v)) for k, v in rows]


def _verdict(each: dict[str, Any]) -> list[tuple[str, ...]]:
    rule = each["rule"]
    return [(r["condition"], _number(r["value"]), "holds" if r["holds"] else "does not hold") for r in rule]


def _headlines(each: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, values in each["metrics"].items():
        if name.startswith(HEADLINES):
            ends = " … ".join(map(_number, values.get("interval", [])))
            rows.append(
                (name, _number(values["value"]), ends, *(_number(values.get(k)) for k in ("target", "retrained")))
            )
    return rows


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _flat(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)


def _time(entry: dict[str, Any] | None) -> str | None:
    return None if entry is None else entry["time"]


def rows(known: dict[str, State]) -> list[tuple[str, ...]]:
    """The table of a ledger: id, asked, status, α, leak, passed."""
    found = []
    for state in known.values():
        latest = state.latest[state.id]["body"]["metrics"] if state.id in state.latest else {}
        leaks = [name for name in latest if name.startswith("forget/leak@")]
        leak = "–"
        if leaks:
            worst = latest[max(leaks, key=lambda name: int(name.split("@")[1]))]
            leak = f"{_number(worst['value'])} ({_number(worst.get('retrained'))})"
        passed = {None: "–", True: "yes", False: "NO"}[state.passed]
        alpha = f"{state.effect['alpha']:g}" if state.effect else "–"
        erased = " (erased)" if state.erased else ""
        found.append((state.id, state.asked["time"], state.status + erased, alpha, leak, passed))
    return found
