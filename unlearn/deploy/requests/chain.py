"""An append-only file of entries, each with the hash of the one before it: what was written cannot be changed unseen.

A line is an entry in canonical JSON (sorted keys, no spaces, ASCII) with its number, its time and SHA-256 of itself
without the hash; with a key also an HMAC of that hash. Entries are written under a file lock and have reached the disk
before they count. A chain alone does not show that its last entries were cut off (an exported head, kept elsewhere,
does), nor that all of it was written anew (an HMAC does).
"""

import hashlib
import hmac
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from unlearn.config.schema import ConfigError
from unlearn.grid import refusal
from unlearn.store.files import saving, sync

log = logging.getLogger(__name__)
BEFORE_ALL = "0" * 64  # what the first entry has as the hash before it
FIELDS = ("n", "time", "kind", "request", "body", "previous", "hash")  # and hmac, where there is a key
Entry = dict[str, Any]


class LedgerError(ConfigError):
    """A ledger that cannot be read, or that does not allow an act."""


class Failed(LedgerError, refusal.Failed):
    """An act that was begun and failed; what it wrote stays."""


@dataclass(frozen=True)
class Head:
    """The state of a chain: how many entries, and the hash of the last. Whoever keeps it notices a shorter one."""

    count: int
    hash: str


@dataclass(frozen=True)
class Fault:
    """The first bad entry, from 0, and what is wrong: unreadable, changed, removed, reordered, inserted, torn,
    truncated, hmac."""

    number: int
    kind: str
    said: str

    def __str__(self) -> str:
        return f"entry {self.number}: {self.kind}: {self.said}"


class Chain:
    """The file, and the key that its entries are signed with; None: no HMAC."""

    def __init__(self, path: Path, key: bytes | None = None):
        self.path, self.key = path, key
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._verified: tuple[bytes, list[Entry]] = b"", []  # lines that had no fault, and what they say

    def append(self, kind: str, request: str | None, body: Mapping[str, Any]) -> Entry:
        """Write an entry. What an interrupted write left is cut off, and an entry of its own says so."""
        with self.lock, saving(self.path):
            data = self.path.read_bytes() if self.path.is_file() else b""
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                log.warning("%s: cut off %d bytes of an unfinished entry", self.path, len(data) - whole)
                os.truncate(self.path, whole)
                self._write("repaired", None, {"bytes_of_a_torn_entry": len(data) - whole})
            return self._write(kind, request, body)

    def entries(self) -> list[Entry]:
        """All entries; ``LedgerError`` at the first bad one, and a torn last one was never written. What still stands
        there byte for byte is not verified again."""
        lines = self.lines()
        data, (before, known) = b"".join(lines), self._verified
        found, fault = walk(lines, self.key, known if data.startswith(before) else ())
        if fault is not None and fault.kind != "torn":
            raise LedgerError(f"{self.path}: {fault}")
        self._verified = b"".join(lines[: len(found)]), found
        return list(found)

    def first(self) -> Entry | None:
        """The first entry, not verified; None where there is none."""
        lines = self.lines()
        return _parsed(lines[0]) if lines and lines[0].endswith(b"\n") else None

    def lines(self) -> list[bytes]:
        """The file's lines with their ends; the last lacks its own where it was torn."""
        if not self.path.is_file():
            raise LedgerError(f"ledger={str(self.path.parent)!r}: no ledger; begin one: python -m unlearn.request init")
        return self.path.read_bytes().splitlines(keepends=True)

    def head(self) -> Head:
        found = self.entries()
        return Head(len(found), found[-1]["hash"] if found else BEFORE_ALL)

    def _write(self, kind: str, request: str | None, body: Mapping[str, Any]) -> Entry:
        before = self.head() if self.path.is_file() else Head(0, BEFORE_ALL)
        entry: Entry = {"n": before.count, "time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": kind}
        entry |= {"request": request, "body": dict(body), "previous": before.hash}
        entry["hash"] = hash_of(entry)
        if self.key is not None:
            entry["hmac"] = signature(entry["hash"], self.key)
        with self.path.open("ab") as stream:
            begin = stream.tell()
            try:
                stream.write(canonical(entry) + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(begin)  # half an entry would be taken for a torn one
                raise
        if begin == 0:
            sync(self.path.parent)
        return entry


def canonical(value: Any) -> bytes:
    """The one spelling of a value in JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def hash_of(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({k: v for k, v in entry.items() if k not in ("hash", "hmac")})).hexdigest()


def signature(digest: str, key: bytes) -> str:
    return hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()


# --- verification -------------------------------------------------------------------------------------------------


def verify(lines: Sequence[bytes], key: bytes | None = None, head: Head | None = None) -> Fault | None:
    """The first bad entry; None where each has the hash of the one before it and, with a key, a right HMAC, and the
    chain continues ``head``."""
    found, fault = walk(lines, key)
    if head is not None and 0 < head.count <= len(found) and found[head.count - 1]["hash"] != head.hash:
        said = "is not the one that the exported head was made of: the chain was written anew"
        return Fault(head.count - 1, "changed", said)
    if fault is None and head is not None and len(lines) < head.count:
        return Fault(len(lines), "truncated", f"the exported head has {head.count} entries, and {len(lines)} are there")
    return fault


def walk(lines: Sequence[bytes], key: bytes | None, known: Sequence[Entry] = ()) -> tuple[list[Entry], Fault | None]:
    """The entries up to the first bad one, and what is wrong with that; ``known`` are those of the first lines."""
    found = list(known)
    for line in lines[len(known) :]:
        fault = _fault(line, found, lines, key)
        if fault is not None:
            return found, fault
        found.append(json.loads(line))
    return found, None


def _fault(line: bytes, before: Sequence[Entry], lines: Sequence[bytes], key: bytes | None) -> Fault | None:
    i, entry = len(before), _parsed(line)
    previous = before[-1]["hash"] if before else BEFORE_ALL
    if not line.endswith(b"\n"):
        return Fault(i, "torn", "incomplete line: its write was interrupted; the next entry repairs it")
    if entry is None:
        return Fault(i, "unreadable", "not an entry in canonical JSON: modified after it was written")
    if hash_of(entry) != entry["hash"]:
        return Fault(i, "changed", "hash mismatch: entry modified after it was written")
    if entry["n"] != i:
        there, said = entry["n"], f"entry {entry['n']} stands in its place"
        if i not in {other["n"] for line in lines if (other := _parsed(line)) is not None}:
            return Fault(i, "removed", f"is missing; {said}")
        kind, said = ("inserted", f"entry {there} stands here once more") if there < i else ("reordered", said)
        return Fault(i, kind, said)
    if entry["previous"] != previous:
        said = f"does not continue entry {i - 1}: that one was modified and hashed again, or entries were inserted"
        return Fault(i, "changed", said if i else "the first entry continues another one")
    if key is not None and not hmac.compare_digest(str(entry.get("hmac")), signature(entry["hash"], key)):
        said = "no HMAC" if "hmac" not in entry else "HMAC mismatch: not made with this key"
        return Fault(i, "hmac", f"{said}; the entry was written by somebody else")
    return None


def _parsed(line: bytes) -> Entry | None:
    """The entry of a line; None where it is none, or is spelt in another way."""
    try:
        entry = json.loads(line)
        fields = isinstance(entry, dict) and set(FIELDS) <= set(entry) <= {*FIELDS, "hmac"}
        types = fields and all(isinstance(entry[k], t) for k, t in (("n", int), ("hash", str), ("body", dict)))
        return entry if types and canonical(entry) == line.removesuffix(b"\n") else None
    except (ValueError, RecursionError):
        return None
