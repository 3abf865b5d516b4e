"""Whether answers are language: how likely the target finds them, and how much they repeat.

``<split>/target_logp``: log-probability per token, nats, of the greedy answer (as text, encoded again, without its last
token, which ends it) under the target itself. Beside it stands that of the target's own answers: gibberish,
shuffled words and fragments of other languages lie far below it, a refusal or a wrong name a little.
``<split>/repetition``: the share of pairs of neighbouring words that stood in the answer before: loops are likely, too.

An answer that says nothing, or is longer than the context, has neither. One pass of the target over all answers; a
model that is evaluated by itself (``python -m unlearn.evaluate model=``) is its own target.
"""

import numpy as np
import pandas as pd

from unlearn.data.encoding import Examples
from unlearn.evaluation.context import Context, Found, Subject
from unlearn.evaluation.metrics.texts import PIECE
from unlearn.evaluation.suite import Split


def measure(ctx: Context) -> Found:
    values, columns = {}, {}
    target = Subject(ctx.suite, ctx.beside.target() if ctx.beside.target else ctx.ensemble, ctx.alpha)
    for split in (split for split in ctx.suite.splits if split.generated):
        said = list(ctx.examples.loc[ctx.examples["split"] == split.name, "generation"])
        found = {"target_logp": logp(target, split, said), "repetition": np.array([repetition(text) for text in said])}
        columns[split.name] = pd.DataFrame(found)
        values |= {f"{split.name}/{name}": array for name, array in found.items()}
    return Found(values, columns=columns)


def logp(target: Subject, split: Split, said: list[str]) -> np.ndarray:
    """Mean log-probability of the tokens of each answer, [rows]; NaN of one that cannot be scored."""
    examples = [
        target.suite.encoder.said(row.id, row.question, text) for row, text in zip(split.rows, said, strict=True)
    ]
    known = [i for i, example in enumerate(examples) if example is not None]
    found = np.full(len(said), np.nan)
    if known:
        scored = Examples(examples[i] for i in known)
        for member in target.ensemble.members:
            member.kind.announce(scored, [], [], 0)
        scores = target.scored(scored)
        found[known] = [values.mean() if len(values) else np.nan for values in scores.before_eos(scores.logp)]
    return found


def repetition(text: str) -> float:
    """Share of the pairs of neighbouring words and marks that stood in the text before; NaN where there is no word."""
    pieces = PIECE.findall(text.casefold())
    pairs = list(zip(pieces, pieces[1:], strict=False))
    if not pieces:
        return float("nan")
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
