"""The content-addressed store: what every job of every grid shares, built once.

An entry lives in ``<root>/<kind>/<key>/`` where the key is the digest of its recipe (fingerprints, never names). It is
built in a temporary folder under a lock and renamed into place, so a reader sees it whole or not at all; checksums
are verified once per process, and a damaged entry is named and built again. ``python -m unlearn.store --help`` lists,
verifies and prunes it.
"""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from unlearn.store import processes
from unlearn.store.files import DiskError, read_json, sha256, write_json, write_whole
from unlearn.store.identity import digest
from unlearn.store.locks import LOCKS, lock, locked, look_again

log = logging.getLogger(__name__)
STORE_FORMAT = 1  # part of every key: entries of another format are simply not found
ENTRY = "entry.json"
KEY = 20  # hexadecimal digits of an entry's name
BUILDING = ".building"
ANSWERS = "answers"  # what black boxes were asked (unlearn/blackbox/memo.py): no entries, and never pruned


class Store:
    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._verified: set[Path] = set()

    def folder(self, kind: str, recipe: dict[str, Any]) -> Path:
        return self.root / kind / digest({"format": STORE_FORMAT, "kind": kind, "recipe": recipe}, KEY)

    def get(self, kind: str, recipe: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """Folder of the entry; ``build(folder)`` fills it when it is missing or damaged. Safe under parallel jobs.

        Of the processes of one run the first makes it, and the others wait.
        """
        folder = self.folder(kind, recipe)

        def write(work: Path) -> None:
            work.mkdir(parents=True)
            with processes.alone():
                build(work)
            parts = [p for p in sorted(work.rglob("*")) if p.is_file()]
            files = {str(p.relative_to(work)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in parts}
            write_json(work / ENTRY, {"format": STORE_FORMAT, "kind": kind, "recipe": recipe, "files": files})
            folder.parent.mkdir(parents=True, exist_ok=True)

        if self._sound(folder):
            return folder
        while not processes.first():
            processes.pause()
            look_again(folder.parent)
            if self._sound(folder):
                return folder
        with locked(lock(self.root / LOCKS, f"{kind}-{folder.name}"), f"{kind} {folder.name}"):
            look_again(folder.parent)
            if not self._sound(folder):  # another job may have built it while we waited
                shutil.rmtree(folder, ignore_errors=True)
                write_whole(folder, write, self.root / BUILDING / f"{kind}-{folder.name}", durable=False)
                self._verified.add(folder)
        return folder

    def _sound(self, folder: Path) -> bool:
        if folder in self._verified:
            return True
        if not folder.is_dir():
            return False
        try:
            (folder / ENTRY).open("rb").close()
        except PermissionError as error:
            do = "let it be read, or give another folder by paths.store="
            raise DiskError(f"{folder}, which another user made, cannot be read: {error.strerror}; {do}") from None
        except OSError:
            pass  # it says below what is wrong
        wrong = fault(folder)
        if wrong:
            log.warning("store entry %s is damaged (%s); it is built again", folder, wrong)
            return False
        with suppress(OSError):  # a store that is only read says nothing of its use
            if processes.first():
                os.utime(folder / ENTRY)  # last use, for `python -m unlearn.store prune --unused`
        self._verified.add(folder)
        return True


def card_of(folder: Path) -> dict[str, Any]:
    """What an entry's ``entry.json`` says; ``ValueError`` where it is missing or says something else."""
    card = read_json(folder / ENTRY)
    if card is None:
        raise ValueError(f"{ENTRY} is missing")
    files = card.get("files") if isinstance(card, dict) else None
    listed = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(f, dict) and {"bytes", "sha256"} <= set(f) for f in listed):
        raise ValueError(f"{ENTRY} does not list files with their checksums")
    return card


def fault(folder: Path) -> str | None:
    """What is wrong with an entry, or None: every file is compared with the checksums written beside it."""
    try:
        files = card_of(folder)["files"]
    except ValueError as error:
        return str(error)
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {ENTRY}
    for name, expected in files.items():
        path = folder / name
        if name not in there:
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if sha256(path) != expected["sha256"]:
            return f"{name} does not match its checksum"
    foreign = sorted(there - set(files))
    return f"{foreign[0]} is not one of its files" if foreign else None
