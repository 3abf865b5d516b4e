"""Models and memory while one learns: what no step needs is left, and what a step frees goes back to the system."""

import ctypes
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from unlearn.models.llama import device_of, parameters
from unlearn.models.tuning import UPDATES

log = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt, malloc.h
OWN_PAGES = 2**20  # bytes: smaller than what a block keeps of a few texts, larger than all tensors of tiny models
AT_ONCE = 2**29  # bytes that one backward pass may ask to be kept on a CPU, about; a GPU wants its batch whole
OF_LARGE, LARGE = 2**18, 2**24  # bytes, and parameters of a model from which on they hold: its steps notice no page
LARGEST = 2**25  # where glibc's own adjustment ends: what it is at after the first large allocations of a program


@contextmanager
def parked(models: Sequence[nn.Module]) -> Iterator[None]:
    """The weights are in the computer's memory for the length of the block, those of the output heads excepted: stored
    hidden states still need them. Models that are quantised or spread over GPUs stay; so does what is not a GPU's."""
    moved: list[tuple[torch.Tensor, torch.device]] = []
    try:
        for model in models:
            if getattr(model, "hf_device_map", None) is not None or not any(True for _ in model.parameters()):
                continue  # spread over GPUs, or a black box
            head = set(map(id, model.get_output_embeddings().parameters()))
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_cuda and id(tensor) not in head:
                    moved.append((tensor, tensor.device))
                    tensor.data = tensor.data.cpu()
        if moved:
            torch.cuda.empty_cache()
            size = sum(t.nbytes for t, _ in moved) / 2**30
            log.info("%.1f GiB of models whose rows are all stored leave the GPU while the offset learns", size)
        yield
    finally:
        for tensor, device in moved:
            tensor.data = tensor.data.to(device)


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """All of the model but its head runs through torch.compile for the length of the block."""
    model.base_model.compile(dynamic=True)
    try:
        yield
    finally:
        model.base_model._compiled_call_impl = None  # copies of the model, and its generations, are not compiled


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Within this, what transformer blocks compute is computed again for the backward pass; ``ValueError`` if not."""
    # The reentrant form gives no gradient to updates of a block whose inputs need none. transformers' public switch
    # would also have the embeddings ask for gradients, which is of use to that form alone, and leave it so.
    model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=False))
    try:
        yield
    finally:
        model._set_gradient_checkpointing(False)


def in_parts(model: nn.Module, tokens: int) -> int:
    """In how many parts so many tokens are read, so that none of them keeps too much for its backward pass.

    Kept is, about, what goes into and comes out of every matrix but embeddings, head and updates."""
    checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    if checkpointing or device_of(model).type != "cpu":
        return 1
    ends = {id(p) for m in (model.get_input_embeddings(), model.get_output_embeddings()) for p in m.parameters()}
    between = [p for name, p in model.named_parameters() if p.ndim == 2 and UPDATES not in name and id(p) not in ends]
    return max(1, math.ceil(4 * tokens * sum(sum(p.shape) for p in between) / AT_ONCE))


@contextmanager
def returned(model: nn.Module) -> Iterator[None]:
    """Large tensors have pages of their own for the length of the block, in which ``model`` learns, so that they go
    back to the system when freed, and at its end all that is free does; elsewhere than under glibc nothing changes.

    glibc 2.36 finds no place for an aligned tensor in a hole that another of the same size left: in one training step
    its heap takes twice what the step keeps, and gives nothing back.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, OWN_PAGES if parameters(model) < LARGE else OF_LARGE)
    try:
        yield
    finally:
        if libc is not None:
            libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
            libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)
            libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        found = ctypes.CDLL(None)
        return found if found.mallopt and found.malloc_trim else None
    except (OSError, AttributeError, TypeError):  # another C library, or Windows
        return None
