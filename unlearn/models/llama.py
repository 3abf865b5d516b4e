"""Tiny Llamas from scratch, and how any language model is loaded, read, measured and identified."""

import copy
import hashlib
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
)
from transformers.utils import find_adapter_config_file

from unlearn.config.pair import ModelConfig
from unlearn.config.schema import ConfigError, reason
from unlearn.data.encoding import Batch
from unlearn.models import seq2seq
from unlearn.models.tokenizers import place
from unlearn.store.sources import is_gguf

NARROW = "read_vocabulary"  # in a model's config
NO_CODE = {"trust_remote_code": False}  # of everything that is loaded: a model brings numbers, never programs
SAFE = NO_CODE | {"use_safetensors": True}


def fresh(cfg: ModelConfig, vocab_size: int, pad_id: int, eos_id: int, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights, the same for the same seed; input and output embeddings are tied."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=vocab_size, hidden_size=cfg.hidden_size, intermediate_size=cfg.intermediate_size,
            num_hidden_layers=cfg.layers, num_attention_heads=cfg.heads, num_key_value_heads=cfg.heads,
            initializer_range=cfg.initializer_range, max_position_embeddings=cfg.max_length, tie_word_embeddings=True,
            pad_token_id=pad_id, eos_token_id=eos_id, bos_token_id=None,
        ))  # fmt: skip


def load(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model in fp32, as small differences of logits and small updates need; only what never learns may have less."""
    return exact(folder, dtype=dtype).to(device).eval()


def exact(folder: str | Path, **how: Any) -> nn.Module:
    """A model of the tensors in a folder's files; ``ConfigError`` where these are not all of its own, and no more: the
    loader warns, gives random weights for what is missing, and applies an adapter that lies there."""
    if not is_gguf(Path(folder)) and find_adapter_config_file(str(folder)) is not None:
        raise ConfigError(f"{folder} holds an adapter, which would change the model beside it: merge it or move it")
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, told = class_of(folder).from_pretrained(**place(folder), **told, **how, **SAFE)
    model.hf_quantizer = None  # a GGUF file's weights are plain ones now, and can be saved
    names = {"are missing": told["missing_keys"], "are none of its own": told["unexpected_keys"],
             "have another shape": [name for name, *_ in told["mismatched_keys"]]}  # fmt: skip
    wrong = [f"{len(n)} {what}, e.g. {min(n)}" for what, n in names.items() if n]
    if wrong:
        raise ConfigError(f"{folder}: its weights are not those of a {type(model).__name__}: {'; '.join(wrong)}")
    return model


def config(folder: str | Path) -> PretrainedConfig:
    """The config of a model's folder; refused where it needs code of its own, or has other weights loaded."""
    path = Path(folder)
    if is_gguf(path):
        return copy.deepcopy(_of_gguf(path, path.stat().st_mtime_ns))
    try:
        found = AutoConfig.from_pretrained(str(folder), **NO_CODE)
    except ValueError as error:
        rule = "which is never run here; take a model whose architecture transformers has"
        raise ConfigError(f"{folder}: this model needs code of its own ({reason(error)}), {rule}") from None
    if getattr(found, "transformers_weights", None) is not None:
        raise ConfigError(f"{folder}: transformers_weights={found.transformers_weights!r}: must name no other weights")
    return found


@cache
def _of_gguf(path: Path, changed: int) -> PretrainedConfig:
    """Read once, since all words of the vocabulary come with it."""
    try:
        return AutoConfig.from_pretrained(**place(path), **NO_CODE)
    except (ValueError, KeyError, RuntimeError) as error:
        rule = "give a folder with the same model as safetensors"
        raise ConfigError(f"{path}: transformers does not read this GGUF file ({reason(error)}): {rule}") from None


def class_of(folder: str | Path) -> type[AutoModelForCausalLM] | type[AutoModelForSeq2SeqLM]:
    """What loads the model of a folder."""
    return AutoModelForSeq2SeqLM if config(folder).is_encoder_decoder else AutoModelForCausalLM


def has_encoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def device_of(model: nn.Module) -> torch.device:
    """Where a model reads ids, and where its rows are; what has no weights keeps an empty buffer there."""
    return next(chain(model.parameters(), model.buffers())).device


def freeze(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False).eval()


def answer_rows(model: nn.Module, batch: Batch) -> Tensor:
    """Next-token logits of the batch's answer rows, [N, V] in fp32, on the batch's device. The output head is applied
    to the gathered rows only: prompts and padding never get a [V]-wide row."""
    return head(model, answer_states(model, batch)).to(batch.ids.device)


def answer_states(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden states of the batch's answer rows, [N, D]: what the head makes logits of. They stay on its device."""
    return _read(model, batch)[0]


def _read(model: nn.Module, batch: Batch, layer: int | None = None) -> list[Tensor]:
    """Last hidden states of the batch's answer rows and, where a layer is named, those after it: [N, D] each. (A model
    that is spread over devices may end on another one than it began.)"""
    here, options = batch.to(device_of(model)), {} if layer is None else {"output_hidden_states": True}
    if has_encoder(model):
        (ids, mask), (answers, where) = seq2seq.prompts(model, here), seq2seq.answers(model, here)
        out: Any = seq2seq.read(model, ids, mask, answers, **options)
    else:
        where = here.where
        out = model.base_model(input_ids=here.ids, attention_mask=here.mask, use_cache=False, **options)
    found = [out.last_hidden_state] if layer is None else [out.last_hidden_state, out.hidden_states[layer + 1]]
    return [states.flatten(0, 1)[where.to(states.device)] for states in found]


class Head:
    """A model's output head without the rest of it."""

    def __init__(self, model: nn.Module):
        self.module, self.width = model.get_output_embeddings(), vocabulary(model)  # logits that are read

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] in fp32 or fp64 of last hidden states [..., D]."""
        logits = self.module(hidden)
        return full_precision(logits if logits.shape[-1] == self.width else logits[..., : self.width])

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device


def head(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits [..., V] in fp32 or fp64 of last hidden states [..., D]; V is what ``vocabulary`` says."""
    return Head(model)(hidden)


def full_precision(values: Tensor) -> Tensor:
    """In fp32, unless they are in fp64."""
    return values if values.dtype == torch.float64 else values.float()


def states_and_hidden(model: nn.Module, batch: Batch, layer: int) -> tuple[Tensor, Tensor]:
    """Last hidden states as above, and those after block ``layer`` (0, 1 …, but not the last: its states are only seen
    after the final norm, and steering them would steer the logits themselves), both [N, D]."""
    last = blocks(model) - 1
    if not 0 <= layer < last:
        raise ValueError(f"algo.numbers.layer={layer}: must be a layer of this model but its last, 0 to {last - 1}")
    states, hidden = _read(model, batch, layer)
    return states, full_precision(hidden).to(batch.ids.device)


def blocks(model: nn.Module) -> int:
    """Number of the transformer blocks that answers go through: of an encoder–decoder its decoder's."""
    return getattr(model.config, "num_decoder_layers", None) or model.config.num_hidden_layers


def fingerprint(model: nn.Module) -> str:
    """Hash of every weight (name, shape, type and bytes): equal models have equal fingerprints whatever their path."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:16]


def vocabulary(model: nn.Module) -> int:
    """Number of tokens that its logits are read for: the rows of its head, or those that ``narrow`` left."""
    return getattr(model.config, NARROW, None) or model.get_output_embeddings().weight.shape[0]


def narrow(model: nn.Module, width: int) -> nn.Module:
    """Read only the first ``width`` logits of the model: families pad their heads to different widths. Weights stay
    whole; the width is in the model's config, so copies and saved weights have it."""
    rows = model.get_output_embeddings().weight.shape[0]
    if width > rows:
        raise ValueError(f"a head of {rows:,} tokens cannot be read for {width:,}")
    if width != vocabulary(model):  # it may have been read for another width before
        setattr(model.config, NARROW, width if width < rows else None)
    return model


def parameters(model: nn.Module, trainable: bool = False) -> int:
    """Number of parameters; of those that learn, if asked."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
