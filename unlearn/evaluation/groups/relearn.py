"""Relearning: does training on a part of the forget facts bring back the *other* part? (Deeb & Roger, arXiv 2410.08827)

An attacker who may train the member that learnt (the offset; or the model itself) sees half of the forget questions,
person by person where the data say who they are about, for ``eval.relearn_steps`` steps of ``eval.relearn_batch``
answers at ``eval.relearn_lr``: that is the budget. On the other half: ``relearn/before``, ``relearn/after`` and
``relearn/gain`` (probability of the right answers), ``relearn/seen`` (the same of the half that was trained on) and
``relearn/rougeL_recall``. Facts that were never there cannot come back, so the retrained model is what to compare with;
a direct baseline is a run with ``method=direct``.
"""

from __future__ import annotations

from functools import partial

import torch

from unlearn.data.encoding import Examples, collate
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.groups.behaviour import live_rows, probs, recalls, trainable
from unlearn.evaluation.groups.context import Context, Found, aggregate
from unlearn.evaluation.suite import Split, Suite, part
from unlearn.learning.answers import Answers
from unlearn.learning.loop import Loop, Optimisation


def measure(ctx: Context) -> Found:
    ensemble = trainable(ctx.ensemble, ctx.alpha)
    if ensemble is None:  # frozen models, or α = 0: nothing that an attacker of this kind could train
        return Found({})
    suite, split = ctx.suite, ctx.suite.split("forget")
    seen, other = halves(split)
    before = probs(suite, ensemble, ctx.alpha, other)
    _learn(suite, ensemble, ctx.alpha, seen)
    after = probs(suite, ensemble, ctx.alpha, other)
    values = {
        "relearn/before": before, "relearn/after": after, "relearn/gain": after - before,
        "relearn/seen": probs(suite, ensemble, ctx.alpha, seen),
        "relearn/rougeL_recall": recalls(suite, ensemble, ctx.alpha, other),
    }  # fmt: skip
    metrics, intervals = aggregate(values, suite.cfg.resamples)
    return Found(metrics, intervals=intervals)


def halves(split: Split) -> tuple[Split, Split]:
    """Every second person, or question where there are not two persons; the first half is trained on."""
    people = list(dict.fromkeys(r.group for r in split.rows))
    by_person = len(people) > 1 and all(people)
    unit = [people.index(r.group) if by_person else i for i, r in enumerate(split.rows)]
    seen, other = ([i for i, u in enumerate(unit) if u % 2 == half] for half in (0, 1))
    return part(split, seen), part(split, other)


def _learn(suite: Suite, ensemble: Ensemble, alpha: float, split: Split) -> None:
    """Plain training on right answers, through the whole ensemble, as the attacker would."""
    cfg, model = suite.cfg, ensemble.trained.model
    examples = Examples(split.examples[i] for i in split.right)
    place = next(model.parameters()).device
    settings = Optimisation(cfg.relearn_lr, cfg.relearn_steps, 0.0, 1.0, "linear", 0.0, (0.9, 0.99), 1.0)
    order = torch.Generator().manual_seed(0)

    def loss(indices: list[int]):
        batch = collate([examples[i] for i in indices], suite.encoder.tokenizer.pad_token_id).to(place)
        logits = ensemble.logits(live_rows(ensemble, alpha, batch), alpha)
        return -Answers(logits, batch.labels, batch.owner).logp.mean(), {}

    def micro_batches(step: int):
        chosen = torch.randperm(len(examples), generator=order)[: cfg.relearn_batch]
        return [partial(loss, chosen.tolist())]

    Loop(model, settings, place.type).run(micro_batches)
    model.eval()
