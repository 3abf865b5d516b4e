"""What follows from a config: the values that several settings decide together."""

from typing import Any

from unlearn.config.pair import LAYERS
from unlearn.config.schema import NUMBERS, Config


def training_alpha(cfg: Config) -> float:
    return cfg.alpha if cfg.method.train_alpha is None else cfg.method.train_alpha


def eval_alphas(cfg: Config) -> list[float]:
    return sorted({float(a) for a in (cfg.eval.alphas or [cfg.alpha])})


def learning_rate(cfg: Config) -> float:
    """AdamW's learning rate; nothing is learnt at any other."""
    if cfg.trainer.lr is not None:
        return cfg.trainer.lr
    if learns_pretrained(cfg):
        return cfg.algo.lr_pretrained[cfg.method.name]
    if cfg.method.name in cfg.algo.lr and cfg.method.tuning is not None:  # a rate that was searched for this tuning
        return cfg.algo.lr[cfg.method.name]
    factors = {"lora": cfg.pair.lora.lr_factor, LAYERS: cfg.pair.layers.lr_factor}
    return cfg.algo.lr[rate_of(cfg)] * factors.get(tuning(cfg), 1.0)


def learns_pretrained(cfg: Config) -> bool:
    """Whether the trained member begins as a pretrained model: the rates of tiny models say nothing of it."""
    model = next((m.model for m in cfg.method.members if m.trained), None)
    role = f"small_{cfg.pair.offset_init}" if model == "small" else model
    own = getattr(cfg.pair, role, None) if model == "small" else None  # small_full, small_retain: ready-made
    of = cfg.pair.target if model == "target" else cfg.pair.small
    return model is not None and (of.source is not None or (own is not None and own.source is not None))


def rate_of(cfg: Config) -> str | None:
    """The method whose learning rate in `algo.lr` a run takes; None where there is none."""
    return next((name for name in (cfg.method.name, cfg.method.rate_of) if name in cfg.algo.lr), None)


def tuning(cfg: Config) -> str:
    """How the trained member learns: as the method demands, else as the pair says."""
    return cfg.pair.tuning if cfg.method.tuning is None else cfg.method.tuning


def is_trained(cfg: Config) -> bool:
    """Whether the method trains anything; where it does not, objective, trainer and seed change nothing."""
    return any(m.trained for m in cfg.method.members)


def may_round(cfg: Config) -> bool:
    """Whether training reads rows that may be rounded: a target that stands alone in the sum, with no weight by α."""
    plain = any(m.model == "target" and not m.trained and m.slope == 0 for m in cfg.method.members)
    return is_trained(cfg) and not cfg.method.alone and plain


def terms_of(cfg: Config) -> dict[str, Any]:
    """The arguments of ``binding.bind``."""
    a = cfg.algo
    return {
        "forget": a.forget, "retain": a.retain, "forget_weight": a.forget_weight, "retain_weight": a.retain_weight,
        "numbers": {name: getattr(a, name) for name in NUMBERS} | a.numbers, "file": a.file,
    }  # fmt: skip


def algo_name(cfg: Config) -> str:
    return cfg.algo.name if is_trained(cfg) else "none"


def alpha_key(alpha: float) -> str:
    """The name of an α in eval.json: 1 → "1.0"."""
    return str(float(alpha))


def protocol(cfg: Config) -> str | None:
    """In which of a benchmark's settings a run is, where it has several."""
    return cfg.data.protocol(len(cfg.begin.runs or ()))


def describe(cfg: Config) -> dict[str, Any]:
    """The choices that name a run in tables."""
    setting = protocol(cfg)
    return ({} if setting is None else {"protocol": setting}) | {
        "study": cfg.study, "algo": algo_name(cfg), "method": cfg.method.name, "pair": cfg.pair.name,
        "data": cfg.data.name, "alpha": training_alpha(cfg), "seed": cfg.seed, "pair_seed": cfg.pair.seed,
    }  # fmt: skip
