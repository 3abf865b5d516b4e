"""What a ledger's entries add up to: each request's state, and which offsets are active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    def weights(self) -> dict[str, str]:
        """Checksums of the offset's weights, by file."""
        return self.effective["body"]["weights"] if self.effective is not None else {}


def states(entries: Sequence[Entry]) -> dict[str, State]:
    """By id, in the order in which they were asked. ``LedgerError`` for entries that make no sense."""
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
        _apply(found, found[id], entry)
    return found


def _apply(found: dict[str, State], state: State, entry: Entry) -> None:
    if entry["kind"] == "effective":
        state.effective = entry
        for part in state.parts:
            found[part].fused_in = state.id
    elif entry["kind"] == "evaluated":
        state.evaluated.append(entry)
    elif entry["kind"] == "erased":
        state.erased = entry
    elif entry["kind"] == "undone":
        state.undone = entry
        for part in state.parts:
            if found[part].fused_in == state.id:
                found[part].fused_in = None
