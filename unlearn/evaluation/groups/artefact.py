"""What the deployed pair gives away by itself: whoever holds it, without the target, asks it for the forgotten answers.

The artefact is every member but the target. Its frozen member is its anchor, which began without the forget set or not:
the level to compare with. Attacks without training: each other member with the anchor, anchor + β (member − anchor), at
each β of ``eval.artefact_betas``, 0 (the anchor) and 1 (the member): a negative β reads an offset backwards.
``artefact/prob`` is the probability of the right answers to forget questions by the attack with the largest mean, whose
β is ``artefact/beta``; ``artefact/anchor_prob`` the anchor's own, and ``artefact/gain`` their difference.
``artefact/leak@k`` is leak@k (group leak) of answers drawn from that attack, at the largest k.

One attack trains: each member learns one half of the forget questions, as in group relearn and with its budget, and is
asked the other half: ``artefact/relearnt_prob``, and ``artefact/anchor_relearnt_prob`` after the same for the anchor.

Where the target's own weights learnt (a white box), the artefact is that model. Members that only combine at training
time are not deployed, and not looked at. The attack is chosen on the questions that it is reported on: it is the
attacker's best, and with few questions a little more.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.evaluation.context import Context, Found, Subject, trainable
from unlearn.evaluation.groups import leak, relearn
from unlearn.evaluation.scoring import score
from unlearn.evaluation.suite import Split

SETTINGS = ("artefact_betas", "relearn_steps", "relearn_batch", "relearn_lr", "leak_samples", "leak_temperature")


def measure(ctx: Context) -> Found:
    if ctx.itself or ctx.beside.target is None:  # retrained and target have no artefact
        return Found()
    others, anchor = members(ctx)
    if not others:
        return Found()
    split, found = ctx.suite.split("forget"), {}
    for pair in (along(one, anchor) for one in others):
        asked = pair, split.right_answers, betas(ctx, anchor), {}, ctx.suite.pad_id, ctx.suite.cfg.batch_size
        found |= {(pair, beta): scores.prob for beta, scores in score(*asked, argmax_of=()).items()}
    best = max(found, key=lambda attack: found[attack].mean())
    values = {
        "artefact/prob": found[best],
        f"artefact/leak@{ctx.suite.cfg.leak_samples}": leak.worst(Subject(ctx.suite, *best), split),
        "artefact/relearnt_prob": max((_relearnt(ctx, one, split) for one in others), key=np.mean),
    }
    if anchor is not None:
        alone = next(prob for (_, beta), prob in found.items() if beta == 0)
        values |= {"artefact/anchor_prob": alone, "artefact/gain": found[best] - alone,
                   "artefact/anchor_relearnt_prob": _relearnt(ctx, anchor, split)}  # fmt: skip
    half = relearn.halves(split)[1].people
    people = {name: half if "relearnt" in name else split.people for name in values}
    return Found(values, {"artefact/beta": best[1]}, people=people)


def members(ctx: Context) -> tuple[list[Member], Member | None]:
    """The artefact's members without its anchor, and that; None where it has none."""
    target = {m.fingerprint for m in ctx.beside.target().members}
    own = [m for m in ctx.ensemble.members if m.trained or m.fingerprint not in target]
    frozen = [m for m in own if not m.trained]
    anchor = frozen[-1] if frozen and len(own) > 1 else None
    return [m for m in own if m is not anchor], anchor


def betas(ctx: Context, anchor: Member | None) -> Sequence[float]:
    return sorted({0.0, 1.0, *ctx.suite.cfg.artefact_betas}) if anchor is not None else [1.0]


def along(one: Member, anchor: Member | None) -> Ensemble:
    """anchor + β (member − anchor), with β for its α; without an anchor the member as it is."""
    if anchor is None:
        return Ensemble((replace(one, constant=1.0, slope=0.0),))
    return Ensemble((replace(anchor, constant=1.0, slope=-1.0), replace(one, constant=0.0, slope=1.0)))


def _relearnt(ctx: Context, one: Member, split: Split) -> np.ndarray:
    """Probability of the answers of one half of the questions after training on the other, [rows of the half]."""
    seen, other = relearn.halves(split)
    attacked = replace(ctx, ensemble=trainable(along(one, None), 1.0), alpha=1.0)
    relearn.learn(attacked, seen)
    return attacked.probs(other)
