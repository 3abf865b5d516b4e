"""Answer rows of frozen models, computed once: target and anchor never change, so every algorithm, α and seed
reads the same rows from the store instead of running the models again.

Rows are memory-mapped; ``room.py`` says how they are kept. The anchor is never truncated or rounded: at step 0 it must
cancel the offset. What is evaluated is read exactly, whatever training reads.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unlearn.config.schema import ROUGH_ROWS, ConfigError
from unlearn.data.encoding import Examples, most_rows
from unlearn.ensemble.chunks import block
from unlearn.ensemble.ensemble import Member
from unlearn.ensemble.opaque import Opaque
from unlearn.ensemble.rows import FrozenRows, HiddenRows, LiveRows, TopRows, top
from unlearn.ensemble.rows_size import FULL_GIB, Room, Shape, gib
from unlearn.models.llama import device_of, head, head_of, vocabulary
from unlearn.models.prompts import by_prompt, shared_states
from unlearn.store.entries import Store

log = logging.getLogger(__name__)
FILE = "rows.npy"
IDS, RESIDUAL = "ids.npy", "rest.npy"  # beside it, of topk; the name by which stores have the residuals
ANNOUNCED_GIB = 0.1
EXACT = ("fp32", "hidden")


class NotFinite(RuntimeError):
    """Rows that are no numbers: every loss and metric that reads them would be wrong in silence."""


def shape_of(member: Member) -> Shape:
    weight = member.model.get_output_embeddings().weight
    return Shape(vocabulary(member.model), weight.shape[1], member.model.dtype.itemsize)


def kinds_for(rough: bool) -> tuple[str, ...]:
    """How rows may be kept; ``rough``: of a member whose rows may be rounded."""
    return (*EXACT, *ROUGH_ROWS) if rough else EXACT


def rows_of(store: Store, member: Member, examples: Examples, pad_id: int, room: Room | float) -> FrozenRows | LiveRows:
    """Rows of a frozen member: from the store, or computed each time where they need more room than there is.

    A number is GiB, for rows that are exact. ``ConfigError`` where too many are to be refused. Rows of a black box are
    always stored, as it gives them.
    """
    room = room if isinstance(room, Room) else Room(most_gib=room)
    if isinstance(member.model, Opaque):
        return asked(store, member, examples, room.most_gib)
    shape, rows = shape_of(member), examples.starts[-1]
    if room.fits(rows, shape):
        return stored(store, member, examples, pad_id, kind=room.settled(rows, shape), k=room.k)
    if room.refuse:
        raise ConfigError(room.refusal(rows, member.name, shape, kinds_for(room.rough)))
    log.info("%s: computed when needed", room.over(rows, member.name, shape))
    return LiveRows(member, examples, pad_id)


def in_memory(member: Member, examples: Examples, pad_id: int, most_gib: float) -> FrozenRows | LiveRows:
    """Rows of a member that no longer learns, computed once and kept for this process only."""
    shape, rows = shape_of(member), examples.starts[-1]
    if gib("fp32", rows, shape) > min(most_gib, FULL_GIB):
        return LiveRows(member, examples, pad_id)
    array = np.empty((rows, shape.vocabulary), dtype=np.float32)
    for where, states in _states(member, examples, pad_id, 128):
        array[where] = _kept("fp32", 0, member, states, torch.empty(0))[FILE]
    return FrozenRows(array, examples)


def stored(
    store: Store,
    member: Member,
    examples: Examples,
    pad_id: int,
    batch_size: int = 128,
    kind: str = "fp32",
    k: int = 0,
) -> FrozenRows:
    """Rows from the store; filled by one pass over the examples if they are not there yet.

    ``kind`` is one of config.STORED_ROWS but auto, ``k`` is of topk. ``ValueError`` for a member with a slope that
    would not be kept exactly.
    """
    if kind in ROUGH_ROWS and member.slope:
        raise ValueError(
            f"rows of {member.name!r} as {kind}: it is weighted by α and must cancel another member where they agree, "
            f"so its rows are only kept exactly: {', '.join(EXACT)}"
        )
    recipe = {"model": member.fingerprint, "examples": examples.fingerprint, "dtype": _DTYPES.get(kind, kind)}
    recipe |= {"k": k} if kind == "topk" else {}

    def fill(folder: Path) -> None:
        size = gib(kind, examples.starts[-1], shape_of(member), k)
        level = logging.INFO if size >= ANNOUNCED_GIB else logging.DEBUG  # small fills take a second
        log.log(level, "storing %d answer rows of the %s as %s: %.1f GiB", examples.starts[-1], member.name, kind, size)
        _fill(folder, kind, k, member, examples, pad_id, batch_size)

    folder = store.get("rows", recipe, fill)
    if kind == "hidden":
        return HiddenRows(np.load(folder / FILE, mmap_mode="r"), examples, head_of(member.model))
    return _in(folder, kind, k, member, examples)


def asked(store: Store, member: Member, examples: Examples, most_gib: float) -> FrozenRows:
    """Rows of a black box from the store; asked for if they are not there yet. ``ConfigError`` for too many."""
    model, rows = member.model, examples.starts[-1]
    kind = "topk" if model.k else "fp32"
    size = gib(kind, rows, Shape(model.width, 0, 0), model.k)
    if size > most_gib:
        raise ConfigError(
            f"{rows:,} answer rows of the {member.name}, a black box, are {size:.3g} GiB as {kind}, over "
            f"trainer.stored_rows_gib={most_gib:g}, and it cannot be run again for each step: give "
            f"trainer.stored_rows_gib={math.ceil(100 * size) / 100:g}"
            + ("" if model.k else ", or pair.target.http.k=20, the likeliest tokens alone")
        )
    recipe = {"model": member.fingerprint, "examples": examples.fingerprint, "dtype": _DTYPES.get(kind, kind)}
    recipe |= {"k": model.k} if model.k else {}
    return _in(store.get("rows", recipe, partial(_fill_asked, model, examples)), kind, model.k, member, examples)


def _in(folder: Path, kind: str, k: int, member: Member, examples: Examples) -> FrozenRows:
    """Rows that lie in a folder of the store."""
    array = np.load(folder / FILE, mmap_mode="r")
    if kind != "topk":
        return FrozenRows(array, examples)
    ids, residual = (np.load(folder / name, mmap_mode="r") for name in (IDS, RESIDUAL))
    return TopRows(ids, array, residual, examples, k, vocabulary(member.model))


_DTYPES = {"fp32": "float32", "fp16": "float16"}


def _fill(folder: Path, kind: str, k: int, member: Member, examples: Examples, pad_id: int, batch_size: int) -> None:
    """One pass over the examples; row t of example i goes to ``starts[i] + t``."""
    files: dict[str, np.memmap] = {}
    labels = torch.tensor([token for e in examples for token in e.answer])
    for where, states in _states(member, examples, pad_id, batch_size):
        at_once = len(states) if kind == "hidden" else block(vocabulary(member.model), states.device)
        for part in (slice(i, i + at_once) for i in range(0, len(states), at_once)):
            found = _kept(kind, k, member, states[part], labels[where[part]])
            _finite(states[part], found[FILE], where[part], kind, member, examples)
            for name, values in found.items():
                if name not in files:
                    shape = (examples.starts[-1], *values.shape[1:])
                    files[name] = np.lib.format.open_memmap(folder / name, mode="w+", dtype=values.dtype, shape=shape)
                files[name][where[part]] = values
    for file in files.values():
        file.flush()


def _fill_asked(model: Opaque, examples: Examples, folder: Path) -> None:
    """One question for each example, unless its answer is known; rows lie as above."""
    files: dict[str, np.memmap] = {}
    for start, rows in zip(examples.starts[:-1], model.answers(examples), strict=True):
        for name, values in ((FILE, rows.logp), (IDS, rows.ids), (RESIDUAL, rows.residual)):
            if values is not None:
                if name not in files:
                    shape = (examples.starts[-1], *values.shape[1:])
                    files[name] = np.lib.format.open_memmap(folder / name, mode="w+", dtype=values.dtype, shape=shape)
                files[name][start : start + len(values)] = values
    for file in files.values():
        file.flush()


def _finite(states: Tensor, kept: np.ndarray, where: np.ndarray, kind: str, member: Member, examples: Examples) -> None:
    """Raise ``NotFinite`` where a row of what is about to be stored is no number; of fp16 also what is too large."""
    fine = states.isfinite().all(-1).cpu().numpy()
    if kind != "hidden":  # which is the states; and bf16 ones come as integers
        fine &= np.isfinite(kept).all(-1)
    if fine.all():
        return
    wrong = np.unique(np.searchsorted(examples.starts, where[~fine], side="right") - 1)
    ids = [examples[i].id for i in wrong[:3]]
    raise NotFinite(
        f"{member.name}: its rows as {kind} hold NaN or infinity for {len(wrong)} examples of a batch: {', '.join(ids)}"
        f"{' …' if len(wrong) > 3 else ''}; nothing is stored. Its weights are damaged, or the numbers too large for "
        "the type it is held in (pair.target.dtype, trainer.stored_rows)"
    )


def _states(member: Member, examples: Examples, pad_id: int, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Batch by batch: where its rows go, and their last hidden states [n, D]."""
    starts, device = np.array(examples.starts), device_of(member.model)
    for indices in by_prompt(examples, batch_size, most_rows(shape_of(member).hidden, device)):
        where = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices])
        yield where, shared_states(member.model, [examples[i] for i in indices], pad_id)


@torch.no_grad()
def _kept(kind: str, k: int, member: Member, states: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """By file, what is written of these rows."""
    if kind == "hidden":
        states = states.cpu()
        return {FILE: (states.view(torch.int16) if states.dtype == torch.bfloat16 else states).numpy()}
    rows = head(member.model, states)
    if kind == "topk":
        ids, logp, residual = top(rows, labels.to(rows.device), k)
        return {FILE: logp.cpu().numpy(), IDS: ids.int().cpu().numpy(), RESIDUAL: residual.cpu().numpy()}
    with np.errstate(over="ignore"):  # `_finite` says so, with the examples
        return {FILE: rows.cpu().numpy().astype(_DTYPES[kind])}
