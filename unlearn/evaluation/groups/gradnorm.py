"""The sixth membership attack: the norm of the gradient of each answer's loss (arXiv 2402.17012). After ``privacy``.

``mia/gradnorm``: AUC of forget against holdout questions by the norm of the gradient of the mean NLL, through the whole
ensemble, with respect to the member that learnt (of a single model: that model). A white-box attack, and a backward
pass per question; a combination of frozen models has none.
"""

from __future__ import annotations

import pandas as pd
import torch

from unlearn.data.encoding import Example, collate
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.groups.behaviour import live_rows, trainable
from unlearn.evaluation.groups.context import Context, Found
from unlearn.evaluation.groups.privacy import SPLITS
from unlearn.evaluation.metrics.membership import auc, gradnorm
from unlearn.learning.answers import Answers


def measure(ctx: Context) -> Found:
    ensemble = trainable(ctx.ensemble, ctx.alpha)
    if ensemble is None:
        return Found({})
    pad = ctx.suite.encoder.tokenizer.pad_token_id
    ensemble.trained.model.eval()
    scores = {}
    for name in SPLITS:
        split = ctx.suite.split(name)
        scores[name] = gradnorm([norm(ensemble, ctx.alpha, split.examples[i], pad) for i in split.right])
    columns = {name: pd.DataFrame({"mia_gradnorm": values}) for name, values in scores.items()}
    return Found({"mia/gradnorm": auc(scores["forget"], scores["holdout"])}, columns)


def norm(ensemble: Ensemble, alpha: float, example: Example, pad_id: int) -> float:
    """Norm of the gradient of one answer's mean NLL with respect to all weights of the trained member."""
    weights = list(ensemble.trained.model.parameters())
    batch = collate([example], pad_id).to(weights[0].device)
    logits = ensemble.logits(live_rows(ensemble, alpha, batch), alpha)
    loss = -Answers(logits, batch.labels, batch.owner).logp.mean()
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.stack([g.norm() for g in found if g is not None]).norm().item()
