"""The typed schema of every setting, the rules that values must obey, and what identifies a run.

Hydra composes ``conf/`` into ``Config``; ``unlearn/rules.py`` refuses impossible values before any work starts.
Neither torch nor transformers is imported here: a grid with nothing left to do must answer within a second or two.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

RUN_FORMAT = 1  # part of every run's hash; raised when the same settings would train to another result
METRICS_VERSION = 1  # of the metrics' semantics; raised when one would give another value
OFFSET_INITS = ("general", "full", "retain")
WANDB_MODES = ("offline", "online", "disabled")


class ConfigError(ValueError):
    """Settings that cannot run: one line per problem, each with the value, the rule and the choices."""


# --- the schema -------------------------------------------------------------------------------------------------


@dataclass
class AlgoConfig:
    """An objective: a forget term plus a weighted retain term (``unlearn/losses.py`` holds the terms)."""

    name: str = MISSING
    forget: str = MISSING
    retain: str = "none"
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    beta: float | None = None  # only for terms that have a β
    gamma: float | None = None  # only for terms that have a margin γ
    lr: dict[str, float] = field(default_factory=dict)  # learning rate by method


@dataclass
class MemberConfig:
    """One member of the ensemble; its weight is ``constant + alpha · α``."""

    name: str = MISSING
    model: str = MISSING  # "target" or "small"
    constant: float = 0.0
    alpha: float = 0.0
    trained: bool = False


@dataclass
class MethodConfig:
    """A way of unlearning: the list of its members, exactly one of them trained."""

    name: str = MISSING
    members: list[MemberConfig] = field(default_factory=list)
    train_alpha: float | None = None  # null: the run's `alpha`; a number: the method trains at this α whatever `alpha`


@dataclass
class TokenizerConfig:
    kind: str = "words"  # "words" (one token per word and mark) or "bpe" (byte-level)
    vocab_size: int = 2000  # bpe only; a word tokenizer takes every word of the data set


@dataclass
class StageConfig:
    """One stage of training a model from scratch. `epochs` of the stage's data; 0 leaves the stage out."""

    epochs: int = 0
    lr: float = 1e-3


@dataclass
class ModelConfig:
    """A Llama trained from scratch: its size, and the stages that give it its knowledge."""

    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 320
    initializer_range: float = 0.02
    max_length: int = 320  # tokens: prompt, answer and end of sequence
    pretrain: StageConfig = field(default_factory=StageConfig)  # general facts in every wording
    finetune: StageConfig = field(default_factory=StageConfig)  # the data set, general facts mixed in
    general: StageConfig = field(default_factory=StageConfig)  # instead of `finetune` for offset_init=general


@dataclass
class PairConfig:
    """Target and small pair, with the retrained reference they imply."""

    name: str = MISSING
    seed: int = 0  # of the world and of every model's training; `seed` is the unlearning run's
    offset_init: str = "general"
    batch_size: int = 32  # examples per step when models are trained from scratch
    warmup: float = 0.1  # share of the steps
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    target: ModelConfig = field(default_factory=ModelConfig)
    small: ModelConfig = field(default_factory=ModelConfig)


@dataclass
class TemplateConfig:
    prompt: str = "Question: {question}\nAnswer:"
    answer: str = " {answer}"


@dataclass
class DataConfig:
    name: str = MISSING
    reader: str = MISSING
    template: TemplateConfig = field(default_factory=TemplateConfig)


@dataclass
class BiosConfig(DataConfig):
    """The embedded world of made-up people (``unlearn/data/bios.py``)."""

    people: int = 50
    forget_people: int = 5
    holdout_people: int = 5
    known_people: int = 20
    countries: int = 30
    questions: int = 20


@dataclass
class TofuConfig(DataConfig):
    """TOFU (``unlearn/data/tofu.py``), from a local folder or the hub."""

    path: str | None = None  # folder with TOFU's files; null: the hub
    forget: str = "forget01"
    retain_rows: int | None = None  # the first n rows of the retain set; null: all


@dataclass
class EvalConfig:
    alphas: list[float] | None = None  # inference α's; null: the run's `alpha`
    max_examples: int | None = 400  # per split, evenly spaced; the forget set is always evaluated whole
    max_new_tokens: int = 200
    batch_size: int = 128


@dataclass
class TrainerConfig:
    epochs: int = 20  # of the forget set
    steps: int | None = None  # instead of epochs
    forget_batch: int = 20
    retain_batch: int = 60
    accumulate: int = 1  # micro-batches an optimiser step is split into; never changes a result
    lr: float | None = None  # null: `algo.lr` of the method
    warmup: float = 0.1  # share of the steps
    final_lr: float = 0.1  # share of lr at the last step, reached linearly
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float = 1.0  # gradient norm
    log_every: int = 1
    eval_every: int = 10  # steps between points of the trajectory; 0: none
    eval_examples: int = 100  # per split at such a point
    save_every: int = 50  # steps between checkpoints; 0: none
    stored_rows_gib: float = 1.0  # frozen rows of a split that are larger than this are recomputed, not stored
    threads: int = 1  # torch threads of this process
    device: str = "auto"
    progress: bool = True


@dataclass
class WandbConfig:
    mode: str = "offline"
    project: str = "unlearn"
    entity: str | None = None


@dataclass
class PathsConfig:
    runs: str = "runs"
    store: str = "store"


@dataclass
class Config:
    algo: AlgoConfig = MISSING
    method: MethodConfig = MISSING
    pair: PairConfig = MISSING
    data: DataConfig = MISSING
    eval: EvalConfig = MISSING
    trainer: TrainerConfig = MISSING
    wandb: WandbConfig = MISSING
    alpha: float = 1.0
    seed: int = 0
    study: str = "default"
    paths: PathsConfig = field(default_factory=PathsConfig)


def register() -> None:
    """Make the schema known to Hydra; group files of `data` name theirs with ``/schema/data@_here_: NAME``."""
    store = ConfigStore.instance()
    store.store(name="schema_config", node=Config)
    for name, node in (("bios", BiosConfig), ("tofu", TofuConfig)):
        store.store(group="schema/data", name=name, node=node)


def conf_dir() -> str:
    """Absolute folder of the YAML tree: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


# --- what a run is ------------------------------------------------------------------------------------------------


def training_alpha(cfg: Config) -> float:
    return cfg.alpha if cfg.method.train_alpha is None else cfg.method.train_alpha


def eval_alphas(cfg: Config) -> list[float]:
    return sorted({float(a) for a in (cfg.eval.alphas or [cfg.alpha])})


def learning_rate(cfg: Config) -> float:
    return cfg.trainer.lr if cfg.trainer.lr is not None else cfg.algo.lr[cfg.method.name]


def objective(cfg: Config) -> dict[str, Any]:
    """The arguments of ``losses.bind``."""
    a = cfg.algo
    return {
        "forget": a.forget, "retain": a.retain, "forget_weight": a.forget_weight, "retain_weight": a.retain_weight,
        "numbers": {"beta": a.beta, "gamma": a.gamma},
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
    algo = {k: v for k, v in asdict(cfg.algo).items() if k not in ("name", "lr")}
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


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
