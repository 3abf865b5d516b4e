"""What values a config may hold. Each rule yields one line: the value, the rule, the choices.

``parse`` reports every problem at once and runs before any work starts; it also closes the hole that Hydra leaves,
where ``+key=value`` adds a key to a typed node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from unlearn.config.data import DATA_CONFIGS, BiosConfig, DataConfig
from unlearn.config.derived import may_round
from unlearn.config.redaction import secret_in
from unlearn.config.schema import (
    KEEP,
    PRECISIONS,
    RETRY,
    ROUGH_ROWS,
    STORED_ROWS,
    WANDB_MODES,
    Config,
    ConfigError,
    is_number,
)
from unlearn.evaluation.groups import GROUPS
from unlearn.evaluation.metrics.semantics import SEMANTICS
from unlearn.grid.need import a_file, at_least, below_one, need, one_of, positive, share
from unlearn.grid.rules_data import of_people, real_data
from unlearn.grid.rules_http import http
from unlearn.grid.rules_learning import algo, method, together
from unlearn.grid.rules_pair import pair
from unlearn.store import sources
from unlearn.store.identity import NO_RETRAINED

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,79}"
NAME_RULE = "names a folder: letters, digits, '_', '.', '+' and '-', not starting with '.', '+' or '-', at most 80"
TEMPLATES = ("plain", "chat")
LARGEST = 10**9  # of whole numbers
THREADS = 1024


def parse(cfg: DictConfig) -> Config:
    """Check a composed config and return it as dataclasses; raise ``ConfigError`` listing every problem."""
    unknown = list(_unknown_keys(cfg, ""))
    if unknown:
        raise ConfigError("\n".join(unknown))
    held = list(_held_secrets(OmegaConf.to_container(cfg, resolve=True), ""))
    if held:
        raise ConfigError("\n".join(held))
    try:
        config = OmegaConf.to_object(cfg)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: must be given") from None
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
            if part not in names and part not in ("experiment", "template"):
                yield f"{key or argument}: unknown key; known keys here: {', '.join(names)}"
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


def _held_secrets(value: Any, path: str) -> Iterator[str]:
    """A config is written to run folders and to W&B: a key or token in it would be, too."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _held_secrets(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str):
        found = secret_in(value)
        yield from [f"{path}: holds {found}; configs are written to run folders, so it must not"] if found else []


def problems(cfg: Config) -> list[str]:
    rules = (_top, _lengths, algo, method, together, pair, http, _data, _eval, _trainer)
    return [line for rule in rules for line in rule(cfg)]


def _top(cfg: Config) -> Iterator[str]:
    yield from need(is_number(cfg.alpha), "alpha", cfg.alpha, "must be a finite number, e.g. 0.5, 1 or 2")
    for key, seed in (("seed", cfg.seed), ("pair.seed", cfg.pair.seed)):
        yield from need(0 <= seed < 2**62, key, seed, "must lie between 0 and 2^62")
    for key in ("algo", "method", "pair", "data"):
        name = getattr(cfg, key).name
        yield from need(re.fullmatch(NAME, name) is not None, f"{key}.name", name, NAME_RULE)
    yield from one_of("retry", cfg.retry, RETRY)
    yield from need(
        re.fullmatch(NAME, cfg.study) is not None,
        "study",
        cfg.study,
        NAME_RULE,
    )
    for key in ("runs", "store"):
        place = getattr(cfg.paths, key)
        yield from need(place != "" and "\0" not in place, f"paths.{key}", place, "must be the path of a folder")
    yield from one_of("wandb.mode", cfg.wandb.mode, WANDB_MODES)


def _lengths(node: Any, path: str = "") -> Iterator[str]:
    """Numbers that no run could ever reach; seeds may be longer."""
    for f in fields(node):
        value, key = getattr(node, f.name), f"{path}{f.name}"
        if is_dataclass(value):
            yield from _lengths(value, f"{key}.")
        elif isinstance(value, int) and not key.endswith("seed"):
            yield from need(value <= LARGEST, key, value, f"must be at most {LARGEST:,}")


def _data(cfg: Config) -> Iterator[str]:
    data = cfg.data
    yield from one_of("data.template.kind", data.template.kind, TEMPLATES)
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
    yield from real_data(data)
    yield from of_people(data)


def _begin(cfg: Config) -> Iterator[str]:
    """Runs whose changes are taken over."""
    runs, alphas = cfg.begin.runs, cfg.begin.alphas
    yield from at_least("begin.ridge", cfg.begin.ridge, 0)
    if runs is None:
        yield from need(alphas is None, "begin.alphas", alphas, "are weights of begin.runs, and there are none")
        return
    yield from need(len(runs) > 0 and len(set(runs)) == len(runs), "begin.runs", runs, "must be different run folders")
    for folder in runs:
        there = (Path(folder) / "manifest.json").is_file()
        yield from need(there, "begin.runs", folder, f"not the folder of a run in {Path.cwd()}")
    if alphas is not None:
        fine = len(alphas) == len(runs) and all(map(is_number, alphas))
        yield from need(fine, "begin.alphas", alphas, f"must be {len(runs)} finite numbers, one for each of begin.runs")
    trained = any(m.trained for m in cfg.method.members)
    yield from need(trained, "begin.runs", runs, f"method={cfg.method.name!r} trains no member that could begin there")
    rule = "low-rank updates begin at zero; what runs changed is taken over by pair.tuning=full"
    yield from need(cfg.pair.tuning != "lora", "pair.tuning", cfg.pair.tuning, rule)


def _fills(template: str, name: str) -> bool:
    try:
        return template.format(**{name: "\0"}).count("\0") == 1
    except (KeyError, IndexError, ValueError):
        return False


def _eval(cfg: Config) -> Iterator[str]:
    yield from _reference(cfg)
    if cfg.eval.judge is not None:
        yield from a_file("eval.judge", cfg.eval.judge)
    if cfg.eval.alphas is not None:
        yield from need(
            len(cfg.eval.alphas) > 0, "eval.alphas", cfg.eval.alphas, "must hold at least one α, e.g. [0,0.5,1]"
        )
        for a in cfg.eval.alphas:
            yield from need(is_number(a), "eval.alphas", a, "each must be a finite number")
    if cfg.eval.max_examples is not None:
        yield from at_least("eval.max_examples", cfg.eval.max_examples, 1)
    yield from one_of("eval.semantics", cfg.eval.semantics, tuple(SEMANTICS))
    for name in cfg.eval.groups:
        yield from one_of("eval.groups", name, GROUPS)
    if "summary" in cfg.eval.groups:
        before = cfg.eval.groups[: cfg.eval.groups.index("summary")]
        rule = "summary reads what privacy finds: list privacy before it"
        yield from need("privacy" in before, "eval.groups", cfg.eval.groups, rule)
    for key in ("max_new_tokens", "batch_size", "leak_samples", "relearn_steps", "relearn_batch"):
        yield from at_least(f"eval.{key}", getattr(cfg.eval, key), 1)
    yield from at_least("eval.resamples", cfg.eval.resamples, 0)
    for key in ("leak_temperature", "relearn_lr"):
        yield from positive(f"eval.{key}", getattr(cfg.eval, key))
    for value in cfg.eval.prefix_shares:
        yield from below_one("eval.prefix_shares", value)
    yield from share("eval.leak_threshold", cfg.eval.leak_threshold)


def _reference(cfg: Config) -> Iterator[str]:
    """Forget quality is never silently missing: without something to compare with, a run says so before it starts."""
    given = cfg.eval.retrained
    if given is None:
        problem = sources.lacking(cfg.pair, "retrained")
        if problem is not None:
            yield (
                f"{problem}. Or give eval.retrained=FILE, the evaluation of such a model (python -m unlearn.evaluate "
                f"model=… out=FILE), or eval.retrained={NO_RETRAINED} to do without forget quality and PrivLeak"
            )
    elif given != NO_RETRAINED:
        yield from a_file("eval.retrained", given)


def _trainer(cfg: Config) -> Iterator[str]:
    t = cfg.trainer
    for key in ("epochs", "forget_batch", "retain_batch", "accumulate", "log_every", "eval_examples", "threads"):
        yield from at_least(f"trainer.{key}", getattr(t, key), 1)
    yield from need(t.threads <= THREADS, "trainer.threads", t.threads, f"must be at most {THREADS}")
    for key in ("eval_every", "save_every", "weight_decay"):
        yield from at_least(f"trainer.{key}", getattr(t, key), 0)
    if t.steps is not None:
        yield from at_least("trainer.steps", t.steps, 0 if cfg.begin.runs else 1)
    yield from _begin(cfg)
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
    yield from one_of("trainer.precision", t.precision, PRECISIONS)
    rule = (
        "a compiled offset rounds to bf16 elsewhere than the anchor that must cancel it: trainer.compile=true needs "
        "trainer.precision=fp32"
    )
    yield from need(not t.compile or t.precision == "fp32", "trainer.precision", t.precision, rule)
    yield from one_of("trainer.stored_rows", t.stored_rows, STORED_ROWS)
    yield from at_least("trainer.stored_rows_k", t.stored_rows_k, 1)
    yield from at_least("trainer.stored_rows_gib", t.stored_rows_gib, 0)
    yield from one_of("trainer.stored_rows_over", t.stored_rows_over, ("live", "refuse"))
    rule = (
        f"method={cfg.method.name!r} does not train on a sum with the plain target (a frozen member of α weight 0), "
        "and no other rows are ever rounded: must be one of auto, fp32, hidden"
    )
    yield from need(t.stored_rows not in ROUGH_ROWS or may_round(cfg), "trainer.stored_rows", t.stored_rows, rule)
    yield from one_of("trainer.device", t.device, ("auto", "cpu", "cuda"))
