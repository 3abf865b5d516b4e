"""What values a config may hold: each by itself, as its setting says, and together, as the rules say.

``parse`` reports every problem at once and runs before any work starts; it also closes the hole that Hydra leaves,
where ``+key=value`` adds a key to a typed node.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from unlearn.config.data import DataConfig
from unlearn.config.derived import tuning
from unlearn.config.groups import needing
from unlearn.config.pair import AN_ADDRESS, LAYERS, SOME_LAYERS, ModelConfig, SourceConfig
from unlearn.config.schema import ROUGH_ROWS, Config, ConfigError, conf_dir, raise_for, unknown
from unlearn.config.setting import need, out_of_bounds
from unlearn.data.readers import SETTINGS, register
from unlearn.grid.rules_learning import algo, begin, evaluation, method, together, trainer
from unlearn.store import sources

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
                yield unknown(key or argument, names)
            hints = [hints_of(kind).get(part) for kind in kinds]
            optional = [h for h in hints if type(None) in get_args(h) and any(is_dataclass(k) for k in get_args(h))]
            if optional and not key.endswith(f".{part}"):
                yield f"{key}: can be set only where the chosen YAML sets {key.split(f'.{part}.')[0]}.{part}"
            kinds = [k for h in hints for k in (SETTINGS.values() if h is DataConfig else [h]) if is_dataclass(k)]
            if not kinds:  # a value, or a mapping whose keys are free
                break


def as_typed(argument: str) -> str:
    """``key=value``, a text quoted that Hydra would take for a number or truth value: the study 3e8, revision true."""
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
    keys: Iterable[Any] = node if isinstance(node, DictConfig) else ()
    for key in keys:
        if names is not None and key not in names:
            yield unknown(f"{path}{key}", names)
        elif not OmegaConf.is_missing(node, key):
            yield from _unknown_keys(node._get_node(key), f"{path}{key}.")


# --- a pair -----------------------------------------------------------------------------------------------------------


KEY = "pair.target.http"
LARGEST = 10**10  # parameters of a model from scratch


def pair(cfg: Config) -> Iterator[str]:
    where, learner = cfg.pair.layers.where, next((m.model for m in cfg.method.members if m.trained), None)
    size = cfg.pair.target if learner == "target" else cfg.pair.small
    if where is not None and SOME_LAYERS.holds(where) and learner and tuning(cfg) == LAYERS and size.source is None:
        rule = f"the model that learns has the layers 0 to {size.layers - 1}"
        yield from need(max(where) < size.layers, "pair.layers.where", where, rule)
    for name in ("target", "small"):
        yield from _model(f"pair.{name}", getattr(cfg.pair, name))
    for name in ("retrained", "small_full", "small_retain"):
        yield from _source(f"pair.{name}", getattr(cfg.pair, name))
    yield from _tokenizer(cfg)
    yield from _members(cfg)


def _model(key: str, model: ModelConfig) -> Iterator[str]:
    yield from _source(key, model)
    if model.heads >= 1:
        rule = f"must be a multiple of 2 × heads = {2 * model.heads} (rotary embeddings)"
        yield from need(model.hidden_size % (2 * model.heads) == 0, f"{key}.hidden_size", model.hidden_size, rule)
    if model.source is None and model.hidden_size > 0:
        size = model.layers * (4 * model.hidden_size**2 + 3 * model.hidden_size * model.intermediate_size)
        rule = f"with {key}.layers and {key}.intermediate_size this is a model of {size:.1g} parameters or more, and "
        rule += f"from scratch are made models of at most {LARGEST:.0g}"
        yield from need(size <= LARGEST, f"{key}.hidden_size", model.hidden_size, rule)


def _source(key: str, source: SourceConfig, weights: bool = True) -> Iterator[str]:
    """A folder that is there, or what can be a name on the hub."""
    if source.source is None:
        yield from need(source.revision is None, f"{key}.revision", source.revision, f"needs {key}.source")
    elif sources.is_folder(source.source):
        rule = "a folder has no revisions; they belong to names on the hub"
        yield from need(source.revision is None, f"{key}.revision", source.revision, rule)
        try:
            sources.weight_files(sources.local(source.source)) if weights else None
        except ConfigError as error:
            yield f"{key}.source={source.source!r}: {error}"
    else:
        rule = f"no such folder in {Path.cwd()}, no GGUF file, and no name on the hub either (NAME or OWNER/NAME)"
        name = sources.HUB_NAME.fullmatch(source.source) is not None and not source.source.endswith(sources.GGUF)
        yield from need(name and not source.source.startswith("."), f"{key}.source", source.source, rule)


def _tokenizer(cfg: Config) -> Iterator[str]:
    tokenizer = cfg.pair.tokenizer
    yield from _source("pair.tokenizer", tokenizer, weights=False)
    named = sources.tokenizer_source(cfg.pair).source
    if tokenizer.kind == "pretrained":
        rule = "needs pair.tokenizer.source (or pair.target.source): a folder or a name on the hub"
        yield from need(named is not None, "pair.tokenizer.kind", tokenizer.kind, rule)
        if named is not None and sources.is_folder(named):
            rule = f"no tokenizer in the folder {named!r}; give pair.tokenizer.source"
            files = sources.tokenizer_files(sources.local(named))
            yield from need(len(files) > 0, "pair.tokenizer.kind", tokenizer.kind, rule)
    else:
        rule = "is for pair.tokenizer.kind=pretrained"
        yield from need(tokenizer.source is None, "pair.tokenizer.source", tokenizer.source, rule)
        for key in ("target", "small", "retrained", "small_full", "small_retain"):
            source = getattr(cfg.pair, key).source
            rule = f"pair.{key}.source={source!r} reads the ids of its own tokenizer: must be pretrained"
            yield from need(source is None, "pair.tokenizer.kind", tokenizer.kind, rule)


def _members(cfg: Config) -> Iterator[str]:
    """Whether the method's models are available, and whether the one that learns can."""
    members = [*cfg.method.members, *(cfg.algo.teacher.members if cfg.algo.teacher else ())]
    for role in dict.fromkeys(sources.role(cfg.pair, m.model) for m in members):
        problem = sources.lacking(cfg.pair, role) if role in sources.ROLES else None
        yield from [problem] if problem else []
    target = cfg.pair.target
    if any(m.trained and m.model == "target" for m in cfg.method.members):
        rule = f"method={cfg.method.name!r} trains a copy of the target, and only fp32 weights are fine enough to move"
        for key, ok, must in (
            ("dtype", target.dtype == "float32", ": must be float32"),
            ("quantisation", target.quantisation == "none", ": must be none"),
            ("device_map", target.device_map != "auto", ", on one device"),
        ):
            yield from need(ok, f"pair.target.{key}", getattr(target, key), rule + must)
        rule = f"with {tuning(cfg)} what learns reads the target's own weights, on the run's device: must be null"
        there = target.device_map
        yield from need(tuning(cfg) == "full" or there is None, "pair.target.device_map", there, rule)


# --- a target behind a server ---------------------------------------------------------------------------------------


def http(cfg: Config) -> Iterator[str]:
    """What a target behind a server needs, and what needs the target's weights."""
    target = cfg.pair.target
    if target.kind != "http":
        given = next((k for k in ("url", "model") if getattr(target.http, k) is not None), None)
        rule = "is about a target behind a server: needs pair.target.kind=http"
        yield from need(given is None, f"{KEY}.{given}", given and getattr(target.http, given), rule)
        return
    yield from need(target.http.url is not None, f"{KEY}.url", None, AN_ADDRESS.words)
    rule = "must be the model's name on the server (GET /v1/models lists them)"
    yield from need(bool(target.http.model), f"{KEY}.model", target.http.model, rule)
    if any(m.trained and m.model == "target" for m in cfg.method.members):
        rule = "the target, of which pair.target.kind='http' shows log-probabilities alone; take method=offset or proxy"
        yield f"method={cfg.method.name!r} trains a copy of {rule}"
    for group in needing(cfg.eval.groups, "weights"):
        rule = f"{group} reads or changes the weights of every model, and a server has none here: leave it out"
        yield f"eval.groups={cfg.eval.groups!r}: {rule}"
    rule = "hides padding tokens of the text from the models, and a server reads whole texts: take default or tofu"
    yield from need(cfg.eval.semantics != "ou", "eval.semantics", cfg.eval.semantics, rule)
    rule = f"how much is kept of a server's rows is for {KEY}.k to say: must be one of auto, fp32, hidden"
    kept = cfg.trainer.stored_rows
    yield from need(kept not in ROUGH_ROWS, "trainer.stored_rows", kept, rule)
