"""What values a config may hold: each by itself, as its setting says, and together, as the rules say.

``parse`` reports every problem at once and runs before any work starts; it also closes the hole that Hydra leaves,
where ``+key=value`` adds a key to a typed node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from unlearn.config.data import DATA_CONFIGS, DataConfig
from unlearn.config.derived import may_round, tuning
from unlearn.config.pair import LAYERS
from unlearn.config.redaction import secret_in
from unlearn.config.schema import NO_RETRAINED, ROUGH_ROWS, Config, ConfigError
from unlearn.config.setting import is_number, need, out_of_bounds
from unlearn.grid.rules_data import data
from unlearn.grid.rules_http import http
from unlearn.grid.rules_learning import algo, method, together
from unlearn.grid.rules_pair import pair
from unlearn.store import sources


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
    rules = (out_of_bounds, algo, method, together, pair, http, data, _eval, _trainer, _begin)
    return [line for rule in rules for line in rule(cfg)]


def _begin(cfg: Config) -> Iterator[str]:
    """Runs whose changes are taken over."""
    runs, alphas, how = cfg.begin.runs, cfg.begin.alphas, cfg.begin.how
    if runs is None:
        yield from need(alphas is None, "begin.alphas", alphas, "are weights of begin.runs, and there are none")
        yield from need(how is None, "begin.how", how, "is how begin.runs are fused, and there are none")
        return
    layered = tuning(cfg) == LAYERS
    lacking = "needs the inner products of unlearning layers; must be average or sum"
    yield from need(layered or how != "regmean", "begin.how", how, lacking)
    if alphas is not None:
        fine = len(alphas) == len(runs) and all(map(is_number, alphas))
        yield from need(fine, "begin.alphas", alphas, f"must be {len(runs)} finite numbers, one for each of begin.runs")
        plain = not layered and cfg.begin.fusion(layered) == "sum"
        unweighted = "an average and unlearning layers are fused with no weights: must be null"
        yield from need(plain, "begin.alphas", alphas, unweighted)
    trained = any(m.trained for m in cfg.method.members)
    yield from need(trained, "begin.runs", runs, f"method={cfg.method.name!r} trains no member that could begin there")
    rule = "low-rank updates begin at zero; what runs changed is taken over by pair.tuning=full"
    yield from need(cfg.pair.tuning != "lora", "pair.tuning", cfg.pair.tuning, rule)


def _eval(cfg: Config) -> Iterator[str]:
    """Forget quality is never silently missing: without something to compare with, a run says so before it starts."""
    problem = sources.lacking(cfg.pair, "retrained") if cfg.eval.retrained is None else None
    if problem is not None:
        yield (
            f"{problem}. Or give eval.retrained=FILE, the evaluation of such a model (python -m unlearn.evaluate "
            f"model=… out=FILE), or eval.retrained={NO_RETRAINED} to do without forget quality and PrivLeak"
        )
    groups = cfg.eval.groups
    ordered = "summary" not in groups or "privacy" in groups[: groups.index("summary")]
    yield from need(ordered, "eval.groups", groups, "summary reads what privacy finds: list privacy before it")


def _trainer(cfg: Config) -> Iterator[str]:
    t = cfg.trainer
    worked = t.steps != 0 or cfg.begin.runs
    yield from need(worked, "trainer.steps", t.steps, "must be a finite number of at least 1 without begin.runs")
    rule = "the best point is one of the trajectory: trainer.keep=best needs trainer.eval_every above 0"
    yield from need(t.keep == "last" or t.eval_every > 0, "trainer.eval_every", t.eval_every, rule)
    rule = (
        "a compiled offset rounds to bf16 elsewhere than the anchor that must cancel it: trainer.compile=true needs "
        "trainer.precision=fp32"
    )
    yield from need(not t.compile or t.precision == "fp32", "trainer.precision", t.precision, rule)
    rule = (
        f"method={cfg.method.name!r} does not train on a sum with the plain target (a frozen member of α weight 0), "
        "and no other rows are ever rounded: must be one of auto, fp32, hidden"
    )
    yield from need(t.stored_rows not in ROUGH_ROWS or may_round(cfg), "trainer.stored_rows", t.stored_rows, rule)
