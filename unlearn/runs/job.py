"""One run, from a checked config to a finished run folder: prepare, train, evaluate, record.

Called only when there is something to do (``unlearn/run.py`` decides that without importing torch).
"""

from __future__ import annotations

import copy
import logging
import shutil

from unlearn.config.derived import terms_of
from unlearn.config.schema import Config
from unlearn.ensemble.ensemble import Ensemble
from unlearn.learning.binding import bind
from unlearn.learning.loop import Diverged
from unlearn.runs import begin
from unlearn.runs.learner import _keep, _trainable, initialise, keep, members, same_models
from unlearn.runs.points import probe
from unlearn.runs.references import evaluate, missing, references, suite_of
from unlearn.runs.training import train
from unlearn.runs.trajectory import RULE, Watch
from unlearn.runs.workbench import Workbench, workbench
from unlearn.store import runlog, seal
from unlearn.store.identity import Job
from unlearn.store.runlog import RunLog

log = logging.getLogger(__name__)


def execute(job: Job, config_yaml: str) -> None:
    """Do what is missing in the folder: train unless that is done, then evaluate the α's that are missing."""
    cfg = job.cfg
    seal.check_results(job.folder, runlog.manifest(job.folder))
    initialise(cfg)
    record = RunLog(job, config_yaml)
    with record.mirrored(cfg):
        with record.stage("prepare"):
            bench = workbench(cfg)
            bench.begin()
            suite = suite_of(cfg, bench)  # first of all: it refuses data that cannot be evaluated
            ensemble = members(cfg, bench, job.folder if record.manifest.get("trained") else None)
            if not record.manifest.get("trained"):
                same_models(cfg, bench, record, ensemble)
                if cfg.begin.runs:
                    learner = ensemble.trained
                    record.status("running", begin=begin.take_over(learner.model, cfg.begin, learner.fingerprint))
            if missing(cfg, bench, record):
                references(cfg, bench, suite)  # here, so that a run's own seconds are its own
        record.status("running", data=job.data)
        if not record.manifest.get("trained"):
            if ensemble.trained is not None:
                record.status("running", **_trainable(ensemble.trained.model))
                learn(cfg, bench, ensemble, record)
            record.status("running", trained=True, **{seal.WEIGHTS: seal.weights(job.folder)})
        shutil.rmtree(job.folder / runlog.CHECKPOINT, ignore_errors=True)
        with record.stage("evaluate"):
            evaluate(cfg, bench, ensemble, suite, record)
        sealed = {seal.RESULTS: seal.results(job.folder)}
        record.status("done", completed=True, peak_memory_mb=runlog.peak_memory_mb(), **sealed, **bench.asked())
    log.info("%s", record.headline())


def learn(cfg: Config, bench: Workbench, ensemble: Ensemble, record: RunLog) -> None:
    """Train and keep what is learnt; of a run that only begins where others ended, keep that."""
    if cfg.trainer.steps != 0:
        finish(cfg, bench, ensemble, train(cfg, bench, ensemble, bind(**terms_of(cfg)), record), record)
        return
    record.status("running", collapsed=None, best=None, kept="last")
    points = probe(cfg, bench, ensemble)
    if points is not None:
        record.rewind(-1)
        record.log(0, 0.0, points())
    keep(cfg, bench, ensemble.trained.model, record)


def finish(cfg: Config, bench: Workbench, ensemble: Ensemble, watch: Watch, record: RunLog) -> None:
    """Keep the weights that trainer.keep asks for, and say in the manifest what became of the training."""
    collapsed, model = watch.verdict(), ensemble.trained.model
    best = {"step": watch.step, "score": watch.score, "rule": RULE} if watch.weights else None
    last = watch.last_score if watch.weights else None
    record.status("running", collapsed=collapsed, score=last, best=best, kept="last")
    shutil.rmtree(record.folder / runlog.BEST, ignore_errors=True)  # of an earlier try
    if cfg.trainer.keep == "best":
        watch.load(model)
        record.status("running", kept="best")
    elif collapsed is not None and watch.weights:
        other = copy.deepcopy(model)
        watch.load(other)
        _keep(cfg, bench, other, record.folder, runlog.BEST)
    if collapsed is not None:
        log.warning(
            "%s collapsed: %s; best point by the declared rule: step %d", record.folder.name, collapsed, watch.step
        )
    if watch.broken is not None and cfg.trainer.keep == "last":  # there is no last point
        raise Diverged(f"{watch.broken}; {runlog.BEST}/ holds step {watch.step}, the best point by the declared rule")
    keep(cfg, bench, model, record)
