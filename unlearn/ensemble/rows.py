"""Answer rows of a frozen model, however they are kept: as logits, as hidden states, as the likeliest tokens; or not.

All have the same two ways of reading, and give the same rows: exactly (fp32 logits, hidden states, rows that are
computed when needed) or as nearly as their class says. Rows lie as ``collate`` lays the examples that are asked for.
What is only nearly exact (``fp16`` logits, the ``topk`` likeliest tokens) is for the target alone: the anchor must
cancel the offset at step 0, where the smallest error is an error of P.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unlearn.config.schema import ROUGH_ROWS, TrainerConfig
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
EXACT = ("fp32", "hidden")
FULL_GIB = 1.0  # `auto` keeps hidden states of sets whose fp32 logits are larger than this
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
    """Log-probabilities of the k likeliest tokens and the answer's own, which may be among them; all others share what
    is left evenly. (A tail that is dropped breaks metrics, one at the k-th token's level inflates it V times.)"""

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
        return spread(*kept, width=self.width)


def spread(ids: Tensor, logp: Tensor, residual: Tensor, width: int) -> Tensor:
    """Log-probabilities [n, V] from those of known tokens [n, slots]; all others share e^``residual`` [n] evenly."""
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
    return ids, logp.gather(1, ids), logp.scatter(1, ids, -torch.inf).logsumexp(-1)


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
    """Reads rows piece by piece from hidden states [N, D], which are asked for once; a block's logits are kept."""
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


# --- their size, told from numbers before any model -----------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What a model's rows are made of."""

    vocabulary: int
    hidden: int
    bytes: int  # of a number of its hidden states


@dataclass(frozen=True)
class Budget:
    """What the settings allow for the rows of one member over one set of examples."""

    kind: str = "auto"  # one of config.STORED_ROWS
    k: int = 0  # of topk
    most_gib: float = 1.0
    rough: bool = False  # they may be rounded
    refuse: bool = False  # a set that takes more; else its rows are computed when needed

    def settled(self, rows: int, shape: Shape) -> str:
        """The kind, where the settings leave it open."""
        if self.kind != "auto":
            return self.kind
        return "fp32" if self.full(rows, shape) else "hidden"

    def full(self, rows: int, shape: Shape) -> bool:
        """Whether fp32 logits are few enough to be kept as they are."""
        return gib("fp32", rows, shape) <= min(FULL_GIB, self.most_gib)

    def fits(self, rows: int, shape: Shape) -> bool:
        return gib(self.settled(rows, shape), rows, shape, self.k) <= self.most_gib

    def over(self, rows: int, what: str, shape: Shape) -> str:
        """What to say of a set that does not fit."""
        kind = self.settled(rows, shape)
        size, limit = gib(kind, rows, shape, self.k), f"trainer.stored_rows_gib={self.most_gib:g}"
        return f"{rows:,} answer rows of the {what} are {size:.3g} GiB as {kind}, over {limit}"

    def refusal(self, rows: int, what: str, shape: Shape) -> str:
        """The same as an error, with the choices."""
        kind, kinds = self.settled(rows, shape), (*EXACT, *ROUGH_ROWS) if self.rough else EXACT
        sizes = {other: gib(other, rows, shape, self.k) for other in (kind, *kinds)}
        fitting = [f"{other} ({size:.3g} GiB)" for other, size in sizes.items() if size <= self.most_gib]
        why, auto = "trainer.stored_rows_over=refuse", ""
        if self.kind in ROUGH_ROWS:
            why, auto = "rows that are computed when needed would not be rounded", "trainer.stored_rows=auto with "
        return (
            f"{self.over(rows, what, shape)}, and {why}. Give "
            + (f"trainer.stored_rows={' or '.join(fitting)}; or " if fitting else "")
            + f"trainer.stored_rows_gib={math.ceil(100 * sizes[kind]) / 100:g}; or "
            + f"{auto}trainer.stored_rows_over=live: they are computed in every step"
        )


def gib(kind: str, rows: int, shape: Shape, k: int = 0) -> float:
    """Size of one member's rows in GiB. In topk ids, log-probabilities and the residual have 4 bytes each."""
    sizes = {
        "fp32": 4 * shape.vocabulary, "fp16": 2 * shape.vocabulary, "hidden": shape.bytes * shape.hidden,
        "topk": 8 * min(k + 1, shape.vocabulary) + 4,
    }  # fmt: skip
    return rows * sizes[kind] / 2**30


def budget(cfg: TrainerConfig, rough: bool) -> Budget:
    """As trainer.stored_rows… say; ``rough``: for rows that may be rounded, none but the target's. Those are stored or
    refused: whether they fit must not change what is trained."""
    kind = "auto" if cfg.stored_rows in ROUGH_ROWS and not rough else cfg.stored_rows
    refuse = cfg.stored_rows_over == "refuse" or kind in ROUGH_ROWS
    return Budget(kind, cfg.stored_rows_k, cfg.stored_rows_gib, rough, refuse)
