"""The typed schema of every setting.

Hydra composes ``conf/`` into ``Config``; ``unlearn/grid/rules.py`` refuses impossible values before any work starts.
Neither torch nor transformers is imported here: a grid with nothing left to do must answer within a second or two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from unlearn.config.data import DATA_CONFIGS, DataConfig
from unlearn.config.pair import PairConfig
from unlearn.config.redaction import redact

NUMBERS = ("beta", "gamma", "beta1", "beta2")  # settings of an objective that only some terms have
MODELS = ("target", "small", "small_general", "small_full", "small_retain")  # what a member may be
KEEP = ("last", "best")
RETRY = ("all", "failed")  # of a grid's runs that are not done
ROUGH_ROWS = ("fp16", "topk")  # of the target alone
STORED_ROWS = ("auto", "fp32", "hidden", *ROUGH_ROWS)
PRECISIONS = ("fp32", "bf16")
INTERLEAVE = ("none", "epochs")
WANDB_MODES = ("offline", "online", "disabled")


class ConfigError(ValueError):
    """Settings that cannot run: one line per problem, each with the value, the rule and the choices."""

    def __init__(self, message: str):
        super().__init__(redact(message))


# --- the schema -------------------------------------------------------------------------------------------------


@dataclass
class MemberConfig:
    """One member of the ensemble; its weight is ``constant + slope · α``."""

    name: str = MISSING
    model: str = MISSING  # one of MODELS; "small" knows what pair.offset_init says, the others what their name says
    constant: float = 0.0
    slope: float = 0.0
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
    """An objective: a forget term plus a weighted retain term (``unlearn/learning/losses.py`` holds the terms)."""

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
    alternates: AlternatesConfig | None = None  # only for terms that read `alternates`
    # epochs: first an epoch of the retain set, then one of the forget set, and so on; none: every step reads both
    interleave: str = "none"


@dataclass
class MethodConfig:
    """A way of unlearning: the list of its members, at most one of them trained, and the rule that joins them."""

    name: str = MISSING
    members: list[MemberConfig] = field(default_factory=list)
    train_alpha: float | None = None  # null: the run's `alpha`; a number: the method trains at this α whatever `alpha`
    tuning: str | None = None  # of the trained member, whatever pair.tuning says; null: as that says
    rate_of: str | None = None  # another method: its learning rates (× the tuning's factor) where algo.lr has no own
    alone: bool = (
        False  # the trained member learns on its own softmax, its frozen start as reference, and is then added
    )
    reversed: bool = False  # takes objectives that are reversed, and no others
    rule: str = "sum"  # (unlearn/ensemble/combination.py) sum | plausible | rank, or a function of `file`
    numbers: dict[str, float] = field(default_factory=dict)  # of the rule, by its parameter's name
    file: str | None = None  # a Python file of your own with a rule; relative to the working directory


@dataclass
class EvalConfig:
    alphas: list[float] | None = None  # inference α's; null: the run's `alpha`
    semantics: str = "default"  # default | ou | tofu (unlearn/evaluation/metrics/semantics.py)
    retrained: str | None = None  # null: the pair's retrained model; a result file of one; "none": compare with nothing
    groups: list[str] = field(
        default_factory=list
    )  # metrics beside the core, by the names in unlearn/evaluation/groups/
    max_examples: int | None = 400  # per split, evenly spaced; the forget set is always evaluated whole
    max_new_tokens: int = 200
    leak_samples: int = 20  # answers drawn for each forget question (group leak)
    leak_temperature: float = 1.0
    leak_threshold: float = 0.5  # ROUGE-L recall above which a drawn answer counts as leaked
    judge: str | None = None  # a Python file of your own with judge(question, gold, answer) → 0 … 1 (group leak)
    prefix_shares: list[float] = field(default_factory=lambda: [0.25, 0.5])  # of the answer, given (group prefix)
    contrast_weights: list[float] = field(default_factory=lambda: [1.0, 2.0])  # of target − unlearned (group contrast)
    relearn_steps: int = 20  # the attacker's budget (group relearn)
    relearn_batch: int = 10
    relearn_lr: float = 1e-3
    resamples: int = 1000  # of the items, for 95 % intervals beside every aggregate; 0: none
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
    keep: str = (
        "last"  # weights that the run keeps: of the last step, or "best" by the rule of unlearn/runs/trajectory.py
    )
    save_every: int = 50  # steps between checkpoints; 0: none
    precision: str = "fp32"  # of the arithmetic; bf16: autocast. Weights that learn, and all evaluation, stay fp32
    compile: bool = False  # torch.compile of the trained member
    stored_rows: str = "auto"  # exact: fp32 logits, hidden states, auto: the first while small; target's: fp16, topk
    stored_rows_k: int = 100  # tokens of a row of topk
    stored_rows_gib: float = 4.0  # of one model over one split, and what becomes of more:
    stored_rows_over: str = "live"  # live: computed when needed; refuse: training that needs more does not start
    threads: int = 1  # torch threads of this process
    device: str = "auto"
    progress: bool = True


@dataclass
class BeginConfig:
    """Where the trained member begins: at its frozen start plus what earlier runs of the same pair changed of it."""

    runs: list[str] | None = None  # their folders; with trainer.steps=0 the run is their sum and nothing is trained
    alphas: list[float] | None = None  # weights of their changes; null: 1 each
    ridge: float = 1e-6  # of runs with unlearning layers, which are fused in closed form (unlearn/runs/begin.py)

    def weights(self) -> list[float]:
        return [1.0] * len(self.runs) if self.alphas is None else self.alphas


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
    begin: BeginConfig = field(default_factory=BeginConfig)
    wandb: WandbConfig = MISSING
    alpha: float = 1.0
    seed: int = 0
    study: str = "default"
    retry: str = "all"  # failed: only runs that failed, were stopped or killed; those never begun stay so
    paths: PathsConfig = field(default_factory=PathsConfig)


def _the_store(memo: dict) -> ConfigStore:
    """A copy of Hydra's config store: the store itself.

    Hydra copies its whole loader, the store in it, for every job, and 100 times for ``--help``, which takes half of its
    time. What is loaded from the store is copied on its way out.
    """
    return ConfigStore.instance()


def register() -> None:
    """Make the schema known to Hydra; group files of `data` name theirs with ``/schema/data@_here_: NAME``."""
    store = ConfigStore.instance()
    store.__deepcopy__ = _the_store
    store.store(name="schema_config", node=Config)
    for name, node in DATA_CONFIGS.items():
        store.store(group="schema/data", name=name, node=node)


def conf_dir() -> str:
    """Absolute folder of the YAML tree: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
