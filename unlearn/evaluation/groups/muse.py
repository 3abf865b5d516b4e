"""MUSE (arXiv 2407.06460): ROUGE-L F1 of continuations (verbatim) and of answers about the texts (knowledge).

``forget_verbatim/verbmem``, ``forget_knowledge/knowmem`` and ``retain_knowledge/knowmem``.
MUSE scores without a stemmer, OpenUnlearning with one: two dialects of one name, so ``stemmer`` is always said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.metrics.arrays import averaged, same_length
from unlearn.evaluation.metrics.texts import rouge_l_f1

NEEDS = ("excerpts",)  # the texts are thousands of rows, and no generation is as long as they
GOLD_TOKENS = 128  # of verbatim memorisation; as many are generated
NEXT_QUESTION = re.compile("\n\n|\nQuestion|Question:")  # where an answer to a few-shot prompt runs on


def measure(ctx: Context) -> Found:
    tokenizer, values, columns = ctx.suite.encoder.tokenizer, {}, {}
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    verbatim = partial(verbatim_memorization, encode=tokenizer.encode, decode=decode)
    for name, metric, function in (
        ("forget_verbatim", "verbmem", verbatim),
        ("forget_knowledge", "knowmem", knowledge_memorization),
        ("retain_knowledge", "knowmem", knowledge_memorization),
    ):
        if ctx.suite.split(name) is not None:
            table = ctx.examples[ctx.examples["split"] == name]
            pairs = list(table["generation"]), list(table["gold"])
            found = function(*pairs, stemmer=ctx.suite.semantics.stemmer_f1)["values"]
            values[f"{name}/{metric}"], columns[name] = found, pd.DataFrame({metric: found})
    return Found(values, columns=columns)


# --- from numbers alone -----------------------------------------------------------------------------------------------
def verbatim_memorization(
    generations: Sequence[str],
    golds: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    stemmer: bool,
) -> dict:
    """``verbmem`` = mean F1 of continuations against the gold text cut to its first 128 tokens; [B] under ``values``.

    ``encode`` and ``decode`` are the model's tokenizer. MUSE encodes with special tokens, which count among the 128,
    and decodes without them.
    """
    return _mean_f1("verbmem", generations, [decode(encode(gold)[:GOLD_TOKENS]) for gold in golds], stemmer)


def knowledge_memorization(generations: Sequence[str], golds: Sequence[str], stemmer: bool) -> dict:
    """``knowmem`` = mean F1 of answers against gold answers; [B] under ``values``.

    An answer ends where the model goes on to another question.
    """
    return _mean_f1("knowmem", [NEXT_QUESTION.split(g)[0] for g in generations], golds, stemmer)


def _mean_f1(name: str, generations: Sequence[str], golds: Sequence[str], stemmer: bool) -> dict:
    same_length(generations=generations, golds=golds)
    if len(golds) == 0:
        raise ValueError(f"{name} needs at least one text; there are none")
    return averaged(name, np.array([rouge_l_f1(g, gold, stemmer) for g, gold in zip(generations, golds, strict=True)]))
