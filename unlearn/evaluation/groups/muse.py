"""MUSE (arXiv 2407.06460): ROUGE-L F1 of continuations (verbatim) and of answers about the texts (knowledge).

``forget_verbatim/verbmem``, ``forget_knowledge/knowmem`` and ``retain_knowledge/knowmem``.
MUSE scores without a stemmer, OpenUnlearning with one: two dialects of one name, so ``stemmer`` is always said.
"""

import re

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from unlearn.evaluation.context import Context, Found

NEEDS = ("excerpts",)  # the texts are thousands of rows, and no generation is as long as they
GOLD_TOKENS = 128  # of verbatim memorisation; as many are generated
NEXT_QUESTION = re.compile("\n\n|\nQuestion|Question:")  # where an answer to a few-shot prompt runs on


def measure(ctx: Context) -> Found:
    semantics, values, columns = ctx.suite.semantics, {}, {}
    for name, metric in (
        ("forget_verbatim", "verbmem"), ("forget_knowledge", "knowmem"), ("retain_knowledge", "knowmem")
    ):  # fmt: skip
        if ctx.suite.split(name) is not None:
            table = ctx.examples[ctx.examples["split"] == name]
            said, gold = list(table["generation"]), list(table["gold"])
            if metric == "verbmem":
                gold = [beginning(text, ctx.suite.encoder.tokenizer) for text in gold]
            else:
                said = [NEXT_QUESTION.split(text)[0] for text in said]
            pairs = zip(said, gold, strict=True)
            found = np.array([semantics.rouge.l_f1(*pair, semantics.stemmer_f1) for pair in pairs])
            values[f"{name}/{metric}"], columns[name] = found, pd.DataFrame({metric: found})
    return Found(values, columns=columns)


def beginning(gold: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Gold text cut to its first 128 tokens: with special tokens, which count among them but are not in the text."""
    return tokenizer.decode(tokenizer.encode(gold, split_special_tokens=True)[:GOLD_TOKENS], skip_special_tokens=True)
