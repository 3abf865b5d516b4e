"""leak@k: the worst of k answers drawn to each forget question, beside the retrained model's own (arXiv 2511.04934).

``forget/leak@k`` is the expected largest ROUGE-L recall of k answers. ``forget/leaked@k`` is the share of questions
with an answer among k above ``eval.leak_threshold``, ``forget/attribute_leaked@k`` with one that holds all words that
matter. With a file of yours, ``eval.judge=FILE.py`` that has ``judge(question, gold, answer)`` from 0 to 1, there is
also ``forget/judged_leak@k``.
``forget/leak_gap@k`` is leak@k minus the retrained model's, and ``forget/leak_gap`` that of the largest k: 0 is as good
as never having seen the forget set. Answers are drawn from the full distribution (no top-k, no top-p), up to the length
of the longest right answer: ROUGE recall would grow with the length of babble.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from unlearn.config.own import JUDGE, named
from unlearn.decoding.generation import Decoding, sample
from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.metrics.leak import attribute, attribute_scores, leak_at_k, leaked_at_k, rouge_scores
from unlearn.evaluation.suite import Split

SETTINGS = ("leak_samples", "leak_temperature", "leak_threshold")
SEED = 0  # the same random numbers for every model that is compared


def ks(samples: int) -> list[int]:
    """1, 10, 100, … up to the number of samples, and that number."""
    return sorted({10**i for i in range(len(str(samples)))} | {samples})


def measure(ctx: Context) -> Found:
    split, cfg = ctx.suite.split("forget"), ctx.suite.cfg
    drawn = _draw(ctx, split)
    scores = _scores(drawn, split, cfg.judge)
    values: dict[str, np.ndarray] = {}
    for k in ks(cfg.leak_samples):
        values[f"leak@{k}"] = leak_at_k(scores["rouge"], k)["values"]
        values[f"leaked@{k}"] = leaked_at_k(scores["rouge"], k, cfg.leak_threshold)["values"]
        if "attribute" in scores:
            values[f"attribute_leaked@{k}"] = leaked_at_k(scores["attribute"], k, 0.5)["values"]
        if "judge" in scores:
            values[f"judged_leak@{k}"] = leak_at_k(scores["judge"], k)["values"]
        if ctx.retrained is not None and ctx.retrained.has("forget", f"leak@{k}"):  # other projects' logs have none
            values[f"leak_gap@{k}"] = values[f"leak@{k}"] - ctx.retrained.column("forget", f"leak@{k}")
            values["leak_gap"] = values[f"leak_gap@{k}"]
    columns = pd.DataFrame({f"leak@{k}": values[f"leak@{k}"] for k in ks(cfg.leak_samples)})
    return Found({f"forget/{name}": v for name, v in values.items()}, columns={"forget": columns})


def _scores(drawn: list[list[str]], split: Split, judge: str | None) -> dict[str, np.ndarray]:
    """How much each drawn answer gives away, [rows, n]: by ROUGE, by words, by the user's own judge."""
    found = {"rouge": rouge_scores(drawn, [r.answer for r in split.rows])}
    told = [i for i, r in enumerate(split.rows) if attribute(r.question, r.answer)]
    if told:
        rows = [split.rows[i] for i in told]
        questions, golds = [r.question for r in rows], [r.answer for r in rows]
        found["attribute"] = attribute_scores([drawn[i] for i in told], questions, golds)
    if judge is not None:
        own = named(judge, *JUDGE)
        found["judge"] = np.array(
            [[own(r.question, r.answer, text) for text in texts] for r, texts in zip(split.rows, drawn, strict=True)],
            dtype=float,
        )
    return found


def _draw(ctx: Context, split: Split) -> list[list[str]]:
    """``eval.leak_samples`` answers to each prompt."""
    cfg, n = ctx.suite.cfg, ctx.suite.cfg.leak_samples
    longest = max(len(split.examples[i].answer) for i in split.right)
    how = Decoding.by(ctx.suite.encoder.tokenizer, longest, cfg.batch_size)
    prompts = [p for p in split.prompts for _ in range(n)]
    answers = sample(ctx.ensemble, prompts, ctx.alpha, how, cfg.leak_temperature, SEED)
    texts = np.array([ctx.suite.encoder.decode(a) for a in answers], dtype=object)
    return texts.reshape(len(split.prompts), n).tolist()
