"""What values a config may hold: each by itself, as its setting says, and together, as the rules say.

``parse`` reports every problem at once and runs before any work starts; it also closes the hole that Hydra leaves,
where ``+key=value`` adds a key to a typed node.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from unlearn.config.data import DataConfig
from unlearn.config.schema import Config, ConfigError, conf_dir, raise_for
from unlearn.config.setting import out_of_bounds
from unlearn.data.readers import SETTINGS, register
from unlearn.grid.rules_learning import algo, begin, evaluation, method, together, trainer
from unlearn.grid.rules_pair import http, pair

hints_of = cache(get_type_hints)  # it compiles each annotation again, which takes most of a call's checks
PLAIN = re.compile(r"[\w.+-]+(,[\w.+-]+)*", re.ASCII)  # words that a command line needs no quotes for


def composed(overrides: Iterable[str]) -> Config:
    """The checked config that these settings make."""
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return parse(compose("config", overrides=list(overrides)))


def parse(cfg: DictConfig) -> Config:
    """Check a composed config and return it as dataclasses; raise ``ConfigError`` listing every problem."""
    raise_for(_unknown_keys(cfg, ""))
    try:
        config = OmegaConf.to_object(cfg)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: must be given") from None
    assert isinstance(config, Config)
    rules = (out_of_bounds, algo, method, together, pair, http, evaluation, trainer, begin)
    raise_for([*(line for rule in rules for line in rule(config)), *config.data.problems()])
    return config


def unknown_overrides(arguments: list[str]) -> Iterator[str]:
    """Of ``key=value`` arguments those whose key the schema does not have, with the keys that stand there: Hydra
    refuses them too, but names no choices and advises a ``+`` that is refused as well."""
    for argument in arguments:
        key = argument.split("=", 1)[0].lstrip("+~")
        if "=" not in argument or argument.startswith("-") or key.startswith("hydra"):
            continue
        kinds: list[type] = [Config]
        for part in key.split("."):
            names = dict.fromkeys(name for kind in kinds for name in hints_of(kind))
            if part not in names and part not in ("experiment", "template"):
                yield f"{key or argument}: unknown key; known keys here: {', '.join(names)}"
            hints = [hints_of(kind).get(part) for kind in kinds]
            optional = [h for h in hints if type(None) in get_args(h) and any(is_dataclass(k) for k in get_args(h))]
            if optional and not key.endswith(f".{part}"):
                yield f"{key}: can be set only where the chosen YAML sets {key.split(f'.{part}.')[0]}.{part}"
            kinds = [k for h in hints for k in (SETTINGS.values() if h is DataConfig else [h]) if is_dataclass(k)]
            if not kinds:  # a value, or a mapping whose keys are free
                break


def as_typed(argument: str) -> str:
    """``key=value`` with the value of a text quoted that Hydra would take for a number or a truth value: the study 3e8,
    the revision true."""
    key, sign, text = argument.partition("=")
    if not (sign and PLAIN.fullmatch(text) and _is_text(key.lstrip("+"))):
        return argument
    parse = OverridesParser.create().parse_override
    values = {part: parse(f"x={part}").value() for part in text.split(",")}
    return f"{key}={','.join(part if v is None or isinstance(v, str) else repr(part) for part, v in values.items())}"


def _is_text(key: str) -> bool:
    kinds: list[Any] = [Config]
    for part in key.split("."):
        hints = [hints_of(kind).get(part) for kind in kinds if is_dataclass(kind)]
        kinds = [
            kind for hint in hints for kind in (SETTINGS.values() if hint is DataConfig else (hint, *get_args(hint)))
        ]
    return any(hint is str or (isinstance(hint, UnionType) and str in get_args(hint)) for hint in hints)


def _unknown_keys(node: Any, path: str) -> Iterator[str]:
    """Keys that `+key=value` smuggled past the typed schema (OmegaConf accepts them silently)."""
    for i in range(len(node)) if isinstance(node, ListConfig) else ():
        yield from _unknown_keys(node[i], f"{path}[{i}]")
    kind = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    names = [f.name for f in fields(kind)] if is_dataclass(kind) else None
    for key in node if isinstance(node, DictConfig) else ():
        if names is not None and key not in names:
            yield f"{path}{key}: unknown key; known keys here: {', '.join(names)}"
        elif not OmegaConf.is_missing(node, key):
            yield from _unknown_keys(node._get_node(key), f"{path}{key}.")
