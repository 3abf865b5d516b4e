"""Offline W&B files: everything that a run logged is in ``offline-run-…/run-ID.wandb`` and the ``files/`` beside it.

W&B offers no reader of these files as a library, so the frames are read here (``transaction_log.py``) and decoded with
W&B's own record type. A resumed run leaves one file per part, with the same id: they are joined in the order of their
starts. A file of a run that is active, or was killed, is read as far as it goes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .mirrored import TABLES, TIME, WandbRun, plain, records
from .record import Record, StudyError, read_tables
from .transaction_log import Frames, NotWandb

FOLDER = re.compile(r"(offline-)?run-\d{8}_\d{6}-.+")  # an online run leaves the same file, without "offline-"
NOT_INTO = {"files", "logs", "tmp", "offset", "best", "checkpoint", "latest-run", "figures"}
KEPT = ("manifest", "alphas", "references")  # of the summary; the rest repeats the history


@dataclass
class Part:
    """What one ``.wandb`` file says."""

    path: Path
    id: str = ""
    group: str = ""
    name: str = ""
    job_type: str = ""
    started: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, str] = field(default_factory=dict)  # JSON
    history: list[dict[str, Any]] = field(default_factory=list)
    torn: bool = False


def files(folder: Path) -> list[Path]:
    """All ``.wandb`` files under a folder, at any depth."""
    found = []
    for place, below, names in os.walk(folder):
        below[:] = sorted(set(below) - NOT_INTO)
        if FOLDER.fullmatch(Path(place).resolve().name):
            found += [Path(place) / name for name in sorted(names) if name.endswith(".wandb")]
            below.clear()
    return found


def read(paths: list[Path]) -> tuple[list[Record], list[str]]:
    """The runs in these files by name, and what is to be said of files that hold none, or not all."""
    parts, empty, torn = [], 0, 0
    for path in paths:
        part = _part(path)
        if part is None:
            empty += 1
        else:
            parts.append(part)
            torn += part.torn
    notes = [f"{empty} W&B files without a run in them (killed in their first second): left out"] if empty else []
    notes += [f"{torn} W&B files end in the middle (killed, or still written): read up to there"] if torn else []
    found, more = records(_joined(parts))
    return found, notes + more


def _part(path: Path) -> Part | None:
    """The content of a file; None where it ends before it says whose it is."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record as Message  # type: ignore[attr-defined]

    part = Part(path)
    try:
        frames = Frames(path)
        for data in frames:
            message = Message.FromString(data)
            kind = message.WhichOneof("record_type")
            if kind == "history":
                part.history.append(_row(message.history.item))
            elif kind == "summary":
                _summarise(part.summary, message.summary)
            elif kind == "run":
                _identify(part, message.run)
            elif kind == "config":
                _configure(part.config, message.config)
    except NotWandb as error:
        raise StudyError(str(error)) from None
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error}") from error
    except (ValueError, DecodeError, RecursionError) as error:  # JSON's are ValueErrors
        raise StudyError(f"cannot read {path}: {error}; it was written by another version of wandb") from error
    part.torn = frames.torn
    return part if part.id else None


def _identify(part: Part, run: Any) -> None:
    part.id, part.group, part.name, part.job_type = run.run_id, run.run_group, run.display_name, run.job_type
    part.started = run.start_time.seconds + run.start_time.nanos / 1e9
    _configure(part.config, run.config)


def _configure(config: dict[str, Any], changes: Any) -> None:
    for item in changes.update:
        config[_key(item)] = plain(json.loads(item.value_json))
    for item in changes.remove:
        config.pop(_key(item), None)


def _summarise(summary: dict[str, str], changes: Any) -> None:
    for item in changes.update:
        if item.key in KEPT:
            summary[item.key] = item.value_json
        elif item.nested_key and item.nested_key[0] in KEPT:
            if len(item.nested_key) > 1:
                raise ValueError(f"the summary's {'.'.join(item.nested_key)!r} was written piece by piece")
            summary[item.nested_key[0]] = item.value_json


def _row(items: Any) -> dict[str, Any]:
    row = {}
    for item in items:
        key = _key(item)
        if key[:1] != "_" or key == TIME:
            row[key] = _value(item)
    return row


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _value(item: Any) -> Any:
    text = item.value_json
    if not text:  # a value of its own type, where the writer knew it
        kind = item.WhichOneof("value")
        return plain(json.loads(item.json)) if kind == "json" else None if kind is None else getattr(item, kind)
    try:
        return float(text)  # most are numbers, and this is the fastest way to find out
    except ValueError:
        return plain(json.loads(text))


def _joined(parts: list[Part]) -> Iterator[WandbRun]:
    """One W&B run per id, of its parts in the order of their starts."""
    by_id: dict[str, list[Part]] = {}
    for part in sorted(parts, key=lambda p: (p.started, str(p.path))):
        by_id.setdefault(part.id, []).append(part)
    for own in by_id.values():
        last, config, summary = own[-1], {}, {}
        for part in own:
            config |= part.config
            summary |= {key: _json(part.path, text) for key, text in part.summary.items()}
        paths = {name: _latest(own, file) for name, file in TABLES.items()}
        yield WandbRun(
            str(last.path), last.id, last.group, last.name, last.job_type, last.started, config, summary,
            [row for part in own for row in part.history], partial(read_tables, paths),
        )  # fmt: skip


def _json(path: Path, text: str) -> Any:
    try:
        return plain(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise StudyError(f"cannot read {path}: {error}; it was written by another version of wandb") from error


def _latest(parts: list[Part], file: str) -> Path:
    """The newest copy of a file that the parts of a run hold."""
    copies = [part.path.parent / "files" / file for part in reversed(parts)]
    return next((copy for copy in copies if copy.is_file()), copies[0])
