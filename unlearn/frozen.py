"""Answer rows of frozen models, computed once: target and anchor never change, so every algorithm, α and seed
reads the same rows from the store instead of running the models again.

Rows are fp32 and memory-mapped. The anchor is never truncated or rounded: at step 0 it must cancel the offset.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unlearn.chunks import block
from unlearn.data.encoding import Examples, collate, most_rows
from unlearn.ensemble import Member
from unlearn.models.llama import answer_states, head, vocabulary
from unlearn.models.prompts import by_prompt, shared_rows
from unlearn.store import Store

log = logging.getLogger(__name__)
FILE = "rows.npy"
Reader = Callable[[slice], Tensor]  # which of the rows of some examples → these rows, [n, V]


class FrozenRows:
    """Rows of one frozen member over a fixed list of examples."""

    def __init__(self, array: np.ndarray, examples: Examples):
        if array.shape[0] != examples.starts[-1]:
            raise ValueError(f"{array.shape[0]} stored rows for examples with {examples.starts[-1]} answer tokens")
        self.array = array  # [rows, V]
        self.examples = examples

    def take(self, indices: Sequence[int]) -> Tensor:
        """Rows of the given examples, [N, V], laid as ``collate`` lays the same examples."""
        starts = self.examples.starts
        return torch.from_numpy(np.concatenate([self.array[starts[i] : starts[i + 1]] for i in indices]))

    def reader(self, indices: Sequence[int]) -> Reader:
        """The same rows, of which only those asked for are read."""
        starts = self.examples.starts
        where = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices])
        return lambda here: torch.from_numpy(self.array[where[here]])


class LiveRows:
    """The same rows computed when they are asked for: of sets that would take too much room in the store."""

    def __init__(self, member: Member, examples: Examples, pad_id: int):
        self.member, self.examples, self.pad_id = member, examples, pad_id

    def take(self, indices: Sequence[int]) -> Tensor:
        return shared_rows(self.member.model, [self.examples[i] for i in indices], self.pad_id)

    def reader(self, indices: Sequence[int]) -> Reader:
        """The same rows, from hidden states that are computed once, when rows are first asked for."""
        model = self.member.model
        kept: dict[int, Tensor] = {}  # the block that was last read, by its first row: it is asked for in pieces

        @cache
        @torch.no_grad()
        def states() -> Tensor:
            return answer_states(model, collate([self.examples[i] for i in indices], self.pad_id))

        @torch.no_grad()
        def read(here: slice) -> Tensor:
            hidden = states()
            size = block(vocabulary(model), hidden.device)
            first, last, _ = here.indices(len(hidden))
            start = first // size * size
            if last > start + size:
                return head(model, hidden[here])
            if start not in kept:
                kept.clear()
                kept[start] = head(model, hidden[start : start + size])
            return kept[start][first - start : last - start]

        return read


def rows_of(store: Store, member: Member, examples: Examples, pad_id: int, most_gib: float) -> FrozenRows | LiveRows:
    """Rows of a frozen member: from the store, or computed each time where they are larger than ``most_gib``."""
    size = gib(examples, vocabulary(member.model))
    if size <= most_gib:
        return stored(store, member, examples, pad_id)
    log.info(
        "%d answer rows of the %s are %.1f GiB, over trainer.stored_rows_gib=%g: computed when needed",
        examples.starts[-1], member.name, size, most_gib,
    )  # fmt: skip
    return LiveRows(member, examples, pad_id)


def in_memory(member: Member, examples: Examples, pad_id: int, most_gib: float) -> FrozenRows | LiveRows:
    """Rows of a member that no longer learns, computed once and kept for this process only."""
    width = vocabulary(member.model)
    if gib(examples, width) > most_gib:
        return LiveRows(member, examples, pad_id)
    array = np.empty((examples.starts[-1], width), dtype=np.float32)
    _fill(array, member, examples, pad_id, 128)
    return FrozenRows(array, examples)


def gib(examples: Examples, width: int) -> float:
    """Size of the stored rows of one member in GiB."""
    return examples.starts[-1] * width * 4 / 2**30


def stored(store: Store, member: Member, examples: Examples, pad_id: int, batch_size: int = 128) -> FrozenRows:
    """Rows from the store; filled by one pass over the examples if they are not there yet."""
    recipe = {"model": member.fingerprint, "examples": examples.fingerprint, "dtype": "float32"}

    def fill(folder: Path) -> None:
        width = vocabulary(member.model)
        size = gib(examples, width)
        level = logging.INFO if size >= 0.1 else logging.DEBUG  # small fills take a second: not worth a line each
        log.log(level, "storing %d answer rows of the %s, %.1f GiB", examples.starts[-1], member.name, size)
        array = np.lib.format.open_memmap(
            folder / FILE, mode="w+", dtype=np.float32, shape=(examples.starts[-1], width)
        )
        _fill(array, member, examples, pad_id, batch_size)
        array.flush()

    folder = store.get("rows", recipe, fill)
    return FrozenRows(np.load(folder / FILE, mmap_mode="r"), examples)


def _fill(array: np.ndarray, member: Member, examples: Examples, pad_id: int, batch_size: int) -> None:
    """One pass over the examples; row t of example i goes to ``starts[i] + t``."""
    device = next(member.model.parameters()).device
    for indices in by_prompt(examples, batch_size, most_rows(array.shape[1], device)):
        rows = shared_rows(member.model, [examples[i] for i in indices], pad_id).cpu().numpy()
        at = 0
        for i in indices:
            n = len(examples[i].answer)
            array[examples.starts[i] : examples.starts[i] + n] = rows[at : at + n]
            at += n
