"""One run, from a checked config to a finished run folder: prepare, train, evaluate, record.

Called only when there is something to do (``grid/perform.py`` decides that without importing torch).
"""

import copy
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from unlearn.config.derived import alpha_key, training_alpha
from unlearn.config.schema import Config
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.collapse import kept, settled
from unlearn.evaluation.scoring import Parts
from unlearn.learning.loop import Diverged, put
from unlearn.runs import stopping
from unlearn.runs.baselines import baselines, evaluate, seconds_alone, suite_of
from unlearn.runs.forecast import Evaluation, Forecast, after_training
from unlearn.runs.learner import initialise, keep, members, same_models, take_over, trainable
from unlearn.runs.training import Interrupted, Training, shared
from unlearn.runs.trajectory import RULE, Watch, first_point, probe
from unlearn.runs.workbench import Workbench, workbench
from unlearn.store import processes, runlog, seal
from unlearn.store.identity import Job
from unlearn.store.progress import progress
from unlearn.store.runlog import CHECKPOINT, DIVERGED, RunLog

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
            models = [member.model for member in cfg.method.members]
            bench.train([*models, "retrained"] if cfg.eval.retrained is None else models)
            ensemble = members(cfg, bench, job.folder if trained else None)
            if not trained:
                same_models(cfg, bench, record, ensemble)
                if cfg.begin.runs:
                    learner = ensemble.trained
                    record.status("running", begin=take_over(learner.model, cfg.begin, learner.fingerprint))
            if alphas := runlog.missing_alphas(job):
                baselines(cfg, bench, suite)  # here, so that a run's own seconds are its own
        record.status("running", data=job.data)
        if not trained:
            if ensemble.trained is not None:
                record.status("running", **trainable(ensemble.trained.model))
                if cfg.trainer.steps == 0:  # it only begins where others ended
                    record.status("running", collapsed=None, best=None, kept="last")
                    first_point(probe(cfg, bench, ensemble), record)
                else:
                    then = after_training(ensemble, suite, alphas, seconds_alone(cfg, bench, suite))
                    _choose(cfg, bench, ensemble, train(cfg, bench, ensemble, record, then), record)
                keep(cfg, bench, ensemble.trained.model, job.folder)
            record.status("running", trained=True, **{seal.WEIGHTS: seal.weights(job.folder)})
        shutil.rmtree(job.folder / runlog.CHECKPOINT, ignore_errors=True)
        with record.stage("evaluate"):
            if alphas:
                parts = Parts(job.folder / runlog.PARTS, ensemble, suite, record.manifest.get(seal.WEIGHTS))
                with shared("evaluate", cfg, job.folder, alphas):
                    found = evaluate(cfg, bench, ensemble, suite, alphas, parts=parts)
                record.evaluated(*found)
                parts.clear()
                _settle(job, record)
        sealed = {seal.RESULTS: seal.results(job.folder)}
        record.status("done", completed=True, peak_memory_mb=runlog.peak_memory_mb(), **sealed, **bench.asked())
    log.info("%s", record.headline())


def _settle(job: Job, record: RunLog) -> None:
    """Have the manifest say of collapse what table and figures say: by the evaluation at the training α."""
    found = runlog.evaluation(job.folder)
    entry = found["alphas"].get(alpha_key(training_alpha(job.cfg)))
    if entry is not None and record.manifest.get("kept") == "last":
        said = record.manifest.get("collapsed")
        record.status("running", collapsed=settled(said, kept(entry, found["references"].get("target"))))


def train(cfg: Config, bench: Workbench, ensemble: Ensemble, record: RunLog, then: Evaluation) -> Watch:
    """Train the trained member, logging steps and trajectory points; resume from a checkpoint if there is one.

    Returns what the trajectory says of collapse and of the best point. A loss that is no longer a number ends the
    training where there is a point to go back to, and fails the run where there is none. ``then`` is for the forecast.
    """
    with record.stage("rows"):
        made = Training(cfg, bench, ensemble)
        groups = made.objective.groups
        kept = {name: {m: rows.describe() for m, rows in g.rows.items()} for name, g in groups.items()}
        record.status("running", rows=kept)
    step, draw, objective, loop = seal.checkpoint(record.folder / CHECKPOINT), made.draw, made.objective, made.loop
    with shared("train", cfg, record.folder, step, made.place), processes.group(made.place):
        course = _Course(made, record, Forecast(cfg, record.folder, then), step)
        with record.stage("train"), course.bar, made.learning():
            try:
                with stopping.patiently(), course.saved_when_broken():
                    loop.run(lambda step: objective.micro_batches(draw(step), *loop.share), course.after)
            except Diverged as error:
                named = error.reading(objective.ids(draw(loop.step)), f"; all of it in {DIVERGED}")
                record.diverged(named.found)
                if course.watch.step == 0:
                    raise named from None
                course.watch.broken = str(named)
    record.sync()
    return course.watch


class _Course:
    """What is done at the begin of a training and after each of its steps."""

    def __init__(self, made: Training, record: RunLog, told: Forecast, step: int | None):
        """``step``: of the checkpoint that is taken up, if there is one."""
        self.made, self.record, self.told, self.watch = made, record, told, Watch()
        (record.folder / DIVERGED).unlink(missing_ok=True)  # of an earlier try
        if step is not None:
            made.resume(record.folder / CHECKPOINT, step)
            log.info("resuming at step %d of %d", step, made.steps)
            record.rewind(step)
            self.watch.restore(record.folder / CHECKPOINT, made.loop.extra)
        elif (values := first_point(made.points, record)) is not None:
            self.watch.start = made.points.start()  # the target, whatever the method begins with
            self.watch.see(0, values, made.loop.model)
        self.logged = done = made.loop.step
        told.begin(done, made.steps, 2 if made.points else 0)
        cfg = made.cfg
        name = f"{cfg.algo.name} {cfg.method.name} α={training_alpha(cfg):g}"
        self.bar = progress(made.steps, name, done=done)

    def after(self, step: int, values: dict[str, float]) -> None:
        made, t, last = self.made, self.made.cfg.trainer, step == self.made.steps
        self.told.after(step, made.loop.model)
        self.bar.update()
        made.objective.after(step, values)
        self.watch.see_loss(values["train/loss"])
        if measured := made.point(step):
            self.watch.see(step, measured, made.loop.model)
        if measured or last or step % t.log_every == 0:
            self.record.log(step, step / made.inputs.sampler.steps_per_epoch, values | measured)
        self.logged = step
        end = made.told_to_end()
        if end or (t.save_every and step % t.save_every == 0 and not last):
            self.save()
        if end:
            log.warning("stopped after step %d of %d: saved", step, made.steps)
            raise Interrupted
        self.told.lap()

    def save(self) -> None:
        self.record.sync()
        loop, dual, checkpoint = self.made.loop, self.made.objective.dual, self.record.folder / CHECKPOINT
        loop.extra = self.watch.save(checkpoint) | ({"dual": dual.value} if dual else {})
        loop.save(checkpoint)
        names = f"weights-{loop.step}.safetensors", f"state-{loop.step}.pt", f"best-{self.watch.step}.safetensors"
        seal.seal_checkpoint(checkpoint, loop.step, [name for name in names if (checkpoint / name).is_file()])

    @contextmanager
    def saved_when_broken(self) -> Iterator[None]:
        """Where another process is gone the weights are those of the last step: kept if that step is logged."""
        try:
            yield
        except processes.Broken:
            done = self.made.loop.step
            if 0 < done == self.logged:
                self.save()
                log.warning("another process is gone after step %d of %d: saved", done, self.made.steps)
            raise


def _choose(cfg: Config, bench: Workbench, ensemble: Ensemble, watch: Watch, record: RunLog) -> None:
    """Have the trained member hold the weights that trainer.keep asks for; those of the best point of a collapsed run
    are kept beside them. ``Diverged`` where the last point is asked for and there is none."""
    collapsed, model = watch.verdict(), ensemble.trained.model
    best = {"step": watch.step, "score": watch.score, "rule": RULE} if watch.weights else None
    last = watch.last_score if watch.weights else None
    record.status("running", collapsed=collapsed, score=last, best=best, kept="last")
    shutil.rmtree(record.folder / runlog.BEST, ignore_errors=True)  # of an earlier try
    if cfg.trainer.keep == "best":
        put(model, watch.weights)
        record.status("running", kept="best")
    elif collapsed is not None and watch.weights:
        other = copy.deepcopy(model)
        put(other, watch.weights)
        keep(cfg, bench, other, record.folder, runlog.BEST)
    if collapsed is not None:
        name = record.folder.name
        log.warning("%s collapsed: %s; best point by the declared rule: step %d", name, collapsed, watch.step)
    if watch.broken is not None and cfg.trainer.keep == "last":  # there is no last point
        raise Diverged(f"{watch.broken}; {runlog.BEST}/ holds step {watch.step}, the best point by the declared rule")
