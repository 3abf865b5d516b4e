"""What a grid logs about its whole study to W&B: one run per study, ``job_type`` summary, with figures and a table.

It has the same id however often a grid of the study ends, so W&B shows one, as new as the last grid. Everything here is
for W&B's pages only; whatever fails is said, and the grid's result stands.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.schema import WandbConfig
from unlearn.grid import analysis
from unlearn.store import locks
from unlearn.store.identity import Job, digest
from unlearn.store.mirror import start_run, surroundings

if TYPE_CHECKING:
    from analysis.runs import Study

log = logging.getLogger(__name__)
JOB_TYPE = "summary"  # analysis skips runs of this type
SHOWN = ("forget/prob", "forget/rougeL_recall", "forget/leak_gap", "retain/prob", "retain/rougeL_recall",
         "model_utility", "forget_quality", "seconds", "peak_memory_mb")  # fmt: skip
ROWS = 1000  # of the table of runs


def log_studies(jobs: Sequence[Job]) -> None:
    """Log every study of a call that did something, and whose W&B is not disabled."""
    worked = [job for job in jobs if job.cfg.wandb.mode != "disabled" and not job.was_done]
    for folder, cfg in {job.folder.parent: job.cfg.wandb for job in worked}.items():
        try:
            _log(folder, cfg)
        except Exception as error:
            log.warning("the summary of %s is not in W&B (%s: %s)", folder, type(error).__name__, error)


def _log(folder: Path, cfg: WandbConfig) -> None:
    import wandb

    study = analysis.module("runs").load(folder)
    counts = study.runs.drop_duplicates("folder")["status"].value_counts()
    id = f"summary-{digest([cfg.project, study.name], 10)}"
    named = {"group": study.name, "job_type": JOB_TYPE, "name": f"summary of {study.name}", "id": id}
    alone = locks.locked(locks.lock(folder / locks.LOCKS, "summary"), f"the summary of {folder}")  # it has one id
    with alone, surroundings(folder), start_run(cfg, folder, stats=False, config={"study": study.name}, **named) as run:
        # one row per run and evaluated α: what it is, how it ended, the headline metrics
        columns = ["algo", "method", "pair", "data", "alpha", "eval_alpha", "seed", "pair_seed", *study.varied]
        columns += ["status", *(c for c in SHOWN if c in study.runs)]
        table = study.runs[columns].head(ROWS).astype(dict.fromkeys(study.varied, str)).rename(columns=str)
        shown = {"runs": wandb.Table(dataframe=table)}
        if {"forget/prob", "retain/prob"} <= set(table):
            shown["tradeoff"] = wandb.plot.scatter(shown["runs"], "forget/prob", "retain/prob", title="forget, retain")
        parts = list((folder / "wandb").glob(f"*run-*-{run.id}*"))  # each has one row, and they are one history
        run.log(shown | (_figures(study) if counts.get("done") else {}), step=len(parts))
        run.summary.update({f"runs/{status}": int(n) for status, n in counts.items()})


def _figures(study: Study) -> dict[str, Any]:
    """The figures of ``analysis`` that need nothing but a study, as images: those that can be drawn of this one."""
    import wandb
    from PIL import Image

    found = {}
    for name in ("tradeoff", "trajectories", "alpha", "matched", "cost"):
        drawn = io.BytesIO()
        try:
            analysis.module(name).figure(study).savefig(drawn, format="png", dpi=150)
        except analysis.module("runs").StudyError as error:  # no finished run yet, or without these metrics
            log.debug("%s is not drawn: %s", name, error)
            continue
        found[f"figures/{name}"] = wandb.Image(Image.open(drawn))
    return found
