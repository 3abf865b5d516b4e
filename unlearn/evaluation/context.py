"""What a group of metrics is given, what it gives back, and how it measures any ensemble on any split."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unlearn.data.encoding import Example, Examples, collate
from unlearn.decoding.generation import Decoding, greedy
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.metrics.texts import recalls_of
from unlearn.evaluation.retrained import Measured
from unlearn.evaluation.scoring import Scores, score
from unlearn.evaluation.suite import Split, Suite
from unlearn.learning.answers import Answers
from unlearn.models.llama import answer_rows, device_of
from unlearn.models.tuning import merged
from unlearn.store.entries import Store


@dataclass(frozen=True)
class Context:
    """One model at one α, with what the core metrics have found."""

    ensemble: Ensemble
    alpha: float
    suite: Suite
    store: Store | None
    retrained: Measured | None  # None: there is none, or this *is* the retrained model
    itself: bool  # this is the retrained model
    scores: Mapping[str, Scores]  # by split
    examples: pd.DataFrame  # at this α
    metrics: dict[str, Any]  # by name; groups add theirs


@dataclass(frozen=True)
class Found:
    """``values``: per example by metric, which is their mean. ``metrics`` and ``intervals``: of other aggregates."""

    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    columns: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # by split: columns for its examples, in order

    @classmethod
    def of(cls, split: str, values: Mapping[str, np.ndarray]) -> Found:
        """Values of all examples of a split: metrics ``<split>/<name>``, and columns of its table."""
        return cls({f"{split}/{name}": v for name, v in values.items()}, columns={split: pd.DataFrame(values)})


def recalls(
    suite: Suite, ensemble: Ensemble, alpha: float, prompts: Sequence[Sequence[int]], golds: Sequence[str]
) -> np.ndarray:
    """ROUGE-L recall of the greedy answer to each prompt of token ids, [prompts]."""
    how = Decoding.by(suite.encoder.tokenizer, suite.cfg.max_new_tokens, suite.cfg.batch_size)
    return recalls_of([suite.encoder.decode(a) for a in greedy(ensemble, prompts, alpha, how)], golds)


def scored(suite: Suite, ensemble: Ensemble, alpha: float, examples: Examples) -> Scores:
    """How likely examples are of which the store has no rows; not whether their tokens are the likeliest."""
    return score(ensemble, examples, [alpha], {}, suite.pad_id, suite.cfg.batch_size, argmax_of=())[alpha]


def probs(suite: Suite, ensemble: Ensemble, alpha: float, split: Split) -> np.ndarray:
    """Probability of each right answer, [rows]."""
    return scored(suite, ensemble, alpha, split.right_answers).prob


def trainable(ensemble: Ensemble, alpha: float) -> Ensemble | None:
    """The ensemble with a copy of its trained (or only) member that may learn; None where none does at this α."""
    if ensemble.trained is None and len(ensemble.members) > 1:
        return None
    chosen = ensemble.trained or ensemble.members[0]
    if chosen not in ensemble.needed([alpha]):
        return None
    model = copy.deepcopy(merged(chosen.model)).requires_grad_(True)
    members = (replace(m, model=model, trained=True) if m is chosen else m for m in ensemble.members)
    return replace(ensemble, members=tuple(members))


def mean_nll(ensemble: Ensemble, alpha: float, examples: Sequence[Example], pad_id: int) -> Tensor:
    """Mean NLL of all answer tokens, nats; gradients reach the trained member only."""
    batch = collate(examples, pad_id).to(device_of(ensemble.trained.model))
    rows = {}
    for member in ensemble.needed([alpha]):
        with torch.set_grad_enabled(member.trained):
            rows[member.name] = answer_rows(member.model, batch)
    return -Answers(ensemble.logits(rows, alpha), batch.labels, batch.owner).logp.mean()
