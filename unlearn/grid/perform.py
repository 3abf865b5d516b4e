"""Perform one job: what its folder lacks, under its lock, with its log."""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from unlearn.config.redaction import in_logs, redact
from unlearn.grid import ended, launchers
from unlearn.store import runlog
from unlearn.store.entries import locked
from unlearn.store.files import saving
from unlearn.store.identity import Job

log = logging.getLogger(__name__)


LOG = "log.txt"


def perform(raw: DictConfig, job: Job) -> None:
    """Do what the job's folder lacks; a failure is recorded there and not raised."""
    in_logs()
    try:
        _perform(raw, job)
    except OSError as error:  # no folder, lock or log can be made there
        log.error("%s failed: %s", job.folder.name, error)
        runlog.fail(job, error)


def _perform(raw: DictConfig, job: Job) -> None:
    # Two jobs may ask for the same run (direct ignores α in training): the second one waits, then finds it done.
    with locked(ended.lock(job.folder), f"the run {job.folder.name}"):
        if runlog.is_done(job.folder, job.cfg, job.data):
            log.info("%s is done: skipped", job.folder.name)
        elif job.cfg.retry == "failed" and runlog.manifest(job.folder).get("status") not in (*ended.ENDED, "running"):
            log.info("%s did not fail: skipped", job.folder.name)
        else:
            with launchers.turn(job.cfg), _logging_to(job.folder):
                _execute(raw, job)


def _execute(raw: DictConfig, job: Job) -> None:
    from unlearn.runs.job import execute  # torch and its friends: only now is there work for them

    try:
        execute(job, OmegaConf.to_yaml(raw, resolve=True))
    except Exception as error:
        log.error("%s failed: %s", job.folder.name, error)
        with suppress(OSError), (job.folder / LOG).open("a", encoding="utf-8") as stream:
            stream.write(redact(traceback.format_exc()))
        runlog.fail(job, error)
    except KeyboardInterrupt as stop:
        log.warning("%s was stopped (%s); the same command goes on from there", job.folder.name, stop)
        runlog.fail(job, stop, "interrupted")
        raise


class _Log(logging.FileHandler):
    """A log that a full disk cuts short: what fails is said on the terminal, once and by the job itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _logging_to:
    """Also write the job's log into its run folder."""

    def __init__(self, folder: Path):
        self.path = folder / LOG

    def __enter__(self):
        with saving(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.handler = _Log(self.path, encoding="utf-8")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self.handler)

    def __exit__(self, *_):
        logging.getLogger().removeHandler(self.handler)
        with suppress(OSError):
            self.handler.close()
