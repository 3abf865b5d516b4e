"""The three kinds of member behind one interface: a causal model, a model with an encoder, and a black box.

Code that makes rows, decodes or evaluates calls ``member.kind`` and never tests the class of a model; only ``kind_of``
does. How a member learns (all weights, low-rank updates, unlearning layers) is not a kind: see ``models/tuning.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from unlearn.config.schema import ConfigError
from unlearn.data.encoding import Example, Examples, most_rows
from unlearn.ensemble.chunks import block
from unlearn.ensemble.rows import DTYPES, FILE, IDS, RESIDUAL, Budget, Shape, gib, top
from unlearn.models.llama import device_of, has_encoder, head, vocabulary
from unlearn.models.prompts import by_prompt, shared_rows, shared_states
from unlearn.models.states import Cached, Encoded, State

if TYPE_CHECKING:
    from unlearn.ensemble.ensemble import Ensemble

log = logging.getLogger(__name__)
ANNOUNCED_GIB = 0.1
Prompts = Sequence[Sequence[int]]
Part = tuple[np.ndarray | slice, dict[str, np.ndarray]]  # of stored rows: which, and by file what is written of them


class NotFinite(RuntimeError):
    """NaN or infinity in rows that are to be stored; losses and metrics computed from them would be silently wrong."""


class Kind:
    """What is asked of a member's model; here of a causal language model whose weights are here."""

    encodes = False  # an encoder reads the prompts: they are read once and whole, and no text can be read as one
    as_given = False  # rows are what a server gave: stored as they are, never computed again
    whole_answers = False  # it gives a whole greedy answer for the price of one question

    def __init__(self, model: nn.Module):
        self.model = model

    @property
    def shape(self) -> Shape:
        weight = self.model.get_output_embeddings().weight
        return Shape(vocabulary(self.model), weight.shape[1], self.model.dtype.itemsize)

    def rows(self, examples: Sequence[Example], pad_id: int) -> Tensor:
        """Answer rows [N, V] made now, on the model's device, laid as ``collate`` lays them."""
        return shared_rows(self.model, examples, pad_id)

    def kept(self, name: str, rows: int, budget: Budget) -> dict[str, Any] | None:
        """How so many rows of a member are stored: kind, k of topk; None: not at all. ``ConfigError`` for too many."""
        if budget.fits(rows, self.shape):
            return {"kind": budget.settled(rows, self.shape), "k": budget.k}
        if budget.refuse:
            raise ConfigError(budget.refusal(rows, name, self.shape))
        log.info("%s: computed when needed", budget.over(rows, name, self.shape))
        return None

    def parts(self, name: str, kind: str, k: int, examples: Examples, pad_id: int, batch_size: int) -> Iterator[Part]:
        """All rows of the examples, part by part; row t of example i is row ``starts[i] + t``. Raises ``NotFinite``."""
        size = gib(kind, examples.starts[-1], self.shape, k)
        level = logging.INFO if size >= ANNOUNCED_GIB else logging.DEBUG  # small fills take a second
        log.log(level, "storing %d answer rows of the %s as %s: %.1f GiB", examples.starts[-1], name, kind, size)
        labels = torch.tensor([token for e in examples for token in e.answer])
        for where, states in self.states(examples, pad_id, batch_size):
            at_once = len(states) if kind == "hidden" else block(vocabulary(self.model), states.device)
            for part in (slice(i, i + at_once) for i in range(0, len(states), at_once)):
                found = self._written(kind, k, states[part], labels[where[part]])
                _check_finite(states[part], found[FILE], where[part], kind, name, examples)
                yield where[part], found

    def states(self, examples: Examples, pad_id: int, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Batch by batch: which rows, and their last hidden states [n, D]."""
        for indices in by_prompt(examples, batch_size, most_rows(self.shape.hidden, device_of(self.model))):
            yield examples.rows_of(indices), shared_states(self.model, [examples[i] for i in indices], pad_id)

    @torch.no_grad()
    def _written(self, kind: str, k: int, states: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
        if kind == "hidden":
            states = states.cpu()
            return {FILE: (states.view(torch.int16) if states.dtype == torch.bfloat16 else states).numpy()}
        rows = head(self.model, states)
        if kind == "topk":
            ids, logp, residual = top(rows, labels.to(rows.device), k)
            return {FILE: logp.cpu().numpy(), IDS: ids.int().cpu().numpy(), RESIDUAL: residual.cpu().numpy()}
        with np.errstate(over="ignore"):  # `_check_finite` says so, with the examples
            return {FILE: rows.cpu().numpy().astype(DTYPES[kind])}

    def state(self, whole: bool = False) -> State:
        """Its state before it has read anything. ``whole``: it will be rewound, so all columns are kept."""
        return Cached(self.model, whole)

    def say(self, prompts: Sequence[Sequence[int]], most: int, ends: Collection[int]) -> list[list[int]] | None:
        """Its own greedy answers, at most ``most`` tokens, with the first of ``ends``; None where none is whole."""
        return None

    def begin(self) -> None:
        """Count from here what it is asked."""

    def announce(self, examples: Sequence[Example], prompts: Prompts, drawn: Prompts, most: int) -> None:
        """Say what it may be asked: rows of examples, and answers of at most ``most`` tokens, greedy ones to
        ``prompts``, and to ``drawn`` such as are written token by token."""

    def spent(self) -> dict[str, int]:
        """Requests and tokens that it took so far."""
        return {}

    def note(self, what: str, said: int, before: Mapping[str, int]) -> None:
        """For the manifest: so many tokens were said since it had ``spent`` as much as before."""

    def facts(self) -> dict[str, Any]:
        """What a run's manifest says of it."""
        return {}


class WithEncoder(Kind):
    """An encoder–decoder whose weights are here: the prompt goes to the encoder, the answer to the decoder."""

    encodes = True

    def state(self, whole: bool = False) -> State:
        return Encoded(self.model)


def kind_of(model: nn.Module) -> Kind:
    """The interface of a model; a black box has it itself."""
    if isinstance(model, Kind):
        return model
    return WithEncoder(model) if has_encoder(model) else Kind(model)


def noted(ensemble: Ensemble, alpha: float, say: Callable[[], list[list[int]]]) -> list[list[int]]:
    """What ``say`` lets the ensemble say; a black box among its members notes what that took."""
    before = [(m.kind, m.kind.spent()) for m in ensemble.members]
    answers = say()
    for kind, spent in before:
        what = "alone" if len(ensemble.members) == 1 else f"alpha {alpha:g}"
        kind.note(what, sum(map(len, answers)), spent)
    return answers


def _check_finite(states: Tensor, kept: np.ndarray, where: np.ndarray, kind: str, name: str, examples: Examples):
    """Raise ``NotFinite`` where a row to be stored has NaN or infinity; of fp16 also what is too large."""
    fine = states.isfinite().all(-1).cpu().numpy()
    if kind != "hidden":  # which is the states; and bf16 ones come as integers
        fine &= np.isfinite(kept).all(-1)
    if fine.all():
        return
    wrong = np.unique(np.searchsorted(examples.starts, where[~fine], side="right") - 1)
    ids = [examples[i].id for i in wrong[:3]]
    some = f"{len(wrong)} examples of a batch: {', '.join(ids)}{' …' if len(wrong) > 3 else ''}"
    why = "its weights are damaged, or the numbers too large for pair.target.dtype or trainer.stored_rows"
    raise NotFinite(f"{name}: its rows as {kind} hold NaN or infinity for {some}; nothing is stored: {why}")
