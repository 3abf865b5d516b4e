"""What a run is: the settings that identify it, its folder, and the names by which tables and logs know it.

Two hashes matter. ``run_identity`` covers everything that changes the trained weights and nothing else; it names the
folder. ``eval_settings`` covers what an evaluated entry depends on beside those weights and α; it is stored in each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unlearn.config import NUMBERS, Config

RUN_FORMAT = 1  # part of every run's hash; raised when the same settings would train to another result
METRICS_VERSION = 1  # of the metrics' semantics; raised when one would give another value


def training_alpha(cfg: Config) -> float:
    return cfg.alpha if cfg.method.train_alpha is None else cfg.method.train_alpha


def eval_alphas(cfg: Config) -> list[float]:
    return sorted({float(a) for a in (cfg.eval.alphas or [cfg.alpha])})


def learning_rate(cfg: Config) -> float:
    return cfg.trainer.lr if cfg.trainer.lr is not None else cfg.algo.lr[cfg.method.name]


def objective(cfg: Config) -> dict[str, Any]:
    """The arguments of ``binding.bind``."""
    a = cfg.algo
    return {
        "forget": a.forget, "retain": a.retain, "forget_weight": a.forget_weight, "retain_weight": a.retain_weight,
        "numbers": {name: getattr(a, name) for name in NUMBERS} | a.numbers, "file": a.file,
    }  # fmt: skip


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config with dotted keys, as W&B shows it and tables name columns."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


_NAMED = ("algo.name", "method.name", "pair.name", "data.name", "alpha")


def distinguishing(flats: Sequence[dict[str, Any]]) -> list[str]:
    """Training settings in which runs differ that share objective, method, pair, data and α: a sweep's other axes."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for flat in flats:
        groups.setdefault(repr([flat.get(k) for k in _NAMED]), []).append(flat)
    keys = [k for k in dict.fromkeys(k for f in flats for k in f) if not k.startswith(("eval.", "wandb.", "paths."))]
    keys = [k for k in keys if k not in ("study", *(f"trainer.{name}" for name in _UNTRAINED if name != "lr"))]
    return [k for k in keys if any(len({repr(f.get(k)) for f in group}) > 1 for group in groups.values())]


def digest(value: Any, length: int = 16) -> str:
    """Hash of anything JSON can hold; equal values have equal digests on every machine and in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


_UNTRAINED = (
    "lr",
    "accumulate",
    "log_every",
    "eval_every",
    "eval_examples",
    "save_every",
    "stored_rows_gib",
    "threads",
    "device",
    "progress",
)


def run_identity(cfg: Config, data_fingerprint: str) -> dict[str, Any]:
    """Everything that changes the trained weights, and nothing else (so: no names, paths, evaluation or logging)."""
    algo = {k: v for k, v in asdict(cfg.algo).items() if k not in ("name", "lr", "file") and v not in (None, {})}
    if cfg.algo.file is not None:  # what the file says, not where it lies
        algo["file"] = hashlib.sha256(Path(cfg.algo.file).read_bytes()).hexdigest()[:16]
    trainer = {k: v for k, v in asdict(cfg.trainer).items() if k not in _UNTRAINED}
    if cfg.algo.retain == "none":
        algo.pop("retain_weight")
    if cfg.trainer.steps is not None:
        trainer.pop("epochs")
    return {
        "format": RUN_FORMAT,
        "algo": algo,
        "members": [asdict(m) for m in cfg.method.members],
        "alpha": training_alpha(cfg),
        "pair": _pair_identity(cfg, small=any(m.model == "small" for m in cfg.method.members)),
        "data": data_fingerprint,
        "template": asdict(cfg.data.template),
        "trainer": trainer | {"lr": learning_rate(cfg)},
        "seed": cfg.seed,
    }


def _pair_identity(cfg: Config, small: bool) -> dict[str, Any]:
    """What decides the weights of the target (and of the small pair, where it counts)."""
    pair = {k: v for k, v in asdict(cfg.pair).items() if k not in ("name", "small", "offset_init")}
    pair["target"] = {k: v for k, v in pair["target"].items() if k != "general"}
    if cfg.pair.tokenizer.kind == "words":
        pair["tokenizer"] = {"kind": "words"}
    if small:
        unused = "finetune" if cfg.pair.offset_init == "general" else "general"
        size = {k: v for k, v in asdict(cfg.pair.small).items() if k != unused}
        pair |= {"small": size, "offset_init": cfg.pair.offset_init}
    return pair


def run_folder(cfg: Config, data_fingerprint: str) -> Path:
    alpha = f"-a{cfg.alpha:g}" if cfg.method.train_alpha is None else ""
    name = f"{cfg.algo.name}-{cfg.method.name}{alpha}-s{cfg.seed}"
    return Path(cfg.paths.runs) / cfg.study / f"{name}-{digest(run_identity(cfg, data_fingerprint), 10)}"


def alpha_key(alpha: float) -> str:
    """The name of an α in eval.json: 1 → "1.0"."""
    return str(float(alpha))


def describe(cfg: Config) -> dict[str, Any]:
    """The choices that name a run in tables."""
    return {
        "study": cfg.study, "algo": cfg.algo.name, "method": cfg.method.name, "pair": cfg.pair.name,
        "data": cfg.data.name, "alpha": training_alpha(cfg), "seed": cfg.seed, "pair_seed": cfg.pair.seed,
    }  # fmt: skip


def eval_settings(cfg: Config, data_fingerprint: str) -> dict[str, Any]:
    """What an evaluated entry depends on beside the trained weights and α; equal settings mean an equal result."""
    return {
        "metrics": METRICS_VERSION,
        "max_examples": cfg.eval.max_examples,
        "max_new_tokens": cfg.eval.max_new_tokens,
        "references": digest([data_fingerprint, _pair_identity(cfg, small=False), asdict(cfg.data.template)]),
    }


@dataclass(frozen=True)
class Job:
    """One run that a call asks for."""

    cfg: Config
    folder: Path
    data: str  # fingerprint of its data set
    was_done: bool  # before the call
