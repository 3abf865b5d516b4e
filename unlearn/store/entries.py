"""The content-addressed store: what every job of every grid shares, built once.

An entry lives in ``<root>/<kind>/<key>/`` where the key is the digest of its recipe (fingerprints, never names). It is
built in a temporary folder under a lock and renamed into place, so a reader sees it whole or not at all; checksums
are verified once per process, and a damaged entry is named and built again. ``python -m unlearn.store`` shows it.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from unlearn.store import processes
from unlearn.store.files import DiskError, read_json, sha256, write_json, write_whole
from unlearn.store.identity import digest
from unlearn.store.locks import LOCKS, free, lock, locked, look_again

log = logging.getLogger(__name__)
STORE_FORMAT = 1  # part of every key: entries of another format are simply not found
ENTRY = "entry.json"
KEY = 20  # hexadecimal digits of an entry's name
BUILDING = ".building"
ANSWERS = "answers"  # what black boxes were asked (unlearn/blackbox/questions.py): no entries, and never pruned


class Busy(Exception):
    """Another process is making an entry."""


class Store:
    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.waits = True  # for entries that another process is making; ``Busy`` is raised where it does not
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
        own, what = lock(self.root / LOCKS, f"{kind}-{folder.name}"), f"{kind} {folder.name}"
        held = locked(own, what) if self.waits else free(own)
        if held is None:
            raise Busy(what)
        with held:
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
                os.utime(folder / ENTRY)  # last use, for `python -m unlearn.store prune unused=DAYS`
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


# --- what lies in the store: listed, verified, measured and pruned ----------------------------------------------------


KEPT = {ANSWERS: "answers of black boxes", "hashes": "notes on model files that were read"}  # beside the entries
DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Entry:
    kind: str
    folder: Path
    bytes: int
    used: float  # seconds since the epoch
    card: dict[str, Any]  # empty: unreadable
    foreign: bool = False  # nothing that the store made

    @property
    def what(self) -> str:
        """What it was made from, in a line."""
        if self.foreign:
            return "not made by the store"
        recipe = self.card.get("recipe", {})
        texts = {k: v if isinstance(v, str) and v.isprintable() else repr(v) for k, v in recipe.items()}
        short = [f"{k} {v if len(v) <= 24 else v[:21] + '…'}" for k, v in texts.items()]
        return ", ".join(short) or "its entry.json is unreadable"


def entries(root: Path) -> list[Entry]:
    """Everything under the store's folder but locks and unfinished builds, by kind and then by size."""
    kinds = [kind for kind in root.glob("*") if kind.name not in (*KEPT, BUILDING, LOCKS)]
    found = [_entry(path) for kind in kinds for path in (kind.iterdir() if kind.is_dir() else [kind])]
    return sorted(found, key=lambda e: (e.kind, -e.bytes, e.folder.name))


def _entry(path: Path) -> Entry:
    card: dict[str, Any] = {}
    foreign = not path.is_dir() or not re.fullmatch(rf"[0-9a-f]{{{KEY}}}", path.name)
    if not foreign:
        with suppress(ValueError):  # `fault` says what is wrong with it
            card = card_of(path)
    used = (path / ENTRY if card else path).stat().st_mtime
    return Entry(path.parent.name, path, size(path), used, card, foreign)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(p.stat().st_size for p in files if p.is_file())


def _locked(root: Path, name: str) -> bool:
    """Whether a job holds the lock of this entry, e.g. ``rows-0123abcd``."""
    lock = root / LOCKS / f"{name}.lock"
    held = free(FileLock(lock)) if lock.is_file() else None
    if held is not None:
        held.lock.release()
    return lock.is_file() and held is None


def to_prune(root: Path, unused: float | None, kinds: Sequence[str]) -> dict[Path, str]:
    """What may go, and why. ``unused`` in days; ``kinds`` limits it, all if empty."""
    builds = [] if kinds else sorted((root / BUILDING).glob("*"))
    found = {folder: "left over by a job that was killed" for folder in builds if not _locked(root, folder.name)}
    for entry in entries(root):
        if entry.foreign or (kinds and entry.kind not in kinds):
            continue  # what the store did not make it does not remove
        why, format = None, entry.card.get("format")
        if format not in (None, STORE_FORMAT):
            why = f"format {format}, and this program writes {STORE_FORMAT}"
        elif wrong := fault(entry.folder):
            why = f"damaged: {wrong}"
        elif unused is not None and entry.used < time.time() - unused * DAY:
            why = f"not used for {(time.time() - entry.used) / DAY:.0f} days"
        if why and not _locked(root, f"{entry.kind}-{entry.folder.name}"):
            found[entry.folder] = why
    return found


def show(root: Path) -> None:
    """Print every entry on a line of its own, as wide as the terminal, and what kinds and all need."""
    found, totals, room = entries(root), {}, shutil.get_terminal_size((10_000, 0)).columns
    kind, name = (max([*map(len, texts), 5]) for texts in ([e.kind for e in found], [e.folder.name for e in found]))
    if found:
        print(f"{'kind':{kind}}  {'entry':{name}}       size  last use    made from")
    for e in found:
        totals[e.kind] = totals.get(e.kind, 0) + e.bytes
        used = time.strftime("%Y-%m-%d", time.localtime(e.used))
        line = f"{e.kind:{kind}}  {e.folder.name:{name}}  {_bytes(e.bytes):>9}  {used}  {e.what}"
        print(line if len(line) <= room else f"{line[: room - 1]}…")
    parts = ", ".join(f"{kind} {_bytes(total)}" for kind, total in totals.items())
    print(f"{root}: {len(found)} entries, {_bytes(sum(totals.values()))}{f' ({parts})' if parts else ''}")
    for name, what in KEPT.items():
        if (root / name).is_dir():
            print(f"{root / name}: {_bytes(size(root / name))} of {what}, which are never pruned")


def verify(root: Path) -> int:
    """Compare every file with its checksum; exit status 1 if one is damaged."""
    found, bad = entries(root), 0
    for entry in found:
        wrong = "not made by the store; it is left alone" if entry.foreign else fault(entry.folder)
        if wrong:
            bad += not entry.foreign
            print(f"{entry.folder}: {wrong}")
    print(f"{len(found)} entries, {bad} damaged{'; the next run that needs one builds it again' if bad else ''}")
    return 1 if bad else 0


def prune(root: Path, unused: float | None, kinds: Sequence[str], remove: bool) -> None:
    """Say what ``to_prune`` finds, and remove it if that is asked."""
    found = to_prune(root, unused, kinds)
    freed = _bytes(sum(size(path) for path in found))
    for path, why in found.items():
        print(f"{path}: {why}")
        if remove:
            shutil.rmtree(path)
    hint = ": say yes=true to remove them" if found else ""
    print(f"removed {len(found)} entries, {freed}" if remove else f"{len(found)} entries, {freed}, would go{hint}")


def _bytes(count: float) -> str:
    units = ["B", "kB", "MB", "GB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"
