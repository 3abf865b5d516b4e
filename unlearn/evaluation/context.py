"""What a group of metrics is given, what it gives back, and how it measures any ensemble on any split."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unlearn.data.encoding import Example, Examples, collate
from unlearn.decoding.generation import Decoding, greedy
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.retrained import Measured
from unlearn.evaluation.scoring import Scores, score
from unlearn.evaluation.suite import Split, Suite
from unlearn.learning.answers import Answers
from unlearn.models.llama import answer_rows, device_of
from unlearn.models.tuning import merged
from unlearn.store.entries import Store


@dataclass(frozen=True)
class Subject:
    """An ensemble at one α, to be measured on any examples and prompts."""

    suite: Suite
    ensemble: Ensemble
    alpha: float

    def scored(self, examples: Examples) -> Scores:
        """How likely examples are of which the store has no rows; not whether their tokens are the likeliest."""
        asked = self.ensemble, examples, [self.alpha], {}, self.suite.pad_id, self.suite.cfg.batch_size
        return score(*asked, argmax_of=())[self.alpha]

    def probs(self, split: Split) -> np.ndarray:
        """Probability of each right answer, [rows]."""
        return self.scored(split.right_answers).prob

    def recalls(self, prompts: Sequence[Sequence[int]], golds: Sequence[str]) -> np.ndarray:
        """ROUGE-L recall of the greedy answer to each prompt of token ids, [prompts]."""
        encoder, cfg = self.suite.encoder, self.suite.cfg
        how = Decoding.by(encoder.tokenizer, cfg.max_new_tokens, cfg.batch_size)
        said = [encoder.decode(answer) for answer in greedy(self.ensemble, prompts, self.alpha, how)]
        return self.suite.semantics.rouge.seeing.recalls(said, golds)


@dataclass(frozen=True)
class Beside:
    """What else there is to compare with."""

    guess: Measured | None = None  # the guess level (groups/guess.py)
    target: Callable[[], Ensemble] | None = None  # the target as it is; None: the model that is measured is its own


ALONE = Beside()


@dataclass(frozen=True)
class Context(Subject):
    """One model at one α, with what the core metrics have found."""

    store: Store | None
    retrained: Measured | None  # None: there is none, or this *is* the retrained model
    itself: bool  # this is the retrained model
    scores: Mapping[str, Scores]  # by split
    examples: pd.DataFrame  # at this α
    metrics: dict[str, Any]  # by name; groups add theirs
    beside: Beside = ALONE


@dataclass(frozen=True)
class Found:
    """``values``: per example by metric, which is their mean. ``metrics``, ``intervals``: of other aggregates.
    ``people``: whom a metric's examples are about, where they are not all rows of the split that its name says."""

    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    columns: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # by split: columns for its examples, in order
    people: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, split: str, values: Mapping[str, np.ndarray]) -> "Found":
        """Values of all examples of a split: metrics ``<split>/<name>``, and columns of its table."""
        return cls({f"{split}/{name}": v for name, v in values.items()}, columns={split: pd.DataFrame(values)})


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


def answer_logp(subject: Subject, examples: Sequence[Example]) -> Tensor:
    """Log-probability of each answer token, nats, [N]; gradients reach the trained member only."""
    ensemble, rows, hide = subject.ensemble, {}, subject.suite.semantics.hide_pad_tokens
    batch = collate(examples, subject.suite.pad_id, hide).to(device_of(ensemble.trained.model))
    for member in ensemble.needed([subject.alpha]):
        with torch.set_grad_enabled(member.trained):
            rows[member.name] = answer_rows(member.model, batch)
    return Answers(ensemble.logits(rows, subject.alpha), batch.labels, batch.owner).logp
