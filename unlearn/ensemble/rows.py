"""Answer rows of a frozen model, however they are kept: as logits, as hidden states, as the likeliest tokens; or not.

All have the same two ways of reading, and give the same rows: exactly (fp32 logits, hidden states, rows that are
computed when needed) or as nearly as their class says. Rows lie as ``collate`` lays the examples that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unlearn.data.encoding import Examples, collate
from unlearn.ensemble.chunks import block
from unlearn.models.llama import Head, answer_states, full_precision, vocabulary
from unlearn.models.prompts import shared_rows

if TYPE_CHECKING:
    from unlearn.ensemble.ensemble import Member

CPU = torch.device("cpu")
FILE = "rows.npy"
IDS, RESIDUAL = "ids.npy", "rest.npy"  # beside it, of topk; the name by which stores have the residuals
DTYPES = {"fp32": "float32", "fp16": "float16"}
Reader = Callable[[slice], Tensor]  # which of the rows of some examples → these rows, [n, V]


class FrozenRows:
    """Logits of one frozen member over a fixed list of examples, in fp32 or rounded to fp16."""

    def __init__(self, array: np.ndarray, examples: Examples):
        if array.shape[0] != examples.starts[-1]:
            raise ValueError(f"{array.shape[0]} stored rows for examples with {examples.starts[-1]} answer tokens")
        self.array = array  # [rows, V]
        self.examples = examples

    def take(self, indices: Sequence[int], device: torch.device = CPU) -> Tensor:
        """Rows of the given examples, [N, V]."""
        return self.reader(indices, device)(slice(None))

    def reader(self, indices: Sequence[int], device: torch.device = CPU) -> Reader:
        """The same rows, of which only those asked for are read."""
        where = self.examples.rows_of(indices)
        return lambda here: self._rows([sent(array[where[here]], device) for array in self._arrays()])

    @property
    def kind(self) -> str:
        return {4: "fp32", 2: "fp16"}[self.array.itemsize]

    def describe(self) -> dict[str, Any]:
        """How they are kept, for a run's manifest."""
        return {"kind": self.kind, "gib": round(sum(a.nbytes for a in self._arrays()) / 2**30, 4)}

    def _arrays(self) -> tuple[np.ndarray, ...]:
        """What is kept, a line for each row."""
        return (self.array,)

    def _rows(self, kept: Sequence[Tensor]) -> Tensor:
        """From some lines of what is kept to rows [n, V]."""
        return full_precision(kept[0])


class HiddenRows(FrozenRows):
    """Last hidden states, [rows, D], to which the head, all that is held of the model, is applied when they are read:
    exact, and V / D times smaller. bf16, which numpy does not know, is kept as the int16 of its bits."""

    kind = "hidden"

    def __init__(self, array: np.ndarray, examples: Examples, head: Head):
        super().__init__(array, examples)
        self.head = head

    def reader(self, indices: Sequence[int], device: torch.device = CPU) -> Reader:
        where = self.examples.rows_of(indices)

        def states() -> Tensor:
            found = sent(self.array[where], self.head.device)
            return found.view(torch.bfloat16) if found.dtype == torch.int16 else found

        return in_blocks(states, self.head, self.head.width, device)


class TopRows(FrozenRows):
    """Log-probabilities of the k likeliest tokens and of the answer's own; all others share what is left evenly. (A
    tail that is dropped breaks metrics, one at the level of the k-th token inflates it V times.) A row may name a token
    twice."""

    kind = "topk"

    def __init__(self, ids: np.ndarray, logp: np.ndarray, residual: np.ndarray, examples: Examples, k: int, width: int):
        super().__init__(logp, examples)
        self.ids, self.residual = ids, residual  # [rows, slots], and [rows] the log of the mass that is left
        self.k, self.width = k, width

    def describe(self) -> dict[str, Any]:
        mass = np.exp(np.asarray(self.residual, dtype=np.float64))
        missing = {"mean": float(mass.mean()), "p95": float(np.quantile(mass, 0.95))}
        return super().describe() | {"k": self.k, "missing_mass": missing}

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.ids, self.array, self.residual

    def _rows(self, kept: Sequence[Tensor]) -> Tensor:
        return spread(*kept, self.width)


def spread(ids: Tensor, logp: Tensor, residual: Tensor, width: int) -> Tensor:
    """Log-probabilities [n, V] of the tokens that are known, [n, slots], and of all others, which share the mass whose
    log ``residual`` [n] is evenly."""
    ids = ids.long()
    again = (ids[:, :-1] == ids[:, -1:]).sum(1)  # only the last slot's token may stand in another, too
    others = residual - (width - ids.shape[1] + again).clamp(min=1).log()
    return others[:, None].repeat(1, width).scatter_(1, ids, logp)


def top(rows: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What ``TopRows`` keeps of rows [n, V]: ids, log-probabilities [n, k + 1] and the log of the residual mass [n].
    The last slot holds the label, or the next token where the label is among the k likeliest."""
    logp = rows.log_softmax(-1)
    ids = logp.topk(min(k + 1, rows.shape[-1]), dim=-1).indices
    lacking = (ids != labels[:, None]).all(-1)
    ids[lacking, -1] = labels[lacking]
    residual = logp.scatter(1, ids, -torch.inf).logsumexp(-1)
    return ids, logp.gather(1, ids), residual


class LiveRows:
    """The same rows computed when they are asked for: of sets that would take too much room in the store."""

    def __init__(self, member: Member, examples: Examples, pad_id: int):
        self.member, self.examples, self.pad_id = member, examples, pad_id

    def take(self, indices: Sequence[int], device: torch.device = CPU) -> Tensor:
        return shared_rows(self.member.model, [self.examples[i] for i in indices], self.pad_id).to(device)

    def reader(self, indices: Sequence[int], device: torch.device = CPU) -> Reader:
        """The same rows, from hidden states that are computed once, when rows are first asked for."""
        model, chosen = self.member.model, [self.examples[i] for i in indices]
        states = torch.no_grad()(lambda: answer_states(model, collate(chosen, self.pad_id)))
        return in_blocks(states, Head(model), vocabulary(model), device)

    def describe(self) -> dict[str, Any]:
        return {"kind": "live"}


def in_blocks(
    states: Callable[[], Tensor], head: Callable[[Tensor], Tensor], width: int, device: torch.device
) -> Reader:
    """Reads rows piece by piece from hidden states [N, D], which are asked for once; a block's logits are kept, since
    it is asked for in pieces."""
    states = cache(states)
    kept: dict[int, Tensor] = {}  # the block that was last read, by its first row

    @torch.no_grad()
    def read(here: slice) -> Tensor:
        hidden = states()
        size = block(width, hidden.device)
        first, last, _ = here.indices(len(hidden))
        start = first // size * size
        if last > start + size:
            return head(hidden[here]).to(device)
        if start not in kept:
            kept.clear()
            kept[start] = head(hidden[start : start + size])
        return kept[start][first - start : last - start].to(device)

    return read


def sent(values: np.ndarray, device: torch.device) -> Tensor:
    """On the device. To a GPU through pinned memory, without waiting for the copy: the next kernels will."""
    found = torch.from_numpy(values)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)
