"""Reads the run folders of one study into tables; every figure and table of the analysis starts here.

Only logged files are read (``config.yaml``, ``manifest.json``, ``metrics.jsonl``, ``eval.json``), never a model, so a
study can be analysed on a machine that could not have run it.

Easy to get wrong: a run evaluated at k inference alphas is k rows of ``Study.runs``. ``alpha`` is the training alpha,
``eval_alpha`` the one it was evaluated at. ``config.yaml`` may hold another alpha, the one that was asked for last: a
direct run always trains at 1. Failed and unfinished runs are rows too, with NaN metrics.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

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
INTERVAL = ("low/", "high/")  # before a metric's name: the ends of its 95 % interval over questions
RUN_FILES = ("config.yaml", "manifest.json", "metrics.jsonl", "eval.json")
NOT_TRAINING = ("eval.", "wandb.", "paths.", "study", "hydra.")  # settings that do not change what is trained
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there


class StudyError(ValueError):
    """A study that cannot be read or drawn; the message is written for whoever typed the command."""


@dataclass(frozen=True)
class Study:
    """One study as tables.

    ``varied`` names the settings (columns of ``runs``, such as ``trainer.lr``) in which runs differ that share
    algorithm, method, pair, data, alpha and both seeds: averaging over those would mix different experiments.
    """

    name: str
    folder: Path
    runs: pd.DataFrame  # one row per run × evaluated alpha
    references: pd.DataFrame  # one row per target or retrained × pair × pair_seed × data × world
    trajectories: pd.DataFrame  # one row per logged step
    varied: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """Names of the evaluated metrics, as in ``eval.json``."""
        known = {*CONFIG_COLUMNS, "eval_alpha", *self.varied}
        return [c for c in self.runs.columns if c not in known and not c.startswith(("seconds/", *INTERVAL))]

    def count(self, status: str) -> int:
        """How many runs (not rows) have this status."""
        return int(self.runs.loc[self.runs["status"] == status, "folder"].nunique())


def load(study: str | Path, runs: str | Path = "runs") -> Study:
    """The study of that name in the folder ``runs``, or the study whose folder ``study`` is."""
    folder = find(study, runs)
    read = [_read_run(f) for f in sorted(folder.iterdir()) if _is_run(f)]
    varied = _varied(read)
    for run in read:
        run["columns"] |= {key: run["flat"].get(key) for key in varied}
    return Study(
        name=folder.resolve().name,
        folder=folder,
        runs=_table([row for run in read for row in _run_rows(run)], [*CONFIG_COLUMNS, "eval_alpha", *varied]),
        references=_references([row for run in read for row in _reference_rows(run)]),
        trajectories=_table([row for run in read for row in _step_rows(run)], [*IDENTITY, "study", "status", "folder"]),
        varied=varied,
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


def _is_run(folder: Path) -> bool:
    """A run has at least one of a run's files, so ``figures/`` or a launcher's folder beside the runs is none."""
    return folder.is_dir() and folder.name[0] != "." and any((folder / name).exists() for name in RUN_FILES)


def _read_run(folder: Path) -> dict:
    """What the files of one run folder say; config.yaml must be there, the others may not be yet."""
    flat = dict(_flatten(_parse(folder / "config.yaml", lambda text: yaml.load(text, Loader=YAML_LOADER))))
    manifest = _json(folder / "manifest.json")
    run = manifest.get("run") or {}
    flat |= {k: v for k, v in numbers(run).items() if k == "alpha"}  # the one it trained at
    flat |= {"algo.name": "none"} if run.get("algo") == "none" else {}  # a method that trains nothing has no objective
    columns = {name: _setting(folder, flat, key, kind) for name, (key, kind) in IDENTITY.items()}
    stages = manifest.get("seconds") or {}
    columns |= {
        "study": flat.get("study"),
        "status": manifest.get("status") or "unknown",
        "error": manifest.get("error") or "",
        # what all runs share (models, references) is prepared by whichever run comes first: not its own cost
        "seconds": sum(v for k, v in numbers(stages).items() if k != "prepare") if stages else math.nan,
        "peak_memory_mb": numbers(manifest).get("peak_memory_mb", math.nan),
        "trainable": numbers(manifest).get("trainable", math.nan),  # parameters that learn
        "world": "",
        "folder": str(folder),
        **{f"seconds/{stage}": value for stage, value in numbers(stages).items()},
    }
    evaluated = _json(folder / "eval.json")
    return {"folder": folder, "flat": flat, "columns": columns, "eval": evaluated}


def _run_rows(run: dict) -> list[dict]:
    evaluated = run["eval"].get("alphas") or {}
    if not evaluated:
        return [{**run["columns"], "eval_alpha": math.nan}]
    try:
        return [{**run["columns"], "eval_alpha": float(a), **_entry(entry)} for a, entry in evaluated.items()]
    except ValueError as error:
        raise StudyError(f"{run['folder'] / 'eval.json'}: the keys of 'alphas' must be numbers: {error}") from error


def _reference_rows(run: dict) -> list[dict]:
    keys = {name: run["columns"][name] for name in ("pair", "pair_seed", "data")}
    references = run["eval"].get("references") or {}
    return [{"reference": name, **keys, **_entry(entry)} for name, entry in references.items() if entry]


def _entry(entry: dict) -> dict:
    """An entry of eval.json: its metrics, their intervals, and the world that it was evaluated in."""
    intervals = (entry.get("intervals") or {}).items()
    ends = {f"{end}{metric}": pair[i] for metric, pair in intervals for i, end in enumerate(INTERVAL)}
    return {**numbers(entry), **numbers(ends), "world": str((entry.get("settings") or {}).get("references", ""))}


def _step_rows(run: dict) -> list[dict]:
    """One row per step: a step logged again after a resume, or in two lines, is merged, the later value standing."""
    path = run["folder"] / "metrics.jsonl"
    columns = {name: run["columns"][name] for name in (*IDENTITY, "study", "status", "folder")}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    steps: dict[float, dict] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = numbers(json.loads(line))
            steps.setdefault(values["step"], {}).update(values)
        except (ValueError, KeyError, AttributeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # a run that is being written, or was killed while writing, ends in half a line
            raise StudyError(f"{path}, line {number}: not a JSON object with a 'step': {line[:80]!r}") from error
    return [{**columns, **values} for values in steps.values()]


def _references(rows: list[dict]) -> pd.DataFrame:
    """Every run repeats its references; keep one row each, and the largest difference between what runs report."""
    frame = _table(rows, REFERENCE_KEYS)
    metrics = [c for c in frame.columns if c not in REFERENCE_KEYS]
    if not metrics:
        return frame.assign(disagreement=pd.Series(dtype=float))
    groups = frame.groupby(REFERENCE_KEYS)
    values = groups[[m for m in metrics if not m.startswith(INTERVAL)]]
    spread = (values.max() - values.min()).max(axis=1)
    table = groups[metrics].first()
    table.insert(0, "disagreement", spread)
    return table.reset_index()


def _varied(read: list[dict]) -> tuple[str, ...]:
    groups: dict[tuple, list[dict]] = {}
    for run in read:
        groups.setdefault(tuple(str(run["columns"][name]) for name in IDENTITY), []).append(run["flat"])
    keys = dict.fromkeys(key for run in read for key in run["flat"] if not key.startswith(NOT_TRAINING))
    return tuple(key for key in keys if any(len({repr(f.get(key)) for f in flats}) > 1 for flats in groups.values()))


def _table(rows: list[dict], first: list[str]) -> pd.DataFrame:
    """A DataFrame whose first columns are always there, also without rows."""
    rest = dict.fromkeys(key for row in rows for key in row if key not in first)
    return pd.DataFrame(rows, columns=[*first, *rest])


def _flatten(config: dict, prefix: str = ""):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value


def _setting(folder: Path, flat: dict, key: str, kind: type):
    if key not in flat:
        raise StudyError(f"{folder / 'config.yaml'} has no {key!r}, which tells the runs of a study apart")
    try:
        return kind(flat[key])
    except (TypeError, ValueError) as error:
        raise StudyError(f"{folder / 'config.yaml'}: {key} = {flat[key]!r} is not of type {kind.__name__}") from error


def numbers(entry: dict) -> dict[str, float]:
    """The values that are numbers; "settings", lists, words, booleans and null are not metrics."""
    return {k: float(v) for k, v in entry.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _json(path: Path) -> dict:
    return parse_json(path) if path.exists() else {}


def parse_json(path: Path) -> dict:
    """The mapping in a JSON file that must be there."""
    return _parse(path, json.loads)


def _parse(path: Path, parser) -> dict:
    """The file's content, which must be a mapping; whatever goes wrong, the error names the file."""
    try:
        content = parser(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StudyError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise StudyError(f"cannot read {path}: expected a mapping, found {type(content).__name__}")
    return content
