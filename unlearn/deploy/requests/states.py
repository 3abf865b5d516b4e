"""The state of each request, as the entries of a ledger tell it, and which offsets are active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unlearn.deploy.requests.chain import Entry, LedgerError

KINDS = ("opened", "asked", "fusing", "effective", "evaluated", "undone", "erased", "repaired")


@dataclass
class State:
    """A request, or the fusion of several, as its entries tell it."""

    id: str
    asked: Entry  # "asked" or, of a fusion, "fusing"
    effective: Entry | None = None
    evaluated: list[Entry] = field(default_factory=list)
    undone: Entry | None = None
    erased: Entry | None = None
    fused_in: str | None = None  # the fusion that answers in its place

    @property
    def is_fusion(self) -> bool:
        return self.asked["kind"] == "fusing"

    @property
    def parts(self) -> tuple[str, ...]:
        """Of a fusion the requests that it answers."""
        return tuple(self.asked["body"]["parts"]) if self.is_fusion else ()

    @property
    def active(self) -> bool:
        return self.effective is not None and self.undone is None and self.fused_in is None

    @property
    def latest(self) -> dict[str, Entry]:
        """The latest evaluation by whose forget set it is of: the request's own; of a fusion also its parts'."""
        return {entry["body"]["of"]: entry for entry in self.evaluated}

    @property
    def passed(self) -> bool | None:
        """Whether the latest evaluations met their rules; None before there is one."""
        return all(entry["body"]["passed"] for entry in self.latest.values()) if self.evaluated else None

    @property
    def status(self) -> str:
        if self.undone is not None:
            return "undone"
        if self.fused_in is not None:
            return f"fused in {self.fused_in}"
        if self.effective is not None:
            return "effective"
        return "not used" if self.passed is False else "asked"

    def unmet(self) -> list[str]:
        """The conditions that the latest evaluations do not meet, with what was found."""
        rules = [rule for entry in self.latest.values() for rule in entry["body"]["rule"]]
        return [f"{rule['condition']} (found {rule['value']})" for rule in rules if not rule["holds"]]

    @property
    def rule(self) -> list[str]:
        """The conditions that were fixed before the run."""
        return self.asked["body"]["rule"]

    @property
    def effect(self) -> dict[str, Any]:
        """What took effect: α, checksums of the weights, and what they were made with; empty before."""
        return {} if self.effective is None else self.effective["body"]


def states(entries: Sequence[Entry]) -> dict[str, State]:
    """By id, in the order in which they were asked. ``LedgerError`` for entries that contradict each other."""
    found: dict[str, State] = {}
    for entry in entries:
        kind, id = entry["kind"], entry["request"]
        if kind not in KINDS:
            raise LedgerError(f"entry {entry['n']}: kind {kind!r}: this program knows {', '.join(KINDS)}")
        if kind in ("opened", "repaired"):
            continue
        if kind in ("asked", "fusing"):
            if id in found:
                raise LedgerError(f"entry {entry['n']}: {id} was asked before, by entry {found[id].asked['n']}")
            found[id] = State(id, entry)
            continue
        if id not in found:
            raise LedgerError(f"entry {entry['n']}: {kind} {id}, and nobody asked for it")
        if kind == "evaluated":
            found[id].evaluated.append(entry)
        else:
            setattr(found[id], kind, entry)  # effective, undone, erased
        for part in (found[name] for name in found[id].parts):
            if kind == "effective":
                part.fused_in = id
            elif kind == "undone" and part.fused_in == id:
                part.fused_in = None
    return found
