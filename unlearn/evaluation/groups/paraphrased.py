"""The forget questions in other words: what was unlearnt, a wording or a fact?

``forget/other_question_prob``: probability of the right answer to the paraphrased question;
``forget/other_question_rougeL_recall``: ROUGE-L recall of the greedy answer to it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from unlearn.data.encoding import Examples
from unlearn.evaluation.groups.behaviour import answers
from unlearn.evaluation.groups.context import Context, Found, aggregate
from unlearn.evaluation.metrics.rouge import recall
from unlearn.evaluation.scoring import score


def measure(ctx: Context) -> Found:
    suite = ctx.suite
    rows, pad = suite.split("forget").rows, suite.encoder.tokenizer.pad_token_id
    examples = Examples(suite.encoder.example(r.id, r.paraphrased_question, r.answer) for r in rows)
    scores = score(ctx.ensemble, examples, [ctx.alpha], {}, pad, suite.cfg.batch_size)[ctx.alpha]
    texts = answers(suite, ctx.ensemble, ctx.alpha, [e.prompt for e in examples])
    found = {
        "other_question_prob": scores.prob,
        "other_question_rougeL_recall": np.array([recall(t, r.answer) for t, r in zip(texts, rows, strict=True)]),
    }
    metrics, intervals = aggregate({f"forget/{k}": v for k, v in found.items()}, suite.cfg.resamples)
    return Found(metrics, {"forget": pd.DataFrame(found)}, intervals)
