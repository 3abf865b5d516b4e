"""One grid that several processes, or machines, were started on: each run is made by one of them.

Nothing is handed out: who takes a run's lock has it, and what others hold is left until all else is done. A run whose
process was killed is free again, and is resumed by the next one that comes by.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from filelock import AcquireReturnProxy

from unlearn.grid import launchers
from unlearn.store import locks, runlog
from unlearn.store.identity import Job, digest

log = logging.getLogger(__name__)
FAILED = "UNLEARN_FAILED"  # in the environment: which runs had failed when the call began
OWN = ("tuning", "lora", "layers")  # of a pair: how one learns is the run's
DEATHS = 3  # processes that a run may kill, one after another, without getting further
SOON, LATE = 0.1, 5.0  # seconds between two looks at what others are doing: growing while nothing happens
_worlds: dict[Path, str] = {}  # of the call's runs that may have something left to do
_last: set[Path] = set()  # those of them that killed a process, and were put off for it


def begin(jobs: Sequence[Job]) -> None:
    """Note which runs failed before the call: these alone does it try again, and not what fails while it works."""
    for job in jobs:
        launchers.mark_killed(job)
    begun = [job for job in jobs if runlog.status(job.folder, verify=False).get("status") in launchers.ENDED]
    os.environ[FAILED] = ",".join(_mark(job) for job in begun)
    _worlds.clear(), _last.clear()
    _worlds.update({job.folder: _world(job) for job in jobs if not job.was_done})


def end() -> None:
    os.environ.pop(FAILED, None)
    _worlds.clear()


def failed_since(job: Job) -> bool:
    """Whether a run failed during the call, here or on another machine."""
    return runlog.status(job.folder, verify=False).get("status") == "failed" and _since(job)


def put_off(job: Job) -> bool:
    """Whether a run that killed its process is left until the call has tried all others. ``Killed`` where it does so to
    one after another."""
    times, since = launchers.deaths(job), _since(job)
    if since and times >= DEATHS:
        rule = "without getting further (out of memory?); the same command tries it again"
        raise launchers.Killed(f"it has killed {times} processes, one after another, {rule}")
    if times < (1 if since else DEATHS) or job.folder in _last or {*_worlds} <= {job.folder}:
        return False
    _last.add(job.folder)
    return True


def _since(job: Job) -> bool:
    """Whether a run has ended somehow since the call began."""
    before = os.environ.get(FAILED)
    return before is not None and _mark(job) not in before.split(",")


def _mark(job: Job) -> str:
    """Of a run's manifest as it is: told by no clock, since those of machines differ."""
    with suppress(FileNotFoundError):
        stat = (job.folder / runlog.MANIFEST).stat()
        return digest([job.folder.name, stat.st_ino, stat.st_mtime_ns], 8)
    return ""


@contextmanager
def taken(job: Job) -> Iterator[bool]:
    """Hold the run's lock for the length of the block, unless another process does. Jobs of submitit wait for it: each
    has a process that would have nothing else to do."""
    lock, what = launchers.lock(job.folder), f"the run {job.folder.name}"
    held = locks.locked(lock, what) if launchers.alone() else locks.free(lock)
    try:
        if held is not None:
            locks.look_again(job.folder.parent)
            locks.look_again(job.folder)
        yield held is not None
    finally:
        lock.release()


@contextmanager
def world(job: Job) -> Iterator[bool]:
    """Hold the run's world, its data and models, for the length of the block; whether the run should be done now:
    not where another process holds the world, and there is one that nobody holds.

    Who has a world of its own waits for no entry of the store, and loads its models once. A preference alone: all
    entries have locks of their own.
    """
    own = _world(job)
    lock = _held(job, own)
    try:
        yield lock is not None or not any(_idle(job, other) for other in {*_worlds.values()} - {own})
    finally:
        if lock is not None:
            lock.lock.release()


def _world(job: Job) -> str:
    pair = {key: value for key, value in asdict(job.cfg.pair).items() if key not in OWN}
    return digest([job.data, pair], 20)


def _held(job: Job, world: str) -> AcquireReturnProxy | None:
    """The lock of a world, taken; None where another process has it, or the store is only read."""
    with suppress(OSError):
        return locks.free(locks.lock(Path(job.cfg.paths.store) / locks.LOCKS, f"world-{world}"))
    return None


def _idle(job: Job, world: str) -> bool:
    held = _held(job, world)
    if held is not None:
        held.lock.release()
    return held is not None


def share(perform: Callable[[Job], bool], jobs: Sequence[Job]) -> None:
    """Do jobs, and wait for those that other processes are doing: what is killed there is resumed here."""
    left, pause, told = list(jobs), SOON, []
    while left := [job for job in left if perform(job)]:
        if told != (told := [job.folder.name for job in left]):
            log.info("waiting for other processes, which are doing %s", ", ".join(told))
            pause = SOON
        time.sleep(pause)
        pause = min(LATE, 1.5 * pause)


def settled(job: Job) -> None:
    """This process has nothing more to do for a run."""
    _worlds.pop(job.folder, None)


def is_left(job: Job) -> bool:
    """Whether a job of the call may be neither done nor tried."""
    tried = job.folder in runlog.unrecorded or failed_since(job)
    return not (tried or runlog.is_done(job) or runlog.status(job.folder).get("status") == "damaged")
