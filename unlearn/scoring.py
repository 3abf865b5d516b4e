"""How likely answers are under an ensemble: teacher-forced, for every α from one pass over the members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn.data.encoding import Batch, Examples, by_length, collate
from unlearn.ensemble import Ensemble, combine
from unlearn.frozen import FrozenRows
from unlearn.models.llama import answer_rows


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
    stored: Mapping[str, FrozenRows],
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
    for indices in by_length(examples, batch_size):
        batch = collate([examples[i] for i in indices], pad_id).to(device)
        rows = {m.name: stored[m.name].take(indices).to(device) for m in needed if m.name in stored}
        rows |= {m.name: answer_rows(m.model, batch) for m in live}
        for alpha in alphas:
            _fill(result[alpha], indices, combine(ensemble.members, rows, alpha), batch)
    return result


def _fill(scores: Scores, indices: list[int], logits: Tensor, batch: Batch) -> None:
    nll = F.cross_entropy(logits, batch.labels, reduction="none").double()
    tokens = torch.bincount(batch.owner).double()
    ends = tokens.cumsum(0).long() - 1  # the row of each answer's EOS
    right = (logits.argmax(-1) == batch.labels).double().index_fill(0, ends, 0.0)
    zeros = nll.new_zeros(len(indices))
    scores.nll[indices] = zeros.index_add(0, batch.owner, nll).cpu()
    scores.tokens[indices] = tokens.cpu()
    scores.correct[indices] = (zeros.index_add(0, batch.owner, right) / (tokens - 1).clamp(min=1)).cpu()
