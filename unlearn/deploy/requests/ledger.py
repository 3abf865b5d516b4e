"""A ledger's folder: the chain, and what may be erased or moved without touching it.

ledger.jsonl      the entries: no text of a forget set, and nothing that a text determines but by a salt
salts/ID          what links fingerprints to the text of a request, until it is erased
salts/ID@offset   the same of its run's files, until it is erased and no longer answers
values/ID/*.json  what was measured, until it is erased: whoever can ask the target tells a text by its numbers
links/ID.json     where the run of a request lies: the one whose files have the fingerprints of the chain
"""

import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn.config.setting import NAME, NAME_RULE, is_number
from unlearn.deploy.requests.chain import Chain, LedgerError
from unlearn.deploy.requests.private import BESIDE, OF_OFFSET, Salts, Values, of_run
from unlearn.deploy.requests.signing import public_of, sign
from unlearn.deploy.requests.verify_ledger import Entry
from unlearn.grid.refusal import REFUSED, said
from unlearn.grid.rerun import open_run
from unlearn.runs.opened import Opened
from unlearn.store.files import read_json, saving, write_json

FILE, SALTS, VALUES, LINKS = "ledger.jsonl", "salts", "values", "links"
FORMAT = 2
KINDS = ("opened", "asked", "fusing", "effective", "evaluated", "audited", "undone", "erased", "repaired")
SHORTEST_KEY = 16  # characters
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass
class State:
    """A request, or the fusion of several, as its entries tell it."""

    id: str
    asked: Entry  # "asked" or, of a fusion, "fusing"
    effective: Entry | None = None
    evaluated: list[Entry] = field(default_factory=list)
    audited: list[Entry] = field(default_factory=list)
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
    bound: Mapping[str, str]
    salt: bytes

    def check(self, run: Opened, beside: bool = False) -> None:
        """``LedgerError`` where the run is not what took effect. ``beside``: also the configs of the models beside it,
        which whoever loads them must ask for."""
        found = of_run(run, self.salt, beside)
        names = [name for name in {**self.bound, **found} if beside or name != BESIDE]
        other = [name for name in names if self.bound.get(name) != found.get(name)]
        if other:
            raise LedgerError(f"{self.id}: in {self.folder} is not what took effect: {', '.join(other)}")


class Ledger:
    """An opened ledger. Its ``lock`` is held while something is looked up and written; one holder may take it again."""

    def __init__(self, folder: Path, key: bytes | None):
        self.folder, self.chain, self.salts = folder, Chain(folder / FILE, key), Salts(folder / SALTS)
        self.values = Values(folder / VALUES, self.salts)
        self.lock = self.chain.lock

    def states(self) -> dict[str, State]:
        """By id, in the order in which they were asked. ``LedgerError`` for entries that contradict each other."""
        found: dict[str, State] = {}
        for entry in self.chain.entries():
            try:
                self._add(found, entry)
            except LedgerError:
                raise
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise LedgerError(f"entry {entry['n']}: not as this program writes them ({error!r})") from None
        return found

    def _add(self, found: dict[str, State], entry: Entry) -> None:
        kind, id = entry["kind"], entry["request"]
        if kind not in KINDS:
            raise LedgerError(f"entry {entry['n']}: kind {kind!r}: this program knows {', '.join(KINDS)}")
        if kind in ("opened", "repaired"):
            return
        if kind in ("asked", "fusing"):
            if id in found:
                raise LedgerError(f"entry {entry['n']}: {id} was asked before, by entry {found[id].asked['n']}")
            found[check_id(id)] = State(id, entry)
            return
        if id not in found:
            raise LedgerError(f"entry {entry['n']}: {kind} {id}, and nobody asked for it")
        if kind == "evaluated":
            body, values = entry["body"], self.values.get(found[entry["body"]["of"]].id, entry["body"]["values"])
            rule = [line | {"value": values.get("found", {}).get(line["condition"])} for line in body["rule"]]
            body = body | {"metrics": values.get("metrics", {}), "rule": rule}
            found[id].evaluated.append(entry | {"body": body})
        elif kind == "audited":
            found[id].audited.append(entry)
        elif kind == "effective" and not is_number(entry["body"]["alpha"]):
            raise ValueError(f"alpha={entry['body']['alpha']!r}")
        else:
            setattr(found[id], kind, entry)  # effective, undone, erased
        for part in (found[name] for name in found[id].parts):
            if kind == "effective":
                part.fused_in = id
            elif kind == "undone" and part.fused_in == id:
                part.fused_in = None

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
        """What answers, as the entries say; that the runs are still those is for ``Active.check`` to say."""
        return [self._answering(state) for state in self.in_effect()]

    def _answering(self, state: State) -> Active:
        alpha, bound = float(state.effect["alpha"]), state.effect["bound"]
        return Active(state.id, self.run_of(state.id), alpha, bound, self.salts.get(state.id + OF_OFFSET))

    def strangers(self) -> list[str]:
        """Active requests whose run is gone or is not what took effect: a line each."""
        lines = []
        for state in self.in_effect():
            try:
                one = self._answering(state)
                one.check(open_run(one.folder))
            except REFUSED as error:
                lines.append(said(error))
        return lines

    def forget(self, id: str) -> bool:
        """Remove what links a request to its text and, once it no longer answers, to its run (a disk may keep more);
        whether there was a salt."""
        state, there = self.state(id), self.salts.erase(id)
        self.values.erase(id)
        if not state.active and state.fused_in is None:
            self.salts.erase(id + OF_OFFSET)
            self.link_of(id).unlink(missing_ok=True)
        return there

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
        if not (isinstance(link, dict) and isinstance(link.get("folder"), str)):
            raise LedgerError(f"{id}: {self.link_of(id)} is missing or damaged, which says where its run lies")
        folder = Path(os.path.normpath(self.folder / link["folder"]))
        if not folder.is_dir():
            raise LedgerError(f"{id}: its run is not at {folder}; correct {self.link_of(id)}")
        return folder


def active(ledger: Path, hmac: str | None = None, public: str | None = None) -> list[Active]:
    """The offsets that a ledger says are in effect, in the order of their requests. Raises ``LedgerError`` where the
    chain is broken, its HMACs are not those of the key in the environment variable ``hmac`` (null: the one that the
    ledger names), it is not signed by the key ``public`` (likewise), or a run is missing or not what took effect."""
    found = opened(Path(ledger), hmac, public)
    strange = found.strangers()
    if strange:
        raise LedgerError("\n".join(strange))
    return found.active()


def begin(folder: Path, variable: str | None, by: str | None = None) -> Ledger:
    """Make a ledger in a folder that holds none; the environment variable ``variable`` has the key of its HMACs, and
    ``by`` the private key of its signatures."""
    if (folder / FILE).exists():
        raise LedgerError(f"ledger={str(folder)!r}: holds a ledger already")
    key = None if variable is None else key_of(variable)
    signed = {} if by is None else {"ed25519": public_of(by, secret_of(by, "sign")), "sign": by}
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder, key)
    ledger.chain.sign = _sign(signed)
    ledger.chain.append("opened", None, {"format": FORMAT, "ledger": secrets.token_hex(8), "hmac": variable} | signed)
    return ledger


def opened(folder: Path, variable: str | None = None, public: str | None = None) -> Ledger:
    """A ledger to read or write. Its entries are verified when they are first read, by their HMACs too: with the key in
    the environment variable that it names, or in ``variable``; and by their signatures, with the public key that it
    names, which must be ``public``."""
    ledger = Ledger(folder, None)
    first = ledger.chain.first()
    if first is None or first["kind"] != "opened" or first["body"].get("format") != FORMAT:
        raise LedgerError(f"{folder / FILE}: does not begin as a ledger of format {FORMAT} does")
    variable = variable or first["body"].get("hmac")
    ledger.chain.key = None if variable is None else key_of(variable)
    ledger.chain.sign, ledger.chain.public = _sign(first["body"]), public
    return ledger


def _sign(first: Mapping[str, Any]) -> Callable[[str], str] | None:
    """What signs entries of a ledger, by the body of its first one; the private key is asked for when it does."""
    if "ed25519" not in first:
        return None
    return lambda text: sign(text, first["sign"], secret_of(first["sign"], "sign"), first["ed25519"])


def secret_of(variable: str, key: str) -> str:
    """The value of the environment variable of this name, which ``key`` gave."""
    if not VARIABLE.fullmatch(variable):
        raise LedgerError(f"{key}: must be the NAME of an environment variable that holds the key, not the key")
    return os.environ.get(variable, "")


def key_of(variable: str) -> bytes:
    """The key of HMACs in the environment variable of this name."""
    value = secret_of(variable, "hmac")
    if len(value) < SHORTEST_KEY:
        rule = f"must hold a key of {SHORTEST_KEY} characters or more, and has {len(value)}"
        raise LedgerError(f"hmac={variable}: the environment variable {rule}")
    return value.encode()


def check_id(id: str) -> str:
    if not re.fullmatch(NAME, id):
        raise LedgerError(f"id={id!r}: {NAME_RULE}; it stays in the ledger, so let it name nobody")
    return id
