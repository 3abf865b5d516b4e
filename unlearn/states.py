"""What one member has read of a batch of texts, and the rows that follow: a KV cache, or, of a black box, the texts.

Texts are padded on the left, so that all end together. B texts, S columns read so far and n new ones, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from unlearn.models import seq2seq
from unlearn.models.llama import device_of, head
from unlearn.opaque import Opaque
from unlearn.rows import spread_top

Reader = Callable[[slice], Tensor]  # which of the new columns → logits after them, [B, n, V]


class State(Protocol):
    """Every method takes ids [B, n] of tokens that follow what was read, the mask [B, S + n] of all columns, and the
    positions [B, n] of the new ones."""

    def take(self, ids: Tensor, mask: Tensor, positions: Tensor) -> None:
        """Read tokens whose rows nobody needs."""

    def next(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits after the last of these tokens, [B, V]."""

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits after each of these tokens, [B, n, V]."""

    def rows(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Reader:
        """Read these tokens; the logits after some of them when they are asked for."""

    def select(self, texts: list[int]) -> None:
        """Keep these texts of the batch alone, in this order; one may be kept several times."""

    def drop(self, columns: int) -> None:
        """Forget the first columns, which are padding in all texts."""

    def join(self, other: Self, more: int, fewer: int) -> None:
        """Append the texts of ``other``: ``more`` columns of padding go before those here, ``fewer`` before its own."""

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        """Keep these texts, each with the columns [B', S', 1] of what was read; what is padding may be any column."""


def state_of(model: nn.Module, whole: bool = False) -> State:
    """A member's state before anything is read. ``whole``: it will be rewound, so that every column must be kept,
    whatever the model's window."""
    if isinstance(model, Opaque):
        return Asked(model, whole)
    return Encoded(model) if seq2seq.is_one(model) else Cached(model, whole)


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

    def rows(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Reader:
        states = self.take(ids, mask, positions)
        return lambda here: head(self.model, states[:, here])

    def select(self, texts: list[int]) -> None:
        self.cache.batch_select_indices(torch.tensor(texts))  # a cache may lie on another device, or on several

    def drop(self, columns: int) -> None:
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, columns:], layer.values[:, :, columns:]

    def join(self, other: Cached, more: int, fewer: int) -> None:
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = _joined(mine.keys, theirs.keys, more, fewer, 2)
            mine.values = _joined(mine.values, theirs.values, more, fewer, 2)

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        for layer in self.cache.layers:
            where = columns[:, None].to(layer.keys.device)
            layer.keys = torch.take_along_dim(layer.keys[texts], where, dim=2)
            layer.values = torch.take_along_dim(layer.values[texts], where, dim=2)


class Encoded(Cached):
    """A model with an encoder: what it takes first are whole prompts, which its encoder reads. It can only go on."""

    def __init__(self, model: nn.Module):
        self.model, self.cache = model, None

    def take(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Its decoder's last hidden states; of the prompts those of its start token, [B, 1, D]."""
        if self.cache is None:
            self.cache = seq2seq.Cache(self.model, ids, mask)
        return self.cache.read(ids)

    def drop(self, columns: int) -> None:
        raise TypeError("prompts that an encoder has read cannot be made shorter, longer, or be taken back")

    def join(self, other: Cached, more: int, fewer: int) -> None:
        self.drop(0)

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        self.drop(0)


class Asked:
    """A black box: what it has read is the text itself, which it is given again, longer, each time it is asked."""

    def __init__(self, model: Opaque, whole: bool):
        self.model, self.ids = model, None
        self.like = None if model.like is None else Cached(model.like.model, whole)

    def take(self, ids: Tensor, mask: Tensor, positions: Tensor) -> None:
        self._add(ids)
        if self.like is not None:
            self.like.take(ids, mask, positions)

    def next(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        like = None if self.like is None else self.like.next(ids, mask, positions)
        return self._rows(ids, mask, 1, like)

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        like = None if self.like is None else self.like.read(ids, mask, positions).flatten(0, 1)
        return self._rows(ids, mask, ids.shape[1], like).view(*ids.shape, -1)

    def rows(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Reader:
        like = None if self.like is None else self.like.rows(ids, mask, positions)
        self._add(ids)
        count, texts = ids.shape[1], self._texts(mask)

        def read(here: slice) -> Tensor:
            first, last, _ = here.indices(count)
            found = self.model.following(texts, count - first)
            others = None if like is None else like(slice(first, None)).flatten(0, 1)
            logits = spread_top(found, self.model.width, device_of(self.model), others)
            return logits.view(len(texts), count - first, -1)[:, : last - first]

        return read

    def select(self, texts: list[int]) -> None:
        self.ids = self.ids[texts]
        if self.like is not None:
            self.like.select(texts)

    def drop(self, columns: int) -> None:
        self.ids = self.ids[:, columns:]
        if self.like is not None:
            self.like.drop(columns)

    def join(self, other: Asked, more: int, fewer: int) -> None:
        self.ids = _joined(self.ids, other.ids, more, fewer, 1)
        if self.like is not None:
            self.like.join(other.like, more, fewer)

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        self.ids = torch.take_along_dim(self.ids[texts], columns[..., 0].to(self.ids.device), dim=1)
        if self.like is not None:
            self.like.rewind(texts, columns)

    def _add(self, ids: Tensor) -> None:
        ids = ids.cpu()
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids], dim=1)

    def _texts(self, mask: Tensor) -> list[list[int]]:
        return [text[seen].tolist() for text, seen in zip(self.ids, mask.bool().cpu(), strict=True)]

    def _rows(self, ids: Tensor, mask: Tensor, count: int, like: Tensor | None) -> Tensor:
        self._add(ids)
        return spread_top(self.model.following(self._texts(mask), count), self.model.width, device_of(self.model), like)


def padded_before(values: Tensor, columns: int, dim: int) -> Tensor:
    """With so many columns of zeros before those that are there along ``dim``."""
    shape = list(values.shape)
    shape[dim] = columns
    return torch.cat([values.new_zeros(shape), values], dim=dim) if columns else values


def _joined(mine: Tensor, theirs: Tensor, more: int, fewer: int, dim: int) -> Tensor:
    return torch.cat([padded_before(mine, more, dim), padded_before(theirs, fewer, dim)])
