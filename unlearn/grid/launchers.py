"""Jobs of a call side by side, each in a process of its own: hydra/launcher=joblib, submitit_local, submitit_slurm.

They need little: the store and the run folders are safe under parallel jobs, and failures are recorded, not raised.
Here is the rest: how many run at a time, which runs were interrupted, and what an aborted launcher has left.
"""

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from unlearn.config.schema import Config
from unlearn.store import locks, runlog
from unlearn.store.files import sha256
from unlearn.store.identity import Job, digest
from unlearn.store.progress import duration

log = logging.getLogger(__name__)
ENDED = ("failed", "interrupted", "killed")  # statuses of runs that began and are neither done nor active
BEGUN = (*ENDED, "running")
JOBS = "UNLEARN_JOBS"  # in the environment: how many jobs the call has
TO_DO = "UNLEARN_TO_DO"  # and how many of them were not done at its start
_spent: list[float | None] = []  # seconds of this process's jobs, as say_left takes them
RESUMED = ("joblib", "submitit_local")  # launchers of this machine; what Slurm lost is for Slurm to start again
Perform = Callable[[Job], bool]  # whether it is left


class Killed(RuntimeError):
    """The process was killed before it could record a status."""


# --- one job --------------------------------------------------------------------------------------------------------


def quiet(cfg: Config) -> Config:
    """The config of a job; without progress bars where several jobs would write them over each other."""
    return cfg if _name() == "basic" else replace(cfg, trainer=replace(cfg.trainer, progress=False))


def turn(cfg: Config) -> AbstractContextManager[Any]:
    """Wait until the job may compute: submitit's local executor starts all jobs of a call at once.

    As many run at a time as there are cores for their threads. A job that is killed makes room for the next.
    """
    if _name() != "submitit_local":
        return nullcontext()
    folder = Path(HydraConfig.get().sweep.dir)
    while True:
        for place in range(max(1, (os.cpu_count() or 1) // cfg.trainer.threads)):
            with suppress(Timeout):
                return FileLock(folder / f".place-{place}.lock").acquire(timeout=0)
        time.sleep(0.2)


def number(job: Job) -> str:
    """Which of the call's jobs this process does, e.g. ``[3/9] ``; nothing where it is the only one."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return ""
    return f"[{job.number or HydraConfig.get().job.num + 1}/{os.environ[JOBS]}] "


def say_left(seconds: float | None) -> None:
    """After a job: what is left of a call that runs its jobs one after the other, where that is more than a minute.

    ``seconds``: its own time; None where that says nothing of the others: it failed, or was begun before.
    """
    _spent.append(seconds)
    whole = [each for each in _spent if each is not None]
    total = int(os.environ.get(TO_DO, "0"))
    each = sum(whole) / max(1, len(whole))
    if (left := each * (total - len(_spent))) > 60 and _name() == "basic":
        failed = "" if len(whole) == len(_spent) else f" ({len(whole)} of them from start to end)"
        log.info(
            "%d of %d runs ended%s, %s each: about %s left", len(_spent), total, failed, *map(duration, (each, left))
        )


def alone() -> bool:
    """Whether a job has a process of its own, which does nothing else."""
    return _name().startswith("submitit")


def _name() -> str:
    """What starts the jobs of this call; one job alone is as with Hydra's basic launcher."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return "basic"
    return HydraConfig.get().runtime.choices["hydra/launcher"]


# --- interrupted runs -----------------------------------------------------------------------------------------------


def lock(folder: Path) -> FileLock:
    """What a process holds exactly while it works on a run; the system frees it when the process dies."""
    return locks.lock(folder.parent / locks.LOCKS, folder.name)


def mark_killed(job: Job) -> None:
    """Record in the manifest that the process which worked on a run was killed; an active run is left alone."""
    with suppress(Timeout, OSError):  # active; a folder that is only read
        if _runs(job):
            with lock(job.folder).acquire(timeout=0):
                note_killed(job)


def note_killed(job: Job) -> None:
    """The same, by who holds the run's lock; and how many processes it has killed without getting further."""
    if _runs(job):
        error = Killed("its process was killed (SIGKILL, out of memory, power)")
        runlog.fail(job, error, "killed", deaths=[deaths(job) + 1, _reached(job.folder)])


def deaths(job: Job) -> int:
    """How many processes, one after another, a run has killed without getting further."""
    times, reached = runlog.status(job.folder, verify=False).get("deaths", (0, ""))
    return times if reached == _reached(job.folder) else 0


def _runs(job: Job) -> bool:
    return runlog.status(job.folder, verify=False).get("status") == "running"


def _reached(folder: Path) -> str:
    """What of a run outlives its process: a later checkpoint, weights, another part of the evaluation."""
    kept = [
        p
        for name in (runlog.CHECKPOINT, runlog.OFFSET, runlog.ADAPTER, runlog.PARTS)
        for p in folder.glob(f"{name}/**/*")
    ]
    sums = [sha256(p) for p in (folder / runlog.EVAL,) if p.is_file()]
    return digest([sorted(str(p.relative_to(folder)) for p in kept if p.name[0] != "."), sums], 8)


def to_repeat(job: Job) -> bool:
    """Whether a run began and was not finished, and no process is working on it."""
    mark_killed(job)
    return runlog.status(job.folder).get("status") in ENDED


# --- what a launcher has left ---------------------------------------------------------------------------------------


def resume(perform: Perform, jobs: Sequence[Job], began: float) -> list[Job]:
    """Run the jobs that were neither done nor failed since ``began`` (seconds since the epoch), one at a time; those
    that did not end here, since another call is doing them.

    A launcher aborts when a process is killed: joblib ends the whole call, and the jobs that had not begun with it;
    submitit_local reports the first killed job while others are still running. They run in a process that is started
    here; if it is killed too, the remaining ones get another.
    """
    if left := [job for job in jobs if _is_left(job, began)]:
        _resume(perform, left)
    return [job for job in jobs if runlog.status(job.folder).get("status") not in ENDED]


def _resume(perform: Perform, left: list[Job]) -> None:
    print(f"The launcher aborted (see above). Running the {len(left)} remaining jobs one at a time.", file=sys.stderr)
    for job in left:
        mark_killed(job)
    left.sort(key=lambda job: job.folder.exists())  # what killed a process was begun: the others first
    spawn: Any = multiprocessing.get_context("spawn")
    while left:
        start = time.time()
        process = spawn.Process(target=_perform_all, args=(perform, left))
        process.start()
        try:
            process.join()
        finally:
            process.terminate()
            process.join()
        for job in left:
            mark_killed(job)
        after = [job for job in left if _is_left(job, start)]
        left = after if len(after) < len(left) else []


def _is_left(job: Job, began: float) -> bool:
    """Whether a job has neither been done nor ended in another way since then."""
    status = runlog.status(job.folder).get("status")
    if runlog.is_done(job) or status == "damaged":  # the table names it
        return False
    return status not in ENDED or (job.folder / runlog.MANIFEST).stat().st_mtime < began


def log_as_jobs() -> None:
    """Log as Hydra has its jobs log (conf/config.yaml), after its end or in another process."""
    how = {"format": "[%(asctime)s] %(message)s", "datefmt": "%H:%M:%S", "stream": sys.stdout}
    logging.basicConfig(level=logging.INFO, force=True, **how)


def _perform_all(perform: Perform, jobs: Sequence[Job]) -> None:
    log_as_jobs()
    for job in jobs:
        perform(job)
