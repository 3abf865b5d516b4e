"""An append-only file of entries, each with the hash of the one before it: what was written cannot be changed unseen.

A line is an entry in canonical JSON (sorted keys, no spaces, ASCII) with its number, its time and SHA-256 of itself
without the hash; with a key also an HMAC of that hash. Entries are written under a file lock and have reached the disk
before they count. What a chain cannot tell: that its last entries were cut off, or that all of it was written anew by
somebody without a key to respect. An exported head, kept elsewhere, tells the first; an HMAC the second.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
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
    """A ledger that cannot be read, or that says no to what is asked."""


class Failed(LedgerError, refusal.Failed):
    """An act that was begun and did not end well; what it wrote stays."""


@dataclass(frozen=True)
class Head:
    """The state of a chain: how many entries, and the hash of the last. Whoever keeps it can tell a shorter one."""

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

    def append(self, kind: str, request: str | None, body: Mapping[str, Any]) -> Entry:
        """Write an entry; what a kill tore off before is cut away, and said in an entry of its own."""
        with self.lock, saving(self.path):
            torn = self._cut_torn()
            if torn:
                self._write("repaired", None, {"bytes_of_a_torn_entry": torn})
            return self._write(kind, request, body)

    def entries(self) -> list[Entry]:
        """All entries. Raises ``LedgerError`` at the first bad one; a torn last one was never written."""
        lines = self.lines()
        fault = verify(lines, self.key)
        if fault is not None and fault.kind != "torn":
            raise LedgerError(f"{self.path}: {fault}")
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def lines(self) -> list[bytes]:
        """The file's lines with their ends; the last lacks its own where it was torn."""
        if not self.path.is_file():
            raise LedgerError(f"ledger={str(self.path.parent)!r}: no ledger; begin one: python -m unlearn.request init")
        return self.path.read_bytes().splitlines(keepends=True)

    def head(self) -> Head:
        found = self.entries()
        return Head(len(found), found[-1]["hash"] if found else BEFORE_ALL)

    def _write(self, kind: str, request: str | None, body: Mapping[str, Any]) -> Entry:
        last = self._last()
        entry: Entry = {
            "n": 0 if last is None else last["n"] + 1, "time": now(), "kind": kind, "request": request,
            "body": dict(body), "previous": BEFORE_ALL if last is None else last["hash"],
        }  # fmt: skip
        entry["hash"] = hash_of(entry)
        if self.key is not None:
            entry["hmac"] = signature(entry["hash"], self.key)
        line, begin = canonical(entry) + b"\n", self.path.stat().st_size if self.path.is_file() else 0
        with self.path.open("ab") as stream:
            try:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(begin)  # half an entry would be taken for a torn one
                raise
        if begin == 0:
            sync(self.path.parent)
        return entry

    def _last(self) -> Entry | None:
        found = self.entries() if self.path.is_file() else []
        return found[-1] if found else None

    def _cut_torn(self) -> int:
        """Remove the part of an entry that a kill left, under the lock; its number of bytes."""
        lines = self.lines() if self.path.is_file() else []
        torn = len(lines[-1]) if lines and not lines[-1].endswith(b"\n") else 0
        if torn:
            log.warning("%s: %d bytes of an entry that was never finished are cut off", self.path, torn)
            os.truncate(self.path, self.path.stat().st_size - torn)
        return torn


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
    chain goes on from ``head``."""
    known = _numbers(lines)
    previous = BEFORE_ALL
    for i, line in enumerate(lines):
        fault = _fault(i, line, previous, known, key)
        if fault is not None:
            return fault
        previous = json.loads(line)["hash"]
        if head is not None and i == head.count - 1 and previous != head.hash:
            return Fault(i, "changed", "is not the one that the exported head was made of: the chain was written anew")
    if head is not None and len(lines) < head.count:
        return Fault(len(lines), "truncated", f"the exported head has {head.count} entries, and {len(lines)} are there")
    return None


def _fault(i: int, line: bytes, previous: str, known: Mapping[int, str], key: bytes | None) -> Fault | None:
    if not line.endswith(b"\n"):
        return Fault(i, "torn", "its line has no end: it was never written to its end, and the next entry repairs it")
    entry = _parsed(line)
    if entry is None:
        return Fault(i, "unreadable", "is not an entry in canonical JSON: it was changed")
    if hash_of(entry) != entry["hash"]:
        return Fault(i, "changed", "its content does not have the hash that it was written with")
    if entry["n"] != i:
        return _out_of_place(i, entry["n"], known)
    if entry["previous"] != previous:
        said = f"it does not go on from entry {i - 1}: that one was changed and hashed again, or others were put here"
        return Fault(i, "changed", said if i else "the first entry goes on from another")
    if key is not None and not hmac.compare_digest(str(entry.get("hmac")), signature(entry["hash"], key)):
        said = "has no HMAC" if "hmac" not in entry else "its HMAC was not made with this key"
        return Fault(i, "hmac", f"{said}: it was written by somebody else")
    return None


def _out_of_place(i: int, number: int, known: Mapping[int, str]) -> Fault:
    if i not in known:
        return Fault(i, "removed", f"is missing; entry {number} stands in its place")
    if number < i:
        return Fault(i, "inserted", f"entry {number} stands here once more")
    return Fault(i, "reordered", f"entry {number} stands in its place")


def _numbers(lines: Sequence[bytes]) -> dict[int, str]:
    found: Iterator[Entry | None] = map(_parsed, lines)
    return {entry["n"]: entry["hash"] for entry in found if entry is not None}


def _parsed(line: bytes) -> Entry | None:
    """The entry of a line; None where it is none, or is spelt in another way."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not set(FIELDS) <= set(entry) <= {*FIELDS, "hmac"}:
        return None
    fine = isinstance(entry["n"], int) and isinstance(entry["hash"], str) and isinstance(entry["body"], dict)
    try:
        return entry if fine and canonical(entry) == line.removesuffix(b"\n") else None
    except ValueError:
        return None
