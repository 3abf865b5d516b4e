"""W&B's copy of a run: it holds what the run folder holds, so that ``analysis`` makes the same tables of either.

Where it lies in the W&B run: config → the config; ``manifest.json`` → ``summary["manifest"]``; ``eval.json`` →
``summary["alphas"]`` and ``["references"]``, as texts; ``metrics.jsonl`` → the history; the two tables of examples →
files of the same names. Beside that, for W&B's own pages: the status and a dozen ``eval/<metric>`` in the summary (at
the α nearest to the training's), a chart, a table of examples, and artifacts.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.schema import WandbConfig

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
JOB_TYPE = "unlearn"
PARTS = ("train", "forget", "retain", "neighbours", "real_authors", "world_facts", "held_out")  # of what a step logs
FINISH = 300.0  # seconds for uploads at the end of a run
OF_SERVER = ("API_KEY", "BASE_URL", "APP_URL", "ENTITY", "ORGANIZATION", "IDENTITY_TOKEN_FILE", "CREDENTIALS_FILE",
             "CONFIG_DIR", "HTTP_TIMEOUT", "INIT_TIMEOUT", "INSECURE_DISABLE_SSL", "ERROR_REPORTING")  # fmt: skip
ROWS = 200  # of the table of examples; the file beside it has all
SHOWN = ("prob", "known", "rougeL_recall", "truth_ratio", "leak@20")  # per-example metrics in that table
HEADLINES = ("forget/prob", "forget/known", "forget/rougeL_recall", "forget/leak_gap", "forget/leak_gap_guess",
             "retain/prob", "retain/known", "retain/rougeL_recall",
             "neighbours/prob", "real_authors/prob", "world_facts/prob", "model_utility", "forget_quality",
             "forget_quality_log10", "privleak")  # fmt: skip
TRADEOFF = ("forget/prob", "retain/prob", "model_utility", "forget_quality_log10", "forget/leak_gap")
REWIND = "resumed_from"  # a row of the history: of the steps before it, those after this one do not count


class Mirror:
    """One W&B run, or none. If W&B fails, it is logged once, and the run continues: the folder is the truth.

    ``missed``: W&B lacks something that was logged since.
    """

    def __init__(
        self, start: Callable[[str | None], Any] | None = None, id: str | None = None, alpha: float = 1.0, row: int = 0
    ):
        self.start, self.id, self.alpha = start, id, alpha
        self.next = row  # number of the history's next row
        self.again(first=True)

    def again(self, first: bool = False) -> None:
        """Start W&B; after it failed as the same W&B run, with a service of its own."""
        self.first = first
        self.run, self.missed = None, False
        if self.start is not None:
            with self._working():
                self.run = self.start(self.id)
                self.id = self.run.id

    def close(self, status: int) -> None:
        self.first = False
        self._do(lambda run: run.finish(exit_code=status))
        self.run = None

    def log(self, record: Mapping[str, Any]) -> None:
        self._do(lambda run: run.log(dict(record), step=self.next))
        self.next += 1

    def rewind(self, step: int) -> None:
        """Resume at ``step``: what was logged after it is logged again."""
        self.log({REWIND: step})

    def manifest(self, manifest: Mapping[str, Any]) -> None:
        texts = {"manifest": json.dumps(dict(manifest)), "status": manifest["status"]}
        self._do(lambda run: run.summary.update(texts))

    def evaluated(self, found: Mapping[str, Any], own: pd.DataFrame, references: pd.DataFrame, files: Sequence[Path],
                  weights: Sequence[Path]) -> None:  # fmt: skip
        """The content of eval.json; the tables of examples; the files that hold all this; the folders of weights."""

        def summarise(run: Any) -> None:
            at = _nearest(found["alphas"], self.alpha)
            entry, texts = found["alphas"][str(at)], {name: json.dumps(value) for name, value in found.items()}
            run.summary.update(texts | {"eval/alpha": at} | {f"eval/{k}": entry[k] for k in HEADLINES if k in entry})

        self._do(summarise)
        self._do(lambda _: self.log({"tradeoff": _chart(found), "examples": _table(own, references, self.alpha)}))
        self._do(lambda run: _save(run, [f for f in files if f.suffix == ".parquet"]))
        self._do(lambda run: _artifact(run, "evaluation", files))
        for folder in filter(Path.is_dir, weights):
            self._do(lambda run, folder=folder: _artifact(run, folder.name, sorted(folder.iterdir())))

    def _do(self, act: Callable[[Any], None]) -> None:
        if self.run is not None:
            with self._working():
                act(self.run)

    @contextmanager
    def _working(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            then = (
                "what it misses follows at the end" if self.first else "it lacks a part of this run, the folder nothing"
            )
            log.warning("W&B stopped working (%s: %s); %s", type(error).__name__, error, then)
            self.run, self.missed = None, True
            _end_service()


@contextmanager
def opened(cfg: WandbConfig, folder: Path, choices: Mapping[str, Any], config: Mapping[str, Any], id: str | None,
           start: int = 0) -> Iterator[Mirror]:  # fmt: skip
    """The W&B run of a run folder for the length of the block; with W&B disabled nothing is imported.

    ``choices`` are those that name the run (``derived.describe``). With ``id`` the W&B run of that id is resumed, its
    history with row number ``start``: offline, W&B would begin again with 0, and a server may have those rows.
    """
    if cfg.mode == "disabled":
        yield Mirror()
        return
    tags = list(dict.fromkeys(str(choices[k]) for k in ("algo", "method", "data", "pair")))

    def begin(id: str | None) -> Any:
        run = start_run(cfg, folder, group=choices["study"], job_type=JOB_TYPE, name=folder.name, id=id, tags=tags,
                        config=dict(config))  # fmt: skip
        # everything logged while training is over ``step``; the summary has the last value: a best one may be step 0's
        run.define_metric("step", hidden=True)
        run.define_metric("epoch", step_metric="step", hidden=True)
        for name in PARTS:
            run.define_metric(f"{name}/*", step_metric="step")
        if not run.offline and run.url is not None:  # offline W&B warns that there is none
            log.info("W&B: %s", run.url)
        return run

    status = 1
    with surroundings(folder):
        mirror = Mirror(begin, id, choices["alpha"], start)
        try:
            yield mirror
            status = 0
        finally:
            mirror.close(status)


@contextmanager
def surroundings(folder: Path) -> Iterator[None]:
    """Inside, the environment tells W&B where its server is and who asks, and nothing that another project chose for
    runs of its own (id, group, resume, sweep); and all that W&B writes, texts among it, lies in ``folder``."""
    _end_service()  # of this process, if it had one: it would keep its folders, and be named below when it has ended
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    kept = {name: value for name, value in before.items() if name.removeprefix("WANDB_") in OF_SERVER}
    own = {
        f"WANDB_{kind}_DIR": str((folder / "wandb" / kind.lower()).resolve()) for kind in ("DATA", "CACHE", "ARTIFACT")
    }
    _set({"WANDB_INIT_TIMEOUT": "30"} | kept | own)
    try:
        yield
    finally:
        _end_service()  # it keeps the folders that it was started with
        _set(before)


def _set(variables: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ.update(variables)


def _end_service() -> None:
    import wandb

    with suppress(Exception, SystemExit):  # it may be gone, or have ended badly
        wandb.teardown()


def start_run(cfg: WandbConfig, folder: Path, stats: bool = True, **more: Any) -> Any:
    """A W&B run whose files lie in ``folder``; ``stats``: of the machine, too. A context that finishes it."""
    import wandb

    # the manifest has the commit; a server that is gone may not keep a run from its end
    settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=not stats,
                              finish_timeout=FINISH, finish_timeout_raises=True)  # fmt: skip
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
