"""What is left of a grid when a launcher gave up because a process was killed.

joblib ends the whole call then, and the jobs that had not begun with it; submitit_local reports the first killed job
while others are still at work. Each job that is left is run here in a process of its own, one after another: what
killed one cannot take the others with it.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig

from unlearn import runlog, stopping
from unlearn.identity import Job

LAUNCHERS = ("joblib", "submitit_local")  # on this machine; what Slurm lost is for Slurm to start again
Perform = Callable[[DictConfig, Job], None]


def go_on(perform: Perform, jobs: Sequence[tuple[DictConfig, Job]], began: float) -> None:
    """Run the jobs that are neither done nor failed since ``began`` (seconds since the epoch)."""
    left = [(raw, job) for raw, job in jobs if _is_left(job, began)]
    if not left:
        return
    print(f"the launcher gave up (above); {len(left)} runs that have no result are done one by one", file=sys.stderr)
    spawn: Any = multiprocessing.get_context("spawn")
    for raw, job in left:
        process = spawn.Process(target=_alone, args=(perform, raw, job))
        process.start()
        try:
            process.join()
        finally:
            process.terminate()
            process.join()


def _is_left(job: Job, began: float) -> bool:
    if runlog.is_done(job.folder, job.cfg, job.data):
        return False
    path = job.folder / runlog.MANIFEST
    try:
        failed = runlog.manifest(job.folder).get("status") == "failed"
    except ValueError:  # the table names it
        return False
    return not (failed and path.stat().st_mtime >= began)


def _alone(perform: Perform, raw: DictConfig, job: Job) -> None:
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    stopping.listen()
    perform(raw, job)
