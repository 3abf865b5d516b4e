"""What ``python -m unlearn.serve`` is asked for: its keys, and their rules."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from unlearn.config.schema import ConfigError, raise_for, unknown
from unlearn.config.setting import Bound, at_least, each, finite, setting
from unlearn.deploy.requests.ledger import VARIABLE, opened

LOOPBACK = ("127.0.0.1", "::1", "localhost")
PORT = Bound(lambda port: 0 <= port <= 65535, "must be from 0 (a free one) to 65535")
SOME = at_least(1, "must be a whole number, at least 1")
ALL_OR_SOME = at_least(-1, "must be a whole number, at least -1")
SECONDS = at_least(0, "must be a number of seconds, at least 0")
ALPHA = finite("must be a finite number, or a list of one for run and each of offsets")


@dataclass
class Settings:
    run: str = ""  # the folder of a trained run, or of an export
    offsets: list[str] = setting([])  # more of them, whose offsets are added to the same target
    ledger: str | None = None  # instead of both: what a ledger of requests says is in effect, each at its own α
    hmac: str | None = None  # the variable with the key of the ledger's HMACs; null: the one that the ledger names
    target: str | None = None  # of an export: the target's folder or name on the hub; null: the one that it names
    base: str | None = None  # of an export of low-rank updates: the model that they belong to, likewise
    alpha: list[float] | None = setting(None, ALPHA)  # null: each run's own
    name: str | None = None  # what the model is called; null: the run's folder, or the ledger's
    host: str = "127.0.0.1"
    port: int = setting(8000, PORT)  # 0: a free one
    hosts: list[str] = setting([])  # names by which clients may call the server; none: its own on a loopback, else any
    per_request: bool = False  # whether a request may choose alpha and offsets
    exact: bool | None = None  # near ties are decided as if a request were alone; null: in full precision alone
    max_batch: int = setting(16, SOME)  # answers that are written at once
    max_waiting: int = setting(256, SOME)  # answers that wait for a place; more are refused with 503
    max_choices: int = setting(128, SOME)  # answers of one request: prompts times n
    max_tokens: int = setting(1024, SOME)  # of an answer
    max_logprobs: int = setting(-1, ALL_OR_SOME)  # likeliest tokens of a position that may be asked for; -1: all
    key_env: str | None = None  # the variable that holds the key which every request must bring
    admin_key_env: str | None = None  # the same for /v1/offsets; null: nothing is switched while the server runs
    max_connections: int = setting(512, SOME)  # at once; more are closed
    patience: float = setting(60.0, SECONDS)  # for the head or body of a request, a reader, a step of the engine
    grace: float = setting(30.0, SECONDS)  # that running requests have to finish when the server is stopped
    overrides: list[str] = setting([])  # settings of the runs: trainer.device, trainer.threads, paths.store, data.path

    @property
    def alphas(self) -> list[float | None]:
        """One for run and each of offsets; None: its own."""
        return each(self.alpha, 1 + len(self.offsets))


def checked(s: Settings) -> Settings:
    """Settings of a call that keep the rules, with what the ledger says; ``ConfigError`` for others."""
    if s.ledger is not None:
        if s.run or s.offsets or s.alpha is not None:
            raise ConfigError(f"ledger={s.ledger!r}: names what is served, and each α; leave run, offsets, alpha out")
        found = opened(Path(s.ledger), s.hmac).active()
        if not found:
            raise ConfigError(f"ledger={s.ledger!r}: no request is in effect, so there is no offset to serve")
        first, *others = [str(offset.folder) for offset in found]
        name = s.name or Path(s.ledger).resolve().name  # requests come and go; what clients call stays
        s = replace(s, run=first, offsets=others, alpha=[offset.alpha for offset in found], name=name)
    raise_for(_problems(s))
    return s


def _problems(s: Settings) -> Iterator[str]:
    for argument in s.overrides:
        if "." not in argument.split("=")[0]:
            yield unknown(argument, [f.name for f in fields(s) if f.name != "overrides"])
    if s.hmac is not None and s.ledger is None:
        yield f"hmac={s.hmac}: is of a ledger; give ledger=FOLDER"
    if not s.run:
        yield "run=FOLDER or ledger=FOLDER: say what to serve: the folder of a trained run or of an export, or a ledger"
    if s.max_choices > s.max_batch + s.max_waiting:
        yield f"max_choices={s.max_choices}: must be at most max_batch + max_waiting = {s.max_batch + s.max_waiting}"
    count = 1 + len(s.offsets)
    if len(s.alphas) != count:
        yield f"alpha={s.alpha}: must be a finite number, or a list of {count}, one for run and each of offsets"
    for key in ("key_env", "admin_key_env"):
        name = getattr(s, key)
        if name is not None and not VARIABLE.fullmatch(name):
            yield f"{key}: must be the name of an environment variable (letters, digits, _), and never the key itself"
        elif name is not None and not os.environ.get(name):
            yield f"{key}={name}: there is no such environment variable, or nothing is in it"
