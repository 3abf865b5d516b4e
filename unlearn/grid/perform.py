"""Perform one job: what its folder lacks, under its lock, with its log."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from omegaconf import OmegaConf

from unlearn.config.derived import algo_name, training_alpha
from unlearn.config.redaction import in_logs, redact
from unlearn.grid import launchers, queue
from unlearn.grid.refusal import printable
from unlearn.runs import stopping
from unlearn.store import runlog
from unlearn.store.files import saving
from unlearn.store.identity import Job
from unlearn.store.locks import Gone
from unlearn.store.progress import progress

log = logging.getLogger(__name__)


def perform(job: Job) -> bool:
    """Do what the job's folder lacks; a failure is recorded there and not raised.

    Whether it is left for later, as another process is doing it. Signals that end the call are recorded, too.
    """
    in_logs()
    printable()
    stopping.end_with_parent()
    with stopping.listening():
        left = _perform(job)
    if not left:
        queue.settled(job)
    return left


def _perform(job: Job) -> bool:
    name = job.folder.name
    try:
        with queue.taken(job) as mine:
            if not mine:
                return True
            if runlog.is_done(job):
                log.info("skipped %s: done", name)
                if not job.was_done:  # another process did it, or a job of this call
                    launchers.say_left(None)
                return False
            status = runlog.status(job.folder, verify=False).get("status")
            if (job.cfg.retry == "failed" and status not in launchers.BEGUN) or queue.failed_since(job):
                log.info("skipped %s: %s", name, "it failed elsewhere" if status == "failed" else "it did not fail")
                return False
            launchers.note_killed(job)
            if queue.put_off(job):
                return True
            with queue.world(job) as now:
                if now:
                    _execute(job)
                return not now
    except (OSError, launchers.Killed) as error:  # no folder, lock or log can be made there; it kills who does it
        if runlog.is_done(job):  # by another user, whose lock cannot be taken
            log.info("skipped %s: done", name)
        else:
            log.error("%s failed: %s", name, error)
            runlog.fail(job, error)
        return False


def _execute(job: Job) -> None:
    took = None  # of a run that fails, or was begun before, that says nothing
    with launchers.turn(job.cfg), _recorded(job):
        begun = runlog.manifest(job.folder).get("seconds")
        about = f"{algo_name(job.cfg)} {job.cfg.method.name} α={training_alpha(job.cfg):g} seed={job.cfg.seed}"
        log.info("%s%s: %s", launchers.number(job), about, job.folder)
        with progress(None, about):
            from unlearn.runs.job import execute  # torch and its friends: only now is there work for them

            config = OmegaConf.to_yaml(OmegaConf.structured(job.cfg))
            execute(replace(job, cfg=launchers.quiet(job.cfg)), config)
        took = None if begun else runlog.own_seconds(runlog.manifest(job.folder))
    launchers.say_left(took)


@contextmanager
def _recorded(job: Job) -> Iterator[None]:
    """Write the block's log into the run folder too, and how it failed into log and manifest."""
    path = job.folder / "log.txt"
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Gone as error:  # what is there now may be another process's
        log.error("%s failed: %s", job.folder.name, error)
        runlog.unrecorded[job.folder] = str(error)
    except Exception as error:
        log.error("%s failed: %s", job.folder.name, error)
        with suppress(OSError), path.open("a", encoding="utf-8") as stream:
            stream.write(redact(traceback.format_exc()))
        runlog.fail(job, error)
    except KeyboardInterrupt as stop:
        log.warning("stopped %s by %s; rerun the same command to resume", job.folder.name, stop)
        runlog.fail(job, stop, "interrupted")
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):
            handler.close()
