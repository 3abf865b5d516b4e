"""What only tokenizers, model files and encoded rows can tell of a config, before any model is loaded or trained."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from unlearn import sources
from unlearn.config import Config
from unlearn.config_data import BiosConfig
from unlearn.config_pair import SourceConfig
from unlearn.data.encoding import examples_of
from unlearn.identity import NO_REFERENCE, eval_settings
from unlearn.models import weights
from unlearn.reference import from_file
from unlearn.suite import suite
from unlearn.world import World, check_own, the_world


class Inspection:
    """Of the configs of a call; what several share is looked at once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def check(self, cfg: Config) -> None:
        """Raise ``ConfigError``, ``DataError`` or ``ResultError`` for files, models and rows that do not fit."""
        # What people are called is drawn from pair.seed, and how long their rows are hardly depends on it.
        pair = replace(cfg.pair, seed=0) if isinstance(cfg.data, BiosConfig) else cfg.pair
        shared = {k: v for k, v in asdict(pair).items() if k not in ("tuning", "lora", "layers")}
        key = repr((shared, cfg.data, cfg.eval, [m.model for m in cfg.method.members]))
        if key not in self._seen:
            self._seen.add(key)
            _check(cfg)


def _check(cfg: Config) -> None:
    own = _needed(cfg)
    for role, source in own.items():
        if sources.is_folder(source.source):
            weights.check_files(f"{_key(cfg, role)}.source", Path(source.source), Path(cfg.paths.store) / "hashes")
    world = the_world(cfg)  # here is refused what does not share one vocabulary, or is too short for max_length
    for role in own:
        check_own(world, role)
    _check_rows(cfg, world)


def _needed(cfg: Config) -> dict[str, SourceConfig]:
    """The pretrained models that a config reads, by role."""
    members = [*cfg.method.members, *(cfg.algo.teacher.members if cfg.algo.teacher else ())]
    roles = dict.fromkeys(["target", *(sources.role(cfg.pair, m.model) for m in members)])
    if cfg.eval.reference is None:
        roles["retrained"] = None
    found = {r: sources.own_source(cfg.pair, r) or sources.size_of(cfg.pair, r) for r in roles}
    here = {role: source for role, source in found.items() if not sources.is_remote(cfg.pair, role)}
    return {role: source for role, source in here.items() if source.source is not None}


def _key(cfg: Config, role: str) -> str:
    """The setting that names a role's model."""
    if sources.own_source(cfg.pair, role) is not None:
        return f"pair.{role}"
    return "pair.small" if role.startswith("small") else "pair.target"


def _check_rows(cfg: Config, world: World) -> None:
    """Rows that are longer than the models' context, or that cannot be evaluated as asked; a reference of others."""
    data = world.data
    found = suite(data, world.encoder, cfg.eval, eval_settings(cfg, data.fingerprint()), cfg.trainer.stored_rows_gib)
    examples_of(world.encoder, (*data.splits["forget"], *data.splits["retain"]))
    sizes = (cfg.pair.target, cfg.pair.small)
    if any(size.finetune.epochs or size.general.epochs for size in sizes):
        examples_of(world.encoder, data.general())
    if any(size.pretrain.epochs for size in sizes):
        examples_of(world.encoder, data.wordings)
    if cfg.eval.reference not in (None, NO_REFERENCE):
        from_file(cfg.eval.reference, found)
