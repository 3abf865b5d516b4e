"""The typed schema of every setting, each with its bounds (``unlearn/config/setting.py``).

Hydra composes ``conf/`` into ``Config``; ``unlearn/grid/rules.py`` refuses impossible values before any work starts.
Neither torch nor transformers is imported here: a grid with nothing left to do must answer within a second or two.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
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


def raise_for(problems: Iterable[str]) -> None:
    """Raise ``ConfigError`` with all problems, if there is any."""
    if found := list(problems):
        raise ConfigError("\n".join(found))


def unknown(key: str, names: Iterable[str]) -> str:
    """The message for a key that is not there, e.g. ``data.forgett``: the nearest that is, and all others."""
    names = [*names]
    near = get_close_matches(key.split("=")[0].rpartition(".")[2], names, 1)
    said = f"unknown key, nearest is {near[0]}" if near else "unknown key"
    return f"{key}: {said}; known keys here: {', '.join(names)}"


def reason(error: BaseException) -> str:
    """The first line of what an error of a library says, or else its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- the schema -------------------------------------------------------------------------------------------------


@dataclass
class MemberConfig:
    """One member of the ensemble; its weight is ``constant + slope · α``, and ``watch`` in what its rule watches."""

    name: str = MISSING
    model: str = setting(MISSING, one_of(*MODELS))  # "small" knows what pair.offset_init says, others what they are
    constant: float = setting(0.0, FINITE)
    slope: float = setting(0.0, FINITE)
    watch: float = setting(0.0, FINITE)  # for a rule that takes `watched`: defer
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
class NearConfig:
    """Forget questions with words exchanged, answered by the target, as further retain data."""

    per: int = setting(10, at_least(1))  # near questions to each forget question
    share: float = setting(0.4, SHARE)  # of its words that are exchanged, each by chance


@dataclass
class AlgoConfig:
    """An objective: a forget term plus a weighted retain term (``unlearn/learning/losses.py`` holds the terms)."""

    name: str = setting(MISSING, A_NAME, hashed=False)
    forget: str = MISSING  # a term
    retain: str = "none"  # a term, or none
    forget_weight: float = setting(1.0, at_least(0))
    retain_weight: float = setting(1.0, at_least(0))
    beta: float | None = setting(None, above(0))  # only for terms that have a β
    gamma: float | None = setting(None, at_least(0))  # only for terms that have a margin γ
    beta1: float | None = setting(None, at_least(0))  # only for satimp
    beta2: float | None = setting(None, at_least(0))
    numbers: dict[str, float] = setting({}, FINITE)  # other numbers of the terms, by their parameter's name
    file: str | None = setting(None, A_FILE, hashed=False)  # your own terms, a Python file; its content is hashed
    lr: dict[str, float] = setting({}, above(0), hashed=False)  # learning rate by method, of models trained here
    lr_pretrained: dict[str, float] = setting({}, above(0), hashed=False)  # of low-rank updates of pretrained models
    reversed: bool = setting(False, hashed=False)  # teaches the forget set: for methods that subtract what was learnt
    white_box: bool = setting(False, hashed=False)  # reads hidden states of the model that is to forget
    teacher: TeacherConfig | None = None  # only for `distill`
    dual: DualConfig | None = None  # null: the retain weight is constant
    alternates: AlternatesConfig | None = None  # only for terms that read `alternates`
    near: NearConfig | None = None  # null: the retain term reads the retain set alone
    interleave: str = setting("none", one_of("none", "epochs"))  # epochs: of retain and forget set in turn; none: both


@dataclass
class MethodConfig:
    """A way of unlearning: the list of its members, at most one of them trained, and the rule that joins them."""

    name: str = setting(MISSING, A_NAME)
    members: list[MemberConfig] = field(default_factory=list)
    train_alpha: float | None = setting(None, FINITE)  # null: the run's `alpha`; else trained at this α
    tuning: str | None = setting(None, one_of(*TUNINGS))  # of the trained member; null: as pair.tuning says
    rate_of: str | None = None  # another method: its learning rates (× the tuning's factor) where algo.lr has no own
    alone: bool = False  # the trained member learns by itself, its frozen start as reference, and is then added
    reversed: bool = False  # takes objectives that are reversed, and no others
    rule: str = "sum"  # sum | plausible | rank | threshold | defer (ensemble/combination.py), or a function of `file`
    numbers: dict[str, float] = setting({}, FINITE)  # of the rule, by its parameter's name
    file: str | None = setting(None, A_FILE)  # a Python file of your own with a rule; relative to the working directory


@dataclass
class EvalConfig:
    alphas: list[float] | None = setting(None, some("must hold at least one α"), FINITE)  # null: the run's `alpha`
    semantics: str = setting("default", one_of("default", "ou", "tofu"))  # dialect of metrics (metrics/semantics.py)
    retrained: str | None = setting(None, FILE_OR_NONE)  # null: the pair's model; a result file; none: no comparison
    groups: list[str] = setting([], one_of(*GROUPS))  # metrics beside the core
    max_examples: int | None = setting(400, at_least(1))  # per split, evenly spaced, of the forget set, too; null: all
    max_new_tokens: int = setting(200, at_least(1))
    leak_samples: int = setting(20, at_least(1))  # answers drawn for each forget question (group leak)
    leak_temperature: float = setting(1.0, above(0))
    leak_threshold: float = setting(0.5, SHARE)  # ROUGE-L recall above which a drawn answer counts as leaked
    judge: str | None = setting(None, A_FILE)  # your own judge(question, gold, answer) → 0 … 1, a Python file (leak)
    prefix_shares: list[float] = setting([0.25, 0.5], BELOW_ONE)  # of the answer, given (group prefix)
    contrast_weights: list[float] = setting([1.0, 2.0])  # of target − unlearned (group contrast)
    relearn_steps: int = setting(20, at_least(1))  # the attacker's budget (group relearn)
    relearn_batch: int = setting(10, at_least(1))
    relearn_lr: float = setting(1e-3, above(0))
    artefact_betas: list[float] = setting(
        [-4.0, -2.0, -1.0, -0.5, 0.5, 2.0, 4.0], FINITE
    )  # along a pair (group artefact)
    resamples: int = setting(1000, at_least(0))  # of people, for 95 % intervals beside every aggregate; 0: none
    batch_size: int = setting(128, at_least(1))


@dataclass
class TrainerConfig:
    epochs: int = setting(20, at_least(1))  # of the forget set
    steps: int | None = setting(None, at_least(0))  # instead of epochs; 0 only where a run begins from others (begin)
    forget_batch: int = setting(20, at_least(1))
    retain_batch: int = setting(60, at_least(1))
    held_out: float = setting(0.1, BELOW_ONE)  # share of the retain set that no step sees: to choose α and checkpoints
    accumulate: int | None = setting(None, at_least(1), hashed=False)  # micro-batches of a step; null: as memory asks
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
    keep: str = setting("last", one_of("last", "best"))  # weights: of the last step, or the best (runs/trajectory.py)
    save_every: int = setting(50, at_least(0), hashed=False)  # steps between checkpoints; 0: none
    precision: str = setting("fp32", one_of("fp32", "bf16"))  # bf16: autocast; weights and evaluation stay fp32
    compile: bool = setting(False, hashed=False)  # torch.compile of the trained member
    checkpointing: bool = setting(False, hashed=False)  # recompute blocks in the backward pass: less memory, more time
    stored_rows: str = setting("auto", one_of(*STORED_ROWS))  # fp32, hidden: exact; of the target alone: fp16, topk
    stored_rows_k: int = setting(100, at_least(1))  # tokens of a row of topk
    stored_rows_gib: float = setting(4.0, at_least(0), hashed=False)  # of one model over one split, at most
    stored_rows_over: str = setting("live", one_of("live", "refuse"), hashed=False)  # more: computed live, or refused
    threads: int = setting(1, at_least(1), at_most(1024), hashed=False)  # torch threads of this process
    device: str = setting("auto", one_of("auto", "cpu", "cuda"), hashed=False)
    progress: bool = setting(True, hashed=False)


@dataclass
class BeginConfig:
    """Where the trained member begins: at its frozen start plus what earlier runs of the same pair changed of it."""

    runs: list[str] | None = setting(None, DIFFERENT_RUNS, A_RUN)  # run folders; with trainer.steps=0 they are fused
    how: str | None = setting(None, one_of("regmean", "average", "sum"))  # null: regmean of unlearning layers, else sum
    alphas: list[float] | None = setting(None, FINITE)  # of sum: weights of their changes; null: 1 each
    ridge: float = setting(1e-6, at_least(0))  # of regmean: a pull towards the average, as a share of the mean diagonal

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
    runs: str = setting("runs", A_PATH)  # of all studies
    store: str = setting("store", A_PATH)  # models, rows and baselines that runs share


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
    alpha: float = setting(1.0, finite("must be a finite number, e.g. 0.5, 1 or 2"))  # in training; see eval.alphas
    seed: int = setting(0, SEED)  # of the unlearning run: order, sampling; the world and its models have pair.seed
    study: str = setting("default", A_NAME)  # a named group of runs: runs/STUDY/
    retry: str = setting("all", one_of("all", "failed"))  # all unfinished runs, or those that failed or were killed
    paths: PathsConfig = field(default_factory=PathsConfig)


def conf_dir() -> str:
    """Absolute folder of the YAML tree: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def help_text() -> str:
    """What ``--help`` of a grid prints: conf/help.txt with the choices of every group. Not by Hydra, which would
    compose a config and copy all that it knows a hundred times for it."""
    root, choices = Path(conf_dir()), {}
    for path in sorted(root.glob("*/*.yaml")):
        choices.setdefault(path.parent.name, []).append(path.stem)
    lines = "\n".join(f"{group}: {', '.join(names)}" for group, names in choices.items())
    return (root / "help.txt").read_text("utf-8").replace("$CHOICES", lines)
