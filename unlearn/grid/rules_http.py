"""What a target behind a server may be, and what cannot be had of it. Each rule yields one line per problem."""

from __future__ import annotations

import re
from collections.abc import Iterator

from unlearn.config.pair import FORMS, TARGET_KINDS, HttpConfig
from unlearn.config.redaction import is_secret
from unlearn.config.schema import ROUGH_ROWS, Config
from unlearn.evaluation.metrics.semantics import SEMANTICS
from unlearn.grid.need import at_least, need, one_of, positive

KEY = "pair.target.http"
URL = re.compile(r"https?://[^\s/@?#]+(/[^\s?#@]*)?")
VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
MOST_AT_ONCE = 256
WHITE_BOX_GROUPS = ("gradnorm", "quantised", "relearn")  # the target itself is evaluated, too


def http(cfg: Config) -> Iterator[str]:
    target = cfg.pair.target
    yield from one_of("pair.target.kind", target.kind, TARGET_KINDS)
    if target.kind == "http":
        yield from _server(target.http)
        yield from _numbers(target.http)
        yield from _black_box(cfg)
    elif target.kind in TARGET_KINDS:
        given = next((k for k in ("url", "model") if getattr(target.http, k) is not None), None)
        rule = "is about a target behind a server: needs pair.target.kind=http"
        yield from need(given is None, f"{KEY}.{given}", given and getattr(target.http, given), rule)


def _server(server: HttpConfig) -> Iterator[str]:
    known = server.url is not None and URL.fullmatch(server.url) is not None
    rule = "must be the address of a server, e.g. http://localhost:8000/v1; a key belongs in the environment (key_env)"
    yield from need(known, f"{KEY}.url", server.url, rule)
    rule = "must be the model's name on the server (GET /v1/models lists them)"
    yield from need(bool(server.model), f"{KEY}.model", server.model, rule)
    if server.key_env is not None:
        rule = (
            "must be the name of an environment variable that says it is secret, e.g. VLLM_API_KEY: logs hide its value"
        )
        named = VARIABLE.fullmatch(server.key_env) is not None and is_secret(server.key_env)
        yield from need(named, f"{KEY}.key_env", server.key_env, rule)
    yield from one_of(f"{KEY}.form", server.form, FORMS)


def _numbers(server: HttpConfig) -> Iterator[str]:
    yield from at_least(f"{KEY}.k", server.k, 0)
    yield from at_least(f"{KEY}.concurrency", server.concurrency, 1)
    rule = f"must be at most {MOST_AT_ONCE}"
    yield from need(server.concurrency <= MOST_AT_ONCE, f"{KEY}.concurrency", server.concurrency, rule)
    yield from positive(f"{KEY}.timeout_s", server.timeout_s)
    for name in ("retries", "max_requests", "max_tokens", "price"):
        if getattr(server, name) is not None:
            yield from at_least(f"{KEY}.{name}", getattr(server, name), 0)


def _black_box(cfg: Config) -> Iterator[str]:
    """What needs the target's weights."""
    if any(m.trained and m.model == "target" for m in cfg.method.members):
        yield (
            f"method={cfg.method.name!r} trains a copy of the target, and pair.target.kind='http' is a server that "
            "shows log-probabilities alone; take method=offset, proxy or another that trains a small model"
        )
    for group in WHITE_BOX_GROUPS:
        rule = (
            f"{group} reads or changes the weights of every model that is evaluated, the target among them, and "
            f"pair.target.kind='http' has none here: leave it out"
        )
        yield from need(group not in cfg.eval.groups, "eval.groups", cfg.eval.groups, rule)
    semantics = SEMANTICS.get(cfg.eval.semantics)
    rule = "hides padding tokens of the text from the models, and a server reads whole texts: take default or tofu"
    hidden = semantics is not None and semantics.hide_pad_tokens
    yield from need(not hidden, "eval.semantics", cfg.eval.semantics, rule)
    rule = f"how much is kept of a server's rows is for {KEY}.k to say: must be one of auto, fp32, hidden"
    kept = cfg.trainer.stored_rows
    yield from need(kept not in ROUGH_ROWS, "trainer.stored_rows", kept, rule)
