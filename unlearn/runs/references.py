"""Evaluate a run, and the models that it is compared with."""

from __future__ import annotations

import logging
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn.config.schema import Config
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation import evaluation
from unlearn.evaluation.groups.context import Reference
from unlearn.evaluation.retrained import from_file
from unlearn.evaluation.suite import Suite
from unlearn.evaluation.suite import suite as make_suite
from unlearn.runs.world import World
from unlearn.store import runlog
from unlearn.store.files import read_json, write_json
from unlearn.store.identity import NO_REFERENCE, eval_settings
from unlearn.store.runlog import RunLog

log = logging.getLogger(__name__)


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
