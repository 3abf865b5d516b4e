"""Metrics of an ensemble over forget, retain, real authors and world facts, per example and aggregated, for every α.

The frozen rows of every split are read from the store where they fit, so an α costs little more than its generations.
The target and the retrained reference go through the same function, as ensembles of one member.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from unlearn.config import EvalConfig
from unlearn.data.encoding import Encoder, Examples
from unlearn.data.rows import DataError, DataSet, Row
from unlearn.ensemble import Ensemble
from unlearn.frozen import FrozenRows, LiveRows, rows_of
from unlearn.generation import greedy
from unlearn.metrics.exact_memorization import ExactMemorization
from unlearn.metrics.forget_quality import ForgetQuality
from unlearn.metrics.model_utility import PARTS, model_utility
from unlearn.metrics.probability import Probability, ProbabilityWithOptions
from unlearn.metrics.rouge import RougeLRecall
from unlearn.metrics.truth_ratio import TruthRatio
from unlearn.scoring import Scores, score
from unlearn.store import Store

log = logging.getLogger(__name__)
EVALUATED = ("forget", "retain", "real_authors", "world_facts")


@dataclass(frozen=True)
class Split:
    """Rows of one split with every answer that is scored, in one flat list."""

    name: str
    rows: list[Row]
    examples: Examples  # all answers, row by row: right, paraphrased (if any), wrong ones
    right: list[int]  # where each row's right answer is in `examples`
    compared: list[int]  # the right answer that the wrong ones are compared with: the paraphrase where there is one
    wrong: list[list[int]]
    prompts: list[tuple[int, ...]]


@dataclass(frozen=True)
class Suite:
    """What to evaluate, and what identifies the result."""

    splits: list[Split]
    encoder: Encoder
    cfg: EvalConfig
    settings: dict[str, Any]
    stored_rows_gib: float


def suite(data: DataSet, encoder: Encoder, cfg: EvalConfig, settings: dict[str, Any], stored_rows_gib: float) -> Suite:
    """Choose and encode the rows; ``settings`` (``identity.eval_settings``) go into every evaluated entry."""
    splits = []
    for name in EVALUATED:
        rows = data.splits.get(name, ())
        if rows:
            # Where only some rows have wrong answers (TOFU's retain set), those are the ones meant for evaluation.
            usable = [r for r in rows if r.perturbed_answers] or list(rows)
            splits.append(_split(name, usable if name == "forget" else spaced(usable, cfg.max_examples), encoder))
    _check_splits(data.name, splits, cfg.max_new_tokens)
    return Suite(splits, encoder, cfg, settings, stored_rows_gib)


def _check_splits(name: str, splits: Sequence[Split], max_new_tokens: int) -> None:
    """Refuse what would make a metric silently wrong or absent."""
    for split in splits:
        if split.name == "forget" and not all(split.wrong):
            row = split.rows[[bool(w) for w in split.wrong].index(False)]
            raise DataError(
                f"data set {name!r}: forget row {row.id!r} has no wrong answers; truth ratio and forget "
                "quality compare with them"
            )
        longest = max(len(split.examples[i].answer) - 1 for i in split.right)
        if longest > max_new_tokens:
            raise DataError(
                f"eval.max_new_tokens={max_new_tokens} would cut generations short: answers of the "
                f"{split.name} split of {name!r} have up to {longest} tokens; take eval=tofu, or a larger "
                "eval.max_new_tokens"
            )


def spaced(rows: Sequence[Row], most: int | None) -> list[Row]:
    """At most ``most`` rows, evenly spaced, so that every part of the split is represented."""
    if most is None or len(rows) <= most:
        return list(rows)
    return [rows[i * len(rows) // most] for i in range(most)]


def _split(name: str, rows: list[Row], encoder: Encoder) -> Split:
    examples, right, compared, wrong = Examples(), [], [], []

    def add(row: Row, answer: str) -> int:
        examples.append(encoder.example(row.id, row.question, answer))
        return len(examples) - 1

    for row in rows:
        right.append(add(row, row.answer))
        compared.append(add(row, row.paraphrased_answer) if row.paraphrased_answer else right[-1])
        wrong.append([add(row, answer) for answer in row.perturbed_answers])
    return Split(name, rows, examples, right, compared, wrong, [encoder.prompt(r.question) for r in rows])


def evaluate(
    ensemble: Ensemble,
    suite: Suite,
    alphas: Sequence[float],
    store: Store,
    retrained_ratios: np.ndarray | None,
    show: str | None = None,
) -> tuple[dict[float, dict[str, Any]], pd.DataFrame]:
    """Metrics by α, and a table with one row per example and α.

    ``retrained_ratios``: truth ratios of the retrained reference on the forget set; None only for the reference
    itself. ``show`` names the progress bar; None shows none.
    """
    metrics: dict[float, dict[str, Any]] = {a: {} for a in alphas}
    tables = []
    bar = tqdm(total=len(suite.splits) * len(alphas), desc=show, disable=None if show else True, leave=False)
    for split in suite.splits:
        scores = score(
            ensemble,
            split.examples,
            alphas,
            _rows(ensemble, split, alphas, suite, store),
            suite.encoder.tokenizer.pad_token_id,
            suite.cfg.batch_size,
        )
        for alpha in alphas:
            values, table = _measure(split, scores[alpha], _generate(ensemble, split, alpha, suite))
            metrics[alpha] |= {f"{split.name}/{k}": v for k, v in values.items()}
            tables.append(table.assign(alpha=alpha))
            bar.update()
    bar.close()
    examples = pd.concat(tables, ignore_index=True)
    for alpha in alphas:
        _aggregate(metrics[alpha], examples[examples["alpha"] == alpha], retrained_ratios)
        metrics[alpha]["settings"] = suite.settings
    return metrics, examples


def _rows(
    ensemble: Ensemble, split: Split, alphas: Sequence[float], suite: Suite, store: Store
) -> dict[str, FrozenRows | LiveRows]:
    pad = suite.encoder.tokenizer.pad_token_id
    frozen = [m for m in ensemble.needed(alphas) if not m.trained]
    return {m.name: rows_of(store, m, split.examples, pad, suite.stored_rows_gib) for m in frozen}


def _generate(ensemble: Ensemble, split: Split, alpha: float, suite: Suite) -> list[str]:
    tokenizer = suite.encoder.tokenizer
    answers = greedy(
        ensemble,
        split.prompts,
        alpha,
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        suite.cfg.max_new_tokens,
        suite.cfg.batch_size,
    )
    return [suite.encoder.decode(a) for a in answers]


def _measure(split: Split, scores: Scores, generations: list[str]) -> tuple[dict[str, float], pd.DataFrame]:
    """All per-example metrics of a split and their aggregates."""
    gold = [r.answer for r in split.rows]
    nll, wrong = scores.mean_nll, [scores.mean_nll[w] for w in split.wrong]
    results = {
        "prob": Probability().compute(predictions=nll[split.right]),
        "exact_memorization": ExactMemorization().compute(predictions=scores.correct[split.right]),
        "rougeL_recall": RougeLRecall().compute(predictions=generations, references=gold),
    }
    if all(len(w) for w in wrong):
        results["truth_ratio"] = TruthRatio().compute(
            predictions=nll[split.compared], references=wrong, forget=split.name == "forget"
        )
        if split.compared == split.right:  # TOFU's general splits: options in the answer's own wording
            results["prob_options"] = ProbabilityWithOptions().compute(predictions=nll[split.right], references=wrong)
    table = pd.DataFrame({
        "split": split.name, "id": [r.id for r in split.rows], "alpha": np.nan,
        **{name: result.pop("values") for name, result in results.items()},
        "prompt": [r.question for r in split.rows], "gold": gold, "generation": generations,
    })  # fmt: skip
    return {k: v for result in results.values() for k, v in result.items()}, table


def _aggregate(metrics: dict[str, Any], examples: pd.DataFrame, retrained_ratios: np.ndarray | None) -> None:
    if all(name in metrics for name in PARTS):
        metrics["model_utility"] = model_utility(metrics)
        if not metrics["model_utility"]:
            log.info("model utility is 0 because of %s", ", ".join(name for name in PARTS if not metrics[name] > 0))
    forget = examples[examples["split"] == "forget"]
    if "truth_ratio" in forget and forget["truth_ratio"].notna().all():
        ratios = forget["truth_ratio"].to_numpy()
        reference = ratios if retrained_ratios is None else retrained_ratios
        metrics |= ForgetQuality().compute(predictions=ratios, references=reference)
