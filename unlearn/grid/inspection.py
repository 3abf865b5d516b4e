"""What only tokenizers, model files and encoded rows can tell of a config, before any model is loaded or trained."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from unlearn.config.data import BiosConfig
from unlearn.config.derived import terms_of
from unlearn.config.own import JUDGE, named
from unlearn.config.pair import SourceConfig
from unlearn.config.schema import Config
from unlearn.data.encoding import examples_of
from unlearn.data.readers import read
from unlearn.ensemble.rows_size import may_refuse
from unlearn.evaluation.retrained import from_file
from unlearn.evaluation.suite import suite
from unlearn.grid.rules_learning import black_box
from unlearn.models import weights
from unlearn.runs.workbench import Workbench, check_own, workbench
from unlearn.store import sources
from unlearn.store.identity import NO_RETRAINED, eval_settings


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
    bench = workbench(cfg)  # here is refused what does not share one vocabulary, or is too short for max_length
    for role in own:
        check_own(bench, role)
    _check_rows(cfg, bench)


def _needed(cfg: Config) -> dict[str, SourceConfig]:
    """The pretrained models that a config reads, by role."""
    members = [*cfg.method.members, *(cfg.algo.teacher.members if cfg.algo.teacher else ())]
    roles = dict.fromkeys(["target", *(sources.role(cfg.pair, m.model) for m in members)])
    if cfg.eval.retrained is None:
        roles["retrained"] = None
    found = {r: sources.own_source(cfg.pair, r) or sources.size_of(cfg.pair, r) for r in roles}
    here = {role: source for role, source in found.items() if not sources.is_remote(cfg.pair, role)}
    return {role: source for role, source in here.items() if source.source is not None}


def _key(cfg: Config, role: str) -> str:
    """The setting that names a role's model."""
    if sources.own_source(cfg.pair, role) is not None:
        return f"pair.{role}"
    return "pair.small" if role.startswith("small") else "pair.target"


def _check_rows(cfg: Config, bench: Workbench) -> None:
    """Rows that are longer than the models' context, or that cannot be evaluated as asked; a reference of others."""
    data = bench.data
    found = suite(data, bench.encoder, cfg.eval, eval_settings(cfg, data.fingerprint()), cfg.trainer.stored_rows_gib)
    examples_of(bench.encoder, (*data.splits["forget"], *data.splits["retain"]))
    sizes = (cfg.pair.target, cfg.pair.small)
    if any(size.finetune.epochs or size.general.epochs for size in sizes):
        examples_of(bench.encoder, data.general())
    if any(size.pretrain.epochs for size in sizes):
        examples_of(bench.encoder, data.wordings)
    if cfg.eval.retrained not in (None, NO_RETRAINED):
        from_file(cfg.eval.retrained, found)


def _too_large(cfg: Config) -> list[str]:
    """What of its stored rows a run refuses."""
    if not may_refuse(cfg.trainer):
        return []
    from unlearn.grid.forecast import too_large

    return too_large(cfg)


def _fitting(cfg: Config) -> None:
    """Raise ``ValueError`` where rule, terms, method and data do not fit each other."""
    from unlearn.ensemble.combination import bind_rule
    from unlearn.learning.binding import REFUSALS, bind
    from unlearn.runs import alternates

    bind_rule(cfg.method.rule, cfg.method.numbers, cfg.method.file)
    if cfg.eval.judge is not None:
        named(cfg.eval.judge, *JUDGE)
    roles = {sources.role(cfg.pair, m.model) for m in cfg.method.members}
    if "small_general" in roles and sources.last_stage(cfg.pair, "small_general").epochs and not read(cfg).general():
        raise ValueError(
            f"data set {cfg.data.name!r} has no general facts (real authors, world facts) to train the small pair on: "
            "take pair.offset_init=retain or full"
        )
    trained = next((m for m in cfg.method.members if m.trained), None)
    if trained is None:
        return
    terms = bind(**terms_of(cfg))
    reads = {name for term in terms for name in term.reads}
    if reads & set(REFUSALS) and not read(cfg).refusals:
        raise ValueError(f"algo={cfg.algo.name!r} trains towards refusals, and data set {cfg.data.name!r} has none")
    if "alternates" in reads:
        if cfg.algo.alternates is None:
            raise ValueError(f"algo={cfg.algo.name!r} reads other answers: algo.alternates must say where from")
        if cfg.algo.alternates.file is not None:
            alternates.read(Path(cfg.algo.alternates.file), read(cfg).splits["forget"])
    if any(t.layer is not None for t in terms) and trained.model != "target":
        raise ValueError(black_box(cfg))
