"""The typed schema of every setting.

Hydra composes ``conf/`` into ``Config``; ``unlearn/rules.py`` refuses impossible values before any work starts.
Neither torch nor transformers is imported here: a grid with nothing left to do must answer within a second or two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

NUMBERS = ("beta", "gamma", "beta1", "beta2")  # settings of an objective that only some terms have
OFFSET_INITS = ("general", "full", "retain")
MODELS = ("target", "small", "small_general", "small_full", "small_retain")  # what a member may be
TUNINGS = ("full", "lora")
KEEP = ("last", "best")
WANDB_MODES = ("offline", "online", "disabled")


class ConfigError(ValueError):
    """Settings that cannot run: one line per problem, each with the value, the rule and the choices."""


# --- the schema -------------------------------------------------------------------------------------------------


@dataclass
class MemberConfig:
    """One member of the ensemble; its weight is ``constant + alpha · α``."""

    name: str = MISSING
    model: str = MISSING  # one of MODELS; "small" knows what pair.offset_init says, the others what their name says
    constant: float = 0.0
    alpha: float = 0.0
    trained: bool = False


@dataclass
class TeacherConfig:
    """An ensemble of frozen members that `distill` learns from."""

    alpha: float = 1.0
    members: list[MemberConfig] = field(default_factory=list)


@dataclass
class DualConfig:
    """The retain weight as a dual variable: λ ← max(0, λ + lr · (retain term − bound)), once per step."""

    bound: float = MISSING  # ε: what the retain term may be
    lr: float = 1.0
    warmup: int = 0  # epochs before the first update; until then λ is `retain_weight`


@dataclass
class AlternatesConfig:
    """Other answers to the forget questions: read from a file, or sampled from the target."""

    file: str | None = None  # JSON lines {"question": …, "answer": …}; null: sampled from the target
    count: int = 5  # samples per question
    temperature: float = 1.0  # of the first round; raised for questions that still lack other answers


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
    beta1: float | None = None  # only for satimp
    beta2: float | None = None
    numbers: dict[str, float] = field(default_factory=dict)  # other numbers of the terms, by their parameter's name
    file: str | None = None  # a Python file of your own with terms; relative to the working directory
    lr: dict[str, float] = field(default_factory=dict)  # learning rate by method
    reversed: bool = False  # teaches the forget set instead of removing it: for methods that subtract what was learnt
    white_box: bool = False  # reads hidden states of the model that is to forget
    teacher: TeacherConfig | None = None  # only for `distill`
    dual: DualConfig | None = None  # null: the retain weight is constant
    alternates: AlternatesConfig | None = None  # only for terms that read `alternate`


@dataclass
class MethodConfig:
    """A way of unlearning: the list of its members, at most one of them trained, and the rule that joins them."""

    name: str = MISSING
    members: list[MemberConfig] = field(default_factory=list)
    train_alpha: float | None = None  # null: the run's `alpha`; a number: the method trains at this α whatever `alpha`
    alone: bool = (
        False  # the trained member learns on its own softmax, its frozen start as reference, and is then added
    )
    reversed: bool = False  # takes objectives that are reversed, and no others
    rule: str = "sum"  # (unlearn/combination.py) sum | plausible | rank, or a function of `file`
    numbers: dict[str, float] = field(default_factory=dict)  # of the rule, by its parameter's name
    file: str | None = None  # a Python file of your own with a rule; relative to the working directory


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
class LoraConfig:
    """Low-rank updates of every linear layer but the head (peft); merged into the weights when training ends."""

    rank: int = 8
    alpha: float = 16.0  # updates are scaled by alpha / rank
    dropout: float = 0.0
    lr_factor: float = 10.0  # the learning rate is `algo.lr` times this


@dataclass
class PairConfig:
    """Target and small pair, with the retrained reference they imply."""

    name: str = MISSING
    seed: int = 0  # of the world and of every model's training; `seed` is the unlearning run's
    offset_init: str = "general"
    tuning: str = "full"  # of the trained member: all its weights, or LoRA
    lora: LoraConfig = field(default_factory=LoraConfig)
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
    held_out: float = 0.1  # share of the retain set that no step sees: for choosing α and checkpoints
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
    keep: str = "last"  # weights that the run keeps: of the last step, or "best" by the rule of unlearn/collapse.py
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


DATA_CONFIGS = {"bios": BiosConfig, "tofu": TofuConfig}  # by the name of their reader


def register() -> None:
    """Make the schema known to Hydra; group files of `data` name theirs with ``/schema/data@_here_: NAME``."""
    store = ConfigStore.instance()
    store.store(name="schema_config", node=Config)
    for name, node in DATA_CONFIGS.items():
        store.store(group="schema/data", name=name, node=node)


def conf_dir() -> str:
    """Absolute folder of the YAML tree: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
