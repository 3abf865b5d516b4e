"""Files and folders that are either whole or absent: written under a temporary name, then renamed.

What is renamed has reached the disk before: else a power cut could leave an empty file under a final name.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHUT = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_ROOM = re.compile(
    r"no space left|quota exceeded|file too large|writing file|write failed|iostream error|unexpected pos",
    re.IGNORECASE,
)
MASK = os.umask(0o077)
os.umask(MASK)
SETTLED = 2.0  # seconds after which another change to a file gives it another time, on every file system
_digests: dict[str, str] = {}  # SHA-256 of the files that this process has read, by their stamp


class DiskError(OSError):
    """A file that could not be written, for want of room or of permission; nothing of it is left under its name."""


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Raise ``DiskError`` naming ``path`` for a block that fails for want of room or permission.

    Libraries that write weights and tables say so by errors of their own, without a number.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL or (number is None and NO_ROOM.search(str(error))):
            room = "room unknown"
            with suppress(OSError):
                there = next(folder for folder in path.parents if folder.exists())
                room = f"{shutil.disk_usage(there).free / 1e6:.1f} MB are free"
            room = ", ".join([*getattr(error, "__notes__", ()), room])
            do = f"{room}; make room there, or give another disk by paths.runs= or paths.store="
            raise DiskError(f"{path} could not be written, its disk is full ({do}); then rerun to resume") from error
        if isinstance(error, OSError) and number in SHUT:
            do = "let it be written, or give another folder by paths.runs= or paths.store="
            raise DiskError(f"{path} could not be written: {error.strerror}; {do}") from error
        raise


def write_whole(path: Path, write: Callable[[Path], None], work: Path | None = None, durable: bool = True) -> None:
    """Let ``write`` make a temporary file or folder, then rename it to ``path``.

    ``work``: where, if not beside ``path``. What can be rebuilt and is checked when it is read need not be ``durable``.
    """
    temporary = work or path.with_name(passing_name(path.name))
    try:
        with saving(path):
            _remove(temporary)  # left by a process that was killed
            write(temporary)
            for part in (*temporary.rglob("*"), temporary):
                if ".safetensors" in part.name:
                    part.chmod(0o666 & ~MASK)  # that library keeps its files from everybody else
                if durable:
                    sync(part)
            if path.is_dir():
                shutil.rmtree(path)
            temporary.replace(path)
            if durable:
                sync(path.parent)
    finally:
        with suppress(OSError):
            _remove(temporary)


def passing_name(name: str) -> str:
    """A name that no other writer takes: machines that share a folder may share numbers of processes, too."""
    return f".{name}.{secrets.token_hex(4)}.tmp"


def take_room(path: Path) -> None:
    """Have the disk hold every byte of a file that is written through a memory map: where it fills up in between, the
    system ends the process (SIGBUS). ``OSError`` where there is no room."""
    size = path.stat().st_size
    with path.open("r+b") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            error.add_note(f"{size / 1e6:.1f} MB are needed")
            raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove temporary files that killed writers left. No other process may be writing in the folder."""
    for left in folder.glob(".*.tmp"):
        _remove(left)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class FileError(ValueError):
    """A file that does not hold what it should: it was not written by this program, or is damaged."""


def read_json(path: Path) -> Any:
    """The JSON in ``path``; None where there is no such file. ``FileError`` where it is something else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: not valid JSON ({error}); it was not written by this program or is damaged") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file. This process reads it again only if the system says that it has changed since."""
    known = _stamp(path)
    if known in _digests:
        return _digests[known]
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.time() - path.stat().st_mtime > SETTLED:
        _digests[known] = found
    return found


def _stamp(path: Path) -> str:
    """Path, size, inode and times of last change: a file that is changed changes these, as git's index assumes too."""
    path = path.resolve()
    stat = path.stat()
    return f"{path} {stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def noted(notes: Path, path: Path, find: Callable[[Path], str], what: str = "") -> str:
    """``find(path)``, kept in the folder ``notes`` under the file's stamp: reading gigabytes takes a minute.

    ``what`` tells several things apart that are found out about one file.
    """
    note = notes / hashlib.sha256(f"{what}{_stamp(path)}".encode()).hexdigest()[:20]
    if note.is_file():
        return note.read_text(encoding="utf-8")
    found = find(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_text(note, found)
    return found
