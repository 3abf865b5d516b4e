"""How likely answers are under an ensemble: teacher-forced, token by token, for every α from one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn.data.encoding import Batch, Examples, by_length, collate, most_rows
from unlearn.ensemble import Ensemble
from unlearn.frozen import FrozenRows, LiveRows
from unlearn.metrics.moments import log_prob_moments
from unlearn.models.llama import answer_rows, vocabulary
from unlearn.models.prompts import by_prompt, shared_rows


@dataclass(frozen=True)
class Scores:
    """Every answer token of E examples, T in all, laid end to end; an answer's last token is its EOS."""

    starts: np.ndarray  # [E + 1] first token of each example, and T
    logp: np.ndarray  # [T] log-probability of the token, nats
    right: np.ndarray  # [T] whether the token is the argmax
    mean: np.ndarray  # [T] of log p under the row's own distribution; NaN unless asked for
    variance: np.ndarray  # [T] likewise

    @cached_property
    def tokens(self) -> np.ndarray:
        """Answer tokens per example, EOS included."""
        return np.diff(self.starts).astype(float)

    @cached_property
    def nll(self) -> np.ndarray:
        """Sum over the answer tokens, nats."""
        return -np.add.reduceat(self.logp, self.starts[:-1])

    @property
    def mean_nll(self) -> np.ndarray:
        return self.nll / self.tokens

    @property
    def prob(self) -> np.ndarray:
        """exp(−NLL / n): the geometric mean of the token probabilities."""
        return np.exp(-self.mean_nll)

    @cached_property
    def correct(self) -> np.ndarray:
        """Share of the tokens before EOS that are the argmax; 0 of an answer that is EOS alone."""
        right = self.right.astype(float)
        right[self.starts[1:] - 1] = 0.0
        return np.add.reduceat(right, self.starts[:-1]) / np.maximum(self.tokens - 1, 1)

    def before_eos(self, values: np.ndarray) -> list[np.ndarray]:
        """A [T] array cut into examples, each without its EOS."""
        return [values[a : b - 1] for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]


@torch.no_grad()
def score(
    ensemble: Ensemble,
    examples: Examples,
    alphas: Sequence[float],
    stored: Mapping[str, FrozenRows | LiveRows],
    pad_id: int,
    batch_size: int,
    moments: bool = False,
    mask_pad: bool = False,
) -> dict[float, Scores]:
    """Score examples at each α. Members with ``stored`` rows are not run.

    ``moments`` fills ``mean`` and ``variance``. ``mask_pad`` also hides tokens of the text that are the padding token
    (as OpenUnlearning does), which only matters where padding is a token that occurs in texts.
    """
    starts = np.array(examples.starts)
    arrays = {a: [np.full(starts[-1], np.nan) for _ in range(4)] for a in alphas}
    for indices, batch, rows in read(ensemble, examples, alphas, stored, pad_id, batch_size, mask_pad):
        where = places(examples, indices)
        for alpha, logits in ensemble.sweep(rows, alphas):
            for array, values in zip(arrays[alpha], _values(logits, batch, moments), strict=False):
                array[where] = values.cpu().double().numpy()
    return {a: Scores(starts, found[0], found[1].astype(bool), *found[2:]) for a, found in arrays.items()}


@torch.no_grad()
def read(
    ensemble: Ensemble,
    examples: Examples,
    alphas: Sequence[float],
    stored: Mapping[str, FrozenRows | LiveRows],
    pad_id: int,
    batch_size: int,
    mask_pad: bool = False,
) -> Iterator[tuple[list[int], Batch, dict[str, Tensor]]]:
    """Batch by batch: which examples, the batch, and the answer rows [N, V] of every member that counts.

    Rows lie as ``collate`` lays the examples. Members with ``stored`` rows are not run.
    """
    needed = ensemble.needed(alphas)
    live = [m for m in needed if m.name not in stored]
    device = next((live or needed)[0].model.parameters()).device  # a model that is not run may have been put aside
    for m in live:
        m.model.eval()
    split = by_length if mask_pad else by_prompt  # what is hidden of a text is hidden of a text that is read whole
    for indices in split(examples, batch_size, most_rows(vocabulary(needed[0].model), device)):
        chosen = [examples[i] for i in indices]
        batch = collate(chosen, pad_id, mask_pad).to(device)
        rows = {m.name: stored[m.name].take(indices, device) for m in needed if m.name in stored}
        for m in live:
            found = answer_rows(m.model, batch) if mask_pad else shared_rows(m.model, chosen, pad_id)
            rows[m.name] = found.to(device)
        yield indices, batch, rows


def places(examples: Examples, indices: Sequence[int]) -> np.ndarray:
    """Where the rows of a batch of these examples are when all examples are laid end to end, [N]."""
    return np.concatenate([np.arange(examples.starts[i], examples.starts[i + 1]) for i in indices])


def _values(logits: Tensor, batch: Batch, moments: bool) -> list[Tensor]:
    """Per row [N]: log-probability of the label, whether it is the argmax, and the moments if asked for."""
    found = [-F.cross_entropy(logits, batch.labels, reduction="none"), logits.argmax(-1) == batch.labels]
    return found + [*log_prob_moments(logits)] if moments else found
