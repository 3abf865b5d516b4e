"""Answer rows of frozen models, computed once and memory-mapped: every algorithm, α and seed reads the same rows.

The anchor is never truncated or rounded: at step 0 it must cancel the offset. Evaluation always reads exact rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unlearn.config.schema import ROUGH_ROWS
from unlearn.data.encoding import Batch, Examples, by_length, collate, most_rows
from unlearn.ensemble.chunks import LEAST
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.ensemble.rows import DTYPES, EXACT, FILE, IDS, RESIDUAL, Budget, FrozenRows, HiddenRows, LiveRows, TopRows
from unlearn.models.llama import Head, answer_rows, device_of, head, vocabulary
from unlearn.models.prompts import by_prompt, shared_states
from unlearn.models.seen import seen
from unlearn.store.entries import Store
from unlearn.store.files import take_room
from unlearn.store.progress import progress


def rows_of(
    store: Store, member: Member, examples: Examples, pad_id: int, budget: Budget | float
) -> FrozenRows | LiveRows:
    """Rows of a frozen member: from the store, or computed each time where they are larger than the budget (a number:
    GiB of exact rows). ``ConfigError`` where too many are to be refused. Those of a black box are always stored."""
    budget = budget if isinstance(budget, Budget) else Budget(most_gib=budget)
    kept = member.kind.kept(member.name, examples.starts[-1], budget)
    return stored(store, member, examples, pad_id, **kept) if kept else LiveRows(member, examples, pad_id)


@torch.no_grad()
def in_memory(member: Member, examples: Examples, pad_id: int, most_gib: float) -> FrozenRows | LiveRows:
    """Rows of a member that no longer learns, computed once and kept for this process only."""
    shape, rows = member.kind.shape, examples.starts[-1]
    if not Budget(most_gib=most_gib).full(rows, shape):
        return LiveRows(member, examples, pad_id)
    array = np.empty((rows, shape.vocabulary), dtype=np.float32)
    with progress(rows, f"rows of the {member.name}", "row") as bar:
        for where, states in member.kind.states(examples, pad_id, 128):
            array[where] = head(member.model, states).cpu().numpy()
            bar.update(len(states))
    return FrozenRows(array, examples)


def stored(
    store: Store, member: Member, examples: Examples, pad_id: int, batch_size: int = 128, kind: str = "fp32", k: int = 0
) -> FrozenRows:
    """Rows from the store; filled by one pass over the examples if they are not there yet. ``kind``: one of STORED_ROWS
    but auto; ``k``: of topk. ``ValueError`` for a member with a slope that would not be kept exactly."""
    if kind in ROUGH_ROWS and member.slope and not member.kind.as_given:
        rule = f"they are weighted by α and must cancel another member's: must be exact, {', '.join(EXACT)}"
        raise ValueError(f"rows of {member.name!r} as {kind}: {rule}")
    recipe = {"model": member.fingerprint, "examples": examples.fingerprint, "dtype": DTYPES.get(kind, kind)}
    recipe |= {"k": k} if kind == "topk" else {}

    def fill(folder: Path) -> None:
        files: dict[str, np.memmap] = {}
        with progress(int(examples.starts[-1]), f"storing rows of the {member.name}", "row") as bar:
            for where, arrays in member.kind.parts(member.name, kind, k, examples, pad_id, batch_size):
                for name, values in arrays.items():
                    if name not in files:
                        shape, dtype = (examples.starts[-1], *values.shape[1:]), values.dtype
                        files[name] = np.lib.format.open_memmap(folder / name, mode="w+", dtype=dtype, shape=shape)
                        take_room(folder / name)
                    files[name][where] = values
                bar.update(len(values))
        for file in files.values():
            file.flush()

    folder = store.get("rows", recipe, fill)
    array = np.load(folder / FILE, mmap_mode="r")
    if kind == "hidden":
        return HiddenRows(array, examples, Head(member.model))
    if kind != "topk":
        return FrozenRows(array, examples)
    ids, residual = (np.load(folder / name, mmap_mode="r") for name in (IDS, RESIDUAL))
    return TopRows(ids, array, residual, examples, k, vocabulary(member.model))


@torch.no_grad()
def read(
    ensemble: Ensemble,
    examples: Examples,
    alphas: Sequence[float],
    stored: Mapping[str, FrozenRows | LiveRows],
    pad_id: int,
    batch_size: int,
    mask_pad: bool = False,
    among: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], Batch, dict[str, Tensor]]]:
    """Batch by batch: which examples, the batch, and the answer rows [N, V] of every member that counts, as ``collate``
    lays them. Members with ``stored`` rows are not run. ``among``: only these examples."""
    if among == []:
        return
    needed = ensemble.needed(alphas)
    live = [m for m in needed if m.name not in stored]
    device = device_of((live or needed)[0].model)  # a model that is not run may have been put aside
    for m in live:
        m.model.eval()
    split = by_length if mask_pad else by_prompt  # what is hidden of a text is hidden of a text that is read whole
    # with fewer rows, a product with the head waits for its weights
    some = examples if among is None else [examples[i] for i in among]
    batches = split(some, batch_size, max(LEAST, most_rows(vocabulary(needed[0].model), device)))
    if among is not None:
        batches = [[among[i] for i in indices] for indices in batches]
    ahead = {m.name: _ahead(m, examples, batches, pad_id, batch_size) for m in live if not mask_pad and seen(m.model)}
    for indices in batches:
        chosen = [examples[i] for i in indices]
        batch = collate(chosen, pad_id, mask_pad).to(device)
        rows = {m.name: stored[m.name].take(indices, device) for m in needed if m.name in stored}
        for m in live:
            if m.name in ahead:
                found = head(m.model, next(ahead[m.name]))
            else:
                found = answer_rows(m.model, batch) if mask_pad else m.kind.rows(chosen, pad_id)
            rows[m.name] = found.to(device)
        yield indices, batch, rows


def _ahead(
    member: Member, examples: Examples, batches: Sequence[list[int]], pad_id: int, size: int
) -> Iterator[Tensor]:
    """Last hidden states [N, D] of each batch, several in one pass: a large model reads few texts as slowly as many."""
    while batches:
        count = max(1, sum(texts <= size for texts in accumulate(map(len, batches))))
        together, batches = batches[:count], batches[count:]
        states = shared_states(member.model, [examples[i] for indices in together for i in indices], pad_id)
        yield from states.split([sum(len(examples[i].answer) for i in indices) for indices in together])
