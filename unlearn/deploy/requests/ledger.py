"""A ledger's folder: the chain, and what may be erased or moved without touching it.

    ledger.jsonl      the entries: no text of a forget set, no id of a row, no plain hash of either
    salts/ID          what links a fingerprint to its text, until it is erased
    links/ID.json     where the run of a request lies

The checksums of a run's weights, which stand in the chain, show whether its folder is the one that the ledger means.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.config.setting import NAME, NAME_RULE
from unlearn.deploy.requests.chain import Chain, Entry, Head, LedgerError, verify
from unlearn.deploy.requests.fingerprints import Salts
from unlearn.deploy.requests.states import State, states
from unlearn.store import seal
from unlearn.store.files import read_json, saving, sha256, write_json

FILE, SALTS, LINKS = "ledger.jsonl", "salts", "links"
FORMAT = 1
SHORTEST_KEY = 16  # characters
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True)
class Active:
    """An offset that answers now: the request's id, the run's folder, and the weight of its offset."""

    id: str
    folder: Path
    alpha: float


class Ledger:
    """An opened ledger. Its ``lock`` is held while something is looked up and written; one holder may take it again."""

    def __init__(self, folder: Path, key: bytes | None):
        self.folder = folder
        self.chain = Chain(folder / FILE, key)
        self.salts = Salts(folder / SALTS)
        self.lock = self.chain.lock

    def append(self, kind: str, id: str | None, body: dict[str, Any]) -> Entry:
        return self.chain.append(kind, id, body)

    def states(self) -> dict[str, State]:
        return states(self.chain.entries())

    def state(self, id: str) -> State:
        found = self.states()
        if id not in found:
            raise LedgerError(f"{id}: no such request in {self.folder}; there are {', '.join(found) or 'none'}")
        return found[id]

    def in_effect(self, ids: Sequence[str] = ()) -> list[State]:
        """The active requests, or those of some ids; ``LedgerError`` for one that is not active."""
        known = self.states()
        there = [state for state in known.values() if state.active]
        for id in ids:
            if known.get(id) not in there:
                said = "no such request" if id not in known else f"is {known[id].status}"
                raise LedgerError(f"{id}: {said}; active are {', '.join(s.id for s in there) or 'none'}")
        return [known[id] for id in ids] or there

    def active(self) -> list[Active]:
        return [Active(s.id, self.run_of(s.id), float(s.effect["alpha"])) for s in self.in_effect()]

    def strangers(self) -> list[str]:
        """Active requests whose run is gone or has other weights than the ledger says: a line each."""
        lines = []
        for state in self.in_effect():
            try:
                folder = self.run_of(state.id)
                if weights_of(folder) != state.effect["weights"]:
                    lines.append(f"{state.id}: the weights in {folder} are not those that took effect")
            except LedgerError as error:
                lines.append(str(error))
        return lines

    def next_id(self, letter: str) -> str:
        """R1, R2, … or F1, F2, …"""
        known = self.states()
        return next(name for n in range(1, len(known) + 2) if (name := f"{letter}{n}") not in known)

    def link(self, id: str, folder: Path) -> None:
        """Write where the run of a request lies; relative to the ledger, so that both can be moved together."""
        with saving(self.folder / LINKS):
            (self.folder / LINKS).mkdir(exist_ok=True)
        write_json(self._link(id), {"folder": os.path.relpath(folder, self.folder)})

    def unlink(self, id: str) -> None:
        self._link(id).unlink(missing_ok=True)

    def run_of(self, id: str) -> Path:
        """The folder of a request's run; ``LedgerError`` where it is not there."""
        link = read_json(self._link(id))
        if link is None:
            raise LedgerError(f"{id}: {self._link(id)} is missing, which says where its run lies")
        folder = Path(os.path.normpath(self.folder / link["folder"]))
        if not folder.is_dir():
            raise LedgerError(f"{id}: its run is not at {folder}; correct {self._link(id)}")
        return folder

    def _link(self, id: str) -> Path:
        return self.folder / LINKS / f"{id}.json"


def active(ledger: Path) -> list[Active]:
    """The offsets that a ledger says are in effect, in the order of their requests. Raises ``LedgerError`` where the
    chain is broken, a run is missing, or its weights are not those that took effect."""
    found = opened(Path(ledger), key=None)
    strange = found.strangers()
    if strange:
        raise LedgerError("\n".join(strange))
    return found.active()


def begin(folder: Path, variable: str | None) -> Ledger:
    """Make a ledger in a folder that holds none."""
    if (folder / FILE).exists():
        raise LedgerError(f"ledger={str(folder)!r}: holds a ledger already")
    key = None if variable is None else key_of(variable)
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder, key)
    ledger.append("opened", None, {"format": FORMAT, "ledger": secrets.token_hex(8), "hmac": variable})
    return ledger


def opened(folder: Path, key: bytes | None | str = "") -> Ledger:
    """A ledger to read or write; its key is that of the environment unless one is given (None: no HMAC is checked).

    Its entries are verified when they are first read.
    """
    ledger = Ledger(folder, None)
    first = ledger.chain.first()
    if first is None or first["kind"] != "opened" or first["body"].get("format") != FORMAT:
        raise LedgerError(f"{folder / FILE}: does not begin as a ledger of format {FORMAT} does")
    if key == "":
        key = None if first["body"]["hmac"] is None else key_of(first["body"]["hmac"])
    ledger.chain.key = key
    return ledger


def key_of(variable: str) -> bytes:
    """The key in the environment variable of this name."""
    if not VARIABLE.fullmatch(variable):
        raise LedgerError("hmac: must be the NAME of an environment variable that holds the key, not the key")
    value = os.environ.get(variable, "")
    if len(value) < SHORTEST_KEY:
        raise LedgerError(
            f"hmac={variable}: the environment variable must hold a key of {SHORTEST_KEY} characters or more, and has "
            f"{len(value)}"
        )
    return value.encode()


def check_id(id: str) -> str:
    if not re.fullmatch(NAME, id):
        raise LedgerError(f"id={id!r}: {NAME_RULE}; it stays in the ledger, so let it name nobody")
    return id


def weights_of(folder: Path) -> dict[str, str]:
    """Checksums of the files of weights that a run ended with, as they are now."""
    places = (folder / name for name in (seal.OFFSET, seal.ADAPTER))
    return {f"{p.name}/{f.name}": sha256(f) for p in places for f in sorted(p.glob("*.safetensors"))}


def checked(folder: Path, head: Head | None, key: bytes | None) -> list[str]:
    """What is wrong with a ledger, a line each: the first bad entry; else what its entries contradict."""
    ledger = Ledger(folder, key)
    fault = verify(ledger.chain.lines(), key, head)
    if fault is not None:
        return [str(fault)]
    ledger.states()
    return ledger.strangers() if (folder / LINKS).is_dir() else []
