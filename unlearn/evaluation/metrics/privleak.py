"""PrivLeak: an attack's AUC relative to the retrained model's, in per cent (MUSE, arXiv 2407.06460).

0 is the retrained model; below it the forget set still looks like training data, above it more forgotten than never
seen. Public code takes .5 where there is no retrained model; that is refused here.
"""

from __future__ import annotations

from unlearn.evaluation.metrics.arrays import share

EPSILON = 1e-10  # of the published formula; only where the retrained model's AUC is 1


def privleak(auc: float, retrained_auc: float | None) -> float:
    """((1 − auc) − (1 − auc_r)) / ((1 − auc_r) + 1e-10) · 100, for AUCs of ``membership.auc`` (usually of min-k)."""
    if retrained_auc is None:
        raise ValueError(
            "PrivLeak is relative to the retrained model's AUC, and there is none: make a model that never saw the "
            "forget set (python -m unlearn.prepare trains it) and score it on the same forget and holdout rows"
        )
    kept, reference = 1 - share("auc", auc), 1 - share("retrained_auc", retrained_auc)
    return (kept - reference) / (reference + EPSILON) * 100
