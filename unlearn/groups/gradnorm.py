"""The sixth membership attack: the norm of the gradient of each answer's loss (arXiv 2402.17012). After ``privacy``.

``mia/gradnorm``: AUC of forget against holdout questions by the norm of the gradient of the mean NLL, through the whole
ensemble, with respect to the member that learnt (of a single model: that model). A white-box attack, and a backward
pass per question; a combination of frozen models has none.
"""

from __future__ import annotations

import pandas as pd
import torch

from unlearn.answers import Answers
from unlearn.data.encoding import collate
from unlearn.groups.behaviour import live_rows, trainable
from unlearn.groups.context import Context, Found
from unlearn.metrics.membership import auc, gradnorm

SPLITS = ("forget", "holdout")


def measure(ctx: Context) -> Found:
    ensemble = trainable(ctx.ensemble)
    if ensemble is None:
        return Found({})
    model, pad = ensemble.trained.model.eval(), ctx.suite.encoder.tokenizer.pad_token_id
    place, weights = next(model.parameters()).device, list(model.parameters())
    norms: dict[str, list[float]] = {}
    for name in SPLITS:
        split = ctx.suite.split(name)
        norms[name] = []
        for i in split.right:
            batch = collate([split.examples[i]], pad).to(place)
            logits = ensemble.logits(live_rows(ensemble, ctx.alpha, batch), ctx.alpha)
            loss = -Answers(logits, batch.labels, batch.owner).logp.mean()
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            norms[name].append(torch.stack([g.norm() for g in found if g is not None]).norm().item())
    scores = {name: gradnorm(values) for name, values in norms.items()}
    columns = {name: pd.DataFrame({"mia_gradnorm": values}) for name, values in scores.items()}
    return Found({"mia/gradnorm": auc(scores["forget"], scores["holdout"])}, columns)
