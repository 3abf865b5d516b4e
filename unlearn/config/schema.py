"""The typed schema of every setting, each with its bounds (``unlearn/config/setting.py``).

Hydra composes ``conf/`` into ``Config``; ``unlearn/grid/rules.py`` refuses impossible values before any work starts.
Neither torch nor transformers is imported here: a grid with nothing left to do must answer within a second or two.
"""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from unlearn.config.data import DataConfig
from unlearn.config.groups import GROUPS
from unlearn.config.pair import TUNINGS, PairConfig
from unlearn.config.redaction import redact
from unlearn.config.setting import (
    A_FILE,
    A_NAME,
    BELOW_ONE,
    FINITE,
    SEED,
    SHARE,
    Bound,
    above,
    at_least,
    at_most,
    finite,
    one_of,
    setting,
    some,
)

NUMBERS = ("beta", "gamma", "beta1", "beta2")  # settings of an objective that only some terms have
MODELS = ("target", "small", "small_general", "small_full", "small_retain")  # what a member may be
ROUGH_ROWS = ("fp16", "topk")  # of the target alone
STORED_ROWS = ("auto", "fp32", "hidden", *ROUGH_ROWS)
NO_RETRAINED = "none"  # eval.retrained: forget quality and all that compares with a retrained model is left out

A_PATH = Bound(lambda v: v != "" and "\0" not in v, "must be the path of a folder")
A_RUN = Bound(lambda v: (Path(v) / "manifest.json").is_file(), lambda: f"not the folder of a run in {Path.cwd()}")
DIFFERENT_RUNS = Bound(lambda v: 0 < len(v) == len(set(v)), "must be different run folders", whole=True)
FILE_OR_NONE = Bound(lambda v: v == NO_RETRAINED or A_FILE.holds(v), A_FILE.words)


class ConfigError(ValueError):
    """Settings that cannot run: one line per problem, each with the value, the rule and the choices."""

    def __init__(self, message: str):
        super().__init__(redact(message))


# --- the schema -------------------------------------------------------------------------------------------------


@dataclass
class MemberConfig:
    """One member of the ensemble; its weight is ``constant + slope · α``."""

    name: str = MISSING
    model: str = setting(MISSING, one_of(*MODELS))  # "small" knows what pair.offset_init says, others what they are
    constant: float = setting(0.0, FINITE)
    slope: float = setting(0.0, FINITE)
    trained: bool = False


@dataclass
class TeacherConfig:
    """An ensemble of frozen members that `distill` learns from."""

    alpha: float = setting(1.0, FINITE)
    members: list[MemberConfig] = field(default_factory=list)


@dataclass
class DualConfig:
    """The retain weight as a dual variable: λ ← max(0, λ + lr · (retain term − bound)), once per step."""

    bound: float = setting(MISSING, at_least(0))  # ε: what the retain term may be
    lr: float = setting(1.0, above(0))
    warmup: int = setting(0, at_least(0))  # epochs before the first update; until then λ is `retain_weight`


@dataclass
class AlternatesConfig:
    """Other answers to the forget questions: read from a file, or sampled from the target."""

    file: str | None = setting(None, A_FILE)  # JSON lines {"question": …, "answer": …}; null: sampled from the target
    count: int = setting(5, at_least(1))  # samples per question
    temperature: float = setting(1.0, above(0))  # of the first round; raised for questions that lack other answers


@dataclass
class AlgoConfig:
    """An objective: a forget term plus a weighted retain term (``unlearn/learning/losses.py`` holds the terms)."""

    name: str = setting(MISSING, A_NAME, hashed=False)
    forget: str = MISSING
    retain: str = "none"
    forget_weight: float = setting(1.0, at_least(0))
    retain_weight: float = setting(1.0, at_least(0))
    beta: float | None = setting(None, above(0))  # only for terms that have a β
    gamma: float | None = setting(None, at_least(0))  # only for terms that have a margin γ
    beta1: float | None = setting(None, at_least(0))  # only for satimp
    beta2: float | None = setting(None, at_least(0))
    numbers: dict[str, float] = setting({}, FINITE)  # other numbers of the terms, by their parameter's name
    # a Python file of your own with terms; relative to the working directory. Its content is hashed
    file: str | None = setting(None, A_FILE, hashed=False)
    lr: dict[str, float] = setting({}, above(0), hashed=False)  # learning rate by method, of models trained here
    # of low-rank updates of pretrained models, by method (experiments/real/rates); there is no other rate for those
    lr_pretrained: dict[str, float] = setting({}, above(0), hashed=False)
    # teaches the forget set instead of removing it: for methods that subtract what was learnt
    reversed: bool = setting(False, hashed=False)
    white_box: bool = setting(False, hashed=False)  # reads hidden states of the model that is to forget
    teacher: TeacherConfig | None = None  # only for `distill`
    dual: DualConfig | None = None  # null: the retain weight is constant
    alternates: AlternatesConfig | None = None  # only for terms that read `alternates`
    # epochs: first an epoch of the retain set, then one of the forget set, and so on; none: every step reads both
    interleave: str = setting("none", one_of("none", "epochs"))


@dataclass
class MethodConfig:
    """A way of unlearning: the list of its members, at most one of them trained, and the rule that joins them."""

    name: str = setting(MISSING, A_NAME)
    members: list[MemberConfig] = field(default_factory=list)
    # null: the run's `alpha`; a number: the method trains at this α whatever `alpha`
    train_alpha: float | None = setting(None, finite("must be a finite number, or null for the run's alpha"))
    # of the trained member, whatever pair.tuning says; null: as that says
    tuning: str | None = setting(None, one_of(*TUNINGS))
    rate_of: str | None = None  # another method: its learning rates (× the tuning's factor) where algo.lr has no own
    # the trained member learns on its own softmax, its frozen start as reference, and is then added
    alone: bool = False
    reversed: bool = False  # takes objectives that are reversed, and no others
    rule: str = "sum"  # (unlearn/ensemble/combination.py) sum | plausible | rank, or a function of `file`
    numbers: dict[str, float] = setting({}, FINITE)  # of the rule, by its parameter's name
    file: str | None = setting(None, A_FILE)  # a Python file of your own with a rule; relative to the working directory


@dataclass
class EvalConfig:
    # inference α's; null: the run's `alpha`
    alphas: list[float] | None = setting(None, some("must hold at least one α, e.g. [0,0.5,1]"), FINITE)
    # dialect of the metrics (unlearn/evaluation/metrics/semantics.py)
    semantics: str = setting("default", one_of("default", "ou", "tofu"))
    # null: the pair's retrained model; a result file of one; "none": compare with nothing
    retrained: str | None = setting(None, FILE_OR_NONE)
    groups: list[str] = setting([], one_of(*GROUPS))  # metrics beside the core
    # per split, evenly spaced, of the forget set, too; null: all
    max_examples: int | None = setting(400, at_least(1))
    max_new_tokens: int = setting(200, at_least(1))
    leak_samples: int = setting(20, at_least(1))  # answers drawn for each forget question (group leak)
    leak_temperature: float = setting(1.0, above(0))
    leak_threshold: float = setting(0.5, SHARE)  # ROUGE-L recall above which a drawn answer counts as leaked
    # a Python file of your own with judge(question, gold, answer) → 0 … 1 (group leak)
    judge: str | None = setting(None, A_FILE)
    prefix_shares: list[float] = setting([0.25, 0.5], BELOW_ONE)  # of the answer, given (group prefix)
    contrast_weights: list[float] = setting([1.0, 2.0])  # of target − unlearned (group contrast)
    relearn_steps: int = setting(20, at_least(1))  # the attacker's budget (group relearn)
    relearn_batch: int = setting(10, at_least(1))
    relearn_lr: float = setting(1e-3, above(0))
    resamples: int = setting(1000, at_least(0))  # of people, for 95 % intervals beside every aggregate; 0: none
    batch_size: int = setting(128, at_least(1))


@dataclass
class TrainerConfig:
    epochs: int = setting(20, at_least(1))  # of the forget set
    steps: int | None = setting(None, at_least(0))  # instead of epochs; 0 only where a run begins from others (begin)
    forget_batch: int = setting(20, at_least(1))
    retain_batch: int = setting(60, at_least(1))
    held_out: float = setting(0.1, BELOW_ONE)  # share of the retain set that no step sees: to choose α and checkpoints
    # micro-batches an optimiser step is split into; null: as memory asks (CPU: unlearn/models/placement.py)
    accumulate: int | None = setting(None, at_least(1), hashed=False)
    lr: float | None = setting(None, above(0), hashed=False)  # null: `algo.lr` of the method; hashed with it
    warmup: float = setting(0.1, SHARE)  # share of the steps
    final_lr: float = setting(0.1, SHARE)  # share of lr at the last step, reached linearly
    weight_decay: float = setting(0.01, at_least(0))
    beta1: float = setting(0.9, BELOW_ONE)
    beta2: float = setting(0.99, BELOW_ONE)
    clip: float = setting(1.0, above(0))  # gradient norm
    log_every: int = setting(1, at_least(1), hashed=False)
    eval_every: int = setting(10, at_least(0), hashed=False)  # steps between points of the trajectory; 0: none
    eval_examples: int = setting(100, at_least(1), hashed=False)  # per split at such a point
    # weights that the run keeps: of the last step, or "best" by the rule of unlearn/runs/trajectory.py
    keep: str = setting("last", one_of("last", "best"))
    save_every: int = setting(50, at_least(0), hashed=False)  # steps between checkpoints; 0: none
    # of the arithmetic; bf16: autocast. Weights that learn, and all evaluation, stay fp32
    precision: str = setting("fp32", one_of("fp32", "bf16"))
    compile: bool = setting(False, hashed=False)  # torch.compile of the trained member
    # its blocks are computed again in the backward pass instead of kept: less memory, more time, the same result (of T5
    # but for rounding)
    checkpointing: bool = setting(False, hashed=False)
    # exact: fp32 logits, hidden states, auto: the first while small; target's: fp16, topk
    stored_rows: str = setting("auto", one_of(*STORED_ROWS))
    stored_rows_k: int = setting(100, at_least(1))  # tokens of a row of topk
    # of one model over one split, and what becomes of more:
    stored_rows_gib: float = setting(4.0, at_least(0), hashed=False)
    # live: computed when needed; refuse: training that needs more does not start
    stored_rows_over: str = setting("live", one_of("live", "refuse"), hashed=False)
    threads: int = setting(1, at_least(1), at_most(1024), hashed=False)  # torch threads of this process
    device: str = setting("auto", one_of("auto", "cpu", "cuda"), hashed=False)
    progress: bool = setting(True, hashed=False)


@dataclass
class BeginConfig:
    """Where the trained member begins: at its frozen start plus what earlier runs of the same pair changed of it."""

    # folders of runs; with trainer.steps=0 the run is their fusion and nothing is trained
    runs: list[str] | None = setting(None, DIFFERENT_RUNS, A_RUN)
    # how they become one (unlearn/runs/learner.py); null: regmean of unlearning layers, else sum
    how: str | None = setting(None, one_of("regmean", "average", "sum"))
    alphas: list[float] | None = setting(None, FINITE)  # of sum: weights of their changes; null: 1 each
    # of regmean: a pull towards the average, as a share of the mean diagonal
    ridge: float = setting(1e-6, at_least(0))

    def fusion(self, layered: bool) -> str:
        """How the runs become one, with or without unlearning layers."""
        return self.how or ("regmean" if layered else "sum")

    def weights(self) -> list[float]:
        return [1.0] * len(self.runs) if self.alphas is None else self.alphas


@dataclass
class WandbConfig:
    mode: str = setting("offline", one_of("offline", "online", "disabled"))
    project: str = "unlearn"
    entity: str | None = None


@dataclass
class PathsConfig:
    runs: str = setting("runs", A_PATH)
    store: str = setting("store", A_PATH)


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
    alpha: float = setting(1.0, finite("must be a finite number, e.g. 0.5, 1 or 2"))
    seed: int = setting(0, SEED)
    study: str = setting("default", A_NAME)
    # of a grid's runs that are not done: all, or only those that failed, were stopped or killed (not those never begun)
    retry: str = setting("all", one_of("all", "failed"))
    paths: PathsConfig = field(default_factory=PathsConfig)


def conf_dir() -> str:
    """Absolute folder of the YAML tree: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def help_text() -> str:
    """What ``--help`` of a grid prints: conf/help.txt with the choices of every group.

    Not by Hydra, which would compose a config and copy all that it knows a hundred times for it.
    """
    root, choices = Path(conf_dir()), {}
    for path in sorted(root.glob("*/*.yaml")):
        choices.setdefault(path.parent.name, []).append(path.stem)
    lines = "\n".join(f"{group}: {', '.join(names)}" for group, names in choices.items())
    return (root / "help.txt").read_text("utf-8").replace("$CHOICES", lines)
