"""The inference α of a trained run, chosen without training anything again.

α at inference is free: the members' answer rows are computed once, and every α is a weighted sum of them. What a
choice reads and what it is reported on are different examples: half of the forget questions (or of the retain
questions that no training step saw) are for choosing, the other half for reporting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from unlearn.config.schema import Config, ConfigError
from unlearn.data.encoding import examples_of
from unlearn.data.rows import DataSet, Row
from unlearn.data.sampling import held_out
from unlearn.ensemble.ensemble import Ensemble
from unlearn.ensemble.frozen import in_memory, rows_of
from unlearn.evaluation import evaluation
from unlearn.evaluation.scoring import Scores, score
from unlearn.evaluation.suite import suite as make_suite
from unlearn.runs.baselines import baselines
from unlearn.runs.opened import Opened
from unlearn.runs.workbench import Workbench
from unlearn.store.files import read_json, write_json
from unlearn.store.identity import NO_RETRAINED, eval_settings

METRICS: Mapping[str, Callable[[Scores], np.ndarray]] = {
    "prob": lambda s: s.prob, "exact_memorization": lambda s: s.correct,
}  # fmt: skip
FILE = "calibration.json"
SPLITS = ("forget", "retain", "real_authors", "world_facts")
MOST = 16.0  # largest α that is looked at
PRECISE = 1e-4  # α is found to this


@dataclass(frozen=True)
class Goal:
    """What α is chosen for: a value of a metric, or the most forgetting that keeps a metric.

    ``value`` None with ``tolerance`` None: the retrained reference's value, an oracle.
    """

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


@dataclass(frozen=True)
class Choice:
    alpha: float
    asked: float  # value of the metric to reach, or not to go below
    reached: float  # at α, on the examples for choosing
    examples: int
    note: str = ""


def calibrate(cfg: Config, bench: Workbench, ensemble: Ensemble, goal: Goal) -> dict[str, Any]:
    """Choose α for the goal; what was chosen, on what, and all metrics at that α on other examples."""
    split, _ = goal.metric.split("/")
    choosing, reporting = parts(cfg, bench.data, split)
    measure = _measure(cfg, bench, ensemble, choosing, goal.metric)
    if goal.tolerance is not None:
        choice = keep(measure, goal.tolerance)
    else:
        asked = goal.value
        if asked is None:
            asked = float(_measure(cfg, bench, bench.alone("retrained"), choosing, goal.metric)([1.0])[0])
        choice = reach(measure, asked)
    choice = replace(choice, examples=len(choosing))
    data = replace(bench.data, splits=bench.data.splits | {split: tuple(reporting)}, _fingerprint=[])
    if split != "retain":
        data = replace(data, splits=data.splits | {"retain": tuple(_held_out_or_all(cfg, data))})
    settings = eval_settings(cfg, data.fingerprint())
    suite = make_suite(data, bench.encoder, cfg.eval, settings, cfg.trainer.stored_rows_gib)
    if cfg.eval.retrained is not None:  # a file's rows are the whole forget set, and these are a part of it
        cfg = replace(cfg, eval=replace(cfg.eval, retrained=NO_RETRAINED))
    beside = baselines(cfg, bench, suite)
    show = "reporting" if cfg.trainer.progress else None
    alphas = list(dict.fromkeys([choice.alpha, cfg.alpha]))
    metrics, _ = evaluation.evaluate(ensemble, suite, alphas, bench.store, beside.get("retrained"), show)
    sizes = {part.name: len(part.rows) for part in suite.splits}
    return {"goal": str(goal), "metric": goal.metric, "oracle": goal.oracle, **asdict(choice),
            "reported_on": sizes, "report": metrics[choice.alpha],
            "given_alpha": cfg.alpha, "report_at_given_alpha": metrics[cfg.alpha], 
            "references": {name: dict(r.metrics) for name, r in beside.items()}}  # fmt: skip


def parts(cfg: Config, data: DataSet, split: str) -> tuple[list[Row], list[Row]]:
    """Examples for choosing and, disjoint from them, for reporting: halves of a split at random, always the same.

    Of the retain set only what no training step saw is used.
    """
    rows = list(data.splits.get(split, ()))
    if split == "retain":
        unseen = held_out(len(rows), cfg.trainer.held_out)
        if len(unseen) < 2:
            raise ConfigError(
                f"trainer.held_out={cfg.trainer.held_out:g} left {len(unseen)} of {len(rows)} retain questions unseen; "
                "choosing and reporting need one each: train with a larger share"
            )
        return [rows[i] for i in unseen[::2]], [rows[i] for i in unseen[1::2]]
    first = set(np.random.default_rng(len(rows)).permutation(len(rows))[: len(rows) // 2].tolist())
    if not first:
        raise ConfigError(f"the {split} split has {len(rows)} examples; choosing and reporting need one each")
    return [r for i, r in enumerate(rows) if i in first], [r for i, r in enumerate(rows) if i not in first]


def _held_out_or_all(cfg: Config, data: DataSet) -> list[Row]:
    """Retain questions to report on: those that no step saw, where there are any."""
    rows = data.splits["retain"]
    return [rows[i] for i in held_out(len(rows), cfg.trainer.held_out)] or list(rows)


Measure = Callable[[Sequence[float]], np.ndarray]  # α's → mean of the metric at each


def _measure(cfg: Config, bench: Workbench, ensemble: Ensemble, rows: Sequence[Row], metric: str) -> Measure:
    """The metric as a function of α, from rows that are computed once."""
    examples, pad = examples_of(bench.encoder, rows), bench.encoder.tokenizer.pad_token_id
    of, most = METRICS[metric.split("/")[1]], cfg.trainer.stored_rows_gib
    stored = {
        m.name: in_memory(m, examples, pad, most) if m.trained else rows_of(bench.store, m, examples, pad, most)
        for m in ensemble.members
    }

    def measure(alphas: Sequence[float]) -> np.ndarray:
        found = score(ensemble, examples, alphas, stored, pad, cfg.eval.batch_size)
        return np.array([of(found[a]).mean() for a in alphas])

    return measure


def reach(measure: Measure, asked: float) -> Choice:
    """The smallest α ≥ 0 at which the metric crosses ``asked``, by a coarse look and then bisection.

    The metric need not be monotone in α; the first crossing is taken. Where it is never reached, the α that comes
    nearest is taken, and the choice says so.
    """
    alphas, values = _look(measure)
    above = values[0] > asked
    crossed = np.flatnonzero((values <= asked) if above else (values >= asked))
    if len(crossed) == 0:
        nearest = int(np.abs(values - asked).argmin())
        note = f"not reached: from α = 0 to {MOST:g} the value stays between {values.min():.4g} and {values.max():.4g}"
        return Choice(float(alphas[nearest]), asked, float(values[nearest]), 0, note)
    if crossed[0] == 0:
        return Choice(0.0, asked, float(values[0]), 0, "the target itself has this value")
    low, high = alphas[crossed[0] - 1], alphas[crossed[0]]

    def beyond(value: float) -> bool:
        return value <= asked if above else value >= asked

    alpha, value = _bisect(measure, float(low), float(high), lambda v: not beyond(v))[1]
    return Choice(alpha, asked, value, 0)


def keep(measure: Measure, tolerance: float) -> Choice:
    """The largest α up to which the metric never falls more than ``tolerance`` below its value at α = 0."""
    alphas, values = _look(measure)
    floor = values[0] - tolerance
    lost = np.flatnonzero(values < floor)
    if len(lost) == 0:
        return Choice(MOST, float(floor), float(values[-1]), 0, f"kept up to α = {MOST:g}, the largest looked at")
    low, high = alphas[lost[0] - 1], alphas[lost[0]]
    alpha, value = _bisect(measure, float(low), float(high), lambda v: v >= floor)[0]
    return Choice(alpha, float(floor), value, 0)


def _look(measure: Measure) -> tuple[np.ndarray, np.ndarray]:
    """The metric at α = 0 and at 40 points up to the largest, each 1.17 times the one before."""
    alphas = np.concatenate([[0.0], np.geomspace(MOST / 512, MOST, 40)])
    return alphas, measure(alphas.tolist())


def _bisect(
    measure: Measure, low: float, high: float, holds: Callable[[float], bool]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Narrow an interval whose lower end holds and whose upper end does not; (α, value) of both ends."""
    ends = measure([low, high])
    value_low, value_high = float(ends[0]), float(ends[1])
    while high - low > PRECISE:
        middle = (low + high) / 2
        value = float(measure([middle])[0])
        if holds(value):
            low, value_low = middle, value
        else:
            high, value_high = middle, value
    return (low, value_low), (high, value_high)


def goal_of(arguments: Sequence[str]) -> Goal:
    """The goal that ``forget/prob=0.15``, ``to=retrained`` or ``tolerance=0.02`` asks for."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    metrics = [f"{split}/{metric}" for split in SPLITS for metric in METRICS]
    values = [k for k in given if "/" in k]
    goals = len(values) + ("to" in given) + ("tolerance" in given)
    if goals != 1 or len(given) < len(arguments) or (values and "metric" in given):
        raise ConfigError(
            f"{' '.join(arguments) or 'no goal'}: give one of METRIC=VALUE (e.g. forget/prob=0.15), to=retrained, "
            "tolerance=NUMBER; the last two with metric=SPLIT/METRIC if you like"
        )
    metric = values[0] if values else given.get("metric", "retain/prob" if "tolerance" in given else "forget/prob")
    if metric not in metrics:
        raise ConfigError(f"{metric}: can be calibrated to {', '.join(metrics)}")
    if "to" in given:
        if given["to"] != "retrained":
            raise ConfigError(f"to={given['to']}: must be retrained; give a value of your own as {metric}=NUMBER")
        return Goal(metric)
    key = values[0] if values else "tolerance"
    try:
        number = float(given[key])
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise ConfigError(f"{key}={given[key]}: must be a number between 0 and 1")
    return Goal(metric, value=number) if values else Goal(metric, tolerance=number)


def calibrate_run(run: Opened, goal: Goal) -> dict[str, Any]:
    """Calibrate a trained run and write the result into its folder, beside those of other goals."""
    result = calibrate(run.cfg, run.bench, run.ensemble, goal)
    path = run.folder / FILE
    others = [entry for entry in read_json(path) or [] if entry["goal"] != result["goal"]]
    write_json(path, [*others, result])
    return result
