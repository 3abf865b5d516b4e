"""What one member has read of a batch of texts, and the rows that follow: a KV cache, or, of a black box, the texts.

Texts are padded on the left, so that all end together. B texts, S columns read so far and n new ones, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from unlearn.ensemble.opaque import Opaque
from unlearn.models import seq2seq
from unlearn.models.llama import device_of, has_encoder, head


class State(Protocol):
    """Every method takes ids [B, n] of tokens that follow what was read, the mask [B, S + n] of all columns, and the
    positions [B, n] of the new ones."""

    def take(self, ids: Tensor, mask: Tensor, positions: Tensor) -> None:
        """Read tokens whose rows nobody needs."""

    def next(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits after the last of these tokens, [B, V]."""

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits after each of these tokens, [B, n, V]."""

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

    def take(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Its last hidden states [B, n, D]."""
        here = device_of(self.model)
        return self.model.base_model(
            input_ids=ids.to(here), attention_mask=mask.to(here), position_ids=positions.to(here),
            past_key_values=self.cache, use_cache=True,
        ).last_hidden_state  # fmt: skip

    def next(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return head(self.model, self.take(ids, mask, positions)[:, -1])

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return head(self.model, self.take(ids, mask, positions))

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
    """A model with an encoder: what it takes first are whole prompts, which its encoder reads. It can only go on."""

    def __init__(self, model: nn.Module):
        self.model, self.cache = model, None

    def take(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Its decoder's last hidden states; of the prompts those of its start token, [B, 1, D]."""
        if self.cache is None:
            self.cache = seq2seq.Cache(self.model, ids, mask)
        return self.cache.read(ids)

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        raise TypeError("prompts that an encoder has read cannot be made shorter or longer, or be taken back")

    def join(self, other: Cached, more: int, fewer: int) -> None:
        raise TypeError("prompts that an encoder has read cannot stand beside others")


class Asked:
    """A black box: what it has read is the text itself, which it is given again, longer, each time it is asked."""

    def __init__(self, model: Opaque):
        self.model, self.ids = model, None

    def take(self, ids: Tensor, mask: Tensor, positions: Tensor) -> None:
        ids = ids.cpu()
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids], dim=1)

    def next(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return self._rows(ids, mask, positions, 1)

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return self._rows(ids, mask, positions, ids.shape[1]).view(*ids.shape, -1)

    def select(self, texts: list[int]) -> None:
        self.ids = self.ids[texts]

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        self.ids = torch.take_along_dim(self.ids[texts], columns[..., 0].to(self.ids.device), dim=1)

    def join(self, other: Asked, more: int, fewer: int) -> None:
        self.ids = torch.cat([wider(self.ids, more, 1), wider(other.ids, fewer, 1)])

    def _rows(self, ids: Tensor, mask: Tensor, positions: Tensor, count: int) -> Tensor:
        self.take(ids, mask, positions)
        texts = [text[seen].tolist() for text, seen in zip(self.ids, mask.bool().cpu(), strict=True)]
        return self.model.following(texts, count).rows(self.model.width, device_of(self.model))


def wider(values: Tensor, more: int, dim: int) -> Tensor:
    """With so many zeros before what is there along ``dim``."""
    shape = list(values.shape)
    shape[dim] = more
    return torch.cat([values.new_zeros(shape), values], dim=dim) if more else values
