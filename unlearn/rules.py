"""What values a config may hold. Each rule yields one line: the value, the rule, the choices.

``parse`` reports every problem at once and runs before any work starts; it also closes the hole that Hydra leaves,
where ``+key=value`` adds a key to a typed node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from unlearn.config import (
    DATA_CONFIGS,
    KEEP,
    OFFSET_INITS,
    TUNINGS,
    WANDB_MODES,
    BiosConfig,
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    TofuConfig,
    is_number,
)
from unlearn.need import at_least, below_one, need, one_of, positive, share
from unlearn.rules_learning import algo, method, together

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
NAME_RULE = "names a folder: letters, digits, '_', '.', '+' and '-', not starting with '.', '+' or '-'"
TOKENIZERS = ("words", "bpe")
FORGET_SETS = ("forget01", "forget05", "forget10")


def parse(cfg: DictConfig) -> Config:
    """Check a composed config and return it as dataclasses; raise ``ConfigError`` listing every problem."""
    unknown = list(_unknown_keys(cfg, ""))
    if unknown:
        raise ConfigError("\n".join(unknown))
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    found = problems(config)
    if found:
        raise ConfigError("\n".join(found))
    return config


def unknown_overrides(arguments: list[str]) -> Iterator[str]:
    """Of ``key=value`` arguments those whose key the schema does not have, with the keys that stand there.

    Hydra refuses them too, but names no choices and advises a ``+`` that is refused as well.
    """
    for argument in arguments:
        key = argument.split("=", 1)[0].lstrip("+~")
        if "=" not in argument or argument.startswith("-") or key.startswith("hydra"):
            continue
        kinds: list[type] = [Config]
        for part in key.split("."):
            names = dict.fromkeys(name for kind in kinds for name in get_type_hints(kind))
            if part not in names and part != "experiment":
                yield f"{key}: unknown key; known keys here: {', '.join(names)}"
            hints = [get_type_hints(kind).get(part) for kind in kinds]
            optional = [h for h in hints if type(None) in get_args(h) and any(is_dataclass(k) for k in get_args(h))]
            if optional and not key.endswith(f".{part}"):
                yield f"{key}: can be set only where the chosen YAML sets {key.split(f'.{part}.')[0]}.{part}"
            kinds = [k for h in hints for k in (DATA_CONFIGS.values() if h is DataConfig else [h]) if is_dataclass(k)]
            if not kinds:  # a value, or a mapping whose keys are free
                break


def _unknown_keys(node: Any, path: str):
    """Keys that `+key=value` smuggled past the typed schema (OmegaConf accepts them silently)."""
    if isinstance(node, ListConfig):
        for i in range(len(node)):
            yield from _unknown_keys(node[i], f"{path}[{i}]")
        return
    if not isinstance(node, DictConfig):
        return
    kind = OmegaConf.get_type(node)
    names = [f.name for f in fields(kind)] if is_dataclass(kind) else None
    for key in node:
        if names is not None and key not in names:
            yield f"{path}{key}: unknown key; known keys here: {', '.join(names)}"
        elif not OmegaConf.is_missing(node, key):
            yield from _unknown_keys(node._get_node(key), f"{path}{key}.")


def problems(cfg: Config) -> list[str]:
    return [line for rule in (_top, algo, method, together, _pair, _data, _eval, _trainer) for line in rule(cfg)]


def _top(cfg: Config) -> Iterator[str]:
    yield from need(is_number(cfg.alpha), "alpha", cfg.alpha, "must be a finite number, e.g. 0.5, 1 or 2")
    for key, seed in (("seed", cfg.seed), ("pair.seed", cfg.pair.seed)):
        yield from need(0 <= seed < 2**62, key, seed, "must lie between 0 and 2^62")
    for key in ("algo", "method", "pair", "data"):
        name = getattr(cfg, key).name
        yield from need(re.fullmatch(NAME, name) is not None, f"{key}.name", name, NAME_RULE)
    yield from need(
        re.fullmatch(NAME, cfg.study) is not None,
        "study",
        cfg.study,
        NAME_RULE,
    )
    yield from one_of("wandb.mode", cfg.wandb.mode, WANDB_MODES)


def _pair(cfg: Config) -> Iterator[str]:
    yield from one_of("pair.tuning", cfg.pair.tuning, TUNINGS)
    yield from at_least("pair.lora.rank", cfg.pair.lora.rank, 1)
    yield from below_one("pair.lora.dropout", cfg.pair.lora.dropout)
    for key in ("alpha", "lr_factor"):
        yield from positive(f"pair.lora.{key}", getattr(cfg.pair.lora, key))
    yield from one_of("pair.offset_init", cfg.pair.offset_init, OFFSET_INITS)
    yield from one_of("pair.tokenizer.kind", cfg.pair.tokenizer.kind, TOKENIZERS)
    yield from need(
        cfg.pair.tokenizer.vocab_size >= 300,
        "pair.tokenizer.vocab_size",
        cfg.pair.tokenizer.vocab_size,
        "must be at least 300 (256 bytes and the special tokens)",
    )
    yield from at_least("pair.batch_size", cfg.pair.batch_size, 1)
    yield from share("pair.warmup", cfg.pair.warmup)
    for name in ("target", "small"):
        yield from _model(f"pair.{name}", getattr(cfg.pair, name))


def _model(key: str, model: ModelConfig) -> Iterator[str]:
    for name in ("hidden_size", "layers", "heads", "intermediate_size", "max_length"):
        yield from at_least(f"{key}.{name}", getattr(model, name), 1)
    if model.heads >= 1:
        yield from need(
            model.hidden_size % (2 * model.heads) == 0,
            f"{key}.hidden_size",
            model.hidden_size,
            f"must be a multiple of 2 × heads = {2 * model.heads} (rotary embeddings)",
        )
    yield from positive(f"{key}.initializer_range", model.initializer_range)
    for stage in ("pretrain", "finetune", "general"):
        yield from at_least(f"{key}.{stage}.epochs", getattr(model, stage).epochs, 0)
        yield from positive(f"{key}.{stage}.lr", getattr(model, stage).lr)


def _data(cfg: Config) -> Iterator[str]:
    data = cfg.data
    for key, name in (("prompt", "question"), ("answer", "answer")):
        text = getattr(data.template, key)
        yield from need(_fills(text, name), f"data.template.{key}", text, f"must hold {{{name}}} and no other braces")
    if isinstance(data, BiosConfig):
        yield from need(
            1 <= data.forget_people < data.people,
            "data.forget_people",
            data.forget_people,
            f"the forget set needs at least 1 person and must leave one to retain: 1 to "
            f"{data.people - 1} with data.people={data.people}",
        )
        yield from need(1 <= data.questions <= 20, "data.questions", data.questions, "must lie between 1 and 20")
        for key in ("holdout_people", "known_people", "countries"):
            yield from at_least(f"data.{key}", getattr(data, key), 0 if key == "holdout_people" else 1)
    if isinstance(data, TofuConfig):
        yield from one_of("data.forget", data.forget, FORGET_SETS)
        if data.retain_rows is not None:
            yield from at_least("data.retain_rows", data.retain_rows, 1)


def _fills(template: str, name: str) -> bool:
    try:
        return template.format(**{name: "\0"}).count("\0") == 1
    except (KeyError, IndexError, ValueError):
        return False


def _eval(cfg: Config) -> Iterator[str]:
    if cfg.eval.alphas is not None:
        yield from need(
            len(cfg.eval.alphas) > 0, "eval.alphas", cfg.eval.alphas, "must hold at least one α, e.g. [0,0.5,1]"
        )
        for a in cfg.eval.alphas:
            yield from need(is_number(a), "eval.alphas", a, "each must be a finite number")
    if cfg.eval.max_examples is not None:
        yield from at_least("eval.max_examples", cfg.eval.max_examples, 1)
    for key in ("max_new_tokens", "batch_size"):
        yield from at_least(f"eval.{key}", getattr(cfg.eval, key), 1)


def _trainer(cfg: Config) -> Iterator[str]:
    t = cfg.trainer
    for key in ("epochs", "forget_batch", "retain_batch", "accumulate", "log_every", "eval_examples", "threads"):
        yield from at_least(f"trainer.{key}", getattr(t, key), 1)
    for key in ("eval_every", "save_every", "weight_decay"):
        yield from at_least(f"trainer.{key}", getattr(t, key), 0)
    if t.steps is not None:
        yield from at_least("trainer.steps", t.steps, 1)
    if t.lr is not None:
        yield from positive("trainer.lr", t.lr)
    yield from positive("trainer.clip", t.clip)
    for key in ("warmup", "final_lr"):
        yield from share(f"trainer.{key}", getattr(t, key))
    for key in ("beta1", "beta2"):
        yield from below_one(f"trainer.{key}", getattr(t, key))
    yield from below_one("trainer.held_out", t.held_out)
    yield from one_of("trainer.keep", t.keep, KEEP)
    rule = "the best point is one of the trajectory: trainer.keep=best needs trainer.eval_every above 0"
    yield from need(t.keep == "last" or t.eval_every > 0, "trainer.eval_every", t.eval_every, rule)
    yield from at_least("trainer.stored_rows_gib", t.stored_rows_gib, 0)
    yield from one_of("trainer.device", t.device, ("auto", "cpu", "cuda"))
