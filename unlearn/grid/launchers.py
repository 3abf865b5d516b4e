"""Jobs of a call side by side, each in a process of its own: hydra/launcher=joblib, submitit_local, submitit_slurm.

They need little: the store and the run folders are safe under parallel jobs, and failures are recorded, not raised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from unlearn.config.schema import Config
from unlearn.grid.rules import parse


def config(raw: DictConfig) -> Config:
    """The checked config of a job; without progress bars where several jobs would write them over each other."""
    cfg = parse(raw)
    return cfg if _name() == "basic" else replace(cfg, trainer=replace(cfg.trainer, progress=False))


@contextmanager
def turn(cfg: Config) -> Iterator[None]:
    """Wait until the job may compute: submitit's local executor starts all jobs of a call at once.

    As many run at a time as there are cores for their threads. A job that is killed makes room for the next.
    """
    if _name() != "submitit_local":
        yield
        return
    with _place(Path(HydraConfig.get().sweep.dir), max(1, (os.cpu_count() or 1) // cfg.trainer.threads)):
        yield


def _place(folder: Path, places: int) -> AcquireReturnProxy:
    while True:
        for place in range(places):
            with suppress(Timeout):
                return FileLock(folder / f".place-{place}.lock").acquire(timeout=0)
        time.sleep(0.2)


def _name() -> str:
    """What starts the jobs of this call; one job alone is as with Hydra's basic launcher."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return "basic"
    return HydraConfig.get().runtime.choices["hydra/launcher"]
