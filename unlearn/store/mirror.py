"""W&B's copy of a run: it holds what the run folder holds, so that ``analysis`` makes the same tables of either.

Where it lies in the W&B run: config → the config, dotted; ``manifest.json`` → ``summary["manifest"]``; ``eval.json`` →
``summary["alphas"]`` and ``["references"]``; ``metrics.jsonl`` → the history; the two tables of examples → files of the
same names. Beside that, for W&B's own pages: ``eval/<metric>`` in the summary (at the α nearest to the training's), a
chart, a table of examples, and artifacts.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.schema import WandbConfig

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
JOB_TYPE = "unlearn"
SPLITS = ("forget", "retain", "real_authors", "world_facts", "held_out")
TRAJECTORY = ("prob", "exact_memorization")  # what is logged of every split while training
PARTS = ("train", *SPLITS)
ROWS = 200  # of the table of examples; the file beside it has all
SHOWN = ("prob", "rougeL_recall", "truth_ratio", "leak@20")  # per-example metrics in that table
TRADEOFF = ("forget/prob", "retain/prob", "model_utility", "forget_quality_log10", "forget/leak_gap")
REWIND = "resumed_from"  # a row of the history: of the steps before it, those after this one do not count


class Mirror:
    """One W&B run, or none. If W&B fails, it is logged once, and the run continues: the folder is the truth."""

    def __init__(self, run: Any, alpha: float = 1.0, start: int = 0):
        self.run, self.alpha = run, alpha
        self.next = start  # number of the history's next row

    @property
    def id(self) -> str | None:
        return None if self.run is None else self.run.id

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a row to the history, e.g. a logged step."""
        self._do(lambda run: run.log(dict(record), step=self.next))
        self.next += 1

    def rewind(self, step: int) -> None:
        """Resume at ``step``: what was logged after it is logged again."""
        self.log({REWIND: step})

    def manifest(self, manifest: Mapping[str, Any]) -> None:
        self._do(lambda run: run.summary.update({"manifest": dict(manifest)}))

    def evaluated(self, found: Mapping[str, Any], own: pd.DataFrame, references: pd.DataFrame, files: Sequence[Path],
                  weights: Sequence[Path]) -> None:  # fmt: skip
        """The content of eval.json; the tables of examples; the files that hold all this; the folders of weights."""

        def summarise(run: Any) -> None:
            at = _nearest(found["alphas"], self.alpha)
            numbers = {f"eval/{k}": v for k, v in _numbers(found["alphas"][str(at)]).items()}
            run.summary.update(dict(found) | {"eval/alpha": at} | numbers)

        self._do(summarise)
        self._do(lambda _: self.log({"tradeoff": _chart(found), "examples": _table(own, references, self.alpha)}))
        self._do(lambda run: _save(run, [f for f in files if f.suffix == ".parquet"]))
        self._do(lambda run: _artifact(run, "evaluation", files))
        for folder in filter(Path.is_dir, weights):
            self._do(lambda run, folder=folder: _artifact(run, folder.name, sorted(folder.iterdir())))

    def _do(self, act: Callable[[Any], None]) -> None:
        if self.run is None:
            return
        try:
            act(self.run)
        except Exception as error:
            log.warning("W&B stopped working (%s: %s); continuing without it", type(error).__name__, error)
            self.run = None


@contextmanager
def opened(cfg: WandbConfig, folder: Path, choices: Mapping[str, Any], config: Mapping[str, Any], id: str | None,
           start: int = 0) -> Iterator[Mirror]:  # fmt: skip
    """The W&B run of a run folder for the length of the block; with W&B disabled nothing is imported.

    ``choices`` are those that name the run (``derived.describe``). With ``id`` the W&B run of that id is resumed, its
    history with row number ``start``: offline, W&B would begin again with 0, and a server that has rows of these
    numbers need not take others.
    """
    if cfg.mode == "disabled":
        yield Mirror(None)
        return
    tags = dict.fromkeys(str(choices[k]) for k in ("algo", "method", "data", "pair"))
    with start_run(cfg, folder, group=choices["study"], job_type=JOB_TYPE, name=folder.name, id=id, tags=list(tags),
               config=dict(config)) as run:  # fmt: skip
        # Everything logged while training is over ``step``; the summary also keeps the best value where there is one.
        run.define_metric("step", hidden=True)
        run.define_metric("epoch", step_metric="step", hidden=True)
        for name in PARTS:
            run.define_metric(f"{name}/*", step_metric="step")
        for name in (f"{split}/{metric}" for split in SPLITS for metric in TRAJECTORY):
            best = "min" if name.startswith("forget/") else "max"
            run.define_metric(name, step_metric="step", summary=f"{best},last")
        yield Mirror(run, choices["alpha"], start)


def start_run(cfg: WandbConfig, folder: Path, stats: bool = True, **more: Any) -> Any:
    """A W&B run whose files lie in ``folder``; ``stats``: of the machine, too. A context that finishes it."""
    import wandb

    # the manifest has the commit
    settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=not stats)
    # without reinit, a job whose predecessor failed would write into the predecessor's W&B run
    return wandb.init(project=cfg.project, entity=cfg.entity, mode=cfg.mode, dir=str(folder), settings=settings,
                      resume="allow", reinit="finish_previous", **more)  # fmt: skip


def _chart(found: Mapping[str, Any]) -> Any:
    """Forget against retain: one point per α, and the references."""
    import wandb

    rows = [("run", float(a), _numbers(entry)) for a, entry in found["alphas"].items()]
    rows += [(name, None, _numbers(entry)) for name, entry in found["references"].items()]
    columns = [c for c in TRADEOFF if any(c in numbers for *_, numbers in rows)]
    data = [
        [model, alpha, *(v if math.isfinite(v := numbers.get(c, math.nan)) else None for c in columns)]
        for model, alpha, numbers in rows
    ]
    table = wandb.Table(columns=["model", "alpha", *columns], data=data)
    return wandb.plot.scatter(table, "forget/prob", "retain/prob", title="forget against retain, over α")


def _table(own: pd.DataFrame, references: pd.DataFrame, alpha: float) -> Any:
    """Question, gold answer, and what run and references say and score, forget questions first."""
    import wandb

    first = own[own["alpha"] == _nearest(own["alpha"].unique(), alpha)].head(ROWS)
    keys, said = ["split", "id"], ["generation", *(c for c in SHOWN if c in own)]
    table = first[[*keys, "prompt", "gold", *said]]
    for name, theirs in references.groupby("model", sort=False):
        if set(keys) <= set(theirs):
            kept = [c for c in said if c in theirs]
            renamed = theirs[[*keys, *kept]].rename(columns={c: f"{c} ({name})" for c in kept})
            table = table.merge(renamed, on=keys, how="left")
    rows = json.loads(table.to_json(orient="values", double_precision=6))  # plain values, null where there is none
    return wandb.Table(columns=list(table.columns), data=rows)


def _save(run: Any, files: Sequence[Path]) -> None:
    """Copies beside W&B's own, to be uploaded with them: so an offline run is whole wherever it is moved."""
    for file in files:
        copy = Path(run.dir) / file.name
        shutil.copyfile(file, copy)
        run.save(str(copy), base_path=run.dir, policy="end")


def _artifact(run: Any, kind: str, files: Sequence[Path]) -> None:
    import wandb

    artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
    for path in files:
        # immutable: the file is uploaded from where it lies, not copied into a staging folder first
        artifact.add_file(str(path.resolve()), name=path.name, policy="immutable")
    run.log_artifact(artifact)


def _nearest(alphas: Iterable[Any], alpha: float) -> float:
    return min(map(float, alphas), key=lambda a: (abs(a - alpha), a))


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in entry.items() if isinstance(v, int | float) and not isinstance(v, bool)}
