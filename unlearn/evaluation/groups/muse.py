"""MUSE (arXiv 2407.06460): ROUGE-L F1 of continuations (verbatim) and of answers about the texts (knowledge).

``forget_verbatim/verbmem``, ``forget_knowledge/knowmem`` and ``retain_knowledge/knowmem``.
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from unlearn.evaluation.groups.context import Context, Found, aggregate
from unlearn.evaluation.metrics.muse import knowledge_memorization, verbatim_memorization
from unlearn.evaluation.suite import KNOWLEDGE, VERBATIM


def measure(ctx: Context) -> Found:
    tokenizer, semantics = ctx.suite.encoder.tokenizer, ctx.suite.semantics
    values, columns = {}, {}
    for name in (VERBATIM, *KNOWLEDGE):
        if ctx.suite.split(name) is None:
            continue
        table = ctx.examples[ctx.examples["split"] == name]
        texts = list(table["generation"]), list(table["gold"])
        if name in KNOWLEDGE:
            found = knowledge_memorization(*texts, stemmer=semantics.stemmer_f1)
        else:
            ends = partial(tokenizer.encode), partial(tokenizer.decode, skip_special_tokens=True)
            found = verbatim_memorization(*texts, *ends, stemmer=semantics.stemmer_f1)
        (key,) = found.keys() - {"values"}
        values[f"{name}/{key}"], columns[name] = found["values"], pd.DataFrame({key: found["values"]})
    metrics, intervals = aggregate(values, ctx.suite.cfg.resamples)
    return Found(metrics, columns, intervals)
