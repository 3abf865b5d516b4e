"""One run, from a checked config to a finished run folder: prepare, train, evaluate, record.

Called only when there is something to do (``grid/perform.py`` decides that without importing torch).
"""

from __future__ import annotations

import copy
import logging
import shutil

from unlearn.config.schema import Config
from unlearn.ensemble.ensemble import Ensemble
from unlearn.learning.loop import Diverged
from unlearn.runs import begin
from unlearn.runs.baselines import baselines, evaluate, suite_of
from unlearn.runs.learner import initialise, keep, members, same_models, trainable
from unlearn.runs.training import train
from unlearn.runs.trajectory import RULE, Watch, first_point, probe
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
    trained = record.manifest.get("trained")
    with record.mirrored(cfg):
        with record.stage("prepare"):
            bench = workbench(cfg)
            bench.begin()
            suite = suite_of(cfg, bench)  # first of all: it refuses data that cannot be evaluated
            ensemble = members(cfg, bench, job.folder if trained else None)
            if not trained:
                same_models(cfg, bench, record, ensemble)
                if cfg.begin.runs:
                    learner = ensemble.trained
                    record.status("running", begin=begin.take_over(learner.model, cfg.begin, learner.fingerprint))
            if runlog.missing_alphas(job):
                baselines(cfg, bench, suite)  # here, so that a run's own seconds are its own
        record.status("running", data=job.data)
        if not trained:
            if ensemble.trained is not None:
                record.status("running", **trainable(ensemble.trained.model))
                if cfg.trainer.steps == 0:  # it only begins where others ended
                    record.status("running", collapsed=None, best=None, kept="last")
                    first_point(probe(cfg, bench, ensemble), record)
                else:
                    _choose(cfg, bench, ensemble, train(cfg, bench, ensemble, record), record)
                keep(cfg, bench, ensemble.trained.model, job.folder)
            record.status("running", trained=True, **{seal.WEIGHTS: seal.weights(job.folder)})
        shutil.rmtree(job.folder / runlog.CHECKPOINT, ignore_errors=True)
        with record.stage("evaluate"):
            alphas = runlog.missing_alphas(job)
            if alphas:
                record.evaluated(*evaluate(cfg, bench, ensemble, suite, alphas))
        sealed = {seal.RESULTS: seal.results(job.folder)}
        record.status("done", completed=True, peak_memory_mb=runlog.peak_memory_mb(), **sealed, **bench.asked())
    log.info("%s", record.headline())


def _choose(cfg: Config, bench: Workbench, ensemble: Ensemble, watch: Watch, record: RunLog) -> None:
    """Have the trained member hold the weights that trainer.keep asks for; those of the best point of a collapsed run
    are kept beside them. ``Diverged`` where the last point is asked for and there is none."""
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
        keep(cfg, bench, other, record.folder, runlog.BEST)
    if collapsed is not None:
        name = record.folder.name
        log.warning("%s collapsed: %s; best point by the declared rule: step %d", name, collapsed, watch.step)
    if watch.broken is not None and cfg.trainer.keep == "last":  # there is no last point
        raise Diverged(f"{watch.broken}; {runlog.BEST}/ holds step {watch.step}, the best point by the declared rule")
