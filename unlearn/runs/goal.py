"""What α is chosen for, and by which questions. No torch: what cannot be chosen is refused within a second or two."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unlearn.config.schema import Config, ConfigError
from unlearn.data.rows import DataSet, Row
from unlearn.data.sampling import held_out

METRICS = {"prob": "prob", "exact_memorization": "correct"}  # by name, what it is of scores
LEAK = "forget/leak"  # leak@k of drawn answers, k = eval.leak_samples, by random numbers that are not a report's
SPLITS = ("forget", "retain", "neighbours", "real_authors", "world_facts")
FEW = 10  # questions by which an α is hardly chosen


@dataclass(frozen=True)
class Goal:
    """What α is chosen for: a value of a metric (``value``; with ``tolerance`` None the retrained reference's, an
    oracle), or the most forgetting that keeps a metric."""

    metric: str
    value: float | None = None
    tolerance: float | None = None  # how much of the target's value may be lost

    @property
    def oracle(self) -> bool:
        return self.value is None and self.tolerance is None

    def __str__(self) -> str:
        if self.oracle:
            return f"oracle: {self.metric} of the retrained reference"
        if self.tolerance is not None:
            return f"largest α that keeps {self.metric} within {self.tolerance:g} of the target"
        return f"{self.metric}={self.value:g}"


def goal_of(arguments: Sequence[str]) -> Goal:
    """The goal that ``forget/prob=0.15``, ``to=retrained`` or ``tolerance=0.02`` asks for."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    metrics = [*(f"{split}/{metric}" for split in SPLITS for metric in METRICS), LEAK]
    goals = [k for k in given if "/" in k or k in ("to", "tolerance")]
    if len(goals) != 1 or len(given) < len(arguments) or ("/" in goals[0] and "metric" in given):
        choices = (
            "METRIC=VALUE (e.g. forget/prob=0.15), to=retrained, tolerance=NUMBER; metric=SPLIT/METRIC for these two"
        )
        raise ConfigError(f"{' '.join(arguments) or 'no goal'}: give one of {choices}")
    (key,) = goals
    metric = key if "/" in key else given.get("metric", "retain/prob" if key == "tolerance" else LEAK)
    if metric not in metrics:
        raise ConfigError(f"{metric}: can be calibrated to {', '.join(metrics)}")
    if key == "to":
        if given["to"] != "retrained":
            raise ConfigError(f"to={given['to']}: must be retrained; give a value of your own as {metric}=NUMBER")
        return Goal(metric)
    try:
        number = float(given[key])
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise ConfigError(f"{key}={given[key]}: must be a number between 0 and 1")
    return Goal(metric, tolerance=number) if key == "tolerance" else Goal(metric, value=number)


def parts(cfg: Config, data: DataSet, split: str) -> tuple[list[Row], list[Row]]:
    """Examples for choosing and for reporting: fixed random halves of a split; of retain only what no step saw."""
    rows = list(data.splits.get(split, ()))
    if split == "retain":
        unseen = held_out(len(rows), cfg.trainer.held_out)
        if len(unseen) < 2:
            few = f"left {len(unseen)} of {len(rows)} retain questions unseen, and choosing and reporting need one each"
            share = min(0.5, math.ceil(200 * FEW / max(1, len(rows))) / 100)
            raise ConfigError(f"trainer.held_out={cfg.trainer.held_out:g} {few}: train with trainer.held_out={share:g}")
        return [rows[i] for i in unseen[::2]], [rows[i] for i in unseen[1::2]]
    first = set(np.random.default_rng(len(rows)).permutation(len(rows))[: len(rows) // 2].tolist())
    if not first:
        raise ConfigError(f"the {split} split has {len(rows)} examples; choosing and reporting need one each")
    return [r for i, r in enumerate(rows) if i in first], [r for i, r in enumerate(rows) if i not in first]
