"""EUL's measures (arXiv 2310.20150, Tables 2 and 3): is the task still done, and can forgotten names be guessed?

``<split>/accuracy`` of test, retain and forget, where every row has wrong answers in the right one's wording (labels):
share of the rows whose right answer is likelier than every wrong one. Elsewhere ``<split>/rouge1_f1`` and
``<split>/rouge2_f1`` of the greedy answers (``rougeL_f1`` is in the core).
The other requests of a sequence (``request_<n>``) are measured as the forget set is.
``forget/mlm_loss`` and ``retain/mlm_loss``: mean loss in nats of the tokens of people's names, where rows name some. A
model with an encoder fills in the masked names, others read the text word by word. It speaks of memory only where the
models have learnt texts (pair.target.texts=true, or pretraining).
"""

import numpy as np
import pandas as pd

from unlearn.data import spans
from unlearn.data.rows import REQUEST
from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.suite import Split


def measure(ctx: Context) -> Found:
    values, columns, people = {}, {}, {}
    requests = [split.name for split in ctx.suite.splits if split.name.startswith(REQUEST)]
    for split in filter(None, map(ctx.suite.split, ("test", "retain", "forget", *requests))):
        found = _done(ctx, split)
        values |= {f"{split.name}/{metric}": v for metric, v in found.items()}
        columns[split.name] = pd.DataFrame(found)
    for split in filter(None, map(ctx.suite.split, ("forget", "retain", *requests))):
        if losses := name_losses(ctx, split):
            whom = {f"{row.id}/text": row.group for row in split.rows}
            values[f"{split.name}/mlm_loss"] = np.array(list(losses.values()))
            people[f"{split.name}/mlm_loss"] = [whom[id] for id in losses]
    return Found(values, columns=columns, people=people)


def _done(ctx: Context, split: Split) -> dict[str, np.ndarray]:
    """How well the task is done, per row: 1 where the right answer is likelier than every wrong one, or ROUGE."""
    if all(split.wrong) and not split.paraphrased:
        nll = ctx.scores[split.name].nll
        likelier = [nll[right] < nll[wrong].min() for right, wrong in zip(split.right, split.wrong, strict=True)]
        return {"accuracy": np.array(likelier, dtype=float)}
    table = ctx.examples[ctx.examples["split"] == split.name]
    pairs = list(zip(table["generation"], table["gold"], strict=True))
    rouge = ctx.suite.semantics.rouge.seeing
    return {f"rouge{n}_f1": np.array([rouge.n_f1(*pair, n) for pair in pairs]) for n in (1, 2)}


def name_losses(ctx: Context, split: Split) -> dict[str, float]:
    """Mean loss over the tokens of names, nats, by the id of the texts that have some."""
    examples, tokens = spans.of_names(ctx.suite.encoder, split.rows, ctx.ensemble.members[0].kind.encodes)
    if not examples:
        return {}
    found = ctx.scored(examples)
    texts = zip(examples, found.starts, tokens, strict=False)
    return {e.id: -found.logp[start + np.array(t)].mean() for e, start, t in texts}
