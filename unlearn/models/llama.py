"""Tiny Llamas from scratch, and how any causal language model is loaded, measured and identified."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from unlearn.config import ModelConfig
from unlearn.data.encoding import Batch


def fresh(cfg: ModelConfig, vocab_size: int, pad_id: int, eos_id: int, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights, the same for the same seed; input and output embeddings are tied."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=cfg.hidden_size,
                num_hidden_layers=cfg.layers,
                num_attention_heads=cfg.heads,
                num_key_value_heads=cfg.heads,
                intermediate_size=cfg.intermediate_size,
                initializer_range=cfg.initializer_range,
                max_position_embeddings=cfg.max_length,
                tie_word_embeddings=True,
                pad_token_id=pad_id,
                eos_token_id=eos_id,
                bos_token_id=None,
            )
        )


def load(folder: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """A model in fp32: a pair's small differences of logits, and small updates of its weights, need the precision."""
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).to(device).eval()


def freeze(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False).eval()


def answer_rows(model: nn.Module, batch: Batch) -> Tensor:
    """Next-token logits of the batch's answer rows, [N, V] in fp32.

    The output head is applied to the gathered rows only: prompts and padding never get a [V]-wide row.
    """
    hidden = model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(hidden.flatten(0, 1)[batch.where]).float()


def answer_rows_and_hidden(model: nn.Module, batch: Batch, layer: int) -> tuple[Tensor, Tensor]:
    """Answer rows as above, and the hidden states [N, D] after block ``layer`` (0, 1 …, but not the last).

    The last block's states are only seen after the final norm, and steering them would steer the logits themselves.
    """
    last = model.config.num_hidden_layers - 1
    if not 0 <= layer < last:
        raise ValueError(
            f"algo.numbers.layer={layer}: this model's layers are 0 to {last}, and the last cannot be taken"
        )
    out = model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, output_hidden_states=True)
    rows = model.get_output_embeddings()(out.last_hidden_state.flatten(0, 1)[batch.where]).float()
    return rows, out.hidden_states[layer + 1].flatten(0, 1)[batch.where].float()


def fingerprint(model: nn.Module) -> str:
    """Hash of every weight (name, shape, type and bytes): equal models have equal fingerprints whatever their path."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:16]


def vocabulary(model: nn.Module) -> int:
    return model.get_output_embeddings().weight.shape[0]


def parameters(model: nn.Module, trainable: bool = False) -> int:
    """Number of parameters; of those that learn, if asked."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
