"""One run as it was logged, whatever it is read from: run folders, offline W&B files, a W&B project.

Every reader gives ``Record``s, and the tables of ``analysis.runs`` are made of these alone; so the same runs give the
same tables wherever they are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

REFERENCE_MODEL = "model"  # the column of the references' examples that says whose they are


class StudyError(ValueError):
    """A study that cannot be read or drawn; the message is written for whoever typed the command."""


def no_examples() -> dict[str, pd.DataFrame]:
    return {}


@dataclass(frozen=True)
class Record:
    """One run.

    ``config`` has dotted keys (``flatten``); ``manifest`` and ``evaluation`` are what ``manifest.json`` and
    ``eval.json`` hold, ``{}`` where there is none. ``steps`` has one entry per logged step (``merge``). ``examples``
    reads, when called, the tables per example: ``run`` (the run's own, with its ``alpha``) and ``references`` (with
    whose they are in ``model``); a table that was not logged is absent.
    """

    place: str  # what the column ``folder`` holds: the run's name in its study, unique there
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    steps: tuple[dict[str, float], ...]
    examples: Callable[[], dict[str, pd.DataFrame]] = field(default=no_examples, compare=False)
    config_at: str = ""  # where messages say that config and evaluation are
    evaluation_at: str = ""


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested config's settings by dotted key; a list is one setting, as JSON, and an empty mapping none.

    A whole number is an int also where it was written as a float: not every source tells 1 from 1.0.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(_plain(value), default=str) if isinstance(value, list) else _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The values that are numbers; "settings", lists, words, booleans and null are not metrics."""
    return {k: _float(k, v) for k, v in entry.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _float(key: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise StudyError(
            f"{key}: the whole number {str(value)[:20]}… is larger than any that can be computed with"
        ) from None


def merge(rows: Iterable[Mapping[str, float]]) -> tuple[dict[str, float], ...]:
    """One entry per ``step``, in order: one that was logged in two rows is merged, the later value standing."""
    steps: dict[float, dict[str, float]] = {}
    for row in rows:
        steps.setdefault(row["step"], {}).update(row)
    return tuple(steps[step] for step in sorted(steps))


def parse_json(path: Path) -> dict:
    """The mapping in a JSON file that must be there."""
    return parse(path, json.loads)


def parse(path: Path, parser: Callable[[str], Any]) -> dict:
    """The file's content, which must be a mapping; whatever goes wrong, the error names the file."""
    try:
        content = parser(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise StudyError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise StudyError(f"cannot read {path}: expected a mapping, found {type(content).__name__}")
    return content


def read_tables(paths: Mapping[str, Path]) -> dict[str, pd.DataFrame]:
    """The parquet files that are there, by name; a damaged one is named."""
    found = {}
    for name, path in paths.items():
        if path.is_file():
            try:
                found[name] = pd.read_parquet(path)
            except Exception as error:  # what pyarrow makes of damaged bytes is of many kinds
                raise StudyError(f"cannot read {path}: {error}") from error
    return found
