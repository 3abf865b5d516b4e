"""Runs of a W&B project, read from its server: ``wandb://ENTITY/PROJECT?group=STUDY&algo=npo&…``.

``group`` (the study), ``tag`` and ``state`` choose on the server; any other key is a setting of the config, by its
dotted name (``trainer.lr=0.001``) or one of algo, method, pair, data, and is compared here. A key given twice means
either value. The server is the one that ``wandb login`` or ``WANDB_BASE_URL`` names.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import pandas as pd

from .mirrored import OVERVIEW, TABLES, WandbRun, plain, records
from .record import Record, StudyError, flatten, read_tables

ON_SERVER = {"group": "group", "tag": "tags", "state": "state"}
SHORT = {name: f"{name}.name" for name in ("algo", "method", "pair", "data")}
PER_PAGE, AT_ONCE = 100, 4  # runs per request; runs whose history is asked for at the same time
WAITS = (2, 10, 30, 60)  # seconds before another try where the server is asked too much
TIMEOUT = 60  # seconds for one try, in which W&B's client tries again by itself
PASSING = ("429", "rate limit", "too many", "timed out", "timeout", "in time", "502", "503", "504")
Answer = TypeVar("Answer")


def read(source: str) -> tuple[str, list[Record], list[str]]:
    """A name for the study; its runs by name; what is to be said of what was left out."""
    entity, project, filters, settings = parse(source)
    import wandb

    try:
        api = wandb.Api(timeout=TIMEOUT)
    except wandb.errors.Error as error:
        raise StudyError(f"{source}: {error}") from error
    runs = list(_all(api, f"{entity}/{project}", filters))
    chosen = [r for r in runs if r.job_type != OVERVIEW and _fits(r, settings)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found, notes = records(pool.map(_run, chosen))
    if not found:
        raise StudyError(f"{source}: none of the {len(runs)} runs that the server has for it fits")
    groups = {str(r.config.get("study")) for r in found}
    return groups.pop() if len(groups) == 1 else project, found, notes


def parse(source: str) -> tuple[str, str, dict[str, Any], dict[str, list[str]]]:
    """Entity, project, what the server is to filter by, and the settings that are compared here."""
    parts = urlsplit(source)
    project = parts.path.strip("/")
    if not parts.netloc or not project or "/" in project:
        raise StudyError(f"{source!r}: must be wandb://ENTITY/PROJECT, with ?group=STUDY&algo=npo after it or without")
    try:
        asked = parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        raise StudyError(f"{source!r}: after the question mark must be NAME=VALUE, joined by &") from None
    filters = {ON_SERVER[k]: {"$in": v} for k, v in asked.items() if k in ON_SERVER}
    return parts.netloc, project, filters, {SHORT.get(k, k): v for k, v in asked.items() if k not in ON_SERVER}


def _all(api: Any, path: str, filters: Mapping[str, Any]) -> Iterator[Any]:
    """All runs of a project, page by page."""
    pages = patiently(lambda: api.runs(path, filters=dict(filters), per_page=PER_PAGE, lazy=False))
    end = object()

    def following() -> Any:
        at = pages.index
        try:
            return next(pages, end)
        except Exception:
            pages.index = at  # W&B's client moves on before it asks: another try would leave a run out
            raise

    while (run := patiently(following)) is not end:
        yield run


def _fits(run: Any, settings: Mapping[str, list[str]]) -> bool:
    """Whether a run has these settings; ``1`` is also ``1.0``."""
    config = dict(flatten(run.config))
    for key, wanted in settings.items():
        if key not in config:
            return False
        if str(config[key]) not in wanted and config[key] not in [_parsed(value) for value in wanted]:
            return False
    return True


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _run(run: Any) -> WandbRun:
    return WandbRun(
        place="/".join(run.path),
        id=run.id,
        group=run.group or "",
        name=run.name,
        job_type=run.job_type or "",
        started=datetime.fromisoformat(run.created_at).timestamp(),
        config=_ordered(plain(dict(run.config))),
        summary=_ordered(plain(dict(run.summary_metrics))),
        history=[_ordered(plain(r)) for r in patiently(lambda: list(run.scan_history(use_cache=False)))],
        examples=partial(_examples, run),
    )


def _ordered(value: Any) -> Any:
    """Keys in one order: the server gives them in another at each request."""
    if isinstance(value, Mapping):
        return {k: _ordered(v) for k, v in sorted(value.items())}
    return value


def _examples(run: Any) -> dict[str, pd.DataFrame]:
    """The tables of examples, downloaded from the run's files."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = {file: name for name, file in TABLES.items()}
        for file in patiently(lambda: list(run.files(names=list(wanted)))):
            patiently(partial(file.download, root=folder, replace=True)).close()
        return read_tables({name: Path(folder) / file for file, name in wanted.items()})


def patiently(ask: Callable[[], Answer], wait: Callable[[float], None] = time.sleep) -> Answer:
    """The answer; where the server is asked too often (429) or is not there for a moment, asked again, ever later."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    for seconds in (*WAITS, None):
        try:
            return ask()
        except (wandb.errors.CommError, WandbApiFailedError) as error:
            if seconds is None or not _passes(error):
                raise StudyError(f"W&B: {error}") from error
            wait(seconds * (0.75 + random.random() / 2))  # not all readers at the same moment
    raise AssertionError("the last try returns or raises")


def _passes(error: Exception) -> bool:
    """Whether the same request may be answered later."""
    said = str(error).lower()
    return any(word in said for word in PASSING)
