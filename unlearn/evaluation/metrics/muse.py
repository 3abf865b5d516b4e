"""Verbatim and knowledge memorisation of MUSE (arXiv 2407.06460): ROUGE-L F1 of greedy answers.

MUSE scores without a stemmer, OpenUnlearning with one: two dialects of one name, so ``stemmer`` is always said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unlearn.evaluation.metrics.arrays import averaged, same_length
from unlearn.evaluation.metrics.rouge import rouge_l_f1

GOLD_TOKENS = 128  # of verbatim memorisation; as many are generated
NEXT_QUESTION = ("\n\n", "\nQuestion", "Question:")  # where an answer to a few-shot prompt runs on


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
    return _mean_f1("knowmem", [_first_answer(g) for g in generations], golds, stemmer)


def _first_answer(generation: str) -> str:
    for mark in NEXT_QUESTION:
        generation = generation.split(mark)[0]
    return generation


def _mean_f1(name: str, generations: Sequence[str], golds: Sequence[str], stemmer: bool) -> dict:
    same_length(generations=generations, golds=golds)
    if len(golds) == 0:
        raise ValueError(f"{name} needs at least one text; there are none")
    return averaged(name, np.array([rouge_l_f1(g, gold, stemmer) for g, gold in zip(generations, golds, strict=True)]))
