"""What lies in the store: listed, verified, measured and pruned (``python -m unlearn.store``)."""

import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unlearn.store.entries import ANSWERS, BUILDING, ENTRY, KEY, STORE_FORMAT, card_of, fault
from unlearn.store.locks import LOCKS

KEPT = {ANSWERS: "answers of black boxes", "hashes": "notes on model files that were read"}  # beside the entries
DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Entry:
    """A folder of the store."""

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
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


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
