"""How likely answers are under an ensemble: teacher-forced, for every α from one pass over the members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn.data.encoding import Batch, Examples, by_length, collate, most_rows
from unlearn.ensemble import Ensemble
from unlearn.frozen import FrozenRows, LiveRows
from unlearn.models.llama import answer_rows, vocabulary


@dataclass(frozen=True)
class Scores:
    """One entry per example. EOS counts as a token of the answer, but not in ``correct``."""

    nll: np.ndarray  # sum over the answer tokens, nats
    tokens: np.ndarray
    correct: np.ndarray  # share of tokens before EOS that are the argmax

    @property
    def mean_nll(self) -> np.ndarray:
        return self.nll / self.tokens

    @property
    def prob(self) -> np.ndarray:
        """exp(−NLL / n): the geometric mean of the token probabilities."""
        return np.exp(-self.mean_nll)


@torch.no_grad()
def score(
    ensemble: Ensemble,
    examples: Examples,
    alphas: Sequence[float],
    stored: Mapping[str, FrozenRows | LiveRows],
    pad_id: int,
    batch_size: int,
) -> dict[float, Scores]:
    """Score examples at each α. Members with ``stored`` rows are not run."""
    needed = ensemble.needed(alphas)
    result = {a: Scores(*(np.zeros(len(examples)) for _ in range(3))) for a in alphas}
    live = [m for m in needed if m.name not in stored]
    device = next(needed[0].model.parameters()).device
    for m in live:
        m.model.eval()
    width = vocabulary(needed[0].model)
    for indices in by_length(examples, batch_size, most_rows(width, device)):
        batch = collate([examples[i] for i in indices], pad_id).to(device)
        rows = {m.name: stored[m.name].take(indices).to(device) for m in needed if m.name in stored}
        rows |= {m.name: answer_rows(m.model, batch) for m in live}
        for alpha in alphas:
            _fill(result[alpha], indices, ensemble.logits(rows, alpha), batch)
    return result


def _fill(scores: Scores, indices: list[int], logits: Tensor, batch: Batch) -> None:
    nll = F.cross_entropy(logits, batch.labels, reduction="none").cpu().double()
    right = (logits.argmax(-1) == batch.labels).cpu().double()
    owner = batch.owner.cpu()
    tokens = torch.bincount(owner).double()
    right[tokens.cumsum(0).long() - 1] = 0.0  # the last row of each answer is its EOS
    zeros = torch.zeros(len(indices), dtype=torch.float64)
    scores.nll[indices] = zeros.index_add(0, owner, nll)
    scores.tokens[indices] = tokens
    scores.correct[indices] = zeros.index_add(0, owner, right) / (tokens - 1).clamp(min=1)
