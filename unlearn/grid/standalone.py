"""Evaluation of any causal language model without a run: how references are made, and how others check our numbers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from unlearn.config.groups import needing
from unlearn.config.own import JUDGE, named
from unlearn.config.schema import Config, ConfigError, conf_dir
from unlearn.data.encoding import Encoder
from unlearn.data.readers import read, register
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.evaluation.evaluation import evaluate
from unlearn.evaluation.others import write
from unlearn.evaluation.retrained import Measured, from_file
from unlearn.evaluation.suite import Suite
from unlearn.evaluation.suite import suite as make_suite
from unlearn.grid.rules import parse
from unlearn.learning.loop import device, limit_threads
from unlearn.models import hub, llama, tokenizers
from unlearn.store.identity import digest, metric_settings, template
from unlearn.store.sources import HUB_NAME

log = logging.getLogger(__name__)


def run(
    name: str, out: Path, tokenizer: str | None = None, retrained: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Evaluate a model and write its metrics to ``out``; the metrics by name: model and, where it is given, retrained.

    ``tokenizer`` None: the model's own. ``retrained``: a result file, or a model that never saw the forget set.
    ``overrides``: settings of data, template, eval and trainer.device.
    """
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse(compose("config", overrides=list(overrides)))
    _check_groups(cfg.eval.groups, retrained)
    if cfg.eval.judge is not None:
        named(cfg.eval.judge, *JUDGE)
    transformers_logging.disable_progress_bar()
    limit_threads(cfg.trainer.threads)
    data = read(cfg)
    for key, given in (("model", name), ("tokenizer", tokenizer)):
        if given is not None and not (given and Path(given).is_dir()) and not HUB_NAME.fullmatch(given):
            rule = f"no such folder in {Path.cwd()}, and no name on the hub either (NAME or OWNER/NAME)"
            raise ConfigError(f"{key}={given!r}: {rule}")
    vocabulary = _tokenizer("tokenizer" if tokenizer else "model", tokenizer or name, cfg)
    model = _ensemble(name, cfg, vocabulary)
    longest = getattr(model.members[0].model.config, "max_position_embeddings", None) or vocabulary.model_max_length
    settings = metric_settings(cfg) | {"data": data.fingerprint(), "template": template(cfg.data.template)}
    suite = make_suite(data, Encoder(vocabulary, cfg.data.template, longest), cfg.eval, settings, 0.0)
    reference = _retrained(retrained, suite, cfg)
    entries, examples = evaluate(model, suite, [1.0], None, reference, _show(cfg, name))
    metrics = entries[1.0]
    settings = metrics["settings"] | {"model": model.members[0].fingerprint, "retrained": retrained}
    settings["id"] = digest(settings)
    found = {k: v for k, v in metrics.items() if k != "settings"}
    write(out, name, settings, found, examples.drop(columns="alpha"))
    if reference is None:
        log.info("no retrained=: forget quality, PrivLeak and leak_gap compare with one and are left out")
        return {"model": metrics}
    return {"model": metrics, "retrained": dict(reference.metrics)}


def _check_groups(groups: Sequence[str], retrained: str | None) -> None:
    """Refuse at once what a group would refuse after all the work before it."""
    for name in needing(groups, "models"):
        raise ConfigError(
            f"eval.groups: {name} compares with the target as a model, which only a run has (run=FOLDER): leave it out"
        )
    if "summary" in groups and retrained is None:
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
    hub.check_head(model, f"model {name!r}")
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
