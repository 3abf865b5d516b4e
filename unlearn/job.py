"""One run, from a checked config to a finished run folder: prepare, train, evaluate, record.

Called only when there is something to do (``unlearn/run.py`` decides that without importing torch).
"""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from torch import nn
from tqdm import tqdm

from unlearn import evaluation, prepare, runlog
from unlearn.config import Config, Job, eval_alphas, eval_settings, learning_rate, objective, training_alpha
from unlearn.data.encoding import Examples
from unlearn.data.sampling import Sampler
from unlearn.ensemble import Ensemble, Member, build
from unlearn.files import read_json, write_json
from unlearn.frozen import FrozenRows, stored
from unlearn.losses import BoundTerm, bind
from unlearn.models import llama
from unlearn.objective import Group, Objective
from unlearn.runlog import RunLog
from unlearn.scoring import score
from unlearn.trainer import Loop, Optimisation

log = logging.getLogger(__name__)


def execute(job: Job, config_yaml: str, flat: dict[str, Any]) -> None:
    """Do what is missing in the folder: train unless that is done, then evaluate the α's that are missing."""
    cfg, folder = job.cfg, job.folder
    transformers.utils.logging.disable_progress_bar()  # our own bars cover loading and saving
    torch.set_num_threads(cfg.trainer.threads)
    torch.manual_seed(cfg.seed)
    terms = bind(**objective(cfg))
    record = RunLog(job, config_yaml)
    wandb = cfg.wandb
    with runlog.wandb_run(record, wandb.mode, wandb.project, wandb.entity, cfg.study, flat):
        with record.stage("prepare"):
            world = prepare.world(cfg)
            ensemble = members(cfg, world)
        record.status(
            "running",
            data=job.data,
            trainable=llama.parameters(ensemble.trained.model),
            models={m.name: m.fingerprint for m in ensemble.members},
        )
        if not record.manifest.get("trained"):
            train(cfg, world, ensemble, terms, record)
            record.status("running", trained=True)
            shutil.rmtree(folder / runlog.CHECKPOINT, ignore_errors=True)
        else:
            trained = llama.load(folder / runlog.OFFSET)
            ensemble.trained.model.load_state_dict(trained.state_dict())
        with record.stage("evaluate"):
            evaluate(cfg, world, ensemble, record)
        record.status("done", peak_memory_mb=runlog.peak_memory_mb())


def members(cfg: Config, world: prepare.World) -> Ensemble:
    """The method's members: frozen models are shared, the trained one is a copy."""
    models: dict[str, nn.Module] = {}
    for m in cfg.method.members:
        model = world.model(m.model)
        models[m.name] = copy.deepcopy(model).requires_grad_(True) if m.trained else model
    widths = {name: llama.vocabulary(model) for name, model in models.items()}
    prints = {m.name: world.fingerprint(m.model) for m in cfg.method.members}
    return build(cfg.method, models, prints, widths)


# --- training -----------------------------------------------------------------------------------------------------


def train(cfg: Config, world: prepare.World, ensemble: Ensemble, terms: list[BoundTerm], record: RunLog) -> None:
    """Train the offset, logging every step and the trajectory's points; resume from a checkpoint if there is one."""
    t, pad = cfg.trainer, world.encoder.tokenizer.pad_token_id
    splits = world.data.splits
    reads_refusals = any(term.reads == "refusal" for term in terms)
    if reads_refusals and not world.data.refusals:
        raise ValueError(f"algo {cfg.algo.name!r} trains towards refusals, but data set {world.data.name!r} has none")
    sampler = Sampler(
        len(splits["forget"]),
        len(splits["retain"]),
        len(world.data.refusals) if reads_refusals else 0,
        t.forget_batch,
        t.retain_batch,
        cfg.seed,
    )
    steps = t.steps or t.epochs * sampler.steps_per_epoch
    settings = Optimisation(
        lr=learning_rate(cfg),
        steps=steps,
        warmup=t.warmup,
        final_lr=t.final_lr,
        decay="linear",
        weight_decay=t.weight_decay,
        betas=(t.beta1, t.beta2),
        clip=t.clip,
    )
    with record.stage("rows"):
        objectives = _objective(cfg, world, ensemble, terms, sampler, steps)
        points = _points(cfg, world, ensemble)
    loop = Loop(ensemble.trained.model, settings, t.device)
    checkpoint = record.folder / runlog.CHECKPOINT
    if loop.restore(checkpoint):
        log.info("resuming at step %d of %d", loop.step, steps)
    record.rewind(loop.step if loop.step else -1)
    alpha = training_alpha(cfg)

    def probe() -> dict[str, float]:
        values = {}
        for split, (chosen, rows) in points.items():
            scores = score(ensemble, chosen, [alpha], rows, pad, cfg.eval.batch_size)[alpha]
            values |= {
                f"{split}/prob": float(scores.prob.mean()),
                f"{split}/exact_memorization": float(scores.correct.mean()),
            }
        return values

    if loop.step == 0 and t.eval_every:
        record.log(0, 0.0, probe())
    bar = tqdm(
        total=steps,
        initial=loop.step,
        desc=f"{cfg.algo.name} α={alpha:g}",
        leave=False,
        disable=None if t.progress else True,
    )

    def after(step: int, values: dict[str, float]) -> None:
        bar.update()
        if t.eval_every and (step % t.eval_every == 0 or step == steps):
            values = values | probe()
        if step % t.log_every == 0 or step == steps or len(values) > 6:
            record.log(step, step / sampler.steps_per_epoch, values)
        if t.save_every and step % t.save_every == 0 and step < steps:
            loop.save(checkpoint)

    with bar, record.stage("train"):
        loop.run(lambda step: objectives.micro_batches(sampler.draw(step)), after)
    save(ensemble, world, record.folder)


def save(ensemble: Ensemble, world: prepare.World, folder: Path) -> None:
    """Write the trained weights with config and tokenizer, whole or not at all."""
    temporary, final = folder / f".{runlog.OFFSET}", folder / runlog.OFFSET
    shutil.rmtree(temporary, ignore_errors=True)
    ensemble.trained.model.save_pretrained(temporary)
    world.encoder.tokenizer.save_pretrained(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)


def _objective(
    cfg: Config, world: prepare.World, ensemble: Ensemble, terms: list[BoundTerm], sampler: Sampler, steps: int
) -> Objective:
    """The loss of a step: examples by what the terms read, with the stored rows of the frozen members."""
    encoder, splits = world.encoder, world.data.splits
    chosen = {name: prepare.examples(encoder, splits[name]) for name in ("forget", "retain")}
    drawn: list[tuple[int, int]] = []
    if sampler.refusals:  # only pairs of question and refusal that some step will draw
        draws = [sampler.draw(step) for step in range(steps)]
        drawn = sorted({pair for d in draws for pair in zip(d.forget, d.refusal, strict=True)})
        chosen["refusal"] = Examples(
            encoder.example(
                f"{splits['forget'][i].id}/refusal/{r}", splits["forget"][i].question, world.data.refusals[r]
            )
            for i, r in drawn
        )
    alpha = training_alpha(cfg)
    reference = next(m for m in cfg.method.members if m.model == "target" and not m.trained).name
    frozen = [m for m in ensemble.members if not m.trained and (m.weight(alpha) != 0 or m.name == reference)]
    pad = encoder.tokenizer.pad_token_id
    reads = {t.reads for t in terms}
    groups = {
        name: Group(ex, {m.name: stored(world.store, m, ex, pad) for m in frozen})
        for name, ex in chosen.items()
        if name in reads
    }
    device = next(ensemble.trained.model.parameters()).device
    return Objective(
        ensemble,
        terms,
        groups,
        {pair: k for k, pair in enumerate(drawn)},
        alpha,
        reference,
        pad,
        cfg.trainer.accumulate,
        device,
    )


def _points(cfg: Config, world: prepare.World, ensemble: Ensemble) -> dict[str, tuple[Examples, dict[str, FrozenRows]]]:
    """What the trajectory is measured on: right answers of some examples of each split, with their stored rows."""
    if not cfg.trainer.eval_every:
        return {}
    pad, alpha, points = world.encoder.tokenizer.pad_token_id, training_alpha(cfg), {}
    for split in evaluation.EVALUATED:
        rows = evaluation.spaced(world.data.splits.get(split, ()), cfg.trainer.eval_examples)
        if rows:
            chosen = prepare.examples(world.encoder, rows)
            points[split] = (chosen, {m.name: stored(world.store, m, chosen, pad) for m in ensemble.frozen(alpha)})
    return points


# --- evaluation ---------------------------------------------------------------------------------------------------


def evaluate(cfg: Config, world: prepare.World, ensemble: Ensemble, record: RunLog) -> None:
    """Evaluate the α's that the folder lacks, and put the references beside them."""
    settings = eval_settings(cfg, world.data.fingerprint())
    alphas = runlog.missing_alphas(record.folder, eval_alphas(cfg), settings)
    if not alphas:
        return
    suite = evaluation.suite(world.data, world.encoder, cfg.eval, settings)
    retrained, examples = reference(world, suite, "retrained", None, cfg)
    ratios = examples.loc[examples["split"] == "forget", "truth_ratio"].to_numpy()
    target, _ = reference(world, suite, "target", ratios, cfg)
    metrics, examples = evaluation.evaluate(
        ensemble, suite, alphas, world.store, ratios, "evaluating" if cfg.trainer.progress else None
    )
    record.evaluated(metrics, {"target": target, "retrained": retrained}, examples)


def reference(
    world: prepare.World, suite: evaluation.Suite, name: str, ratios, cfg: Config
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Metrics and examples of the target or the retrained reference, computed once and stored."""
    member = Member(name, world.model(name), world.fingerprint(name), 1.0, 0.0, False)
    recipe = {
        "model": member.fingerprint,
        "settings": suite.settings,
        "retrained": world.fingerprint("retrained"),
        "examples": [split.examples.fingerprint for split in suite.splits],
    }

    def build(folder: Path) -> None:
        log.info("evaluating the %s model", name)
        metrics, examples = evaluation.evaluate(
            evaluation.single(member),
            suite,
            [1.0],
            world.store,
            ratios,
            f"evaluating {name}" if cfg.trainer.progress else None,
        )
        write_json(folder / "metrics.json", metrics[1.0])
        examples.drop(columns="alpha").to_parquet(folder / "examples.parquet", index=False)

    folder = world.store.get("reference", recipe, build)
    return read_json(folder / "metrics.json"), pd.read_parquet(folder / "examples.parquet")
