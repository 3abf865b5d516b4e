"""Prompts that help: the beginning of the answer, and a question hidden behind another one.

For each share of ``eval.prefix_shares`` (0.5 → ``@50``) of the answer's tokens given after the prompt:
``forget/prefix_prob@50``, the probability of the rest, and ``forget/prefix_rougeL_recall@50``, the ROUGE-L recall of
the greedy rest.
``forget/composite_rougeL_recall``: recall of the answer where a retain question is asked first, in the same prompt.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from unlearn.evaluation.groups.behaviour import answers
from unlearn.evaluation.groups.context import Context, Found, aggregate
from unlearn.evaluation.metrics.rouge import recall
from unlearn.evaluation.suite import Split


def measure(ctx: Context) -> Found:
    if ctx.ensemble.encodes:
        raise ValueError("eval.groups: prefix gives beginnings of answers in the prompt, which an encoder (T5) reads")
    split = ctx.suite.split("forget")
    found: dict[str, np.ndarray] = {}
    for share in ctx.suite.cfg.prefix_shares:
        given = [int(share * (len(split.examples[i].answer) - 1)) for i in split.right]  # of the tokens before EOS
        found[f"prefix_prob@{100 * share:g}"] = _rest_prob(ctx, split, given)
        found[f"prefix_rougeL_recall@{100 * share:g}"] = _rest_recall(ctx, split, given)
    retain = ctx.suite.split("retain")
    if retain is not None:
        found["composite_rougeL_recall"] = _composite(ctx, split, retain)
    metrics, intervals = aggregate({f"forget/{k}": v for k, v in found.items()}, ctx.suite.cfg.resamples)
    return Found(metrics, {"forget": pd.DataFrame(found)}, intervals)


def _rest_prob(ctx: Context, split: Split, given: list[int]) -> np.ndarray:
    """exp(mean log-probability) of the tokens after the first ``given``, EOS included: teacher forcing gives both."""
    scores = ctx.scores["forget"]
    starts = [scores.starts[i] for i in split.right]
    ends = [scores.starts[i + 1] for i in split.right]
    return np.array([np.exp(scores.logp[a + n : b].mean()) for a, b, n in zip(starts, ends, given, strict=True)])


def _rest_recall(ctx: Context, split: Split, given: list[int]) -> np.ndarray:
    gold = [split.examples[i].answer for i in split.right]
    prompts = [p + a[:n] for p, a, n in zip(split.prompts, gold, given, strict=True)]
    rest = [ctx.suite.encoder.decode(a[n:-1]) for a, n in zip(gold, given, strict=True)]
    texts = answers(ctx.suite, ctx.ensemble, ctx.alpha, prompts)
    return np.array([recall(text, left) for text, left in zip(texts, rest, strict=True)])


def _composite(ctx: Context, split: Split, retain: Split) -> np.ndarray:
    others = [retain.rows[i % len(retain.rows)].question for i in range(len(split.rows))]
    prompts = [ctx.suite.encoder.prompt(f"{q} {r.question}") for q, r in zip(others, split.rows, strict=True)]
    texts = answers(ctx.suite, ctx.ensemble, ctx.alpha, prompts)
    return np.array([recall(t, r.answer) for t, r in zip(texts, split.rows, strict=True)])
