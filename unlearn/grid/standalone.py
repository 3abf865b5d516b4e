"""Evaluation of any causal language model without a run: how references are made, and how others check our numbers."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from unlearn.config.groups import needing
from unlearn.config.own import JUDGE, named
from unlearn.config.schema import Config, ConfigError, reason
from unlearn.data.encoding import Encoder
from unlearn.data.readers import read
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.evaluation.context import ALONE, Beside
from unlearn.evaluation.evaluation import evaluate
from unlearn.evaluation.groups import guess
from unlearn.evaluation.others import write
from unlearn.evaluation.retrained import Measured, from_file
from unlearn.evaluation.suite import Suite
from unlearn.evaluation.suite import suite as make_suite
from unlearn.grid.rules import as_typed, composed
from unlearn.learning.loop import device, limit_threads
from unlearn.models import hub, llama, tokenizers
from unlearn.store.identity import digest, metric_settings, template
from unlearn.store.progress import show_bars
from unlearn.store.sources import HUB_NAME, is_folder, local

log = logging.getLogger(__name__)


def run(
    name: str, out: Path, tokenizer: str | None = None, retrained: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Evaluate a model, write its metrics to ``out``, and return those of model, guess (the guess level) and retrained
    (``retrained``: a result file, or a model that never saw the forget set). ``tokenizer`` None: the model's own.
    ``overrides``: settings of data, template, eval and trainer.device."""
    cfg = composed(map(as_typed, overrides))
    _check(cfg, name, tokenizer, retrained)
    transformers_logging.disable_progress_bar()
    limit_threads(cfg.trainer.threads)
    show_bars(cfg.trainer.progress)
    data = read(cfg)
    vocabulary = _tokenizer("tokenizer" if tokenizer else "model", tokenizer or name, cfg)
    model = _ensemble(name, cfg, vocabulary)
    longest = getattr(model.members[0].model.config, "max_position_embeddings", None) or vocabulary.model_max_length
    settings = metric_settings(cfg) | {"data": data.fingerprint(), "template": template(cfg.data.template)}
    suite = make_suite(data, Encoder(vocabulary, cfg.data.template, longest), cfg.eval, settings, 0.0)
    reference = None
    if retrained is not None and Path(retrained).is_file():
        reference = from_file(retrained, suite)
    elif retrained is not None:
        reference = _measured(_ensemble(retrained, cfg, vocabulary), suite, cfg, retrained, itself=True)
    guesses = guess.asked(suite)
    level = None if guesses is None else _measured(model, guesses, cfg, f"{name}: the guess level")
    found = _measured(model, suite, cfg, name, reference, beside=Beside(level))
    made = found.metrics["settings"] | {"model": model.members[0].fingerprint, "retrained": retrained}
    metrics = {k: v for k, v in found.metrics.items() if k != "settings"}
    write(out, name, made | {"id": digest(made)}, metrics, found.examples.drop(columns="alpha"))
    if reference is None:
        log.info("no retrained=: forget quality, PrivLeak and leak_gap compare with one and are left out")
    others = {"guess": level, "retrained": reference}
    return {"model": found.metrics} | {k: dict(v.metrics) for k, v in others.items() if v is not None}


def _check(cfg: Config, name: str, tokenizer: str | None, retrained: str | None) -> None:
    """Refuse at once what would be refused after all the work before it."""
    for group in needing(cfg.eval.groups, "models"):
        raise ConfigError(f"eval.groups: {group} compares with the target as a model: leave it out, or give run=FOLDER")
    if "summary" in cfg.eval.groups and retrained is None:
        raise ConfigError("eval.groups: summary compares attacks with those on the retrained model; give retrained=")
    if cfg.eval.judge is not None:
        named(cfg.eval.judge, *JUDGE)
    for key, given in (("model", name), ("tokenizer", tokenizer)):
        if given is not None and not is_folder(given) and not HUB_NAME.fullmatch(given):
            rule = f"no such folder in {Path.cwd()}, and no name on the hub either (NAME or OWNER/NAME)"
            raise ConfigError(f"{key}={given!r}: {rule}")


def _measured(
    model: Ensemble, suite: Suite, cfg: Config, name: str, reference: Measured | None = None, itself: bool = False,
    beside: Beside = ALONE,
) -> Measured:  # fmt: skip
    show = f"evaluating {Path(name).name}"
    entries, examples = evaluate(model, suite, [1.0], None, reference, show, itself, beside)
    return Measured(entries[1.0], examples)


def _ensemble(name: str, cfg: Config, tokenizer: PreTrainedTokenizerBase) -> Ensemble:
    try:
        model = llama.freeze(llama.load(local(name) if is_folder(name) else name, device(cfg.trainer.device)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {name!r} could not be loaded: {reason(error)}") from None
    hub.common_width({name: llama.vocabulary(model)}, tokenizer)
    hub.check_head(model, f"model {name!r}")
    return Ensemble((Member("model", model, llama.fingerprint(model), 1.0, 0.0, False),))


def _tokenizer(key: str, name: str, cfg: Config) -> PreTrainedTokenizerBase:
    try:
        where = tokenizers.place(local(name) if is_folder(name) else name)
        tokenizer = AutoTokenizer.from_pretrained(**where, padding_side="left", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}={name!r}: has no tokenizer ({reason(error)}): give another tokenizer=") from None
    if cfg.eval.semantics != "ou":
        return tokenizers.load(Path(name)) if tokenizer.pad_token_id is None else tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # as OpenUnlearning does
    return tokenizer
