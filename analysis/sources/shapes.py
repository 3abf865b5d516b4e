"""Whether what a run logged has the shape that tables are made of, and is what the run left when it was done."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .record import Record, StudyError

SEAL = "sealed_results"  # in the manifest: checksums of the files that a finished run left


def check(record: Record) -> None:
    """Raise ``StudyError`` naming what is not a mapping, text or interval where there must be one."""
    manifest, evaluation = record.manifest, record.evaluation
    where = f"the manifest of {record.place}"
    _mapping(manifest, where, "it")
    for key in ("run", "seconds"):
        _mapping(manifest.get(key) or {}, where, key)
    for key in ("status", "error"):
        if not isinstance(manifest.get(key), str | None):
            raise StudyError(f"{where}: {key} must be a text, found {str(manifest[key])[:80]!r}")
    for key in ("alphas", "references"):
        for name, entry in _mapping(evaluation.get(key) or {}, record.evaluation_at, key).items():
            if entry is not None or key == "alphas":
                _entry(entry, record.evaluation_at, f"{key}.{name}")


def half_characters(records: Iterable[Record]) -> StudyError:
    """The error that names the run in whose texts there is half a character, which no table can hold."""
    for record in records:
        try:
            json.dumps([record.config, record.manifest, record.evaluation], ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            return StudyError(f"{record.place}: a text holds half a character ({error.object[error.start]!r})")
    return StudyError("a text holds half a character")


def _entry(entry: Any, where: str, key: str) -> None:
    _mapping(entry, where, key)
    _mapping(entry.get("settings") or {}, where, f"{key}.settings")
    for metric, pair in _mapping(entry.get("intervals") or {}, where, f"{key}.intervals").items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(v, int | float | None) for v in pair):
            raise StudyError(f"{where}: {key}.intervals.{metric} must be two numbers, found {str(pair)[:80]!r}")


def _mapping(value: Any, where: str, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise StudyError(f"{where}: {key} must be a mapping, found {type(value).__name__} {str(value)[:80]!r}")
    return value


def check_alphas(alphas: Iterable[str], where: str) -> None:
    """Raise ``StudyError`` unless each can be read as a finite number."""
    for alpha in alphas:
        try:
            number = float(alpha)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise StudyError(f"{where}: the keys of 'alphas' must be numbers, found {alpha!r}")


def check_seal(folder: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise ``StudyError`` where a finished run's file is not the one that it left; older runs have no checksums."""
    seal = manifest.get(SEAL)
    if manifest.get("status") != "done" or not isinstance(seal, Mapping):
        return
    for name in names:
        path = folder / name
        if name in seal and not (path.is_file() and _sha256(path) == seal[name]):
            what = "was changed or damaged since the run wrote it" if path.is_file() else "is missing"
            raise StudyError(f"{path} {what}: its checksum is in manifest.json; remove the folder to run it again")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
