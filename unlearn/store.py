"""The content-addressed store: what every job of every grid shares, built once.

An entry lives in ``<root>/<kind>/<key>/`` where the key is the digest of its recipe (fingerprints, never names). It is
built in a temporary folder under a lock and renamed into place, so a reader sees it whole or not at all; checksums
are verified once per process, and a damaged entry is named and built again.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from unlearn.files import read_json, sha256, write_json
from unlearn.identity import digest

log = logging.getLogger(__name__)
STORE_FORMAT = 1  # part of every key: entries of another format are simply not found
ENTRY = "entry.json"
PATIENCE = 2.0  # seconds of waiting that are not worth a line


class Store:
    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._verified: set[Path] = set()

    def folder(self, kind: str, recipe: dict[str, Any]) -> Path:
        return self.root / kind / digest({"format": STORE_FORMAT, "kind": kind, "recipe": recipe}, 20)

    def get(self, kind: str, recipe: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """Folder of the entry; ``build(folder)`` fills it when it is missing or damaged. Safe under parallel jobs."""
        folder = self.folder(kind, recipe)
        if self._sound(folder):
            return folder
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with locked(FileLock(locks / f"{kind}-{folder.name}.lock"), f"{kind} {folder.name}"):
            if not self._sound(folder):  # another job may have built it while we waited
                self._build(kind, recipe, folder, build)
        return folder

    def _build(self, kind: str, recipe: dict[str, Any], folder: Path, build: Callable[[Path], None]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        work = self.root / ".building" / f"{kind}-{folder.name}"
        shutil.rmtree(work, ignore_errors=True)  # left by a job that was killed; the lock is ours now
        work.mkdir(parents=True)
        build(work)
        files = {
            str(p.relative_to(work)): {"bytes": p.stat().st_size, "sha256": sha256(p)}
            for p in sorted(work.rglob("*"))
            if p.is_file()
        }
        write_json(work / ENTRY, {"format": STORE_FORMAT, "kind": kind, "recipe": recipe, "files": files})
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work, folder)
        self._verified.add(folder)

    def _sound(self, folder: Path) -> bool:
        if folder in self._verified:
            return True
        if not folder.is_dir():
            return False
        fault = _fault(folder)
        if fault:
            log.warning("store entry %s is damaged (%s); it is built again", folder, fault)
            return False
        self._verified.add(folder)
        return True


def _fault(folder: Path) -> str | None:
    """What is wrong with an entry, or None: every file is compared with the checksums written beside it."""
    try:
        entry = read_json(folder / ENTRY)
    except ValueError as error:
        return str(error)
    if entry is None:
        return f"{ENTRY} is missing"
    for name, expected in entry["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if sha256(path) != expected["sha256"]:
            return f"{name} does not match its checksum"
    return None


def locked(lock: FileLock, what: str) -> AcquireReturnProxy:
    """Take a lock; say so when another job holds it for long, since waiting in silence looks like hanging."""
    try:
        return lock.acquire(timeout=PATIENCE)
    except Timeout:
        log.info("waiting for another job that is at work on %s", what)
        return lock.acquire()
