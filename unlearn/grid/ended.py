"""Runs that came to no end: told apart from runs at work by the lock that a process holds while it works on one.

The system frees a lock when its process ends, however it ends: there are no stale ones.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from unlearn.store import runlog
from unlearn.store.files import saving
from unlearn.store.identity import Job

ENDED = ("failed", "interrupted", "killed")  # what a manifest says of a run that began and is neither done nor at work


class Killed(RuntimeError):
    """A process that ended without a word."""


def lock(folder: Path) -> FileLock:
    """What a process holds while it works on a run."""
    locks = folder.parent / ".locks"
    with saving(locks):
        locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{folder.name}.lock")


def bury(job: Job) -> None:
    """Say in the manifest that the process which was at work on a run was killed. A run at work is left alone."""
    try:
        if runlog.manifest(job.folder).get("status") != "running":
            return
        with lock(job.folder).acquire(timeout=0):
            if runlog.manifest(job.folder).get("status") == "running":
                runlog.fail(job, Killed("its process was killed (SIGKILL, out of memory, power)"), "killed")
    except (Timeout, OSError, ValueError):  # at work; a folder that is only read; a damaged manifest
        pass


def to_repeat(job: Job) -> bool:
    """Whether a run began and came to no end, and no process is at work on it."""
    bury(job)
    try:
        return runlog.manifest(job.folder).get("status") in ENDED
    except ValueError:
        return False
