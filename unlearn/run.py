"""``python -m unlearn.run``: prepare what is missing, train, evaluate, record; with ``-m`` a whole grid.

A run that is done is recognised by its folder's name, without importing torch. A failing job never stops the
others: it is recorded in its manifest, and the command's exit status says so at the end.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import hydra
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from unlearn import grid, launchers, runlog
from unlearn.config import conf_dir, register
from unlearn.data.readers import read
from unlearn.files import saving
from unlearn.identity import Job
from unlearn.store import locked

log = logging.getLogger(__name__)
LOG = "log.txt"
register()


def unlearn(raw: DictConfig) -> None:
    """One job of a grid (or the only one)."""
    cfg = launchers.config(raw)
    perform(raw, grid.job(cfg, read(cfg).fingerprint()))


def perform(raw: DictConfig, job: Job) -> None:
    """Do what the job's folder lacks; a failure is recorded there and not raised."""
    try:
        _perform(raw, job)
    except OSError as error:  # no folder, lock or log can be made there
        log.error("%s failed: %s", job.folder.name, error)
        runlog.fail(job, error)


def _perform(raw: DictConfig, job: Job) -> None:
    locks = job.folder.parent / ".locks"
    with saving(locks):
        locks.mkdir(parents=True, exist_ok=True)
    # Two jobs may ask for the same run (direct ignores α in training): the second one waits, then finds it done.
    with locked(FileLock(locks / f"{job.folder.name}.lock"), f"the run {job.folder.name}"):
        if grid.job(job.cfg, job.data).was_done:
            log.info("%s is done: skipped", job.folder.name)
        else:
            with launchers.turn(job.cfg), _logging_to(job.folder):
                _execute(raw, job)


def _execute(raw: DictConfig, job: Job) -> None:
    from unlearn.job import execute  # torch and its friends: only now is there work for them

    try:
        execute(job, OmegaConf.to_yaml(raw, resolve=True))
    except Exception as error:
        log.error("%s failed: %s", job.folder.name, error)
        with suppress(OSError), (job.folder / LOG).open("a", encoding="utf-8") as stream:
            stream.write(traceback.format_exc())
        runlog.fail(job, error)


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


def main() -> None:
    run = hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")(unlearn)
    sys.exit(grid.supervise(run))


if __name__ == "__main__":
    main()
