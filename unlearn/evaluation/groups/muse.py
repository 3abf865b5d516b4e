"""MUSE (arXiv 2407.06460): ROUGE-L F1 of continuations (verbatim) and of answers about the texts (knowledge).

``forget_verbatim/verbmem``, ``forget_knowledge/knowmem`` and ``retain_knowledge/knowmem``.
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.metrics.muse import knowledge_memorization, verbatim_memorization

NEEDS = ("excerpts",)  # the texts are thousands of rows, and no generation is as long as they


def measure(ctx: Context) -> Found:
    tokenizer, values, columns = ctx.suite.encoder.tokenizer, {}, {}
    verbatim = partial(
        verbatim_memorization, encode=tokenizer.encode, decode=partial(tokenizer.decode, skip_special_tokens=True)
    )
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
