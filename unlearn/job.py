"""One run, from a checked config to a finished run folder: prepare, train, evaluate, record.

Called only when there is something to do (``unlearn/run.py`` decides that without importing torch).
"""

from __future__ import annotations

import copy
import logging
import shutil
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from unlearn import begin, evaluation, runlog, seal, threads
from unlearn.binding import bind
from unlearn.collapse import RULE, Watch
from unlearn.combination import bind_rule
from unlearn.config import Config, ConfigError
from unlearn.config_pair import GRAM
from unlearn.data.encoding import examples_of
from unlearn.ensemble import Ensemble
from unlearn.files import read_json, write_folder, write_json
from unlearn.groups.context import Reference
from unlearn.identity import NO_REFERENCE, Job, eval_settings, objective, tuning
from unlearn.models import llama
from unlearn.reference import from_file
from unlearn.runlog import RunLog
from unlearn.suite import Suite
from unlearn.suite import suite as make_suite
from unlearn.trainer import Diverged
from unlearn.training import train
from unlearn.trajectory import probe
from unlearn.tuning import has_layers, has_updates, learner, learnt, merged, save_updates
from unlearn.world import World, frozen_ensemble, the_world

log = logging.getLogger(__name__)


def execute(job: Job, config_yaml: str) -> None:
    """Do what is missing in the folder: train unless that is done, then evaluate the α's that are missing."""
    cfg = job.cfg
    seal.check_results(job.folder, runlog.manifest(job.folder))
    settle(cfg)
    record = RunLog(job, config_yaml)
    with record.mirrored(cfg):
        with record.stage("prepare"):
            world = the_world(cfg)
            world.begin()
            suite = suite_of(cfg, world)  # first of all: it refuses data that cannot be evaluated
            ensemble = members(cfg, world, job.folder if record.manifest.get("trained") else None)
            if not record.manifest.get("trained"):
                same_models(cfg, world, record, ensemble)
            if missing(cfg, world, record):
                references(cfg, world, suite)  # here, so that a run's own seconds are its own
        record.status("running", data=job.data)
        if not record.manifest.get("trained"):
            if ensemble.trained is not None:
                record.status("running", **_trainable(ensemble.trained.model))
                learn(cfg, world, ensemble, record)
            record.status("running", trained=True, **{seal.WEIGHTS: seal.weights(job.folder)})
        shutil.rmtree(job.folder / runlog.CHECKPOINT, ignore_errors=True)
        with record.stage("evaluate"):
            evaluate(cfg, world, ensemble, suite, record)
        sealed = {seal.RESULTS: seal.results(job.folder)}
        record.status("done", completed=True, peak_memory_mb=runlog.peak_memory_mb(), **sealed, **world.asked())
    log.info("%s", record.headline())


def learn(cfg: Config, world: World, ensemble: Ensemble, record: RunLog) -> None:
    """Train and keep what is learnt; of a run that only begins where others ended, keep that."""
    if cfg.trainer.steps != 0:
        finish(cfg, world, ensemble, train(cfg, world, ensemble, bind(**objective(cfg)), record), record)
        return
    record.status("running", collapsed=None, best=None, kept="last")
    points = probe(cfg, world, ensemble)
    if points is not None:
        record.rewind(-1)
        record.log(0, 0.0, points())
    keep(cfg, world, ensemble.trained.model, record)


def settle(cfg: Config) -> None:
    """Threads, seeds and quiet libraries: the same at the start of every job, whichever process it shares."""
    transformers.utils.logging.disable_progress_bar()  # our own bars cover loading and saving
    threads.limit(cfg.trainer.threads)
    torch.manual_seed(cfg.seed)


def members(cfg: Config, world: World, folder: Path | None = None) -> Ensemble:
    """The method's members: frozen models are shared; the trained one is a copy that is ready to learn (with LoRA, a
    view of the same weights), or what ``folder``, a run's, holds of it."""
    m = cfg.method
    rule = bind_rule(m.rule, m.numbers, m.file)
    ensemble = frozen_ensemble(m.members, world, rule)
    if folder is not None:
        _made_with(folder, ensemble)
        seal.check_weights(folder, runlog.manifest(folder))
    if ensemble.trained is None:
        return ensemble
    start = ensemble.trained.model
    began = ensemble.trained.fingerprint
    model = _learner(cfg, start, began) if folder is None else llama.freeze(_learnt(cfg, start, folder))
    return replace(ensemble, members=tuple(replace(x, model=model) if x.trained else x for x in ensemble.members))


def _learner(cfg: Config, start: nn.Module, fingerprint: str) -> nn.Module:
    model = learner(start, tuning(cfg), cfg.pair, cfg.seed)
    if cfg.begin.runs:
        begin.take_over(model, cfg.begin, fingerprint)
    return model


def _learnt(cfg: Config, start: nn.Module, folder: Path) -> nn.Module:
    if (folder / runlog.ADAPTER).is_dir():  # as after training: updates beside the weights, not rounded into them
        return learnt(start, tuning(cfg), cfg.pair, folder / runlog.ADAPTER)
    return llama.load(folder / runlog.OFFSET, next(start.parameters()).device)


def _trainable(model: nn.Module) -> dict[str, float]:
    """How many parameters learn, and their share of all that the trained member has."""
    count = llama.parameters(model, trainable=True)
    return {"trainable": count, "trainable_share": round(count / llama.parameters(model), 6)}


def _made_with(folder: Path, ensemble: Ensemble) -> None:
    """Offsets, rows and metrics of other weights do not mix. They differ when the store was deleted and models were
    trained again on other hardware or with other versions."""
    prints = {m.name: m.fingerprint for m in ensemble.members}
    before = runlog.manifest(folder).get("models", prints)
    if {name: before.get(name) for name in prints} != prints:
        raise ConfigError(
            f"{folder} was trained with the models {before}, and the store now has {prints}; "
            "evaluate it with the store it was made with, or remove the folder to train it again"
        )


def finish(cfg: Config, world: World, ensemble: Ensemble, watch: Watch, record: RunLog) -> None:
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
        _keep(cfg, world, other, record.folder, runlog.BEST)
    if collapsed is not None:
        log.warning(
            "%s collapsed: %s; best point by the declared rule: step %d", record.folder.name, collapsed, watch.step
        )
    if watch.broken is not None and cfg.trainer.keep == "last":  # there is no last point
        raise Diverged(f"{watch.broken}; {runlog.BEST}/ holds step {watch.step}, the best point by the declared rule")
    keep(cfg, world, model, record)


def keep(cfg: Config, world: World, model: nn.Module, record: RunLog) -> None:
    """Write what the trained member learnt into the run's folder."""
    if has_updates(model):
        write_folder(record.folder / runlog.ADAPTER, partial(save_updates, model, cfg.pair.lora))
    _keep(cfg, world, model, record.folder, runlog.OFFSET)


def _keep(cfg: Config, world: World, model: nn.Module, run: Path, place: str) -> None:
    """Write the trained weights: a whole model, or unlearning layers, which no plain model can hold.

    With the layers goes what fusion needs of the request: inner products, and nothing else.
    """
    if not has_layers(model):
        save(merged(model), world, run / place)
        return
    from unlearn import fusion, layers  # a second of imports, by peft

    def write(folder: Path) -> None:
        layers.save(model, folder)
        examples, pad = examples_of(world.encoder, world.data.splits["forget"]), world.encoder.tokenizer.pad_token_id
        save_file(fusion.gram(model, examples, pad, cfg.eval.batch_size), folder / GRAM)

    write_folder(run / (runlog.ADAPTER if place == runlog.OFFSET else place), write)


def save(model: nn.Module, world: World, final: Path) -> None:
    """Write weights with config and tokenizer."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        world.encoder.tokenizer.save_pretrained(folder)

    write_folder(final, write)


def same_models(cfg: Config, world: World, record: RunLog, ensemble: Ensemble) -> None:
    """An unfinished run goes on only with the models it began with; with others it starts again.

    A teacher's models are made here, too, so that their training is not counted as the run's own.
    """
    prints = {m.name: m.fingerprint for m in ensemble.members}
    if cfg.algo.teacher is not None and ensemble.trained is not None:
        prints |= {f"teacher/{m.name}": world.fingerprint(m.model) for m in cfg.algo.teacher.members}
    before = record.manifest.get("models", prints)
    if before != prints:
        log.warning("the models of %s changed from %s to %s: it starts again", record.folder.name, before, prints)
        shutil.rmtree(record.folder / runlog.CHECKPOINT, ignore_errors=True)
    record.status("running", models=prints)


def evaluate(cfg: Config, world: World, ensemble: Ensemble, suite: Suite, record: RunLog) -> None:
    """Evaluate the α's that the folder lacks, and put the references beside them."""
    alphas = missing(cfg, world, record)
    if alphas:
        beside = references(cfg, world, suite)
        show = "evaluating" if cfg.trainer.progress else None
        metrics, examples = evaluation.evaluate(ensemble, suite, alphas, world.store, beside.get("retrained"), show)
        record.evaluated(metrics, examples, beside)


def missing(cfg: Config, world: World, record: RunLog) -> list[float]:
    """α's asked for that the run folder does not have under these settings."""
    return runlog.missing_alphas(record.folder, cfg, world.data.fingerprint())


def suite_of(cfg: Config, world: World) -> Suite:
    settings = eval_settings(cfg, world.data.fingerprint())
    return make_suite(world.data, world.encoder, cfg.eval, settings, cfg.trainer.stored_rows_gib)


def references(cfg: Config, world: World, suite: Suite) -> dict[str, Reference]:
    """The target and, where there is one, the retrained model, by name: metrics and examples."""
    retrained = _retrained(cfg, world, suite)
    found = {"target": Reference(*_reference(cfg, world, suite, "target", retrained))}
    return found | ({"retrained": retrained} if retrained is not None else {})


def _retrained(cfg: Config, world: World, suite: Suite) -> Reference | None:
    if cfg.eval.reference == NO_REFERENCE:
        return None
    if cfg.eval.reference is not None:
        return from_file(cfg.eval.reference, suite, {"target": partial(world.alone, "target")})
    models = {name: cache(partial(world.alone, name)) for name in ("target", "retrained")}  # loaded once a job
    return Reference(*_reference(cfg, world, suite, "retrained", None), models)


def _reference(
    cfg: Config, world: World, suite: Suite, name: str, retrained: Reference | None
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Metrics and examples of one model as it is, computed once and stored."""
    recipe = {
        "model": world.fingerprint(name), "settings": suite.settings,
        "retrained": world.fingerprint("retrained") if cfg.eval.reference is None else None,
        "examples": [split.examples.fingerprint for split in suite.splits],
    }  # fmt: skip

    def build(folder: Path) -> None:
        log.info("evaluating the %s model", name)
        show = f"evaluating {name}" if cfg.trainer.progress else None
        itself, alone = name == "retrained", world.alone(name)
        metrics, examples = evaluation.evaluate(alone, suite, [1.0], world.store, retrained, show, itself)
        write_json(folder / "metrics.json", metrics[1.0])
        examples.drop(columns="alpha").to_parquet(folder / "examples.parquet", index=False)

    folder = world.store.get("reference", recipe, build)
    return read_json(folder / "metrics.json"), pd.read_parquet(folder / "examples.parquet")
