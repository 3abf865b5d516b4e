"""What is good for a metric: high, low, near the retrained model's value, or near zero; and its short title.

Easy to get wrong: the best value on the forget set is the retrained model's, not zero. A model that never saw the
forget set still guesses, so zero is more than forgetting, and a ruined model reaches it.
"""

from __future__ import annotations

from typing import Any

KNOWN = (  # what the retained splits should keep high, and the forget splits as the retrained model has it
    "prob", "known", "prob_options", "rougeL_recall", "rougeL_f1", "exact_memorization", "extraction_strength",
    "truth_ratio", "paraphrased_prob", "knowmem", "verbmem",
)  # fmt: skip
KEPT = ("retain", "held_out", "neighbours", "real_authors", "world_facts", "retain_knowledge")  # splits
FORGET = ("forget", "forget_knowledge", "forget_level1", "forget_level2", "forget_level3", "forget_verbatim")
LEAKS = (  # starts of the forget set's own metrics
    "other_question_", "prefix_", "leak@", "leaked@", "attribute_leaked@", "known_leaked@", "judged_leak@",
)  # fmt: skip
HIGHER = ("kept", "model_utility", "forget_quality", "ou/mem", "ou/util", "ou/fluency", "ou/agg")
LOWER = ("forget_quality_ks", "mia/vulnerable", "seconds", "seconds/train", "peak_memory_mb", "trainable",
         "artefact/prob", "artefact/gain", "artefact/relearnt_prob")  # fmt: skip
ZERO = ("forget/leak_gap", "privleak")
HEADLINE = (
    "forget/prob", "forget/known", "forget/rougeL_recall", "forget/leak_gap", "forget/leak_gap_guess", "retain/prob",
    "retain/known", "retain/rougeL_recall", "neighbours/prob", "neighbours/known", "kept", "model_utility",
    "forget_quality",
)  # fmt: skip
SPLITS = {"forget": "forget set", "retain": "retain set"}
METRICS = {
    "prob": "probability", "known": "share of answers that tell the fact", "rougeL_recall": "ROUGE-L recall",
    "rougeL_f1": "ROUGE-L F1", "leak_gap": "leak beyond the retrained model's",
    "leak_gap_guess": "leak beyond the guess level", "exact_memorization": "exact memorisation",
    "prob_options": "probability among options", "target_logp": "log-probability per token under the target",
}  # fmt: skip
ARROWS = {"higher": "↑", "lower": "↓", "retrained": "→ retr.", "zero": "→ 0", None: ""}
WORDS = {
    "higher": "higher is better",
    "lower": "lower is better",
    "retrained": "best is the retrained model's value",
    "zero": "best is 0",
    None: "no direction is better",
}


def named(metric: str) -> str:
    """A metric in words, for an axis: "forget set, probability"."""
    split, _, name = metric.rpartition("/")
    return ", ".join(filter(None, [split_of(metric) if split else "", metric_of(name)]))


def split_of(metric: str) -> str:
    """The words for a metric's split."""
    split = metric.partition("/")[0]
    return SPLITS.get(split, split.replace("_", " "))


def metric_of(name: str) -> str:
    """The words for a metric without its split."""
    return METRICS.get(name, name.replace("_", " "))


def better(metric: str) -> str | None:
    """Whether "higher" or "lower" is better for a metric, as an axis shows it; None where that is not known."""
    where = goal(metric, retrained=False)
    return where if where in ("higher", "lower") else None


def goal(metric: str, retrained: bool = True) -> str | None:
    """Where the best value of a metric lies: "higher", "lower", "retrained", "zero", or None where that is not known.

    Without a ``retrained`` model to compare with, less knowledge of the forget set is better.
    """
    split, _, name = metric.rpartition("/")
    if metric.startswith(ZERO):
        return "zero"
    if metric in LOWER or metric.startswith(HIGHER):
        return "lower" if metric in LOWER else "higher"
    if split in KEPT and name in KNOWN:
        return "higher"
    if split in FORGET and (name in KNOWN or name.startswith(LEAKS)):
        return "retrained" if retrained else "higher" if name == "truth_ratio" else "lower"
    return None


def distance(metric: str, value, retrained=None):
    """How far a value is from the best one, where smaller is better; numbers or Series.

    Only for metrics that have a ``goal``; without ``retrained`` the one for want of a retrained model.
    """
    where = goal(metric, retrained is not None)
    if where == "retrained":
        return abs(value - retrained)
    away: dict[str | None, Any] = {"higher": -value, "lower": value, "zero": abs(value)}
    return away[where]


def title(metric: str, retrained: bool = True) -> str:
    """``forget prob → retr.``: the metric's name and the way that is better."""
    short = metric.replace("rougeL_recall", "ROUGE").replace("leak_gap_guess", "leak − guess")
    short = short.replace("leak_gap", "leak − retr.").replace("_", " ")
    return f"{short.replace('/', ' ')} {ARROWS[goal(metric, retrained)]}".strip()
