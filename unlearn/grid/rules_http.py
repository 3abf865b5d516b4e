"""What a target behind a server may be, and what cannot be had of it. Each rule yields one line per problem."""

from __future__ import annotations

from collections.abc import Iterator

from unlearn.config.pair import AN_ADDRESS, HttpConfig
from unlearn.config.schema import ROUGH_ROWS, Config
from unlearn.config.setting import need

KEY = "pair.target.http"
WHITE_BOX_GROUPS = ("gradnorm", "quantised", "relearn")  # the target itself is evaluated, too


def http(cfg: Config) -> Iterator[str]:
    target = cfg.pair.target
    if target.kind == "http":
        yield from _server(target.http)
        yield from _black_box(cfg)
    else:
        given = next((k for k in ("url", "model") if getattr(target.http, k) is not None), None)
        rule = "is about a target behind a server: needs pair.target.kind=http"
        yield from need(given is None, f"{KEY}.{given}", given and getattr(target.http, given), rule)


def _server(server: HttpConfig) -> Iterator[str]:
    yield from need(server.url is not None, f"{KEY}.url", None, AN_ADDRESS.words)
    rule = "must be the model's name on the server (GET /v1/models lists them)"
    yield from need(bool(server.model), f"{KEY}.model", server.model, rule)


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
    rule = "hides padding tokens of the text from the models, and a server reads whole texts: take default or tofu"
    yield from need(cfg.eval.semantics != "ou", "eval.semantics", cfg.eval.semantics, rule)
    rule = f"how much is kept of a server's rows is for {KEY}.k to say: must be one of auto, fp32, hidden"
    kept = cfg.trainer.stored_rows
    yield from need(kept not in ROUGH_ROWS, "trainer.stored_rows", kept, rule)
