"""The runs of one study as tables; every figure and table of the analysis starts here.

Only what runs logged is read, never a model, so a study can be analysed on a machine that could not have run it.

Easy to get wrong: a run evaluated at k inference alphas is k rows of ``Study.runs``. ``alpha`` is the training alpha,
``eval_alpha`` the one it was evaluated at. The config may hold another alpha, the one that was asked for last: a
direct run always trains at 1. Failed and unfinished runs are rows too, with NaN metrics.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from .sources import folders, offline, shapes
from .sources.record import REFERENCE_MODEL, Record, StudyError, numbers, parse_json

__all__ = ["IDENTITY", "Study", "StudyError", "find", "load", "names", "numbers", "parse_json"]

log = logging.getLogger(__name__)
ONLINE, OFFLINE = "wandb://", "offline:"
# What tells one run of a study from another: column → (where config.yaml says it, its type).
IDENTITY = {
    "algo": ("algo.name", str),
    "method": ("method.name", str),
    "pair": ("pair.name", str),
    "data": ("data.name", str),
    "alpha": ("alpha", float),
    "seed": ("seed", int),
    "pair_seed": ("pair.seed", int),
}
# ``world`` is the digest of everything that target and retrained depend on; "" where a file does not say it.
CONFIG_COLUMNS = [
    *IDENTITY, "study", "status", "error", "seconds", "peak_memory_mb", "trainable", "world", "folder"
]  # fmt: skip
REFERENCE_KEYS = ["reference", "pair", "pair_seed", "data", "world"]
LEAK_GAPS = {"retrained": "forget/leak_gap", "guess": "forget/leak_gap_guess"}  # from each reference's own level
INTERVAL = ("low/", "high/")  # before a metric's name: the ends of its 95 % interval within its world
SEEDS = ("seed", "pair_seed")  # columns of IDENTITY over which values are averaged
# Settings that change neither what is trained nor what is measured: ``hashed=False`` in unlearn/config.
NOTHING = ("wandb.", "paths.", "study", "hydra.", "retry", "eval.alphas", "eval.groups", "eval.batch_size",
           "pair.target.http.", "trainer.accumulate", "trainer.log_every", "trainer.eval_every",
           "trainer.eval_examples", "trainer.save_every", "trainer.compile",
           "trainer.checkpointing", "trainer.stored_rows_gib",
           "trainer.stored_rows_over", "trainer.threads", "trainer.device", "trainer.progress",
           "pair.target.device")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Study:
    """One study as tables.

    ``varied`` names the settings (columns of ``runs``, such as ``trainer.lr``) in which runs differ that share
    algorithm, method, pair, data and alpha: averaging over those would mix different experiments.
    """

    name: str
    folder: Path
    runs: pd.DataFrame  # one row per run × evaluated alpha
    references: pd.DataFrame  # one row per target or retrained × pair × pair_seed × data × world
    trajectories: pd.DataFrame  # one row per logged step
    varied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what a source held that is in no table, and why
    records: tuple[Record, ...] = field(default=(), repr=False, compare=False)  # what the tables are made of

    @property
    def metrics(self) -> list[str]:
        """Names of the evaluated metrics, as in ``eval.json``."""
        known = {*CONFIG_COLUMNS, "eval_alpha", *self.varied}
        return [c for c in self.runs.columns if c not in known and not c.startswith(("seconds/", *INTERVAL))]

    @cached_property
    def examples(self) -> pd.DataFrame:
        """Every question of every run; read when first asked for. See ``examples_of``."""
        return self.examples_of(self.runs["folder"])

    def examples_of(self, folders: Collection[str]) -> pd.DataFrame:
        """One row per question × model × evaluated alpha of the runs with these values of ``folder``.

        ``model`` is "run", or "target" or "retrained": what the references made of the same questions, once for every
        run, with NaN for ``eval_alpha``. Then the columns of ``IDENTITY``, those that ``varied`` names, ``folder``,
        ``eval_alpha``, ``split``, ``id`` and whatever was measured per example. Runs made before references logged
        their examples have rows of their own only.
        """
        asked = set(folders)
        first = ["model", *IDENTITY, *self.varied, "folder", "eval_alpha", "split", "id"]
        parts = [part for record in self.records if record.place in asked for part in _examples(record, self.varied)]
        if not parts:
            return pd.DataFrame(columns=first)
        table = pd.concat(parts, ignore_index=True)
        return table[[*first, *(c for c in table.columns if c not in first)]]

    def told_by(self, settings: Collection[str]) -> Study:
        """The study with columns for these settings of its runs, too."""
        more = [key for key in settings if key not in self.runs and any(key in r.config for r in self.records)]
        columns = {key: self.runs["folder"].map({r.place: r.config.get(key) for r in self.records}) for key in more}
        return replace(self, runs=self.runs.assign(**columns), varied=(*self.varied, *more))

    def count(self, status: str) -> int:
        """How many runs (not rows) have this status."""
        return int(self.runs.loc[self.runs["status"] == status, "folder"].nunique())


def load(study: str | Path, runs: str | Path = "runs") -> Study:
    """A study, from wherever its runs were logged; the same runs give the same tables (``folder`` is but their names).

    - ``NAME`` of a folder in ``runs``, or a path: of run folders; of what else lies there, ``wandb/offline-run-*`` at
      any depth are read where there are no run folders.
    - ``offline:PATH``: those W&B files, also where there are run folders.
    - ``wandb://ENTITY/PROJECT?group=STUDY&algo=npo``: from W&B's server; see ``sources.online``.

    What was left out is logged as a warning and kept in ``Study.notes``.
    """
    source = str(study)
    if source.startswith(ONLINE):
        from .sources import online  # wandb takes its time to import

        name, found, notes = online.read(source)
        return tables(name, Path(runs) / name, found, notes)
    folder = find(source.removeprefix(OFFLINE), runs)
    files = []
    if source.startswith(OFFLINE) or not any(map(folders.is_run, folder.iterdir())):
        files = offline.files(folder)
    if source.startswith(OFFLINE) and not files:
        raise StudyError(f"{source}: there is no offline-run-*/run-*.wandb in {folder}, at any depth")
    found, notes = offline.read(files) if files else (folders.read(folder), [])
    return tables(folder.resolve().name, folder, found, notes)


def tables(name: str, folder: Path, records: Collection[Record], notes: Collection[str] = ()) -> Study:
    """The study that these runs make."""
    for note in notes:
        log.warning("%s: %s", name, note)
    for record in records:
        shapes.check(record)
    fixed = [_columns(record) for record in records]
    varied = _varied(records, fixed)
    for record, columns in zip(records, fixed, strict=True):
        columns |= {key: record.config.get(key) for key in varied}
    try:
        return _study(name, folder, records, fixed, varied, notes)
    except UnicodeEncodeError:
        raise shapes.half_characters(records) from None


def _study(
    name: str, folder: Path, records: Collection[Record], fixed: list[dict], varied: tuple[str, ...],
    notes: Collection[str],
) -> Study:  # fmt: skip
    pairs = list(zip(records, fixed, strict=True))
    runs = _table([row for pair in pairs for row in _run_rows(*pair)], [*CONFIG_COLUMNS, "eval_alpha", *varied])
    return Study(
        name=name,
        folder=folder,
        runs=runs,
        references=_references([row for pair in pairs for row in _reference_rows(*pair)], set(runs.columns)),
        trajectories=_table(
            [row for pair in pairs for row in _step_rows(*pair)], [*IDENTITY, "study", "status", "folder"]
        ),
        varied=varied,
        notes=tuple(notes),
        records=tuple(records),
    )


def find(study: str | Path, runs: str | Path = "runs") -> Path:
    """The folder of a study given by name or by path; a name wins over a path of the same spelling."""
    for folder in (Path(runs) / study, Path(study)):
        if str(study) and folder.is_dir():
            return folder
    raise StudyError(
        f"no study {str(study)!r}: it must be the name of a folder in {str(runs)!r} or a path to a study's folder; "
        f"studies in {str(runs)!r}: {', '.join(names(runs)) or 'none'}"
    )


def names(runs: str | Path = "runs") -> list[str]:
    """Names of all studies in the folder ``runs``."""
    root = Path(runs)
    return sorted(f.name for f in root.iterdir() if f.is_dir() and f.name[0] != ".") if root.is_dir() else []


def _columns(record: Record) -> dict:
    """What is said of a run in each of its rows."""
    manifest, stages = record.manifest, record.manifest.get("seconds") or {}
    return _identity(record) | {
        "study": record.config.get("study"),
        "status": manifest.get("status") or "unknown",
        "error": manifest.get("error") or "",
        # what all runs share (models, references) is prepared by whichever run comes first: not its own cost
        "seconds": sum(v for k, v in numbers(stages).items() if k != "prepare") if stages else math.nan,
        "peak_memory_mb": numbers(manifest).get("peak_memory_mb", math.nan),
        "trainable": numbers(manifest).get("trainable", math.nan),  # parameters that learn
        "world": "",
        "folder": record.place,
        **{f"seconds/{stage}": value for stage, value in numbers(stages).items()},
    }


def _identity(record: Record) -> dict:
    run, config = record.manifest.get("run") or {}, dict(record.config)
    config |= {k: v for k, v in numbers(run).items() if k == "alpha"}  # the one it trained at
    config |= {"algo.name": "none"} if run.get("algo") == "none" else {}  # a method that trains nothing: no objective
    return {name: _setting(record, config, key, kind) for name, (key, kind) in IDENTITY.items()}


def _setting(record: Record, config: dict, key: str, kind: type):
    if key not in config:
        raise StudyError(f"{record.config_at} has no {key!r}, which tells the runs of a study apart")
    value = config[key]
    try:
        found = kind(value)
        whole = kind is not int or (found == value and not isinstance(value, bool))
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise StudyError(f"{record.config_at}: {key} = {value!r} is not of type {kind.__name__}")
    return found


def _run_rows(record: Record, columns: dict) -> list[dict]:
    evaluated = record.evaluation.get("alphas") or {}
    if not evaluated:
        return [{**columns, "eval_alpha": math.nan}]
    shapes.check_alphas(evaluated, record.evaluation_at)
    return [{**columns, "eval_alpha": float(a), **_entry(entry)} for a, entry in evaluated.items()]


def _reference_rows(record: Record, columns: dict) -> list[dict]:
    keys = {name: columns[name] for name in ("pair", "pair_seed", "data")}
    references = record.evaluation.get("references") or {}
    return [{"reference": name, **keys, **_entry(entry)} for name, entry in references.items() if entry]


def _entry(entry: dict) -> dict:
    """An entry of eval.json: its metrics, their intervals, and the world that it was evaluated in."""
    intervals = (entry.get("intervals") or {}).items()
    ends = {f"{end}{metric}": pair[i] for metric, pair in intervals for i, end in enumerate(INTERVAL)}
    return {**numbers(entry), **numbers(ends), "world": str((entry.get("settings") or {}).get("references", ""))}


def _step_rows(record: Record, columns: dict) -> list[dict]:
    kept = {name: columns[name] for name in (*IDENTITY, "study", "status", "folder")}
    return [{**kept, **values} for values in record.steps]


def _examples(record: Record, varied: tuple[str, ...]) -> list[pd.DataFrame]:
    """A run's own examples, and the references'."""
    kept = {**_identity(record), **{key: record.config.get(key) for key in varied}, "folder": record.place}
    found = record.examples()
    parts = []
    if "run" in found:
        parts.append(found["run"].rename(columns={"alpha": "eval_alpha"}).assign(model="run", **kept))
    if "references" in found:
        renamed = found["references"].rename(columns={REFERENCE_MODEL: "model"})
        parts.append(renamed.assign(eval_alpha=math.nan, **kept))
    return parts


def _references(rows: list[dict], known: Collection[str]) -> pd.DataFrame:
    """Every run repeats its references; keep one row each, and the largest difference between what runs report."""
    # a reference's distance from itself is in no file
    rows = [row | {gap: 0.0} if (gap := LEAK_GAPS.get(row["reference"])) in known else row for row in rows]
    frame = _table(rows, REFERENCE_KEYS)
    metrics = [c for c in frame.columns if c not in REFERENCE_KEYS]
    if not metrics:
        return frame.assign(disagreement=pd.Series(dtype=float))
    groups = frame.groupby(REFERENCE_KEYS)
    values = [m for m in metrics if not m.startswith(INTERVAL)]
    spread = (groups[values].max() - groups[values].min()).max(axis=1)
    table = groups[metrics].first()
    table.insert(0, "disagreement", spread)
    return table.reset_index()


def _varied(records: Collection[Record], columns: Collection[dict]) -> tuple[str, ...]:
    """Settings in which runs differ that are the same by ``IDENTITY`` but for their seeds."""
    groups: dict[tuple, list[Record]] = {}
    for record, own in zip(records, columns, strict=True):
        groups.setdefault(tuple(str(own[name]) for name in IDENTITY if name not in SEEDS), []).append(record)
    named = {key for key, _ in IDENTITY.values()}  # the manifest may know better than the config: ``_identity``
    keys = dict.fromkeys(k for r in records for k in r.config if k not in named and not k.startswith(NOTHING))
    return tuple(
        key for key in keys if any(len({repr(r.config.get(key)) for r in group}) > 1 for group in groups.values())
    )


def _table(rows: list[dict], first: list[str]) -> pd.DataFrame:
    """A DataFrame whose first columns are always there, also without rows."""
    rest = dict.fromkeys(key for row in rows for key in row if key not in first)
    return pd.DataFrame(rows, columns=[*first, *rest])
