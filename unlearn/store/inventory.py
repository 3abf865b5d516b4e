"""What lies in the store: listed, verified, measured and pruned (``python -m unlearn.store``)."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unlearn.store.entries import ANSWERS, BUILDING, ENTRY, KEY, LOCKS, STORE_FORMAT, card_of, fault

DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Entry:
    """A folder of the store."""

    kind: str
    folder: Path
    bytes: int
    used: float  # seconds since the epoch
    recipe: dict[str, Any] | None  # None: unreadable
    format: int | None
    foreign: bool = False  # nothing that the store made

    @property
    def what(self) -> str:
        """What it was made from, in a line."""
        if self.foreign:
            return "not made by the store"
        return ", ".join(f"{k} {_short(v)}" for k, v in (self.recipe or {}).items()) or "its entry.json is unreadable"


def entries(root: Path) -> list[Entry]:
    """Everything under the store's folder but locks and unfinished builds, by kind and then by size."""
    found = [_entry(folder) for folder in _folders(root)]
    return sorted(found, key=lambda e: (e.kind, -e.bytes, e.folder.name))


def _folders(root: Path) -> Iterator[Path]:
    for kind in sorted(root.iterdir()) if root.is_dir() else []:
        if kind.name not in (ANSWERS, BUILDING, LOCKS):
            yield from sorted(kind.iterdir()) if kind.is_dir() else [kind]


def _entry(path: Path) -> Entry:
    card, content = path / ENTRY, {}
    foreign = not path.is_dir() or not re.fullmatch(rf"[0-9a-f]{{{KEY}}}", path.name)
    if not foreign:
        try:
            content = card_of(path)
        except ValueError:
            pass  # `fault` says what is wrong with it
    used = (card if content else path).stat().st_mtime
    return Entry(path.parent.name, path, size(path), used, content.get("recipe"), content.get("format"), foreign)


def leftovers(root: Path) -> list[Path]:
    """Builds that no job is at work on any more."""
    return [f for f in sorted((root / BUILDING).glob("*")) if not _locked(root, f.name)]


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
    found = {} if kinds else {folder: "left over by a job that was killed" for folder in leftovers(root)}
    for entry in entries(root):
        if entry.foreign or (kinds and entry.kind not in kinds):
            continue  # what the store did not make it does not remove
        why = None
        if entry.format not in (None, STORE_FORMAT):
            why = f"format {entry.format}, and this program writes {STORE_FORMAT}"
        elif wrong := fault(entry.folder):
            why = f"damaged: {wrong}"
        elif unused is not None and entry.used < time.time() - unused * DAY:
            why = f"not used for {(time.time() - entry.used) / DAY:.0f} days"
        if why and not _locked(root, f"{entry.kind}-{entry.folder.name}"):
            found[entry.folder] = why
    return found


def show(root: Path) -> None:
    """Print every entry, and what kinds and all need."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "entry", "size", "last use", box=box.SIMPLE)
    table.add_column("made from", no_wrap=True, overflow="ellipsis")
    found, totals = entries(root), {}
    for e in found:
        totals[e.kind] = totals.get(e.kind, 0) + e.bytes
        table.add_row(e.kind, e.folder.name, _bytes(e.bytes), time.strftime("%Y-%m-%d", time.localtime(e.used)), e.what)
    Console().print(table)
    parts = ", ".join(f"{kind} {_bytes(total)}" for kind, total in totals.items())
    print(f"{root}: {len(found)} entries, {_bytes(sum(totals.values()))}{f' ({parts})' if parts else ''}")
    if (root / ANSWERS).is_dir():
        print(f"{root / ANSWERS}: {_bytes(size(root / ANSWERS))} of answers of black boxes, which are never pruned")


def verify(root: Path) -> int:
    """Compare every file with its checksum; exit status 1 if one is damaged."""
    bad = 0
    for entry in entries(root):
        wrong = "not made by the store; it is left alone" if entry.foreign else fault(entry.folder)
        if wrong:
            bad += not entry.foreign
            print(f"{entry.folder}: {wrong}")
    print(
        f"{len(entries(root))} entries, {bad} damaged"
        + ("; the next run that needs one builds it again" if bad else "")
    )
    return 1 if bad else 0


def prune(root: Path, found: dict[Path, str], remove: bool) -> None:
    """Say what ``to_prune`` found, and remove it if that is asked."""
    freed = 0
    for path, why in found.items():
        freed += size(path)
        print(f"{path}: {why}")
        if remove:
            shutil.rmtree(path)
    said = (
        f"removed {len(found)} entries, {_bytes(freed)}"
        if remove
        else f"{len(found)} entries, {_bytes(freed)}, would go"
    )
    print(said + ("" if remove or not found else ": say yes=true to remove them"))


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 24 else text[:21] + "…"
