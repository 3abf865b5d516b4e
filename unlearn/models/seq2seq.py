"""Encoder–decoder models (T5), from scratch or pretrained: the prompt goes to the encoder, the answer to the decoder.

Their answer rows are laid as those of causal models are: row t of an answer predicts its token t, the closing EOS
included. So losses, stored rows, scores and the sweep over α need not know which kind a member is. The encoder reads
the prompt and an EOS, as T5's own tokenizer writes it; the decoder begins with its start token.
"""

import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils import ModelOutput

from unlearn.config.pair import ModelConfig
from unlearn.data.encoding import Batch


def fresh(cfg: ModelConfig, vocab_size: int, pad_id: int, eos_id: int, seed: int) -> T5ForConditionalGeneration:
    """A T5 with random weights, the same for the same seed: ``layers`` in the encoder and as many in the decoder, no
    dropout; ``initializer_range`` is T5's factor on its own scheme, of which 1 is usual."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(T5Config(
            vocab_size=vocab_size, d_model=cfg.hidden_size, d_kv=cfg.hidden_size // cfg.heads,
            d_ff=cfg.intermediate_size, num_layers=cfg.layers, num_heads=cfg.heads, dropout_rate=0.0,
            initializer_factor=cfg.initializer_range,
            pad_token_id=pad_id, eos_token_id=eos_id, decoder_start_token_id=pad_id,  # type: ignore[call-arg]
        ))  # fmt: skip


def read(model: nn.Module, ids: Tensor, mask: Tensor, answers: Tensor, **options: bool) -> ModelOutput:
    """What the decoder gives for ``answers`` [B, T] after ids and mask [B, S]; hidden states as the head takes them."""
    memory = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    # Padding comes after the answers, and the decoder looks back alone: it needs no mask.
    out = model.get_decoder()(
        input_ids=answers, encoder_hidden_states=memory, encoder_attention_mask=mask, use_cache=False, **options
    )
    out.last_hidden_state = scaled(model, out.last_hidden_state)
    return out


def prompts(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, S] of the encoder, from a batch of whole texts: a prompt ends where its first answer row is."""
    first = torch.bincount(batch.owner).cumsum(0).roll(1)
    first[0] = 0
    lengths = batch.where[first] % batch.ids.shape[1] + 1  # of the prompts
    longest = int(lengths.max())
    at = torch.arange(longest + 1, device=batch.ids.device)
    ids = batch.ids[:, : longest + 1].scatter(1, lengths[:, None], end(model))
    seen = batch.mask[:, : longest + 1] * (at < lengths[:, None]) + (at == lengths[:, None])
    return ids, seen


def answers(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the decoder reads, [B, T]: start token, answer but the last token; its rows' flat positions b · T + t."""
    counts = torch.bincount(batch.owner)
    place = torch.arange(len(batch.owner), device=batch.owner.device) - (counts.cumsum(0) - counts)[batch.owner]
    ids = batch.labels.new_full((len(counts), int(counts.max()) + 1), start(model))
    ids[batch.owner, place + 1] = batch.labels
    return ids[:, :-1], batch.owner * (ids.shape[1] - 1) + place


def end(model: nn.Module) -> int:
    """The token that the encoder reads after a prompt."""
    ends = model.config.eos_token_id
    return ends[0] if isinstance(ends, list) else ends


def start(model: nn.Module) -> int:
    """The token that the decoder begins with; T5's is its padding."""
    start = getattr(model.config, "decoder_start_token_id", None)
    return model.config.pad_token_id if start is None else start


def scaled(model: nn.Module, hidden: Tensor) -> Tensor:
    """T5 scales what its head reads (its later versions do not)."""
    return hidden * hidden.shape[-1] ** -0.5 if getattr(model.config, "scale_decoder_outputs", False) else hidden
