"""The inference α of a trained run, chosen without training anything again.

α at inference is free: the members' answer rows are computed once, and every α is a weighted sum of them. What a
choice reads and what it is reported on are different examples: half of the forget questions (or of the retain
questions that no training step saw) are for choosing, the other half for reporting. Leak is drawn, and half of the
questions are too few for it: α is chosen on all of them by one set of answers, and reported by another.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from unlearn.config.schema import Config
from unlearn.data.encoding import examples_of
from unlearn.data.rows import DataSet, Row
from unlearn.data.sampling import held_out
from unlearn.ensemble.ensemble import Ensemble
from unlearn.ensemble.frozen import in_memory, rows_of
from unlearn.evaluation.context import Subject
from unlearn.evaluation.groups.leak import CHOOSING, worst
from unlearn.evaluation.retrained import Measured
from unlearn.evaluation.scoring import score
from unlearn.evaluation.suite import Suite
from unlearn.runs.baselines import evaluate, suite_of
from unlearn.runs.goal import FEW, LEAK, METRICS, Goal, parts
from unlearn.runs.opened import Opened
from unlearn.runs.workbench import Workbench
from unlearn.store.files import read_json, write_json
from unlearn.store.identity import NO_RETRAINED

log = logging.getLogger(__name__)
FILE = "calibration.json"
MOST = 16.0  # largest α that is looked at


@dataclass(frozen=True)
class Search:
    """The first α's, beside 0, how near a crossing is approached, and whether a look costs much: none is beyond it."""

    looks: np.ndarray
    precise: float
    each: bool = False


FINE = Search(np.geomspace(MOST / 512, MOST, 40), 1e-4)  # each 1.17 times the one before
COARSE = Search(np.geomspace(MOST / 128, MOST, 8), 0.01, each=True)  # of drawn answers, whose noise is more


@dataclass(frozen=True)
class Choice:
    alpha: float
    asked: float  # value of the metric to reach, or not to go below
    reached: float  # at α, on the examples for choosing
    note: str = ""
    looked: tuple[tuple[float, float], ...] = ()  # (α, value) of all that was looked at


def calibrate(cfg: Config, bench: Workbench, ensemble: Ensemble, goal: Goal) -> dict[str, Any]:
    """Choose α for the goal; what was chosen, on what, and all metrics at that α on other examples."""
    choosing, splits = parted(cfg, bench.data, goal)
    few = _few(cfg, goal, len(choosing))
    choice = choose(cfg, bench, ensemble, goal, choosing)
    choice = replace(choice, note="; ".join(filter(None, (choice.note, few))))
    if goal.metric == LEAK and "leak" not in cfg.eval.groups:
        cfg = replace(cfg, eval=replace(cfg.eval, groups=[*cfg.eval.groups, "leak"]))
    if cfg.eval.retrained is not None:  # a file's rows are the whole forget set, and these are a part of it
        cfg = replace(cfg, eval=replace(cfg.eval, retrained=NO_RETRAINED))
    suite = suite_with(cfg, bench, splits)
    alphas = list(dict.fromkeys([choice.alpha, cfg.alpha]))
    metrics, examples, beside = evaluate(cfg, bench, ensemble, suite, alphas, "reporting")
    sizes = {part.name: len(part.rows) for part in suite.splits}
    return {"goal": str(goal), "metric": goal.metric, "oracle": goal.oracle, **asdict(choice),
            "examples": len(choosing), "reported_on": sizes, "report": metrics[choice.alpha],
            "given_alpha": cfg.alpha, "report_at_given_alpha": metrics[cfg.alpha],
            "spread": _spread(cfg, examples[examples["alpha"] == choice.alpha], beside.get("retrained")),
            "references": {name: dict(r.metrics) for name, r in beside.items()}}  # fmt: skip


def choose(cfg: Config, bench: Workbench, ensemble: Ensemble, goal: Goal, rows: Sequence[Row]) -> Choice:
    """α for the goal on these rows."""
    asked, looked = goal.value, {}
    if goal.oracle:
        asked = float(_measure(cfg, bench, bench.alone("retrained"), rows, goal.metric)([1.0])[0])
    own, search = _measure(cfg, bench, ensemble, rows, goal.metric), COARSE if goal.metric == LEAK else FINE

    def measure(alphas: Sequence[float]) -> np.ndarray:
        values = own(alphas)
        looked.update(zip(map(float, alphas), values.tolist(), strict=True))
        return values

    choice = reach(measure, asked, search) if goal.tolerance is None else keep(measure, goal.tolerance, search)
    return replace(choice, looked=tuple(sorted(looked.items())))


def parted(cfg: Config, data: DataSet, goal: Goal) -> tuple[list[Row], dict[str, tuple[Row, ...]]]:
    """Rows for choosing, and the splits to report on that differ from what is evaluated. Leak is chosen and reported on
    the same ones, by other draws."""
    split, _ = goal.metric.split("/")
    every = list(data.splits.get(split, ()))
    choosing, reporting = (every, every) if goal.metric == LEAK else parts(cfg, data, split)
    splits = {split: tuple(reporting)}
    if split != "retain":  # report on what no step saw, where there is any
        rows = data.splits["retain"]
        splits["retain"] = tuple(rows[i] for i in held_out(len(rows), cfg.trainer.held_out)) or rows
    return choosing, splits


def suite_with(cfg: Config, bench: Workbench, splits: Mapping[str, Sequence[Row]]) -> Suite:
    """What is evaluated, with other rows for some splits."""
    data = replace(bench.data, splits={**bench.data.splits, **splits}, _fingerprint=[])
    return suite_of(cfg, replace(bench, data=data))


def _few(cfg: Config, goal: Goal, count: int) -> str:
    """Why the choice says little, if it is made by few questions; logged before they are read."""
    if count >= FEW:
        return ""
    how = f", half of trainer.held_out={cfg.trainer.held_out:g}: train with a larger share"
    how = how if goal.metric.startswith("retain") else ""
    text = f"{count} questions choose α{how}; fewer than {FEW} say little of it"
    log.warning(text)
    return text


Values = Any  # a number or an array of them
Measure = Callable[[Sequence[float]], np.ndarray]  # α's → mean of the metric at each


def _spread(cfg: Config, examples: pd.DataFrame, retrained: Measured | None) -> dict[str, float]:
    """Of the forget questions for reporting: quantiles of leak@k, and the share that gives away more than the worst
    question of the retrained model; empty where answers were not drawn."""
    name = f"leak@{cfg.eval.leak_samples}"
    if name not in examples:
        return {}
    leaks = examples.loc[examples["split"] == "forget", name].dropna()
    found = {f"{name}/{share:g}": float(leaks.quantile(share)) for share in (0.5, 0.9, 1.0)}
    if retrained is not None and retrained.has("forget", name):
        found |= {"above_retrained_worst": float((leaks > np.nanmax(retrained.column("forget", name))).mean())}
    return found


def _measure(cfg: Config, bench: Workbench, ensemble: Ensemble, rows: Sequence[Row], metric: str) -> Measure:
    """The metric as a function of α, from rows that are computed once, or from answers that are drawn at each α."""
    if metric == LEAK:
        suite = suite_with(cfg, bench, {"forget": tuple(rows)})
        split = suite.split("forget")
        asked = partial(worst, split=split, seed=CHOOSING)
        return lambda alphas: np.array([np.nanmean(asked(Subject(suite, ensemble.once, a))) for a in alphas])
    ensemble, examples, pad = ensemble.once, examples_of(bench.encoder, rows), bench.pad_id
    of, most = METRICS[metric.split("/")[1]], cfg.trainer.stored_rows_gib
    stored = {
        m.name: in_memory(m, examples, pad, most) if m.trained else rows_of(bench.store, m, examples, pad, most)
        for m in ensemble.members
    }

    def measure(alphas: Sequence[float]) -> np.ndarray:
        found = score(ensemble, examples, alphas, stored, pad, cfg.eval.batch_size)
        return np.array([getattr(found[a], of).mean() for a in alphas])

    return measure


def reach(measure: Measure, asked: float, search: Search = FINE) -> Choice:
    """The smallest α ≥ 0 at which the metric, which need not be monotone, crosses ``asked``, by a coarse look and then
    bisection. Where it is never reached, the α that comes nearest, and the choice says so."""

    def beyond(values: Values, start: float) -> Values:
        return asked >= values if start > asked else asked <= values

    alphas, values = _look(measure, search, beyond)
    crossed = np.flatnonzero(beyond(values, values[0]))
    if len(crossed) == 0:
        nearest = int(np.abs(values - asked).argmin())
        note = f"not reached: from α = 0 to {MOST:g} the value stays between {values.min():.4g} and {values.max():.4g}"
        return Choice(float(alphas[nearest]), asked, float(values[nearest]), note)
    if crossed[0] == 0:
        return Choice(0.0, asked, float(values[0]), "the target itself has this value")
    _, (alpha, value) = _bisect(measure, alphas, values, crossed[0], partial(beyond, start=values[0]), search.precise)
    return Choice(alpha, asked, value)


def keep(measure: Measure, tolerance: float, search: Search = FINE) -> Choice:
    """The largest α up to which the metric never falls more than ``tolerance`` below its value at α = 0."""

    def beyond(values: Values, start: float) -> Values:
        return ~np.greater_equal(values, start - tolerance)

    alphas, values = _look(measure, search, beyond)
    floor, lost = values[0] - tolerance, np.flatnonzero(beyond(values, values[0]))
    if len(lost) == 0:
        return Choice(MOST, float(floor), float(values[-1]), f"kept up to α = {MOST:g}, the largest looked at")
    (alpha, value), _ = _bisect(measure, alphas, values, lost[0], partial(beyond, start=values[0]), search.precise)
    return Choice(alpha, float(floor), value)


def _look(measure: Measure, search: Search, beyond: Callable[[Values, float], Values]) -> tuple[np.ndarray, np.ndarray]:
    """α's in their order, and the metric at each."""
    alphas = np.concatenate([[0.0], search.looks])
    if not search.each:
        return alphas, measure(alphas.tolist())
    values = measure([0.0])
    for alpha in search.looks:
        if beyond(values[-1], values[0]):
            break
        values = np.append(values, measure([alpha]))
    return alphas[: len(values)], values


def _bisect(
    measure: Measure, alphas: np.ndarray, values: np.ndarray, first: int, beyond: Callable[..., Any], precise: float
) -> list[tuple[float, float]]:
    """(α, value) just before and just beyond a crossing: ``alphas[first]`` is beyond it, the one before is not."""
    low, high = ((float(alphas[i]), float(values[i])) for i in (first - 1, first))
    while high[0] - low[0] > precise:
        alpha = (low[0] + high[0]) / 2
        middle = alpha, float(measure([alpha])[0])
        low, high = (low, middle) if beyond(middle[1]) else (middle, high)
    return [low, high]


def calibrate_run(run: Opened, goal: Goal) -> dict[str, Any]:
    """Calibrate a trained run and write the result into its folder, beside those of other goals."""
    result = calibrate(run.cfg, run.bench, run.ensemble, goal)
    path = run.folder / FILE
    others = [entry for entry in read_json(path) or [] if entry["goal"] != result["goal"]]
    write_json(path, [*others, result])
    return result
