"""A finished run, opened: its job, and its models as soon as somebody asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.config.schema import Config
from unlearn.store.identity import Job

if TYPE_CHECKING:
    from unlearn.ensemble.ensemble import Ensemble
    from unlearn.runs.workbench import Workbench


@dataclass(frozen=True)
class Opened:
    """What ``grid.rerun.open_run`` makes of a run's folder."""

    job: Job

    @property
    def cfg(self) -> Config:
        return self.job.cfg

    @property
    def folder(self) -> Path:
        return self.job.folder

    @cached_property
    def bench(self) -> Workbench:
        """Data, encoder and frozen models; threads and seeds are set as at the start of a job."""
        from unlearn.runs.learner import initialise
        from unlearn.runs.workbench import workbench

        initialise(self.cfg)
        return workbench(self.cfg)

    @cached_property
    def ensemble(self) -> Ensemble:
        """The method's members with the weights that the run trained. ``ConfigError`` where the store has others."""
        from unlearn.runs.learner import members

        return members(self.cfg, self.bench, self.folder)
