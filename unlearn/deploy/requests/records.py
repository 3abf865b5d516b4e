"""The evidence record of a request: what an auditor is given, made of the ledger's entries and of nothing else.

What such a record can and cannot say: FIELD2026.md §5.3's list of fields, and the limits in ``NOT_CLAIMED``.
"""

from __future__ import annotations

from typing import Any

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
    state, known = ledger.state(id), ledger.states()
    asked, entries = state.asked, ledger.chain.entries()
    body = asked["body"]
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
        "made": state.effective["body"] if state.effective else None,
        "rule": {"conditions": body["rule"], "fixed": f"by entry {asked['n']}, before the run"},
        "evidence": [{"time": entry["time"], "entry": entry["n"]} | entry["body"] for entry in state.evaluated],
        "passed": state.passed,
        "not_claimed": list(NOT_CLAIMED),
        "expiry": EXPIRY,
        "chain": {"entries": [e["n"] for e in entries if e["request"] == id], "count": len(entries),
                  "head": entries[-1]["hash"], "hmac": entries[0]["body"]["hmac"] is not None},
    }  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """The record for reading."""
    lines = [f"# Evidence record: request {found['request']}", "", f"Status: **{found['status']}**", ""]
    facts = {
        "received": found["received"], "due": found["due"], "asked": found["asked"], "effective": found["effective"],
        "undone": found["undone"], "subject (salted)": found["subject"],
        "forget set (salted)": found["forget_set"]["fingerprint"], "questions": found["forget_set"]["questions"],
        "salt": found["forget_set"]["salt"], "fuses": ", ".join(found["parts"]) or None,
        "part of": ", ".join(found["part_of"]) or None,
    }  # fmt: skip
    lines += _table(("", ""), [(k, v) for k, v in facts.items() if v is not None])
    lines += ["## What answers", "", *_made(found), f"## Evidence (rule fixed {found['rule']['fixed']})", ""]
    for each in found["evidence"]:
        lines += _evidence(each)
    lines += [] if found["evidence"] else ["None yet: the run has not been measured.", ""]
    lines += ["## What is not claimed", "", *(f"- {text}" for text in found["not_claimed"]), ""]
    lines += ["## Expiry", "", found["expiry"], "", "## Chain", ""]
    chain = found["chain"]
    signed = "with HMAC" if chain["hmac"] else "without HMAC"
    numbers = ", ".join(map(str, chain["entries"]))
    lines += [f"Ledger {found['ledger']}, entries {numbers} of {chain['count']}, {signed}; head `{chain['head']}`.", ""]
    return "\n".join(lines)


def _made(found: dict[str, Any]) -> list[str]:
    made = found["made"]
    if made is None:
        return ["Nothing yet: it was asked for and has not taken effect.", ""]
    rows = [(k, v) for k, v in found["method"].items() if v is not None and k != "alpha"]
    rows += [("α", made["alpha"]), ("seeds", made["seeds"]), ("code", made["code"]), ("lineage", made["lineage"])]
    rows += [(f"weights {name}", f"sha256 {digest}") for name, digest in made["weights"].items()]
    rows += [(f"model {name}", print_) for name, print_ in (made["models"] or {}).items()]
    return _table(("", ""), [(k, _flat(v)) for k, v in rows])


def _evidence(each: dict[str, Any]) -> list[str]:
    offsets = ", ".join(f"{name} (α = {alpha:g})" for name, alpha in each["offsets"].items())
    of = f" of {each['of']}" if "of" in each else ""
    lines = [f"### {each['time']}{of}: {'passed' if each['passed'] else 'NOT passed'}", "",
             f"Under the offsets {offsets}; n = {each['questions']} questions.", ""]  # fmt: skip
    verdict = [(r["condition"], _number(r["value"]), "holds" if r["holds"] else "does not hold") for r in each["rule"]]
    lines += _table(("condition", "found", ""), verdict)
    rows = []
    for name, values in each["metrics"].items():
        if name.startswith(HEADLINES):
            ends = " … ".join(_number(e) for e in values["interval"]) if "interval" in values else ""
            rows.append(
                (name, _number(values["value"]), ends, *(_number(values.get(k)) for k in ("target", "retrained")))
            )
    return lines + _table(("metric", "value", "95 % interval", "target", "retrained"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""]


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
        effective = state.effective["body"] if state.effective else {}
        latest = state.latest[state.id]["body"] if state.id in state.latest else {}
        leaks = {k: v for k, v in latest.get("metrics", {}).items() if k.startswith("forget/leak@")}
        largest = max(leaks, key=lambda name: int(name.split("@")[1]), default=None)
        leak = (
            "–"
            if largest is None
            else f"{_number(leaks[largest]['value'])} ({_number(leaks[largest].get('retrained'))})"
        )
        passed = {None: "–", True: "yes", False: "NO"}[state.passed]
        alpha = "–" if not effective else f"{effective['alpha']:g}"
        erased = " (erased)" if state.erased else ""
        found.append((state.id, state.asked["time"], state.status + erased, alpha, leak, passed))
    return found
