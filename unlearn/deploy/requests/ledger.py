"""A ledger's folder: the chain, and what may be erased or moved without touching it.

ledger.jsonl      the entries: no text of a forget set, no id of a row, no plain hash of either
salts/ID          what links a fingerprint to its text, until it is erased
links/ID.json     where the run of a request lies: the one whose weights have the checksums of the chain
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn.config.setting import NAME, NAME_RULE
from unlearn.data.rows import Row, pair
from unlearn.deploy.requests.chain import Chain, Entry, Head, LedgerError, canonical, verify
from unlearn.store import seal
from unlearn.store.files import read_json, saving, sha256, sync, write_json, write_whole

FILE, SALTS, LINKS = "ledger.jsonl", "salts", "links"
FORMAT = 1
KINDS = ("opened", "asked", "fusing", "effective", "evaluated", "undone", "erased", "repaired")
SHORTEST_KEY = 16  # characters
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Salts:
    """32 random bytes for each request, one file each, readable by their owner alone.

    A birthday is guessed from a plain hash by trying all there are, so the chain holds HMACs under the salts. Once a
    salt is gone, nobody can link its fingerprint to a text, and the chain stays whole.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, id: str) -> bytes:
        """The salt of a request; ``LedgerError`` where it was erased."""
        if not self.has(id):
            rule = "its salt is not there (erased?): nothing can be compared with its fingerprint"
            raise LedgerError(f"{id}: {rule}")
        return (self.folder / id).read_bytes()

    def has(self, id: str) -> bool:
        return (self.folder / id).is_file()

    def make(self, id: str) -> bytes:
        """The salt of a request, made where there is none: on the disk before anything is hashed with it."""

        def write(path: Path) -> None:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(secrets.token_bytes(32))

        if not self.has(id):
            with saving(self.folder):
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self.folder / id, write)
        return self.get(id)

    def erase(self, id: str) -> bool:
        """Remove the salt; whether there was one. What a disk keeps of a removed file is not known."""
        if not self.has(id):
            return False
        (self.folder / id).unlink()
        sync(self.folder)
        return True


def of_rows(rows: Iterable[Row], salt: bytes) -> str:
    """Fingerprint of a set of questions and answers, in whatever order."""
    return of_text(canonical(sorted(pair(row) for row in rows)).decode(), salt)


def of_text(text: str, salt: bytes) -> str:
    return hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()


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
        unused = "not used" if self.passed is False else "asked"
        return unused if self.effective is None else "effective"

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


@dataclass(frozen=True)
class Active:
    """An offset that answers now: the request's id, the run's folder, and the weight of its offset."""

    id: str
    folder: Path
    alpha: float


class Ledger:
    """An opened ledger. Its ``lock`` is held while something is looked up and written; one holder may take it again."""

    def __init__(self, folder: Path, key: bytes | None):
        self.folder, self.chain, self.salts = folder, Chain(folder / FILE, key), Salts(folder / SALTS)
        self.lock = self.chain.lock

    def states(self) -> dict[str, State]:
        """By id, in the order in which they were asked. ``LedgerError`` for entries that contradict each other."""
        found: dict[str, State] = {}
        for entry in self.chain.entries():
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
        write_json(self.link_of(id), {"folder": os.path.relpath(folder, self.folder)})

    def link_of(self, id: str) -> Path:
        return self.folder / LINKS / f"{id}.json"

    def run_of(self, id: str) -> Path:
        """The folder of a request's run; ``LedgerError`` where it is not there."""
        link = read_json(self.link_of(id))
        if link is None:
            raise LedgerError(f"{id}: {self.link_of(id)} is missing, which says where its run lies")
        folder = Path(os.path.normpath(self.folder / link["folder"]))
        if not folder.is_dir():
            raise LedgerError(f"{id}: its run is not at {folder}; correct {self.link_of(id)}")
        return folder


def active(ledger: Path) -> list[Active]:
    """The offsets that a ledger says are in effect, in the order of their requests. Raises ``LedgerError`` where the
    chain is broken, a run is missing, or its weights are not those that took effect."""
    found = opened(Path(ledger), key=None)
    strange = found.strangers()
    if strange:
        raise LedgerError("\n".join(strange))
    return found.active()


def begin(folder: Path, variable: str | None) -> Ledger:
    """Make a ledger in a folder that holds none; ``variable`` of the environment has the key of its HMACs."""
    if (folder / FILE).exists():
        raise LedgerError(f"ledger={str(folder)!r}: holds a ledger already")
    key = None if variable is None else key_of(variable)
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder, key)
    ledger.chain.append("opened", None, {"format": FORMAT, "ledger": secrets.token_hex(8), "hmac": variable})
    return ledger


def opened(folder: Path, key: bytes | None | str = "") -> Ledger:
    """A ledger to read or write; its key is that of the environment unless one is given (None: no HMAC is checked).

    Its entries are verified when they are first read.
    """
    ledger = Ledger(folder, None)
    first = ledger.chain.first()
    if first is None or first["kind"] != "opened" or first["body"].get("format") != FORMAT:
        raise LedgerError(f"{folder / FILE}: does not begin as a ledger of format {FORMAT} does")
    variable = first["body"]["hmac"]
    ledger.chain.key = key if key != "" else None if variable is None else key_of(variable)
    return ledger


def key_of(variable: str) -> bytes:
    """The key in the environment variable of this name."""
    if not VARIABLE.fullmatch(variable):
        raise LedgerError("hmac: must be the NAME of an environment variable that holds the key, not the key")
    value = os.environ.get(variable, "")
    if len(value) < SHORTEST_KEY:
        rule = f"must hold a key of {SHORTEST_KEY} characters or more, and has {len(value)}"
        raise LedgerError(f"hmac={variable}: the environment variable {rule}")
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
