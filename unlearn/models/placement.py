"""Models while one learns: those that no step runs leave the GPU, the one that learns may be compiled."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

log = logging.getLogger(__name__)


@contextmanager
def parked(models: Sequence[nn.Module]) -> Iterator[None]:
    """The weights are in the computer's memory for the length of the block, those of the output heads excepted: stored
    hidden states still need them. Models that are quantised or spread over GPUs stay; so does what is no GPU's."""
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
