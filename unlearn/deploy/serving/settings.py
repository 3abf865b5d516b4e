"""What ``python -m unlearn.serve`` is asked for: the typed schema of its keys, and their rules."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from unlearn.config.schema import ConfigError
from unlearn.deploy.requests import active
from unlearn.grid.refusal import said

LOOPBACK = ("127.0.0.1", "::1", "localhost")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
AT_LEAST = {"max_batch": 1, "max_waiting": 1, "max_choices": 1, "max_tokens": 1, "max_logprobs": -1}


@dataclass
class Settings:
    run: str = ""  # the folder of a trained run, or of an export
    offsets: list[str] = field(default_factory=list)  # more of them, whose offsets are added to the same target
    ledger: str | None = None  # instead of both: what a ledger of requests says is in effect, each at its own α
    target: str | None = None  # of an export: the target's folder or name on the hub; null: the one that it names
    alpha: Any = None  # one number for all, or a list with one for each; null: each run's own
    name: str | None = None  # what the model is called; null: the run's folder, or the ledger's
    host: str = "127.0.0.1"
    port: int = 8000  # 0: a free one
    per_request: bool = False  # whether a request may choose alpha and offsets
    exact: bool = True  # near ties are decided as if a request were alone; slow in half precision
    max_batch: int = 16  # answers that are written at once
    max_waiting: int = 256  # answers that wait for a place; more are refused with 503
    max_choices: int = 128  # answers of one request: prompts times n
    max_tokens: int = 1024  # of an answer
    max_logprobs: int = -1  # likeliest tokens of a position that may be asked for; -1: all
    key_env: str | None = None  # the variable that holds the key which every request must bring
    admin_key_env: str | None = None  # the same for /v1/offsets; null: it answers this machine alone
    grace: float = 30.0  # seconds that running requests have to finish when the server is stopped


def parse(arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """Settings of a call, checked, and the arguments that are a run's own (``trainer.device=…``)."""
    names = [f.name for f in fields(Settings)]
    own = [a for a in arguments if a.split("=")[0] in names]
    rest = [a for a in arguments if a not in own]
    for argument in rest:
        if "." not in argument.split("=")[0]:
            raise ConfigError(f"{argument}: unknown key; known keys here: {', '.join(names)}")
    try:
        found = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_dotlist(own))
        settings = OmegaConf.to_object(found)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(said(error)) from None
    settings = settings if settings.ledger is None else _in_effect(settings)
    problems = list(_problems(settings))
    if problems:
        raise ConfigError("\n".join(problems))
    return settings, rest


def _in_effect(s: Settings) -> Settings:
    """``run``, ``offsets`` and ``alpha`` as the ledger has them."""
    if s.run or s.offsets or s.alpha is not None:
        raise ConfigError(f"ledger={s.ledger!r}: names what is served, and each α; leave run, offsets, alpha out")
    found = active(Path(s.ledger))
    if not found:
        raise ConfigError(f"ledger={s.ledger!r}: no request is in effect, so there is no offset to serve")
    first, *others = [str(offset.folder) for offset in found]
    name = s.name or Path(s.ledger).resolve().name  # requests come and go; what clients call stays
    return replace(s, run=first, offsets=others, alpha=[offset.alpha for offset in found], name=name)


def _problems(s: Settings) -> Iterator[str]:
    if not s.run:
        yield "run=FOLDER or ledger=FOLDER: say what to serve: the folder of a trained run or of an export, or a ledger"
    if not 0 <= s.port <= 65535:
        yield f"port={s.port}: must be from 0 (a free one) to 65535"
    for key, least in AT_LEAST.items():
        if getattr(s, key) < least:
            yield f"{key}={getattr(s, key)}: must be a whole number, at least {least}"
    if s.max_choices > s.max_batch + s.max_waiting:
        yield f"max_choices={s.max_choices}: must be at most max_batch + max_waiting = {s.max_batch + s.max_waiting}"
    if not (math.isfinite(s.grace) and s.grace >= 0):
        yield f"grace={s.grace}: must be a number of seconds, at least 0"
    if s.alpha is not None and alphas(s) is None:
        count = 1 + len(s.offsets)
        yield f"alpha={s.alpha}: must be a finite number, or a list of {count}, one for run and each of offsets"
    for key in ("key_env", "admin_key_env"):
        name = getattr(s, key)
        if name is not None and not VARIABLE.fullmatch(name):
            yield f"{key}: must be the name of an environment variable (letters, digits, _), and never the key itself"
        elif name is not None and not os.environ.get(name):
            yield f"{key}={name}: there is no such environment variable, or nothing is in it"


def alphas(settings: Settings) -> list[float] | None:
    """One α for run and each of offsets; None where the setting is no such thing."""
    given, count = settings.alpha, 1 + len(settings.offsets)
    values = given if isinstance(given, list) else [given] * count
    sound = all(isinstance(a, int | float) and not isinstance(a, bool) and math.isfinite(a) for a in values)
    return [float(a) for a in values] if sound and len(values) == count else None
