"""An append-only file of entries, each with the hash of the one before it: what was written cannot be changed unseen.

What an entry is, and how a chain is verified, says ``verify_ledger.py``, which stands alone. Entries are written under
a file lock and have reached the disk before they count. A chain alone does not show that its last entries were cut off
(an exported head, kept elsewhere, does), nor that all of it was rewritten (an HMAC or a signature does).
"""

import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from unlearn.config.schema import ConfigError
from unlearn.deploy.requests.signing import signed
from unlearn.deploy.requests.verify_ledger import BEFORE_ALL, Entry, Head, canonical, hash_of, hmac_of, parsed, walk
from unlearn.grid import refusal
from unlearn.store.files import saving, sync

log = logging.getLogger(__name__)


class LedgerError(ConfigError):
    """A ledger that cannot be read, or that does not allow an act."""


class Failed(LedgerError, refusal.Failed):
    """An act that was begun and failed; what it wrote stays."""


class Chain:
    """The file; the key of its HMACs (None: there are none); ``sign``: what makes a signature of a hash."""

    def __init__(self, path: Path, key: bytes | None = None, sign: Callable[[str], str] | None = None):
        self.path, self.key, self.sign = path, key, sign
        self.public: str | None = None  # the key that must have signed; None: the one that the first entry names
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
        found, fault = walk(lines, self.key, self.public, known if data.startswith(before) else (), signed)
        if fault is not None and fault.kind != "torn":
            raise LedgerError(f"{self.path}: {fault}")
        self._verified = b"".join(lines[: len(found)]), found
        return list(found)

    def first(self) -> Entry | None:
        """The first entry, not verified; None where there is none."""
        lines = self.lines()
        return parsed(lines[0]) if lines and lines[0].endswith(b"\n") else None

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
            entry["hmac"] = hmac_of(entry["hash"], self.key)
        if self.sign is not None:
            entry["ed25519"] = self.sign(entry["hash"])
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
