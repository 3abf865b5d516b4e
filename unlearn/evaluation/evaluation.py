"""Metrics of an ensemble over all splits of a suite, per example and aggregated, for every α.

The frozen rows of every split are read from the store where they fit, so an α costs little more than its generations.
The target and the retrained reference go through the same function, as ensembles of one member.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import evaluate as hugging_face
import numpy as np
import pandas as pd

from unlearn.config.groups import needing
from unlearn.decoding.drafts import greedy_from_drafts
from unlearn.decoding.generation import Decoding, greedy
from unlearn.ensemble.ensemble import Ensemble
from unlearn.ensemble.kinds import noted
from unlearn.evaluation import measures
from unlearn.evaluation.context import ALONE, Beside, Context, Found
from unlearn.evaluation.groups import group
from unlearn.evaluation.metrics.statistics import Interval, Weights, distances, ends, interval, mean_interval
from unlearn.evaluation.metrics.tofu import PARTS, RATIO, forget_quality, harmonic_mean, means, model_utility
from unlearn.evaluation.retrained import Measured
from unlearn.evaluation.scoring import Part, Parts, score, stored_rows
from unlearn.evaluation.suite import Split, Suite
from unlearn.models.seen import remembered
from unlearn.store import processes
from unlearn.store.entries import Store
from unlearn.store.progress import Stage, progress

log = logging.getLogger(__name__)


def evaluate(
    ensemble: Ensemble,
    suite: Suite,
    alphas: Sequence[float],
    store: Store | None,
    retrained: Measured | None,
    show: str = "evaluating",
    itself: bool = False,
    beside: Beside = ALONE,
    parts: Parts | None = None,
) -> tuple[dict[float, dict[str, Any]], pd.DataFrame]:
    """Metrics by α, and a table with one row per example and α.

    An entry holds numbers by metric, and beside them ``intervals`` (95 %, over people), ``distance`` (to the retrained
    model, by metric) and ``settings``. ``store`` None: nothing is stored. ``retrained``: the gold model; None
    where there is none (then nothing is compared with it) and for that model ``itself``. ``show`` names it as a stage.
    ``parts``: what an evaluation that was stopped has left, and where this one leaves its own.
    """
    ensemble = ensemble.once
    _announce(ensemble, suite, alphas)
    scores, metrics, tables = ({a: {} for a in alphas} for _ in range(3))
    entries, examples = {}, []
    with progress((len(suite.splits) + 1 + len(suite.cfg.groups)) * len(alphas), show, "part") as bar:
        for split in suite.splits:
            bar.note(split.name)
            for alpha, (found, texts) in _parts(ensemble, suite, split, alphas, store, parts).items():
                values, tables[alpha][split.name] = measures.measure(split, found, texts, suite.semantics)
                metrics[alpha] |= values
                scores[alpha][split.name] = found
                bar.update()
        for alpha in alphas:
            bar.note(f"metrics at α={alpha:g}")
            core = pd.concat(tables[alpha].values(), ignore_index=True)
            ctx = Context(suite, ensemble, alpha, store, retrained, itself, scores[alpha], core, metrics[alpha], beside)
            entries[alpha], table = _entry(ctx, tables[alpha], bar)
            examples.append(table)
    return entries, pd.concat(examples, ignore_index=True)


def _parts(
    ensemble: Ensemble, suite: Suite, split: Split, alphas: Sequence[float], store: Store | None, parts: Parts | None
) -> dict[float, Part]:
    """Scores and answers of a split by α: kept ones, and those that are measured now."""
    found = {} if parts is None else {alpha: parts.get(split, alpha) for alpha in alphas}
    kept = processes.told({alpha: part for alpha, part in found.items() if part is not None})
    if missing := [alpha for alpha in alphas if alpha not in kept]:
        rows, hide = {}, suite.semantics.hide_pad_tokens
        with remembered(suite.stored_rows_gib):  # prompts are read once for scores, drafts, and what follows these
            if store is not None and not hide:  # stored rows are those of the whole text
                rows = stored_rows(store, suite, ensemble, missing, split.examples)
            moments = bool(needing(suite.cfg.groups, "moments")) and split.name in ("forget", "holdout")
            asked = ensemble, split.examples, missing, rows, suite.pad_id, suite.cfg.batch_size
            for alpha, found in score(*asked, moments, hide, argmax_of=split.right).items():
                texts = generations(ensemble, split, alpha, suite, store) if split.generated else None
                kept[alpha] = found, texts
                if parts is not None:
                    parts.keep(split, alpha, kept[alpha])
    return {alpha: kept[alpha] for alpha in alphas}


def _announce(ensemble: Ensemble, suite: Suite, alphas: Sequence[float]) -> None:
    """What a black box is asked costs something: it is said before the first question."""
    examples = [e for split in suite.splits for e in split.examples]
    generated = {split.name: split.prompts for split in suite.splits if split.generated}
    prompts = [p for each in generated.values() for p in each]
    drawn = prompts * sum(a != 0 for a in alphas) if len(ensemble.members) > 1 else []
    if "leak" in suite.cfg.groups:
        drawn = drawn + generated["forget"] * suite.cfg.leak_samples * len(alphas)
    for member in ensemble.members:
        member.kind.announce(examples, prompts, drawn, suite.cfg.max_new_tokens)


def generations(ensemble: Ensemble, split: Split, alpha: float, suite: Suite, store: Store | None = None) -> list[str]:
    """Greedy answers to the prompts of a split; with a store they begin with what it has of the target's own."""
    semantics, cfg = suite.semantics, suite.cfg
    how = Decoding.by(suite.encoder.tokenizer, cfg.max_new_tokens, cfg.batch_size, semantics.hide_pad_tokens)
    asked = ensemble, split.prompts, alpha, how
    if store is None or semantics.hide_pad_tokens:  # stored rows are those of the whole text
        answers = greedy(*asked)
    else:
        answers = noted(ensemble, alpha, partial(greedy_from_drafts, *asked, store, suite.stored_rows_gib))
    if semantics.total_tokens is not None:  # greedy answers are prefixes of longer ones
        room = [max(0, semantics.total_tokens - len(p)) for p in split.prompts]
        answers = [a[:n] for a, n in zip(answers, room, strict=True)]
    return [suite.encoder.decode(a) for a in answers]


def _entry(ctx: Context, tables: Mapping[str, pd.DataFrame], bar: Stage) -> tuple[dict[str, Any], pd.DataFrame]:
    """Everything about one α, and its ``tables`` of examples with what groups add to them."""
    metrics, tables = ctx.metrics, dict(tables)
    metrics |= _aggregates(ctx)
    intervals = _intervals(ctx, Found(measures.per_example(ctx.examples, ctx.suite.semantics)))
    bar.update()
    for name in ctx.suite.cfg.groups:
        bar.note(f"{name} at α={ctx.alpha:g}")
        found = group(name).measure(ctx)
        bar.update()
        metrics |= means(found.values) | found.metrics
        intervals |= _intervals(ctx, found) | found.intervals
        for split, columns in found.columns.items():
            tables[split] = tables[split].assign(**{k: v.to_numpy() for k, v in columns.items()})
    table = pd.concat(tables.values(), ignore_index=True).assign(alpha=ctx.alpha)
    if ctx.retrained is not None:
        metrics["distance"] = distances(metrics, ctx.retrained.metrics)
    return metrics | {"intervals": {k: list(v) for k, v in intervals.items()}, "settings": ctx.suite.settings}, table


def _aggregates(ctx: Context) -> dict[str, float]:
    """Model utility where all its parts are there; forget quality where there is something to compare with."""
    metrics, forget, found = ctx.metrics, ctx.examples[ctx.examples["split"] == "forget"], {}
    if all(name in metrics for name in PARTS):
        found["model_utility"] = model_utility(metrics)
        if not found["model_utility"]:
            log.info("model utility is 0 because of %s", ", ".join(name for name in PARTS if not metrics[name] > 0))
    compared = ctx.itself or ctx.retrained is not None
    if compared and RATIO in forget and forget[RATIO].notna().all():
        own = forget[RATIO].to_numpy()
        theirs = own if ctx.itself else ctx.retrained.column("forget", RATIO)
        found |= Metric(forget_quality).compute(predictions=own, references=theirs)
    return found


def _intervals(ctx: Context, found: Found) -> dict[str, Interval]:
    """95 % intervals of every mean, and of model utility where all its parts are there."""
    splits = {split.name: split.people for split in ctx.suite.splits}
    resamples, values, people, intervals = ctx.suite.cfg.resamples, {}, {}, {}
    for name, array in found.values.items() if resamples > 1 else ():
        # the split that its name says, unless the group says more
        of_split = next((splits[part] for part in name.split("/") if part in splits), ())
        whom = found.people.get(name, of_split if len(of_split) == len(array) else [""] * len(array))
        seen = ~np.isnan(array)
        if seen.any():
            values[name], people[name] = array[seen], [who for who, kept in zip(whom, seen, strict=True) if kept]
            intervals[name] = mean_interval(values[name], resamples, people[name], ends(name))
    if people.keys() >= set(PARTS):
        parts = {name: (name.split("/")[0], found.values[name]) for name in PARTS}

        def utility(weights: Weights) -> np.ndarray:
            """From means over what each part saw."""
            of_parts = []
            for split, array in parts.values():
                counted = weights[split] * ~np.isnan(array)
                of_parts.append(counted @ np.nan_to_num(array) / counted.sum(-1))
            return harmonic_mean(np.broadcast_arrays(*of_parts))

        intervals["model_utility"] = interval(utility, {split: splits[split] for split, _ in parts.values()}, resamples)
    return {name: found for name, found in intervals.items() if found is not None}


class Metric(hugging_face.Metric):
    """A function that compares two samples as a metric of Hugging Face's ``evaluate``, loaded from no hub:
    ``Metric(f).compute(predictions=[…], references=[…])`` is ``f([…], […])``, kept in memory."""

    def __init__(self, function: Callable[[Sequence[float], Sequence[float]], dict[str, float]]):
        self._compute = function
        # evaluate makes a folder even for metrics kept in memory; a read-only home must not stop a run
        super().__init__(keep_in_memory=True, cache_dir=str(Path(tempfile.gettempdir()) / "unlearn-metrics"))

    def _info(self) -> hugging_face.MetricInfo:
        features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("float64")))
        return hugging_face.MetricInfo(
            description=self._compute.__doc__, citation="", inputs_description="", features=features
        )
