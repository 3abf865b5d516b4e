"""Run folders, as ``unlearn`` writes them: the whole truth about a run."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import yaml

from analysis.sources.record import Record, StudyError, flatten, merge, numbers, parse, parse_json, read_tables

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
    config = parse(folder / CONFIG, lambda text: yaml.load(text, Loader=YAML_LOADER))
    return Record(
        place=str(folder),
        config=dict(flatten(config)),
        manifest=_json(folder / MANIFEST),
        evaluation=_json(folder / EVAL),
        steps=_steps(folder / METRICS),
        examples=partial(read_tables, {name: folder / file for name, file in TABLES.items()}),
        config_at=str(folder / CONFIG),
        evaluation_at=str(folder / EVAL),
    )


def _json(path: Path) -> dict:
    return parse_json(path) if path.exists() else {}


def _steps(path: Path) -> tuple[dict[str, float], ...]:
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            values = numbers(json.loads(line))
            values["step"]
        except (ValueError, KeyError, AttributeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # a run that is being written, or was killed while writing, ends in half a line
            raise StudyError(f"{path}, line {number}: not a JSON object with a 'step': {line[:80]!r}") from error
        rows.append(values)
    return merge(rows)
