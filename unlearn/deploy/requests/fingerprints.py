"""Fingerprints of requests that only a salt links to a text, and salts that can be erased.

A birthday is guessed from a plain hash by trying all there are. Each request has 32 random bytes of its own in
``salts/<id>``, outside the chain; the ledger holds HMACs under them. Once the salt is gone, nobody can link the
fingerprint to a text, and the chain stays whole.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from unlearn.data.rows import Row, pair
from unlearn.deploy.requests.chain import LedgerError, canonical
from unlearn.store.files import saving, sync, write_whole

BYTES = 32


class Salts:
    """The salts of a ledger's requests, one file each, readable by their owner alone."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, id: str) -> bytes:
        """The salt of a request; ``LedgerError`` where it was erased."""
        try:
            return (self.folder / id).read_bytes()
        except FileNotFoundError:
            rule = "its salt is not there (erased?): nothing can be compared with its fingerprint"
            raise LedgerError(f"{id}: {rule}") from None

    def has(self, id: str) -> bool:
        return (self.folder / id).is_file()

    def make(self, id: str) -> bytes:
        """The salt of a request, made where there is none: on the disk before anything is hashed with it."""
        if not self.has(id):
            with saving(self.folder):
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self.folder / id, _write)
        return self.get(id)

    def erase(self, id: str) -> bool:
        """Remove the salt; whether there was one. What a disk keeps of a removed file is not known."""
        if not self.has(id):
            return False
        (self.folder / id).unlink()
        sync(self.folder)
        return True


def _write(path: Path) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(secrets.token_bytes(BYTES))


def of_rows(rows: Iterable[Row], salt: bytes) -> str:
    """Fingerprint of a set of questions and answers, in whatever order."""
    return of_text(canonical(sorted(pair(row) for row in rows)).decode(), salt)


def of_text(text: str, salt: bytes) -> str:
    return hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()
