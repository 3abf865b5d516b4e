"""Relearning: does training on a part of the forget facts bring back the *other* part? (Deeb & Roger, arXiv 2410.08827)

An attacker who may train the member that learnt (the offset; or the model itself) sees half of the forget questions,
person by person where the data say who they are about, for ``eval.relearn_steps`` steps of ``eval.relearn_batch``
answers at ``eval.relearn_lr``: that is the budget. On the other half: ``relearn/before``, ``relearn/after`` and
``relearn/gain`` (probability of the right answers), ``relearn/seen`` (the same of the half that was trained on) and
``relearn/rougeL_recall``. Facts that were never there cannot come back, so the retrained model is what to compare with;
a direct baseline is a run with ``method=direct``.
"""

from dataclasses import replace

import torch

from unlearn.evaluation.context import Context, Found, answer_logp, trainable
from unlearn.evaluation.suite import Split
from unlearn.learning.loop import Loop, Optimisation
from unlearn.models.llama import device_of

NEEDS = ("weights",)
SETTINGS = ("relearn_steps", "relearn_batch", "relearn_lr")


def measure(ctx: Context) -> Found:
    ensemble = trainable(ctx.ensemble, ctx.alpha)
    if ensemble is None:  # frozen models, or α = 0: nothing that an attacker of this kind could train
        return Found()
    seen, other = halves(ctx.suite.split("forget"))
    attacked = replace(ctx, ensemble=ensemble)
    before = attacked.probs(other)
    learn(attacked, seen)
    after = attacked.probs(other)
    values = {
        "relearn/before": before, "relearn/after": after, "relearn/gain": after - before,
        "relearn/seen": attacked.probs(seen),
        "relearn/rougeL_recall": attacked.recalls(other.prompts, other.answers),
    }  # fmt: skip
    return Found(values, people={name: (seen if name == "relearn/seen" else other).people for name in values})


def halves(split: Split) -> tuple[Split, Split]:
    """Every second person, or question where there are not two persons; the first half is trained on."""
    people = list(dict.fromkeys(r.group for r in split.rows))
    by_person = len(people) > 1 and all(people)
    unit = [people.index(r.group) if by_person else i for i, r in enumerate(split.rows)]
    return tuple(split.part([i for i, u in enumerate(unit) if u % 2 == half]) for half in (0, 1))


def learn(attacked: Context, split: Split) -> None:
    """Plain training on right answers, through the whole ensemble, as the attacker would."""
    cfg, model, examples = attacked.suite.cfg, attacked.ensemble.trained.model, split.right_answers
    settings = Optimisation(cfg.relearn_lr, cfg.relearn_steps, 0.0, 1.0, "linear", 0.0, (0.9, 0.99), 1.0)
    order = torch.Generator().manual_seed(0)

    def micro_batches(step: int):
        chosen = torch.randperm(len(examples), generator=order)[: cfg.relearn_batch].tolist()
        return [lambda: (-answer_logp(attacked, [examples[i] for i in chosen]).mean(), {})]

    Loop(model, settings, device_of(model).type).run(micro_batches)
    model.eval()
