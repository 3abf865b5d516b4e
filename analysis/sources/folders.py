"""Run folders, as ``unlearn`` writes them: the whole truth about a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from .record import Record, StudyError, flatten, merge, numbers, parse, parse_json, read_tables
from .shapes import check_seal

CONFIG, MANIFEST, METRICS, EVAL = RUN_FILES = ("config.yaml", "manifest.json", "metrics.jsonl", "eval.json")
TABLES = {"run": "examples.parquet", "references": "references.parquet"}  # the second is absent in older runs
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there


def read(folder: Path) -> list[Record]:
    """The runs in the folder of a study, by name."""
    return [_record(f) for f in sorted(folder.iterdir()) if is_run(f)]


def is_run(folder: Path) -> bool:
    """A run has at least one of a run's files, so ``figures/`` or a launcher's folder beside the runs is none."""
    return folder.is_dir() and folder.name[0] != "." and any((folder / name).exists() for name in RUN_FILES)


def _record(folder: Path) -> Record:
    """What the files of one run folder say; config.yaml must be there, the others may not be yet."""
    config, manifest = parse(folder / CONFIG, _yaml), _json(folder / MANIFEST)
    check_seal(folder, manifest, RUN_FILES)
    return Record(
        place=str(folder),
        config=dict(flatten(config)),
        manifest=manifest,
        evaluation=_json(folder / EVAL),
        steps=_steps(folder / METRICS),
        examples=partial(_tables, folder, manifest),
        config_at=str(folder / CONFIG),
        evaluation_at=str(folder / EVAL),
    )


def _yaml(text: str) -> Any:
    """A config's YAML. One setting never refers to another there, and such a reference may stand for gigabytes."""
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=YAML_LOADER)):
        raise ValueError("it has aliases (*name), and no run writes such")
    return yaml.load(text, Loader=YAML_LOADER)


def _tables(folder: Path, manifest: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    check_seal(folder, manifest, TABLES.values())
    return read_tables({name: folder / file for name, file in TABLES.items()})


def _json(path: Path) -> dict:
    return parse_json(path) if path.exists() else {}


def _steps(path: Path) -> tuple[dict[str, float], ...]:
    rows = []
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        try:
            values = numbers(json.loads(line))
            if not math.isfinite(values["step"]):
                raise ValueError(f"step {values['step']}")
        except (ValueError, KeyError, AttributeError, RecursionError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # a run that is being written, or was killed while writing, ends in half a line
            raise StudyError(f"{path}, line {number}: not a JSON object with a 'step': {line[:80]!r}") from error
        rows.append(values)
    return merge(rows)


def _lines(path: Path) -> list[str]:
    """Lines with their ends; none where there is no file."""
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            return list(stream)
    except UnicodeDecodeError as error:
        near = error.object[max(0, error.start - 10) : error.start + 10]
        raise StudyError(f"cannot read {path}: not UTF-8: {near!r}") from None
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error}") from None
