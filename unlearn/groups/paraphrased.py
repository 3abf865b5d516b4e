"""The forget questions in other words: what was unlearnt, a wording or a fact?

``forget/other_question_prob``: probability of the right answer to the paraphrased question;
``forget/other_question_rougeL_recall``: ROUGE-L recall of the greedy answer to it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from unlearn.data.encoding import Examples
from unlearn.generation import greedy
from unlearn.groups.context import Context, Found, aggregate
from unlearn.metrics.rouge import recall
from unlearn.scoring import score


def measure(ctx: Context) -> Found:
    suite = ctx.suite
    rows, encoder, cfg = suite.split("forget").rows, suite.encoder, suite.cfg
    pad, eos = encoder.tokenizer.pad_token_id, encoder.tokenizer.eos_token_id
    examples = Examples(encoder.example(r.id, r.paraphrased_question, r.answer) for r in rows)
    scores = score(ctx.ensemble, examples, [ctx.alpha], {}, pad, cfg.batch_size)[ctx.alpha]
    prompts = [e.prompt for e in examples]
    answers = greedy(ctx.ensemble, prompts, ctx.alpha, pad, eos, cfg.max_new_tokens, cfg.batch_size)
    found = {
        "other_question_prob": scores.prob,
        "other_question_rougeL_recall": np.array(
            [recall(encoder.decode(a), r.answer) for a, r in zip(answers, rows, strict=True)]
        ),
    }
    metrics, intervals = aggregate({f"forget/{k}": v for k, v in found.items()}, cfg.resamples)
    return Found(metrics, {"forget": pd.DataFrame(found)}, intervals)
