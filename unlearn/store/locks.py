"""Locks between processes, and machines that share a folder: flocks, which the system frees when their holder dies."""

import errno
import fcntl
import logging
import os
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from unlearn.store.files import DiskError, passing_name, saving

log = logging.getLogger(__name__)
LOCKS = ".locks"
PATIENCE = 2.0  # seconds of waiting that are not worth a line
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
MOUNTS = Path("/proc/self/mountinfo")
OF_ONE = {
    "localflock",
    "nolock",
    *(f"local_lock={kind}" for kind in ("flock", "posix", "all")),
}  # mount options of Lustre and NFS
UNTOLD = ("fuse.", "9p", "vboxsf", "virtiofs")  # file systems whose options do not say how far their locks reach
NETWORKED = (*UNTOLD, "nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "glusterfs", "afs", "wekafs", "panfs")


def lock(folder: Path, name: str) -> FileLock:
    """The lock of a name in a folder, which is made; not yet taken. ``DiskError`` where there can be none."""
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    why = _missing(folder.resolve())
    if why is not None:
        do = "mount it with flock, or give another folder by paths.runs= and paths.store="
        raise DiskError(
            f"{folder}: its file system has no locks that hold ({why}), so that work could be done twice; {do}"
        )
    return FileLock(folder / f"{name}.lock")


def locked(lock: FileLock, what: str) -> AcquireReturnProxy:
    """Take a lock; log that another job holds it for long, since waiting in silence looks like hanging."""
    with saving(Path(lock.lock_file)):
        try:
            return lock.acquire(timeout=PATIENCE)
        except Timeout:
            log.info("waiting for another job that works on %s", what)
            return lock.acquire()


def free(lock: FileLock) -> AcquireReturnProxy | None:
    """Take a lock that nobody holds; None where another process, or machine, does."""
    with saving(Path(lock.lock_file)):
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            return None


def look_again(folder: Path) -> None:
    """Have names in a folder be those that are there now: over NFS another machine's may be unknown here for a minute.

    A folder that is opened is asked for again.
    """
    with suppress(OSError):
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))


class Gone(RuntimeError):
    """A folder was removed while a process was using it."""


class Place:
    """A folder that a process is using. There may be another one of its name, where somebody removed it: with a
    lock that was removed, too, and another process in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open = os.open(folder, os.O_RDONLY)  # while it is open, no other folder gets its number
        weakref.finalize(self, os.close, self._open)

    def still(self) -> Path:
        """The folder; ``Gone`` where it is not there any more."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._open), self.folder.stat()):
                return self.folder
        raise Gone(f"{self.folder} was removed while it was worked on; rerun the same command to make it again")


@cache
def _missing(folder: Path) -> str | None:
    """Why locks in this folder are none, told by taking one twice; None where they hold. What they may not reach is
    said once."""
    probe = folder / passing_name("probe.lock")
    with saving(folder):
        try:
            with probe.open("w") as one, probe.open("w") as other:
                fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(BlockingIOError):
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return "one is given to two"
        except OSError as error:
            if error.errno in NO_LOCKS:
                return error.strerror
            raise
        finally:
            probe.unlink(missing_ok=True)
    if far := _reach(folder):
        log.warning("%s: %s: start what works in it from one machine alone", folder, far)
    return None


def _reach(folder: Path) -> str | None:
    """Why locks in this folder may not reach other machines, as its mount says; None where they do."""
    point, kind, options = _mount(folder)
    if here := sorted(OF_ONE & options):
        return f"{point} is mounted with {here[0]}, so that locks hold on this machine alone"
    return f"{point} is {kind}, whose locks may hold on this machine alone" if kind.startswith(UNTOLD) else None


def networked(folder: Path) -> bool:
    """Whether other machines may have the folder, too, as its mount says."""
    return _mount(folder)[1].startswith(NETWORKED)


def _mount(folder: Path) -> tuple[Path, str, set[str]]:
    """Where a folder is mounted, as what, and how; nothing known elsewhere than on Linux."""
    place, found = folder.resolve(), (Path("/"), "", set())
    with suppress(OSError):
        for line in MOUNTS.read_text(encoding="utf-8").splitlines():
            own, _, system = line.partition(" - ")
            point = Path(own.split()[4].encode().decode("unicode_escape"))  # a space is \\040
            if place.is_relative_to(point) and len(point.parts) >= len(found[0].parts):
                found = point, system.split()[0], set(f"{own.split()[5]},{system.split()[-1]}".split(","))
    return found
