"""How likely answers are under an ensemble: teacher-forced, token by token, for every α from one pass."""

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn.data.encoding import Examples
from unlearn.ensemble.chunks import pieces
from unlearn.ensemble.ensemble import Ensemble
from unlearn.ensemble.frozen import FrozenRows, LiveRows, read, rows_of
from unlearn.evaluation.suite import Split, Suite
from unlearn.models.llama import vocabulary
from unlearn.store import processes
from unlearn.store.entries import Store
from unlearn.store.files import saving, write_whole
from unlearn.store.identity import digest


@dataclass(frozen=True)
class Scores:
    """Every answer token of E examples, T in all, laid end to end; an answer's last token is its EOS."""

    starts: np.ndarray  # [E + 1] first token of each example, and T
    logp: np.ndarray  # [T] log-probability of the token, nats
    right: np.ndarray  # [T] 1 where the token is the argmax, else 0; NaN where it was not asked
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
        """Share of the tokens before EOS that are the argmax; 0 of an answer that is EOS alone, NaN if not asked."""
        right = self.right.copy()
        right[self.starts[1:] - 1] = 0.0
        return np.add.reduceat(right, self.starts[:-1]) / np.maximum(self.tokens - 1, 1)

    def before_eos(self, values: np.ndarray) -> list[np.ndarray]:
        """A [T] array cut into examples, each without its EOS."""
        return [values[a : b - 1] for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]


def stored_rows(
    store: Store, suite: Suite, ensemble: Ensemble, alphas: Sequence[float], examples: Examples
) -> dict[str, FrozenRows | LiveRows]:
    """Rows of the frozen members that count at one of the α's, by name: from the store where they fit."""
    frozen = [m for m in ensemble.needed(alphas) if not m.trained]
    return {m.name: rows_of(store, m, examples, suite.pad_id, suite.stored_rows_gib) for m in frozen}


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
    argmax_of: Sequence[int] | None = None,
) -> dict[float, Scores]:
    """Score examples at each α. Members with ``stored`` rows are not run.

    ``argmax_of`` names the examples whose ``right`` is wanted, all if None: it costs as much as their probability.
    ``moments`` fills ``mean`` and ``variance``. ``mask_pad`` also hides tokens of the text that are the padding token
    (as OpenUnlearning does), which only matters where padding is a token that occurs in texts.
    """
    starts = np.array(examples.starts)
    arrays = {a: [np.full(starts[-1], np.nan) for _ in range(4)] for a in alphas}
    asked = np.full(len(examples), argmax_of is None)
    asked[list(argmax_of or ())] = True
    own = processes.mine([e.prompt for e in examples]) if processes.count() > 1 else None
    for indices, batch, rows in read(ensemble, examples, alphas, stored, pad_id, batch_size, mask_pad, own):
        where = examples.rows_of(indices)
        kept = torch.from_numpy(asked[indices]).to(batch.owner.device)[batch.owner]
        width, device = vocabulary(ensemble.members[0].model), batch.labels.device
        for here in pieces(slice(0, len(where)), width, device):  # what every α reads again stays in the cache
            part = {name: logits[here] for name, logits in rows.items()}
            for alpha, logits in ensemble.sweep(part, alphas):
                found = _values(logits, batch.labels[here], kept[here], moments)
                for array, values in zip(arrays[alpha], found, strict=False):
                    array[where[here]] = values.cpu().double().numpy()
    if own is not None:
        arrays = _whole(arrays, examples, own)
    for alpha, (logp, *_) in arrays.items():
        bad = np.flatnonzero(np.isnan(logp))  # no metric shall hide them; a probability of 0 some methods do give
        if len(bad):
            hit = list(dict.fromkeys(examples[i].id for i in np.searchsorted(starts, bad, side="right") - 1))
            some = ", ".join(map(repr, hit[:5])) + (", …" if len(hit) > 5 else "")
            raise ValueError(
                f"α={alpha:g}: {len(bad)} of {len(logp)} answer tokens have NaN for a log-probability, in {len(hit)} "
                f"examples ({some}); weights or logits of a member hold NaN or infinity"
            )
    return {a: Scores(starts, *found) for a, found in arrays.items()}


def _whole(arrays: dict[float, list[np.ndarray]], examples: Examples, own: list[int]) -> dict[float, list[np.ndarray]]:
    """What all processes have found of their examples, each in arrays [T] that hold nothing else."""
    parts = processes.gathered((own, {a: np.stack(found)[:, examples.rows_of(own)] for a, found in arrays.items()}))
    for theirs, found in parts:
        for alpha, values in found.items():
            for array, value in zip(arrays[alpha], values, strict=True):
                array[examples.rows_of(theirs)] = value
    return arrays


def _values(logits: Tensor, labels: Tensor, kept: Tensor, moments: bool) -> list[Tensor]:
    """Per row [N]: log-probability of the label, whether it is the argmax (of ``kept`` rows), the moments if wanted."""
    right = torch.full((len(labels),), torch.nan, device=logits.device)
    right[kept] = (logits if kept.all() else logits[kept]).argmax(-1).eq(labels[kept]).float()
    found = [-F.cross_entropy(logits, labels, reduction="none"), right]
    return found + [*log_prob_moments(logits)] if moments else found


@torch.no_grad()
def log_prob_moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of log p under the row's own distribution: what min-k++ compares a token with.

    (μ, σ²) per row, [N, V] → two [N] fp32: μ = Σ_v p_v log p_v, σ² = Σ_v p_v (log p_v − μ)². (arXiv 2404.02936)
    Centred before it is squared: else nearly certain rows have negative variances. Tokens of probability 0 count as 0.
    """
    logp = logits.float().log_softmax(-1)
    p = logp.exp()
    logp = torch.where(p > 0, logp, 0.0)  # 0 · log 0 = 0
    mean = (p * logp).sum(-1)
    return mean, (p * (logp - mean[:, None]) ** 2).sum(-1)


# --- what a stopped evaluation has left -------------------------------------------------------------------------------


Part = tuple[Scores, list[str] | None]  # of one split at one α: scores, and the answers where there are any


class Parts:
    """In ``folder``, of one ensemble and suite; ``weights`` identify the member that was trained, if any."""

    def __init__(self, folder: Path, ensemble: Ensemble, suite: Suite, weights: Any = None):
        members = [(m.name, m.fingerprint, m.constant, m.slope, m.watch, m.trained) for m in ensemble.members]
        examples = [(split.name, split.examples.fingerprint, split.right, split.prompts) for split in suite.splits]
        rule = ensemble.rule.func.__name__, ensemble.rule.keywords
        self._all, self._of = folder, folder / digest([members, rule, weights, suite.settings, examples], 20)

    def get(self, split: Split, alpha: float) -> Part | None:
        """What was kept; None where nothing was, or it cannot be read."""
        try:
            # np.load leaves a damaged file open
            with self._file(split, alpha).open("rb") as stream, np.load(stream, allow_pickle=False) as found:
                arrays = [found[name] for name in ("starts", "logp", "right", "mean", "variance")]
                return Scores(*arrays), json.loads(found["texts"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def keep(self, split: Split, alpha: float, part: Part) -> None:
        """Keep a part, whole or not at all."""
        scores, texts = part
        with saving(self._of):
            self._of.mkdir(parents=True, exist_ok=True)
        told = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)

        def write(path: Path) -> None:
            with path.open("wb") as stream:
                np.savez(stream, texts=told, starts=scores.starts, logp=scores.logp, right=scores.right,
                         mean=scores.mean, variance=scores.variance)  # fmt: skip

        write_whole(self._file(split, alpha), write, durable=False)

    def clear(self) -> None:
        """Remove all parts, also those of other settings."""
        shutil.rmtree(self._all, ignore_errors=True)

    def _file(self, split: Split, alpha: float) -> Path:
        return self._of / f"{split.name}-{alpha!r}.npz"
