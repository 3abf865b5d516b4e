"""What one model has read of a batch of texts, and the rows that follow: a KV cache of its own.

Texts are padded on the left, so that all end together. B texts, S columns read so far and n new ones, V vocabulary.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from unlearn.models import seq2seq
from unlearn.models.llama import device_of, head

# Logits after some of the columns that were just read: [B, V] of one column, [B, k, V] of a slice of them. They are
# computed when called: of a text that is only read, nothing is.
Reader = Callable[[int | slice], Tensor]


class State(Protocol):
    """Every member of a batch has one of its own: sharing a cache would decode from another model's keys."""

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor, since: int) -> Reader:
        """Read the columns from ``since`` on of ids, mask and positions [B, S + n], all before which were read."""

    def select(self, texts: list[int]) -> None:
        """Keep these texts of the batch alone."""

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        """Keep these texts, each with the columns [B', S', 1] of what was read; what is padding may be any column."""

    def join(self, other: "State", more: int, fewer: int) -> None:
        """Append the texts of ``other``, the same member's, each behind so many columns of padding."""


class Cached:
    """A causal model, with a KV cache."""

    def __init__(self, model: nn.Module, whole: bool):
        self.model = model
        self.cache = DynamicCache() if whole else DynamicCache(config=model.config)

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor, since: int) -> Reader:
        hidden = self.hidden(ids[:, since:], mask, positions[:, since:])
        return lambda part: head(self.model, hidden[:, part])

    @property
    def columns(self) -> int:
        """How many it has read."""
        return self.cache.get_seq_length()

    def hidden(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
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

    def join(self, other: "Cached", more: int, fewer: int) -> None:
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([wider(mine.keys, more, 2), wider(theirs.keys, fewer, 2)])
            mine.values = torch.cat([wider(mine.values, more, 2), wider(theirs.values, fewer, 2)])


class Encoded(Cached):
    """A model with an encoder, which reads the prompts, once and whole: they can only be continued."""

    def __init__(self, model: nn.Module):
        self.model, self.cache = model, EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.memory: Tensor | None = None

    @torch.no_grad()
    def hidden(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """The decoder's last hidden states; of the prompts those of its start token, [B, 1, D]."""
        here = device_of(self.model)
        if self.memory is None:  # these are the prompts
            end, start = (ids.new_full((len(ids), 1), token(self.model)) for token in (seq2seq.end, seq2seq.start))
            self.seen = torch.cat([mask, torch.ones_like(end)], dim=1).to(here)
            ids = torch.cat([ids, end], dim=1).to(here)
            self.memory = self.model.get_encoder()(input_ids=ids, attention_mask=self.seen).last_hidden_state
            ids = start
        out = self.model.get_decoder()(
            input_ids=ids.to(here), encoder_hidden_states=self.memory, encoder_attention_mask=self.seen,
            past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        return seq2seq.scaled(self.model, out.last_hidden_state)

    def select(self, texts: list[int]) -> None:
        super().select(texts)
        self.memory, self.seen = self.memory[texts], self.seen[texts]

    def rewind(self, texts: list[int], columns: Tensor) -> None:
        raise TypeError("prompts that an encoder has read cannot be made shorter or longer, or be taken back")

    def join(self, other: Cached, more: int, fewer: int) -> None:
        raise TypeError("prompts that an encoder has read cannot stand beside others")


def wider(values: Tensor, more: int, dim: int) -> Tensor:
    """With so many zeros before what is there along ``dim``."""
    shape = list(values.shape)
    shape[dim] = more
    return torch.cat([values.new_zeros(shape), values], dim=dim) if more else values
