"""Evaluation of any causal language model without a run: how references are made, and how others check our numbers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from unlearn.config.groups import needing
from unlearn.config.own import JUDGE, named
from unlearn.config.schema import Config, ConfigError, conf_dir
from unlearn.data.encoding import Encoder
from unlearn.data.readers import read
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.evaluation.evaluation import evaluate
from unlearn.evaluation.others import FORMAT, examples_of
from unlearn.evaluation.retrained import Measured, from_file
from unlearn.evaluation.suite import Suite
from unlearn.evaluation.suite import suite as make_suite
from unlearn.grid.rules import parse
from unlearn.learning.loop import device, limit_threads
from unlearn.models import hub, llama, tokenizers, weights
from unlearn.store.files import write_json, write_whole
from unlearn.store.identity import digest, metric_settings, template
from unlearn.store.sources import HUB_NAME

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What ``python -m unlearn.evaluate model=…`` asks for."""

    model: str
    out: Path
    tokenizer: str | None = None  # None: the model's own
    retrained: str | None = None  # a result file, or a model that never saw the forget set
    overrides: tuple[str, ...] = ()  # of data, template, eval and trainer.device


def run(request: Request) -> dict[str, dict[str, Any]]:
    """Evaluate and write; the metrics by name: model and, where it was given, retrained."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse(compose("config", overrides=list(request.overrides)))
    _check_groups(cfg.eval.groups, request)
    if cfg.eval.judge is not None:
        named(cfg.eval.judge, *JUDGE)
    transformers_logging.disable_progress_bar()
    limit_threads(cfg.trainer.threads)
    data = read(cfg)
    _check_place("model", request.model)
    if request.tokenizer is not None:
        _check_place("tokenizer", request.tokenizer)
    tokenizer = _tokenizer("tokenizer" if request.tokenizer else "model", request.tokenizer or request.model, cfg)
    model = _ensemble(request.model, cfg, tokenizer)
    longest = getattr(model.members[0].model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    settings = metric_settings(cfg) | {"data": data.fingerprint(), "template": template(cfg.data.template)}
    suite = make_suite(data, Encoder(tokenizer, cfg.data.template, longest), cfg.eval, settings, 0.0)
    retrained = _retrained(request.retrained, suite, cfg)
    entries, examples = evaluate(model, suite, [1.0], None, retrained, _show(cfg, request.model))
    metrics = entries[1.0]
    _write(request, metrics, examples.drop(columns="alpha"), model)
    if retrained is None:
        log.info("no retrained=: forget quality, PrivLeak and leak_gap compare with one and are left out")
        return {"model": metrics}
    return {"model": metrics, "retrained": dict(retrained.metrics)}


def _check_place(key: str, name: str) -> None:
    if not (name and Path(name).is_dir()) and not HUB_NAME.fullmatch(name):
        raise ConfigError(
            f"{key}={name!r}: no such folder in {Path.cwd()}, and no name on the hub either (NAME or OWNER/NAME)"
        )


def _check_groups(groups: Sequence[str], request: Request) -> None:
    """Refuse at once what a group would refuse after all the work before it."""
    for name in needing(groups, "models"):
        raise ConfigError(
            f"eval.groups: {name} compares with the target as a model, which only a run has (run=FOLDER): leave it out"
        )
    if "summary" in groups and request.retrained is None:
        raise ConfigError("eval.groups: summary compares attacks with those on the retrained model; give retrained=")


def _retrained(given: str | None, suite: Suite, cfg: Config) -> Measured | None:
    if given is None:
        return None
    if Path(given).is_file():
        return from_file(given, suite)
    model = _ensemble(given, cfg, suite.encoder.tokenizer)
    entries, examples = evaluate(model, suite, [1.0], None, None, _show(cfg, given), itself=True)
    return Measured(entries[1.0], examples)


def _ensemble(name: str, cfg: Config, tokenizer: PreTrainedTokenizerBase) -> Ensemble:
    try:
        model = llama.freeze(llama.load(name, device(cfg.trainer.device)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {name!r} could not be loaded: {_first_line(error)}") from None
    hub.common_width({name: llama.vocabulary(model)}, tokenizer)
    weights.check(hub.check_head(model, f"model {name!r}"), f"model {name!r}")
    return Ensemble((Member("model", model, llama.fingerprint(model), 1.0, 0.0, False),))


def _tokenizer(key: str, name: str, cfg: Config) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{key}={name!r}: no tokenizer could be loaded from it ({_first_line(error)}): give another tokenizer="
        ) from None
    if cfg.eval.semantics != "ou":
        return tokenizers.load(Path(name)) if tokenizer.pad_token_id is None else tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # as OpenUnlearning does
    return tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _show(cfg: Config, name: str) -> str | None:
    return f"evaluating {Path(name).name}" if cfg.trainer.progress else None


def _write(request: Request, metrics: dict[str, Any], examples: pd.DataFrame, model: Ensemble) -> None:
    request.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(examples_of(request.out), lambda path: examples.to_parquet(path, index=False))
    settings = metrics["settings"] | {"model": model.members[0].fingerprint, "retrained": request.retrained}
    settings["id"] = digest(settings)
    found = {k: v for k, v in metrics.items() if k != "settings"}
    write_json(request.out, {"format": FORMAT, "model": request.model, "settings": settings, "metrics": found})
