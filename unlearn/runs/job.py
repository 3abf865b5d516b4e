"""One run, from a checked config to a finished run folder: prepare, train, evaluate, record.

Called only when there is something to do (``grid/perform.py`` decides that without importing torch).
"""

import copy
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from unlearn.config.derived import alpha_key, learning_rate, training_alpha
from unlearn.config.schema import Config, TrainerConfig
from unlearn.ensemble.ensemble import Ensemble
from unlearn.ensemble.rows import LiveRows
from unlearn.evaluation.collapse import kept, settled
from unlearn.evaluation.parts import Parts
from unlearn.learning.loop import Diverged, Loop, Optimisation, put
from unlearn.learning.objective import Objective
from unlearn.models.placement import checkpointed, compiled, parked, returned
from unlearn.runs import stopping
from unlearn.runs.baselines import baselines, evaluate, seconds_alone, suite_of
from unlearn.runs.forecast import Evaluation, Forecast, after_training
from unlearn.runs.inputs import Inputs
from unlearn.runs.learner import initialise, keep, members, same_models, take_over, trainable
from unlearn.runs.trajectory import RULE, Probe, Watch, first_point, probe
from unlearn.runs.workbench import Workbench, workbench
from unlearn.store import runlog, seal
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
                record.evaluated(*evaluate(cfg, bench, ensemble, suite, alphas, parts=parts))
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
    inputs, t = Inputs(cfg, bench), cfg.trainer
    with record.stage("rows"):
        objective, points = inputs.objective(ensemble), probe(cfg, bench, ensemble)
        kept = {name: {m: rows.describe() for m, rows in g.rows.items()} for name, g in objective.groups.items()}
        record.status("running", rows=kept)
    schedule = learning_rate(cfg), inputs.steps, t.warmup, t.final_lr, "linear"
    settings = Optimisation(*schedule, t.weight_decay, (t.beta1, t.beta2), t.clip)
    loop, watch, told = Loop(ensemble.trained.model, settings, t.device), Watch(), Forecast(cfg, record.folder, then)
    _begin(loop, watch, objective, points, record)
    told.begin(loop.step, inputs.steps, 2 if points else 0)

    def after(step: int, values: dict[str, float]) -> None:
        told.after(step, loop.model)
        bar.update()
        objective.after(step, values)
        watch.see_loss(values["train/loss"])
        last, measured = step == inputs.steps, {}
        if points is not None and (last or step % t.eval_every == 0):
            measured = points()
            watch.see(step, measured, loop.model)
        if measured or last or step % t.log_every == 0:
            record.log(step, step / inputs.sampler.steps_per_epoch, values | measured)
        if stopping.asked() or (t.save_every and step % t.save_every == 0 and not last):
            _save(loop, watch, objective, record)
        if stopping.asked():
            log.warning("stopped after step %d of %d: saved", step, inputs.steps)
            raise _Interrupted
        told.go_on()

    name = f"{cfg.algo.name} {cfg.method.name} α={training_alpha(cfg):g}"
    bar = progress(inputs.steps, name, done=loop.step)
    with record.stage("train"), bar, parked(idle(objective, points)), learning(loop.model, t):
        try:
            with stopping.patiently():
                loop.run(lambda step: objective.micro_batches(inputs.sampler.draw(step), *loop.share), after)
        except Diverged as error:
            named = error.reading(objective.ids(inputs.sampler.draw(loop.step)), f"; all of it in {DIVERGED}")
            record.diverged(named.found)
            if watch.step == 0:
                raise named from None
            watch.broken = str(named)
    record.sync()
    return watch


@contextmanager
def learning(model: nn.Module, t: TrainerConfig) -> Iterator[None]:
    """The model that learns, compiled and checkpointed as the settings say, and the memory of its steps."""
    with returned(model), ExitStack() as stack:
        if t.compile:
            stack.enter_context(compiled(model))
        if t.checkpointing:
            stack.enter_context(checkpointed(model))
        yield


class _Interrupted(BaseException):
    """Leaves the loop; ``stopping.patiently`` puts the signal that was the cause in its place."""


def _save(loop: Loop, watch: Watch, objective: Objective, record: RunLog) -> None:
    record.sync()
    checkpoint = record.folder / CHECKPOINT
    loop.extra = watch.save(checkpoint) | ({"dual": objective.dual.value} if objective.dual else {})
    loop.save(checkpoint)
    names = f"weights-{loop.step}.safetensors", f"state-{loop.step}.pt", f"best-{watch.step}.safetensors"
    seal.seal_checkpoint(checkpoint, loop.step, [name for name in names if (checkpoint / name).is_file()])


def _begin(loop: Loop, watch: Watch, objective: Objective, points: Probe | None, record: RunLog) -> None:
    """Take up the checkpoint, if there is one; else log the point before the first step."""
    (record.folder / DIVERGED).unlink(missing_ok=True)  # of an earlier try
    checkpoint = record.folder / CHECKPOINT
    if (step := seal.checkpoint(checkpoint)) is not None:
        loop.restore(checkpoint, step)
        log.info("resuming at step %d of %d", loop.step, loop.settings.steps)
        record.rewind(loop.step)
        watch.restore(checkpoint, loop.extra)
        if objective.dual is not None:
            objective.dual.value = loop.extra["dual"]
    elif (values := first_point(points, record)) is not None:
        watch.start = points(0.0)  # the target, whatever the method begins with
        watch.see(0, values, loop.model)


def idle(objective: Objective, points: Probe | None) -> list[nn.Module]:
    """Models that no step runs, since all their rows are stored."""
    used = [objective.ensemble.trained, *([objective.twin] if objective.twin else [])]
    used += objective.teacher[0].members if objective.teacher else ()  # its rows are filled when a step first asks
    if any(term.layer is not None for term in objective.terms):
        used.append(objective.reference)
    sets = [group.rows for group in objective.groups.values()]
    sets += [] if points is None else [rows for _, rows in points.points.values()]
    used += [rows.member for each in sets for rows in each.values() if isinstance(rows, LiveRows)]
    run = {id(p) for member in used for p in member.model.parameters()}  # LoRA and layers read those of a frozen twin
    frozen = {id(m.model): m.model for m in (*objective.ensemble.members, objective.reference) if not m.trained}
    return [model for model in frozen.values() if not any(id(p) in run for p in model.parameters())]


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
