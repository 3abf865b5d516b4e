"""One run, from a checked config to a finished run folder: prepare, train, evaluate, record.

Called only when there is something to do (``unlearn/run.py`` decides that without importing torch).
"""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from torch import nn

from unlearn import evaluation, runlog
from unlearn.binding import bind
from unlearn.config import Config
from unlearn.ensemble import Ensemble, build
from unlearn.files import read_json, write_json
from unlearn.identity import Job, eval_settings, objective
from unlearn.models import llama
from unlearn.runlog import RunLog
from unlearn.training import train
from unlearn.world import World, the_world

log = logging.getLogger(__name__)


def execute(job: Job, config_yaml: str, flat: dict[str, Any]) -> None:
    """Do what is missing in the folder: train unless that is done, then evaluate the α's that are missing."""
    cfg, wandb = job.cfg, job.cfg.wandb
    settle(cfg)
    record = RunLog(job, config_yaml)
    with runlog.wandb_run(record, wandb.mode, wandb.project, wandb.entity, cfg.study, flat):
        with record.stage("prepare"):
            world = the_world(cfg)
            suite = suite_of(cfg, world)  # first of all: it refuses data that cannot be evaluated
            ensemble = members(cfg, world)
            same_models(record, ensemble)
            if missing(cfg, world, record):
                references(cfg, world, suite)  # here, so that a run's own seconds are its own
        record.status("running", data=job.data, trainable=llama.parameters(ensemble.trained.model))
        if record.manifest.get("trained"):
            trained = llama.load(job.folder / runlog.OFFSET)
            ensemble.trained.model.load_state_dict(trained.state_dict())
        else:
            train(cfg, world, ensemble, bind(**objective(cfg)), record)
            save(ensemble, world, job.folder)
            record.status("running", trained=True)
            shutil.rmtree(job.folder / runlog.CHECKPOINT, ignore_errors=True)
        with record.stage("evaluate"):
            evaluate(cfg, world, ensemble, suite, record)
        record.status("done", completed=True, peak_memory_mb=runlog.peak_memory_mb())
    log.info("%s", record.headline())


def settle(cfg: Config) -> None:
    """Threads, seeds and quiet libraries: the same at the start of every job, whichever process it shares."""
    transformers.utils.logging.disable_progress_bar()  # our own bars cover loading and saving
    torch.set_num_threads(cfg.trainer.threads)
    torch.manual_seed(cfg.seed)


def members(cfg: Config, world: World) -> Ensemble:
    """The method's members: frozen models are shared, the trained one is a copy."""
    models: dict[str, nn.Module] = {}
    for m in cfg.method.members:
        model = world.model(m.model)
        models[m.name] = copy.deepcopy(model).requires_grad_(True) if m.trained else model
    widths = {name: llama.vocabulary(model) for name, model in models.items()}
    prints = {m.name: world.fingerprint(m.model) for m in cfg.method.members}
    return build(cfg.method, models, prints, widths)


def save(ensemble: Ensemble, world: World, folder: Path) -> None:
    """Write the trained weights with config and tokenizer, whole or not at all."""
    temporary, final = folder / f".{runlog.OFFSET}", folder / runlog.OFFSET
    shutil.rmtree(temporary, ignore_errors=True)
    ensemble.trained.model.save_pretrained(temporary)
    world.encoder.tokenizer.save_pretrained(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)


def same_models(record: RunLog, ensemble: Ensemble) -> None:
    """A run goes on only with the models it began with: offsets, rows and metrics of other weights do not mix.

    They differ when the store was deleted and models were trained again on other hardware or other versions.
    """
    prints = {m.name: m.fingerprint for m in ensemble.members}
    before = record.manifest.get("models", prints)
    if before != prints:
        if record.manifest.get("trained"):
            raise ValueError(
                f"{record.folder} was trained with the models {before}, and the store now has {prints}; "
                "evaluate it with the store it was made with, or remove the folder to train it again"
            )
        log.warning("the models of %s changed from %s to %s: it starts again", record.folder.name, before, prints)
        shutil.rmtree(record.folder / runlog.CHECKPOINT, ignore_errors=True)
    record.status("running", models=prints)


def evaluate(cfg: Config, world: World, ensemble: Ensemble, suite: evaluation.Suite, record: RunLog) -> None:
    """Evaluate the α's that the folder lacks, and put the references beside them."""
    alphas = missing(cfg, world, record)
    if alphas:
        beside, ratios = references(cfg, world, suite)
        show = "evaluating" if cfg.trainer.progress else None
        metrics, examples = evaluation.evaluate(ensemble, suite, alphas, world.store, ratios, show)
        record.evaluated(metrics, beside, examples)


def missing(cfg: Config, world: World, record: RunLog) -> list[float]:
    """α's asked for that the run folder does not have under these settings."""
    return runlog.missing_alphas(record.folder, cfg, world.data.fingerprint())


def suite_of(cfg: Config, world: World) -> evaluation.Suite:
    settings = eval_settings(cfg, world.data.fingerprint())
    return evaluation.suite(world.data, world.encoder, cfg.eval, settings, cfg.trainer.stored_rows_gib)


def references(cfg: Config, world: World, suite: evaluation.Suite) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    """Metrics of the target and of the retrained reference, and the latter's truth ratios on the forget set."""
    retrained, examples = _reference(cfg, world, suite, "retrained", None)
    ratios = examples.loc[examples["split"] == "forget", "truth_ratio"].to_numpy()
    return {"target": _reference(cfg, world, suite, "target", ratios)[0], "retrained": retrained}, ratios


def _reference(
    cfg: Config, world: World, suite: evaluation.Suite, name: str, ratios: np.ndarray | None
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Metrics and examples of one model as it is, computed once and stored."""
    recipe = {
        "model": world.fingerprint(name), "retrained": world.fingerprint("retrained"), "settings": suite.settings,
        "examples": [split.examples.fingerprint for split in suite.splits],
    }  # fmt: skip

    def build(folder: Path) -> None:
        log.info("evaluating the %s model", name)
        show = f"evaluating {name}" if cfg.trainer.progress else None
        metrics, examples = evaluation.evaluate(world.alone(name), suite, [1.0], world.store, ratios, show)
        write_json(folder / "metrics.json", metrics[1.0])
        examples.drop(columns="alpha").to_parquet(folder / "examples.parquet", index=False)

    folder = world.store.get("reference", recipe, build)
    return read_json(folder / "metrics.json"), pd.read_parquet(folder / "examples.parquet")
