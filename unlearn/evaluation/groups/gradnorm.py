"""The sixth membership attack: the norm of the gradient of each answer's loss (arXiv 2402.17012). After ``privacy``.

``mia/gradnorm``: AUC of forget against holdout questions by the norm of the gradient of the mean NLL, through the whole
ensemble, with respect to the member that learnt (of a single model: that model). A white-box attack, and a backward
pass per question; a combination of frozen models has none. In ``ou`` it is what OpenUnlearning computes: the mean of
the norms of each parameter's gradient, of the NLL without EOS.
"""

from dataclasses import replace

import pandas as pd
import torch

from unlearn.data.encoding import Example
from unlearn.evaluation.context import Context, Found, Subject, answer_logp, trainable
from unlearn.evaluation.metrics.membership import auc

NEEDS = ("holdout", "weights")


def measure(ctx: Context) -> Found:
    ensemble = trainable(ctx.ensemble, ctx.alpha)
    if ensemble is None:
        return Found()
    ensemble.trained.model.eval()
    scores = {}
    for name in ("forget", "holdout"):
        answers = ctx.suite.split(name).right_answers
        scores[name] = [norm(replace(ctx, ensemble=ensemble), answer) for answer in answers]
    columns = {name: pd.DataFrame({"mia_gradnorm": values}) for name, values in scores.items()}
    return Found(metrics={"mia/gradnorm": auc(scores["forget"], scores["holdout"])}, columns=columns)


def norm(subject: Subject, example: Example) -> float:
    """Norm of the gradient of one answer's mean NLL with respect to all weights of the trained member."""
    logp, as_ou = answer_logp(subject, [example]), subject.suite.semantics.norm_per_parameter
    loss = -(logp[:-1] if as_ou else logp).mean()
    found = torch.autograd.grad(loss, list(subject.ensemble.trained.model.parameters()), allow_unused=True)
    norms = torch.stack([g.norm() for g in found if g is not None])
    return (norms.mean() if as_ou else norms.norm()).item()
