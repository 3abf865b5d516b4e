"""Encoder–decoder models (T5), from scratch or pretrained: the prompt goes to the encoder, the answer to the decoder.

Their answer rows are laid as those of causal models are: row t of an answer predicts its token t, the closing EOS
included. So losses, stored rows, scores and the sweep over α need not know which kind a member is. The encoder reads
the prompt and an EOS, as T5's own tokenizer writes it; the decoder begins with its start token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration
from transformers.utils import ModelOutput

from unlearn.config.pair import ModelConfig
from unlearn.data.encoding import Batch


def fresh(cfg: ModelConfig, vocab_size: int, pad_id: int, eos_id: int, seed: int) -> T5ForConditionalGeneration:
    """A T5 with random weights, the same for the same seed: ``layers`` in the encoder and as many in the decoder, no
    dropout; ``initializer_range`` is T5's factor on its own scheme, of which 1 is usual."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=vocab_size,
                d_model=cfg.hidden_size,
                d_kv=cfg.hidden_size // cfg.heads,
                d_ff=cfg.intermediate_size,
                num_layers=cfg.layers,
                num_heads=cfg.heads,
                dropout_rate=0.0,
                initializer_factor=cfg.initializer_range,
                pad_token_id=pad_id,
                eos_token_id=eos_id,
                decoder_start_token_id=pad_id,
            )
        )


def read(model: nn.Module, ids: Tensor, mask: Tensor, answers: Tensor, **options: bool) -> ModelOutput:
    """What the decoder gives for ``answers`` [B, T] after the encoder has read ids and mask [B, S]; its last hidden
    states as the output head takes them."""
    memory = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    # Padding comes after the answers, and the decoder looks back alone: it needs no mask.
    out = model.get_decoder()(
        input_ids=answers, encoder_hidden_states=memory, encoder_attention_mask=mask, use_cache=False, **options
    )
    out.last_hidden_state = _scaled(model, out.last_hidden_state)
    return out


def prompts(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, S] of the encoder, from a batch of whole texts: a prompt ends where its first answer row is."""
    first = torch.bincount(batch.owner).cumsum(0).roll(1)
    first[0] = 0
    lengths = batch.where[first] % batch.ids.shape[1] + 1  # of the prompts
    longest = int(lengths.max())
    at = torch.arange(longest + 1, device=batch.ids.device)
    ids = batch.ids[:, : longest + 1].scatter(1, lengths[:, None], _eos(model))
    seen = batch.mask[:, : longest + 1] * (at < lengths[:, None]) + (at == lengths[:, None])
    return ids, seen


def answers(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the decoder reads, [B, T]: the start token, then each answer but its last token; and where
    its rows are, flat positions b · T + t [N]."""
    counts = torch.bincount(batch.owner)
    place = torch.arange(len(batch.owner), device=batch.owner.device) - (counts.cumsum(0) - counts)[batch.owner]
    ids = batch.labels.new_full((len(counts), int(counts.max()) + 1), _start(model))
    ids[batch.owner, place + 1] = batch.labels
    return ids[:, :-1], batch.owner * (ids.shape[1] - 1) + place


def _eos(model: nn.Module) -> int:
    ends = model.config.eos_token_id
    return ends[0] if isinstance(ends, list) else ends


def _start(model: nn.Module) -> int:
    """The token that the decoder begins with; T5's is its padding."""
    start = getattr(model.config, "decoder_start_token_id", None)
    return model.config.pad_token_id if start is None else start


def _scaled(model: nn.Module, hidden: Tensor) -> Tensor:
    """T5 scales what its head reads (its later versions do not)."""
    return hidden * hidden.shape[-1] ** -0.5 if getattr(model.config, "scale_decoder_outputs", False) else hidden


class Cache:
    """What decoding keeps of some prompts: the encoder's states, made once, and the decoder's keys and values."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor):
        """Prompts [B, S], padded on the left."""
        self.model, self.place = model, next(model.parameters()).device
        end = ids.new_full((len(ids), 1), _eos(model))
        ids, mask = torch.cat([ids, end], dim=1), torch.cat([mask, torch.ones_like(end)], dim=1)
        self.seen = mask.to(self.place)
        self.memory = model.get_encoder()(input_ids=ids.to(self.place), attention_mask=self.seen).last_hidden_state
        self.past, self.begun = EncoderDecoderCache(DynamicCache(), DynamicCache()), False

    def read(self, ids: Tensor) -> Tensor:
        """Last hidden states of the tokens [B, S], [B, S, D]. What is read first is the start token, whatever the ids
        are: the prompts' own, which the encoder has."""
        if not self.begun:
            ids, self.begun = ids.new_full((len(ids), 1), _start(self.model)), True
        out = self.model.get_decoder()(
            input_ids=ids.to(self.place), encoder_hidden_states=self.memory, encoder_attention_mask=self.seen,
            past_key_values=self.past, use_cache=True,
        )  # fmt: skip
        return _scaled(self.model, out.last_hidden_state)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these prompts alone."""
        self.past.batch_select_indices(indices)
        indices = indices.to(self.place)
        self.memory, self.seen = self.memory[indices], self.seen[indices]
