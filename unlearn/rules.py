"""What values a config may hold. Each rule yields one line: the value, the rule, the choices.

``parse`` reports every problem at once and runs before any work starts; it also closes the hole that Hydra leaves,
where ``+key=value`` adds a key to a typed node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from unlearn.config import (
    DATA_CONFIGS,
    OFFSET_INITS,
    WANDB_MODES,
    BiosConfig,
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    TofuConfig,
    is_number,
)

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
    return [line for rule in (_top, _algo, _method, _pair, _data, _eval, _trainer) for line in rule(cfg)]


def _need(ok: bool, key: str, value: object, rule: str) -> Iterator[str]:
    if not ok:
        yield f"{key}={value!r}: {rule}"


def _positive(key: str, value: object) -> Iterator[str]:
    yield from _need(is_number(value) and value > 0, key, value, "must be a finite number above 0")


def _at_least(key: str, value: object, low: float) -> Iterator[str]:
    yield from _need(is_number(value) and value >= low, key, value, f"must be a finite number of at least {low:g}")


def _share(key: str, value: object) -> Iterator[str]:
    yield from _need(is_number(value) and 0 <= value <= 1, key, value, "must lie between 0 and 1")


def _below_one(key: str, value: object) -> Iterator[str]:
    yield from _need(is_number(value) and 0 <= value < 1, key, value, "must be at least 0 and below 1")


def _one_of(key: str, value: object, choices: tuple[str, ...]) -> Iterator[str]:
    yield from _need(value in choices, key, value, f"must be one of {', '.join(choices)}")


def _top(cfg: Config) -> Iterator[str]:
    yield from _need(is_number(cfg.alpha), "alpha", cfg.alpha, "must be a finite number, e.g. 0.5, 1 or 2")
    for key, seed in (("seed", cfg.seed), ("pair.seed", cfg.pair.seed)):
        yield from _need(0 <= seed < 2**62, key, seed, "must lie between 0 and 2^62")
    for key in ("algo", "method", "pair", "data"):
        name = getattr(cfg, key).name
        yield from _need(re.fullmatch(NAME, name) is not None, f"{key}.name", name, NAME_RULE)
    yield from _need(
        re.fullmatch(NAME, cfg.study) is not None,
        "study",
        cfg.study,
        NAME_RULE,
    )
    yield from _one_of("wandb.mode", cfg.wandb.mode, WANDB_MODES)


def _algo(cfg: Config) -> Iterator[str]:
    algo = cfg.algo
    yield from _at_least("algo.forget_weight", algo.forget_weight, 0)
    yield from _at_least("algo.retain_weight", algo.retain_weight, 0)
    if algo.beta is not None:
        yield from _positive("algo.beta", algo.beta)
    for name in ("gamma", "beta1", "beta2"):
        if getattr(algo, name) is not None:
            yield from _at_least(f"algo.{name}", getattr(algo, name), 0)
    yield from _need(
        algo.forget_weight > 0 or (algo.retain_weight > 0 and algo.retain != "none"),
        "algo.forget_weight", algo.forget_weight, "forget and retain weight are both 0: nothing would be trained",
    )  # fmt: skip
    if algo.file is not None:
        yield from _need(Path(algo.file).is_file(), "algo.file", algo.file, f"no such file in {Path.cwd()}")
    for name, value in algo.numbers.items():
        yield from _need(is_number(value), f"algo.numbers.{name}", value, "must be a finite number")
    for method, lr in algo.lr.items():
        yield from _positive(f"algo.lr.{method}", lr)
    if cfg.trainer.lr is None and cfg.method.name not in algo.lr:
        yield (
            f"algo.lr: {algo.name!r} has no learning rate for method {cfg.method.name!r}; it has "
            f"{', '.join(algo.lr) or 'none'}. Give trainer.lr=NUMBER or algo.lr.{cfg.method.name}=NUMBER"
        )


def _method(cfg: Config) -> Iterator[str]:
    members = cfg.method.members
    trained = [m.name for m in members if m.trained]
    yield from _need(len(trained) == 1, "method.members", trained, "exactly one member must have trained: true")
    names = [m.name for m in members]
    yield from _need(len(set(names)) == len(names), "method.members", names, "names must differ")
    targets = [m.name for m in members if m.model == "target" and not m.trained]
    rule = "one member must be the frozen target (model: target, trained: false): it is the reference"
    yield from _need(len(targets) >= 1, "method.members", names, rule)
    for m in members:
        if m.trained and not (m.constant or m.alpha):
            yield f"method.members: {m.name!r} is trained and has no weight at any α; give it constant or alpha"
    for i, m in enumerate(members):
        yield from _one_of(f"method.members[{i}].model", m.model, ("target", "small"))
        for key in ("constant", "alpha"):
            value = getattr(m, key)
            yield from _need(is_number(value), f"method.members[{i}].{key}", value, "must be a finite number")
    if cfg.method.train_alpha is not None:
        yield from _need(
            is_number(cfg.method.train_alpha),
            "method.train_alpha",
            cfg.method.train_alpha,
            "must be a finite number, or null for the run's alpha",
        )


def _pair(cfg: Config) -> Iterator[str]:
    yield from _one_of("pair.offset_init", cfg.pair.offset_init, OFFSET_INITS)
    yield from _one_of("pair.tokenizer.kind", cfg.pair.tokenizer.kind, TOKENIZERS)
    yield from _need(
        cfg.pair.tokenizer.vocab_size >= 300,
        "pair.tokenizer.vocab_size",
        cfg.pair.tokenizer.vocab_size,
        "must be at least 300 (256 bytes and the special tokens)",
    )
    yield from _at_least("pair.batch_size", cfg.pair.batch_size, 1)
    yield from _share("pair.warmup", cfg.pair.warmup)
    for name in ("target", "small"):
        yield from _model(f"pair.{name}", getattr(cfg.pair, name))


def _model(key: str, model: ModelConfig) -> Iterator[str]:
    for name in ("hidden_size", "layers", "heads", "intermediate_size", "max_length"):
        yield from _at_least(f"{key}.{name}", getattr(model, name), 1)
    if model.heads >= 1:
        yield from _need(
            model.hidden_size % (2 * model.heads) == 0,
            f"{key}.hidden_size",
            model.hidden_size,
            f"must be a multiple of 2 × heads = {2 * model.heads} (rotary embeddings)",
        )
    yield from _positive(f"{key}.initializer_range", model.initializer_range)
    for stage in ("pretrain", "finetune", "general"):
        yield from _at_least(f"{key}.{stage}.epochs", getattr(model, stage).epochs, 0)
        yield from _positive(f"{key}.{stage}.lr", getattr(model, stage).lr)


def _data(cfg: Config) -> Iterator[str]:
    data = cfg.data
    for key, name in (("prompt", "question"), ("answer", "answer")):
        text = getattr(data.template, key)
        yield from _need(_fills(text, name), f"data.template.{key}", text, f"must hold {{{name}}} and no other braces")
    if isinstance(data, BiosConfig):
        yield from _need(
            1 <= data.forget_people < data.people,
            "data.forget_people",
            data.forget_people,
            f"the forget set needs at least 1 person and must leave one to retain: 1 to "
            f"{data.people - 1} with data.people={data.people}",
        )
        yield from _need(1 <= data.questions <= 20, "data.questions", data.questions, "must lie between 1 and 20")
        for key in ("holdout_people", "known_people", "countries"):
            yield from _at_least(f"data.{key}", getattr(data, key), 0 if key == "holdout_people" else 1)
    if isinstance(data, TofuConfig):
        yield from _one_of("data.forget", data.forget, FORGET_SETS)
        if data.retain_rows is not None:
            yield from _at_least("data.retain_rows", data.retain_rows, 1)


def _fills(template: str, name: str) -> bool:
    try:
        return template.format(**{name: "\0"}).count("\0") == 1
    except (KeyError, IndexError, ValueError):
        return False


def _eval(cfg: Config) -> Iterator[str]:
    if cfg.eval.alphas is not None:
        yield from _need(
            len(cfg.eval.alphas) > 0, "eval.alphas", cfg.eval.alphas, "must hold at least one α, e.g. [0,0.5,1]"
        )
        for a in cfg.eval.alphas:
            yield from _need(is_number(a), "eval.alphas", a, "each must be a finite number")
    if cfg.eval.max_examples is not None:
        yield from _at_least("eval.max_examples", cfg.eval.max_examples, 1)
    for key in ("max_new_tokens", "batch_size"):
        yield from _at_least(f"eval.{key}", getattr(cfg.eval, key), 1)


def _trainer(cfg: Config) -> Iterator[str]:
    t = cfg.trainer
    for key in ("epochs", "forget_batch", "retain_batch", "accumulate", "log_every", "eval_examples", "threads"):
        yield from _at_least(f"trainer.{key}", getattr(t, key), 1)
    for key in ("eval_every", "save_every", "weight_decay"):
        yield from _at_least(f"trainer.{key}", getattr(t, key), 0)
    if t.steps is not None:
        yield from _at_least("trainer.steps", t.steps, 1)
    if t.lr is not None:
        yield from _positive("trainer.lr", t.lr)
    yield from _positive("trainer.clip", t.clip)
    for key in ("warmup", "final_lr"):
        yield from _share(f"trainer.{key}", getattr(t, key))
    for key in ("beta1", "beta2"):
        yield from _below_one(f"trainer.{key}", getattr(t, key))
    yield from _at_least("trainer.stored_rows_gib", t.stored_rows_gib, 0)
    yield from _one_of("trainer.device", t.device, ("auto", "cpu", "cuda"))
