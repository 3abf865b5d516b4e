"""Metrics of an ensemble over all splits of a suite, per example and aggregated, for every α.

The frozen rows of every split are read from the store where they fit, so an α costs little more than its generations.
The target and the retrained reference go through the same function, as ensembles of one member.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from tqdm import tqdm

from unlearn.decoding.drafts import greedy_from_drafts
from unlearn.decoding.generation import greedy
from unlearn.ensemble.ensemble import Ensemble
from unlearn.ensemble.frozen import FrozenRows, LiveRows, rows_of
from unlearn.ensemble.kinds import noted
from unlearn.evaluation import measures
from unlearn.evaluation.groups import group
from unlearn.evaluation.groups.context import Context, Measured
from unlearn.evaluation.metrics.bootstrap import interval, mean_interval
from unlearn.evaluation.metrics.distance import distances
from unlearn.evaluation.metrics.forget_quality import ForgetQuality
from unlearn.evaluation.metrics.model_utility import PARTS, model_utility, of_means
from unlearn.evaluation.scoring import Scores, score
from unlearn.evaluation.suite import Split, Suite
from unlearn.store.entries import Store

log = logging.getLogger(__name__)


def evaluate(
    ensemble: Ensemble,
    suite: Suite,
    alphas: Sequence[float],
    store: Store | None,
    retrained: Measured | None,
    show: str | None = None,
    itself: bool = False,
) -> tuple[dict[float, dict[str, Any]], pd.DataFrame]:
    """Metrics by α, and a table with one row per example and α.

    An entry holds numbers by metric, and beside them ``intervals`` (95 %, over items), ``distance`` (to the retrained
    model, by metric) and ``settings``. ``store`` None: nothing is stored. ``retrained``: the gold model; None
    where there is none (then nothing is compared with it) and for that model ``itself``. ``show`` names the progress
    bar; None shows none.
    """
    found: dict[float, list[tuple[Split, Scores, list[str] | None]]] = {a: [] for a in alphas}
    bar = tqdm(total=len(suite.splits) * len(alphas), desc=show, disable=None if show else True, leave=False)
    for split in suite.splits:
        scores = _scores(ensemble, split, alphas, suite, store)
        for alpha in alphas:
            texts = generations(ensemble, split, alpha, suite, store) if split.generated else None
            found[alpha].append((split, scores[alpha], texts))
            bar.update()
    entries, tables = {}, []
    for alpha in alphas:
        bar.set_postfix_str(f"metrics at α={alpha:g}")
        entries[alpha], table = _entry(ensemble, alpha, suite, store, found[alpha], retrained, itself)
        tables.append(table)
    bar.close()
    return entries, pd.concat(tables, ignore_index=True)


def generations(ensemble: Ensemble, split: Split, alpha: float, suite: Suite, store: Store | None = None) -> list[str]:
    """Greedy answers to the prompts of a split; with a store they begin with what it has of the target's own."""
    tokenizer, semantics, cfg = suite.encoder.tokenizer, suite.semantics, suite.cfg
    ends = tokenizer.pad_token_id, tokenizer.eos_token_id
    asked = ensemble, split.prompts, alpha, *ends, cfg.max_new_tokens, cfg.batch_size
    if store is None or semantics.hide_pad_tokens:  # stored rows are those of the whole text
        answers = greedy(*asked, semantics.hide_pad_tokens)
    else:
        answers = noted(ensemble, alpha, partial(greedy_from_drafts, *asked, store, suite.stored_rows_gib))
    if semantics.total_tokens is not None:  # greedy answers are prefixes of longer ones
        room = [max(0, semantics.total_tokens - len(p)) for p in split.prompts]
        answers = [a[:n] for a, n in zip(answers, room, strict=True)]
    return [suite.encoder.decode(a) for a in answers]


def _scores(
    ensemble: Ensemble, split: Split, alphas: Sequence[float], suite: Suite, store: Store | None
) -> Mapping[float, Scores]:
    pad, hide = suite.encoder.tokenizer.pad_token_id, suite.semantics.hide_pad_tokens
    rows: dict[str, FrozenRows | LiveRows] = {}
    if store is not None and not hide:  # stored rows are those of the whole text
        frozen = [m for m in ensemble.needed(alphas) if not m.trained]
        rows = {m.name: rows_of(store, m, split.examples, pad, suite.stored_rows_gib) for m in frozen}
    moments = "privacy" in suite.cfg.groups and split.name in ("forget", "holdout")
    return score(
        ensemble, split.examples, alphas, rows, pad, suite.cfg.batch_size, moments, hide, argmax_of=split.right
    )


def _entry(
    ensemble: Ensemble,
    alpha: float,
    suite: Suite,
    store: Store | None,
    found: Sequence[tuple[Split, Scores, list[str] | None]],
    retrained: Measured | None,
    itself: bool,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Everything about one α."""
    metrics: dict[str, Any] = {}
    tables = {}
    for split, scores, texts in found:
        values, tables[split.name] = measures.measure(split, scores, texts, suite.semantics)
        metrics |= {f"{split.name}/{k}": v for k, v in values.items()}
    examples = pd.concat(tables.values(), ignore_index=True)
    metrics |= _aggregates(metrics, examples, retrained, itself)
    intervals = _intervals(metrics, measures.per_example(examples, suite.semantics), suite.cfg.resamples)
    by_split = {split.name: scores for split, scores, _ in found}
    for name in suite.cfg.groups:
        more = group(name)(Context(ensemble, alpha, suite, store, by_split, examples, metrics, retrained, itself))
        metrics |= more.metrics
        intervals |= more.intervals
        for split, columns in more.columns.items():
            tables[split] = tables[split].assign(**{k: v.to_numpy() for k, v in columns.items()})
    table = pd.concat(tables.values(), ignore_index=True).assign(alpha=alpha)
    if retrained is not None:
        shared = {k: v for k, v in metrics.items() if k in retrained.metrics}
        metrics["distance"] = {k: d.signed for k, d in distances(shared, retrained.metrics).items()}
    return metrics | {"intervals": {k: list(v) for k, v in intervals.items()}, "settings": suite.settings}, table


def _aggregates(
    metrics: Mapping[str, float], examples: pd.DataFrame, retrained: Measured | None, itself: bool
) -> dict[str, float]:
    """Model utility where all its parts are there; forget quality where there is something to compare with."""
    found = {}
    if all(name in metrics for name in PARTS):
        found["model_utility"] = model_utility(metrics)
        if not found["model_utility"]:
            log.info("model utility is 0 because of %s", ", ".join(name for name in PARTS if not metrics[name] > 0))
    forget = examples[examples["split"] == "forget"]
    compared = itself or retrained is not None
    if compared and measures.RATIO in forget and forget[measures.RATIO].notna().all():
        own = forget[measures.RATIO].to_numpy()
        theirs = own if itself else retrained.column("forget", measures.RATIO)
        found |= ForgetQuality().compute(predictions=own, references=theirs)
    return found


def _intervals(
    metrics: Mapping[str, float], values: Mapping[str, Any], resamples: int
) -> dict[str, tuple[float, float]]:
    """95 % item-bootstrap intervals of every mean, and of model utility."""
    if not resamples:
        return {}
    found = {name: tuple(mean_interval(v, resamples)) for name, v in values.items()}
    if "model_utility" in metrics:
        parts = {name: values[name] for name in PARTS}
        found["model_utility"] = tuple(interval(parts, of_means, resamples))
    return found
