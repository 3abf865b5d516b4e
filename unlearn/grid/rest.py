"""What is left of a grid when a launcher gave up because a process was killed.

joblib ends the whole call then, and the jobs that had not begun with it; submitit_local reports the first killed job
while others are still at work. The jobs that are left are run one after another, in a process that is started here and,
if it is killed too, once more with those that are still left.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig

from unlearn.grid import ended
from unlearn.runs import stopping
from unlearn.store import runlog
from unlearn.store.identity import Job

LAUNCHERS = ("joblib", "submitit_local")  # on this machine; what Slurm lost is for Slurm to start again
Perform = Callable[[DictConfig, Job], None]


def go_on(perform: Perform, jobs: Sequence[tuple[DictConfig, Job]], began: float) -> None:
    """Run the jobs that are neither done nor failed since ``began`` (seconds since the epoch)."""
    left = [(raw, job) for raw, job in jobs if _is_left(job, began)]
    if not left:
        return
    print(f"the launcher gave up (above); {len(left)} runs that have no result are done one by one", file=sys.stderr)
    for _, job in left:
        ended.bury(job)
    left.sort(key=lambda each: each[1].folder.exists())  # what killed a process was begun: the others first
    while left:
        start = time.time()
        _in_a_process(perform, left)
        for _, job in left:
            ended.bury(job)
        after = [each for each in left if _is_left(each[1], start)]
        left = after if len(after) < len(left) else []


def _is_left(job: Job, began: float) -> bool:
    """Whether nothing became of a job since then: neither a result nor an end."""
    if runlog.is_done(job.folder, job.cfg, job.data):
        return False
    try:
        status = runlog.manifest(job.folder).get("status")
    except ValueError:  # the table names it
        return False
    touched = status in ended.ENDED and (job.folder / runlog.MANIFEST).stat().st_mtime >= began
    return not touched


def _in_a_process(perform: Perform, jobs: Sequence[tuple[DictConfig, Job]]) -> None:
    spawn: Any = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_alone, args=(perform, jobs))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
        process.join()


def _alone(perform: Perform, jobs: Sequence[tuple[DictConfig, Job]]) -> None:
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    stopping.listen()
    for raw, job in jobs:
        perform(raw, job)
