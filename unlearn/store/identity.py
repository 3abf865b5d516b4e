"""What a run is: the settings that identify it, its folder, and the names by which tables and logs know it.

Two hashes matter. ``run_identity`` covers everything that changes the trained weights and nothing else; it names the
folder. ``eval_settings`` covers what an evaluated entry depends on beside those weights and α; it is stored in each.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unlearn.config.data import TemplateConfig
from unlearn.config.derived import is_trained, learning_rate, training_alpha, tuning
from unlearn.config.groups import literal
from unlearn.config.pair import HOW_ASKED, LAYERS, HttpConfig, ModelConfig
from unlearn.config.schema import NO_RETRAINED, ROUGH_ROWS, BeginConfig, Config, ConfigError, TrainerConfig
from unlearn.config.setting import unhashed
from unlearn.store import sources
from unlearn.store.files import read_json, sha256

RUN_FORMAT = 1  # part of every run's hash; raised when the same settings would train to another result
METRICS_VERSION = 3  # of the metrics' semantics; raised when one would give another value


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config with dotted keys, as W&B shows it and tables name columns."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


_NAMED = ("algo.name", "method.name", "pair.name", "data.name", "alpha")
_NO_AXES = {"study", "retry", *(f"pair.target.http.{name}" for name in HOW_ASKED),
            *(f"trainer.{name}" for name in unhashed(TrainerConfig))} - {"trainer.lr"}  # fmt: skip


def distinguishing(flats: Sequence[dict[str, Any]]) -> list[str]:
    """Training settings in which runs differ that share objective, method, pair, data and α: a sweep's other axes."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for flat in flats:
        groups.setdefault(repr([flat.get(k) for k in _NAMED]), []).append(flat)
    keys = [k for k in dict.fromkeys(k for f in flats for k in f) if not k.startswith(("eval.", "wandb.", "paths."))]
    differ = [k for k in keys if any(len({repr(f.get(k)) for f in group}) > 1 for group in groups.values())]
    return [k for k in differ if k not in _NO_AXES]


def digest(value: Any, length: int = 16) -> str:
    """Hash of anything JSON can hold; equal values have equal digests on every machine and in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def hashed(settings: Any) -> dict[str, Any]:
    """Of a schema class the settings that are not declared with ``hashed=False``."""
    return {k: v for k, v in asdict(settings).items() if k not in unhashed(settings)}


def run_identity(cfg: Config, data_fingerprint: str) -> dict[str, Any]:
    """All that changes the trained weights or their use, and nothing else: no names, paths, evaluation or logging."""
    models = {m.model for m in (*cfg.method.members, *(cfg.algo.teacher.members if cfg.algo.teacher else ()))}
    identity = {
        "format": RUN_FORMAT,
        "members": [_as_hashed(asdict(m)) for m in cfg.method.members],
        "alpha": training_alpha(cfg),
        "pair": _pair_identity(cfg, models),
        "data": data_fingerprint,
        "template": template(cfg.data.template),
    }
    if cfg.method.rule != "sum" or cfg.method.file is not None:
        identity["rule"] = [cfg.method.rule, cfg.method.numbers, _content(cfg.method.file)]
    if is_trained(cfg) and not (cfg.begin.runs and cfg.trainer.steps == 0):  # of fused runs nothing more is learnt
        identity |= {"algo": _algo_identity(cfg), "trainer": _trainer_identity(cfg), "seed": cfg.seed}
    if is_trained(cfg):
        identity |= {"alone": True} if cfg.method.alone else {}
        identity |= {"lora": asdict(cfg.pair.lora)} if tuning(cfg) == "lora" else {}
        identity |= {"layers": asdict(cfg.pair.layers)} if tuning(cfg) == LAYERS else {}
    if cfg.begin.runs:
        how, usual = (each.fusion(tuning(cfg) == LAYERS) for each in (cfg.begin, BeginConfig()))
        identity["begin"] = [_begun(cfg), cfg.begin.ridge if how == "regmean" else None]
        identity["begin"] += [] if how == usual else [how]
    return identity


_HASHED_AS = {"slope": "alpha", "interleave": "alternate"}  # names before they were renamed: finished runs stay known


def _as_hashed(value: Any) -> Any:
    """As runs were hashed before members could watch: a weight of 0 is left out."""
    if isinstance(value, dict):
        return {_HASHED_AS.get(key, key): _as_hashed(v) for key, v in value.items() if key != "watch" or v}
    return [_as_hashed(v) for v in value] if isinstance(value, list) else value


def _begun(cfg: Config) -> list[tuple[str, float]]:
    """What the runs learnt, by the checksums in their manifests, with the weight of each."""
    found = []
    for folder, alpha in zip(cfg.begin.runs, cfg.begin.weights(), strict=True):
        sealed = (read_json(Path(folder) / "manifest.json") or {}).get("sealed_weights")
        if not sealed:
            raise ConfigError(f"begin.runs={folder!r}: no folder of a run that has trained weights")
        found.append((digest(sealed), float(alpha)))
    return found


def _algo_identity(cfg: Config) -> dict[str, Any]:
    algo, unused = cfg.algo, ("retain_weight", "interleave")
    found = {k: v for k, v in hashed(algo).items() if v is not None and v != {} and k not in unused}
    found |= {"retain_weight": algo.retain_weight} if algo.retain != "none" else {}
    found |= {"interleave": algo.interleave} if algo.interleave != "none" else {}
    found |= {"mean": "tokens"} if algo.forget == "ceu" else {}  # it was over answers: runs made so are others
    for key, file in (("file", algo.file), ("alternates", algo.alternates and algo.alternates.file)):
        if file is not None:  # what the file says, not where it lies
            found[key] = _content(file)
    return _as_hashed(found)


def _trainer_identity(cfg: Config) -> dict[str, Any]:
    t = cfg.trainer
    unused = {  # nothing is trained otherwise than it would be without the setting
        "stored_rows": t.stored_rows not in ROUGH_ROWS, "stored_rows_k": t.stored_rows != "topk",
        "precision": t.precision == "fp32", "epochs": t.steps is not None,
    }  # fmt: skip
    found = {k: v for k, v in hashed(t).items() if not unused.get(k)} | {"lr": learning_rate(cfg)}
    if t.keep == "best":  # then the points of the trajectory decide which weights are kept
        found |= {"eval_every": t.eval_every, "eval_examples": t.eval_examples}
    return found


def template(cfg: TemplateConfig) -> dict[str, Any]:
    """What a template changes: system message and date are a chat's only."""
    plain = {"prompt": cfg.prompt, "answer": cfg.answer}
    return plain if cfg.kind == "plain" else plain | {"kind": cfg.kind, "system": cfg.system, "date": cfg.date}


def _content(file: str | None) -> str | None:
    return None if file is None else sha256(Path(file))[:16]


def _pair_identity(cfg: Config, models: Collection[str]) -> dict[str, Any]:
    """What decides the weights of the target, and of those other models of the pair that take part."""
    pair, memo = cfg.pair, Path(cfg.paths.store) / "hashes"
    twin = _model_identity(pair.target, {"general"}, memo)
    remote = sources.is_remote(pair, "target")
    tokenizer: dict[str, Any] = {"kind": pair.tokenizer.kind}
    if pair.tokenizer.kind == "pretrained":
        tokenizer["source"] = sources.tokenizer_identity(sources.tokenizer_source(pair), memo)
    else:
        tokenizer |= {} if pair.tokenizer.kind == "words" else {"vocab_size": pair.tokenizer.vocab_size}
        tokenizer |= {"masks": True} if "t5" in (pair.target.architecture, pair.small.architecture) else {}
    identity: dict[str, Any] = {
        "seed": pair.seed, "batch_size": pair.batch_size, "warmup": pair.warmup,
        "tokenizer": tokenizer, "target": remote_identity(pair.target.http) if remote else twin,
    }  # fmt: skip
    if remote and "retrained" in models:
        identity["twin"] = twin
    roles = {sources.role(pair, m) for m in models} - {"target"}
    given = {r: source for r in roles if (source := sources.own_source(pair, r)) is not None}
    small = {r for r in roles - set(given) if r.startswith("small")}
    if small:
        unused = {"general"} - {r.removeprefix("small_") for r in small}
        unused |= {"finetune"} if small == {"small_general"} else set()
        identity["small"] = _model_identity(pair.small, unused, memo)
    elif pair.small.source is not None:  # of models that are padded to other widths, the narrowest cuts the others
        identity["small"] = {"source": sources.identity(pair.small, memo)}
    identity |= {"given": {r: sources.identity(source, memo) for r, source in given.items()}} if given else {}
    return identity | ({"offset_init": pair.offset_init} if "small" in models else {})


def remote_identity(http: HttpConfig) -> dict[str, Any]:
    """What decides the rows of a target behind a server, and not where that is or how it is asked. ``tail``: all other
    tokens share the mass that is left evenly; finished runs are known by it."""
    return {"kind": "http", "model": http.model, "revision": http.revision, "k": http.k, "tail": "even"}


def _model_identity(model: ModelConfig, unused: Collection[str], memo: Path) -> dict[str, Any]:
    """Size and stages of a model from scratch; or which pretrained model it is, and what else it learns."""
    settings = {k: v for k, v in hashed(model).items() if k not in unused}
    for key, plain in (("dtype", "float32"), ("quantisation", "none"), ("architecture", "llama"), ("texts", False)):
        if settings.get(key) == plain:
            settings.pop(key)
    if model.source is None:
        return settings
    stages = {k: v for k, v in settings.items() if isinstance(v, dict) and v["epochs"]}
    held = {k: settings[k] for k in ("dtype", "quantisation", "max_length", "texts") if k in settings}
    return {"source": sources.identity(model, memo), **stages, **held}


def run_folder(cfg: Config, data_fingerprint: str) -> Path:
    alpha = f"-a{cfg.alpha:g}" if cfg.method.train_alpha is None else ""
    learnt = f"{cfg.algo.name}-{cfg.method.name}{alpha}-s{cfg.seed}"
    name = learnt if is_trained(cfg) else cfg.method.name
    return Path(cfg.paths.runs) / cfg.study / f"{name}-{digest(run_identity(cfg, data_fingerprint), 10)}"


def metric_settings(cfg: Config) -> dict[str, Any]:
    """What metrics are computed, how, and on how many rows."""
    names = ("semantics", "groups", "max_examples", "max_new_tokens", "resamples")
    of_groups = [name for group in cfg.eval.groups for name in literal(group, "SETTINGS")]
    judge = {"judge": _content(cfg.eval.judge)} if cfg.eval.judge is not None else {}
    usual, more = ({name: getattr(cfg.eval, name) for name in each} for each in (names, of_groups))
    return {"metrics": METRICS_VERSION} | usual | judge | more


def eval_settings(cfg: Config, data_fingerprint: str) -> dict[str, Any]:
    """What an evaluated entry depends on beside the trained weights and α; equal settings mean an equal result."""
    retrained = ("retrained",) if cfg.eval.retrained is None else ()
    references = [data_fingerprint, _pair_identity(cfg, retrained), template(cfg.data.template)]
    if cfg.eval.retrained is not None:
        references.append(_content(cfg.eval.retrained) if cfg.eval.retrained != NO_RETRAINED else NO_RETRAINED)
    return metric_settings(cfg) | {"references": digest(references)}


@dataclass(frozen=True)
class Job:
    """One run that a call asks for."""

    cfg: Config
    folder: Path
    data: str  # fingerprint of its data set
    was_done: bool  # before the call
    number: int = 0  # among the call's jobs, from 1; 0: not listed

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What its evaluated entries depend on beside the trained weights and α."""
        return eval_settings(self.cfg, self.data)
