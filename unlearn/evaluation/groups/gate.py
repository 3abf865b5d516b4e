"""A gate by counts of words (``unlearn/evaluation/gate.py``): what it flags and misses.

For each way of asking a forget question — ``direct``, ``paraphrased``, ``prefix`` (half of the answer is given),
``composite`` (behind a retain question), ``composite_paraphrased``, ``misspelt`` (two letters of each name swapped):
``gate/<kind>/flagged_<way>``, the share that a gate of that kind flags; and, for the overlap gate, the ROUGE-L recall
of the greedy answer ``gate/target_<way>`` (no defence), ``gate/offset_<way>`` (the offset at α for all),
``gate/gated_<way>`` (at α where flagged, else the target), ``gate/refusing_<way>`` (a refusal where flagged).
The same of retain questions that no gate saw, ``retain``, and of ``real_authors`` and ``world_facts``: there flags are
false, and recall is to stay. The threshold lets 99 % of other unseen retain questions through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unlearn.data.encoding import Encoder
from unlearn.data.rows import Row
from unlearn.data.sampling import held_out
from unlearn.evaluation.gate import KINDS, Gate, fit, misspelt
from unlearn.evaluation.groups.behaviour import answers
from unlearn.evaluation.groups.context import Context, Found, aggregate
from unlearn.evaluation.metrics.rouge import recall
from unlearn.evaluation.suite import spaced

UNSEEN = 0.2  # of the retain questions: half for the threshold, half for the report
REFUSAL = "I don't know."
MOST = 100  # questions of a split that nobody asked to forget


class Way:
    """Prompts of one way of asking: the text that a gate reads, the ids that a model reads, and what counts as told."""

    def __init__(self, texts: Sequence[str], prompts: Sequence[Sequence[int]], gold: Sequence[str]):
        self.texts, self.prompts, self.gold = list(texts), list(prompts), list(gold)

    @classmethod
    def asking(cls, encoder: Encoder, questions: Sequence[str], rows: Sequence[Row]) -> Way:
        return cls(questions, [encoder.prompt(q) for q in questions], [r.answer for r in rows])


def measure(ctx: Context) -> Found:
    if not any(m.slope for m in ctx.ensemble.members):  # a model as it is: there is nothing to switch on
        return Found({})
    retain = ctx.suite.data.splits["retain"]
    unseen = held_out(len(retain), UNSEEN)
    gates = _gates(ctx, [retain[i] for i in unseen[::2]], set(unseen))
    asked = ways(ctx, [r for i, r in enumerate(retain) if i not in unseen]) | _others(
        ctx, [retain[i] for i in unseen[1::2]]
    )
    values: dict[str, np.ndarray] = {}
    for name, way in asked.items():
        flags = {kind: np.array([gate.flags(text) for text in way.texts]) for kind, gate in gates.items()}
        values |= {f"gate/{kind}/flagged_{name}": found.astype(float) for kind, found in flags.items()}
        values |= {f"gate/{who}_{name}": found for who, found in _recalls(ctx, way, flags[KINDS[0]]).items()}
    metrics, intervals = aggregate(values, ctx.suite.cfg.resamples)
    return Found(metrics, {}, intervals)


def _gates(ctx: Context, choosing: Sequence[Row], unseen: set[int]) -> dict[str, Gate]:
    splits = ctx.suite.data.splits
    forget = [r.question for r in splits["forget"]]
    retain = [r.question for i, r in enumerate(splits["retain"]) if i not in unseen]
    return {kind: fit(kind, forget, retain, [r.question for r in choosing]) for kind in KINDS}


def ways(ctx: Context, retain: Sequence[Row]) -> dict[str, Way]:
    """How the forget questions are asked; ``retain``: those that are asked first in one prompt with them."""
    split, encoder = ctx.suite.split("forget"), ctx.suite.encoder
    rows, questions = split.rows, [r.question for r in split.rows]
    before = [retain[i % len(retain)].question for i in range(len(rows))]
    found = {"direct": Way.asking(encoder, questions, rows), "prefix": _prefix(ctx)}
    found["composite"] = Way.asking(encoder, [f"{b} {q}" for b, q in zip(before, questions, strict=True)], rows)
    found["misspelt"] = Way.asking(encoder, [misspelt(q) for q in questions], rows)
    if all(r.paraphrased_question for r in rows):
        said = [r.paraphrased_question for r in rows]
        found["paraphrased"] = Way.asking(encoder, said, rows)
        both = [f"{b} {q}" for b, q in zip(before, said, strict=True)]
        found["composite_paraphrased"] = Way.asking(encoder, both, rows)
    return found


def _prefix(ctx: Context) -> Way:
    """Half of the answer's tokens given after the prompt; told is what comes after."""
    split, encoder = ctx.suite.split("forget"), ctx.suite.encoder
    gold = [split.examples[i].answer for i in split.right]
    given = [(len(a) - 1) // 2 for a in gold]
    texts = [f"{r.question} {encoder.decode(a[:n])}" for r, a, n in zip(split.rows, gold, given, strict=True)]
    prompts = [(*p, *a[:n]) for p, a, n in zip(split.prompts, gold, given, strict=True)]
    return Way(texts, prompts, [encoder.decode(a[n:-1]) for a, n in zip(gold, given, strict=True)])


def _others(ctx: Context, retain: Sequence[Row]) -> dict[str, Way]:
    """Questions that nobody asked to forget."""
    rows: Mapping[str, Sequence[Row]] = {"retain": retain} | {
        name: split.rows for name in ("real_authors", "world_facts") if (split := ctx.suite.split(name)) is not None
    }
    chosen = {name: spaced(some, MOST) for name, some in rows.items() if some}
    return {name: Way.asking(ctx.suite.encoder, [r.question for r in some], some) for name, some in chosen.items()}


def _recalls(ctx: Context, way: Way, flagged: np.ndarray) -> dict[str, np.ndarray]:
    """Recall of the greedy answers, [prompts], by defence."""
    target, offset = (
        np.array(
            [recall(t, g) for t, g in zip(answers(ctx.suite, ctx.ensemble, a, way.prompts), way.gold, strict=True)]
        )
        for a in (0.0, ctx.alpha)
    )
    refusal = np.array([recall(REFUSAL, g) for g in way.gold])
    gated, refusing = np.where(flagged, offset, target), np.where(flagged, refusal, target)
    return {"target": target, "offset": offset, "gated": gated, "refusing": refusing}
