"""What one member has read of a batch of texts, and the rows that follow: a KV cache, or, of a black box, the texts.

Texts are padded on the left, so that all end together. B texts, S columns read so far and n new ones, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from unlearn.ensemble.opaque import Opaque
from unlearn.models import seq2seq
from unlearn.models.llama import device_of, has_encoder, head

# Logits after some of the columns that were just read: [B, V] of one column, [B, k, V] of a slice of them. They are
# computed when called: of a text that is only read, nothing is.
Reader = Callable[[int | slice], Tensor]


class State(Protocol):
    def read(self, ids: Tensor, mask: Tensor, positions: Tensor, since: int) -> Reader:
        """Read the columns from ``since`` on of ids, mask and positions [B, S + n], all before which were read."""

    def select(self, texts: list[int]) -> None:
        """Keep these texts of the batch alone."""

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        """Keep these texts, each with the columns [B', S', 1] of what was read; what is padding may be any column."""

    def join(self, other: State, more: int, fewer: int) -> None:
        """Append the texts of ``other``, the same member's. So many columns of padding are put before those of this
        one, and of the other, that both end up as wide."""


def state_of(model: nn.Module, whole: bool = False) -> State:
    """A member's state before anything is read. ``whole``: it will be rewound, so that every column must be kept,
    whatever the model's window."""
    if isinstance(model, Opaque):
        return Asked(model)
    return Encoded(model) if has_encoder(model) else Cached(model, whole)


class Cached:
    """A local model with a KV cache of its own: sharing one would decode from another model's keys."""

    def __init__(self, model: nn.Module, whole: bool):
        self.model = model
        self.cache = DynamicCache() if whole else DynamicCache(config=model.config)

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor, since: int) -> Reader:
        hidden = self._hidden(ids[:, since:], mask, positions[:, since:])
        return lambda part: head(self.model, hidden[:, part])

    def _hidden(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states, [B, n, D]."""
        here = device_of(self.model)
        return self.model.base_model(
            input_ids=ids.to(here), attention_mask=mask.to(here), position_ids=positions.to(here),
            past_key_values=self.cache, use_cache=True,
        ).last_hidden_state  # fmt: skip

    def select(self, texts: list[int]) -> None:
        self.cache.batch_select_indices(torch.tensor(texts))  # a cache may lie on another device, or on several

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        for layer in self.cache.layers:
            where = columns[:, None].to(layer.keys.device)
            layer.keys = torch.take_along_dim(layer.keys[texts], where, dim=2)
            layer.values = torch.take_along_dim(layer.values[texts], where, dim=2)

    def join(self, other: Cached, more: int, fewer: int) -> None:
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([wider(mine.keys, more, 2), wider(theirs.keys, fewer, 2)])
            mine.values = torch.cat([wider(mine.values, more, 2), wider(theirs.values, fewer, 2)])


class Encoded(Cached):
    """A model with an encoder, which reads the prompts, once and whole: they can only be continued."""

    def __init__(self, model: nn.Module):
        self.model, self.cache = model, None

    def _hidden(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """The decoder's last hidden states; of the prompts those of its start token, [B, 1, D]."""
        if self.cache is None:
            self.cache = seq2seq.Cache(self.model, ids, mask)
        return self.cache.read(ids)

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        raise TypeError("prompts that an encoder has read cannot be made shorter or longer, or be taken back")

    def join(self, other: Cached, more: int, fewer: int) -> None:
        raise TypeError("prompts that an encoder has read cannot stand beside others")


class Asked:
    """A black box, which is given the texts again, longer, each time it is asked."""

    def __init__(self, model: Opaque):
        self.model = model

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor, since: int) -> Reader:
        texts = [text[seen].tolist() for text, seen in zip(ids.cpu(), mask.bool().cpu(), strict=True)]
        n = ids.shape[1] - since
        kept = torch.empty(len(texts), 0)  # the last rows, as many as were asked for

        def rows(part: int | slice) -> Tensor:
            nonlocal kept
            where = torch.arange(n)[part]
            count = n - int(where.min())
            if count > kept.shape[1]:
                found = self.model.following(texts, count).rows(self.model.width, device_of(self.model))
                kept = found.view(len(texts), count, -1)
            return kept[:, where - (n - kept.shape[1])]

        return rows

    def select(self, texts: list[int]) -> None:
        """Nothing is kept of the texts."""

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        """Nothing is kept of the texts."""

    def join(self, other: Asked, more: int, fewer: int) -> None:
        """Nothing is kept of the texts."""


def wider(values: Tensor, more: int, dim: int) -> Tensor:
    """With so many zeros before what is there along ``dim``."""
    shape = list(values.shape)
    shape[dim] = more
    return torch.cat([values.new_zeros(shape), values], dim=dim) if more else values
