"""Tiny random models of real architectures, saved as pretrained ones are; ``fixtures.py`` hands out the fixtures."""

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from unlearn.models import tokenizers

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
         "intermediate_size": 32, "initializer_range": 0.3, "max_position_embeddings": 400, "pad_token_id": 0,
         "eos_token_id": 1, "bos_token_id": None}  # fmt: skip
KINDS = {
    "llama": lambda v: LlamaConfig(vocab_size=v, **SHAPE),
    "tied": lambda v: LlamaConfig(vocab_size=v, **SHAPE | {"hidden_size": 8, "tie_word_embeddings": True}),
    "qwen2": lambda v: Qwen2Config(vocab_size=v, **SHAPE),
    "qwen3": lambda v: Qwen3Config(vocab_size=v, head_dim=8, **SHAPE),
    "gpt2": lambda v: GPT2Config(vocab_size=v, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3),
    "phi": lambda v: PhiConfig(vocab_size=v, **SHAPE),
    "mistral": lambda v: MistralConfig(vocab_size=v, sliding_window=8, **SHAPE),
    "gpt_neox": lambda v: GPTNeoXConfig(
        vocab_size=v, **{name: n for name, n in SHAPE.items() if name != "num_key_value_heads"}
    ),
    "gemma2": lambda v: Gemma2Config(vocab_size=v, head_dim=8, **SHAPE | {"initializer_range": 1.0}),
}
AS_IT_IS = ("pair.tokenizer.kind=pretrained", "pair.target.pretrain.epochs=0", "pair.target.finetune.epochs=0",
            "pair.small.pretrain.epochs=0", "pair.small.finetune.epochs=0", "pair.small.general.epochs=0",
            "eval.groups=[]", "eval.max_examples=2", "eval.retrained=none", "trainer.lr=2e-3")  # fmt: skip


@pytest.fixture(scope="session")
def made(bench, tmp_path_factory):
    """Function to the folder of a random model of a kind, seed and number of tokens, with the world's tokenizer."""
    root, tokenizer = tmp_path_factory.mktemp("models"), bench.encoder.tokenizer

    @cache
    def make(kind: str, seed: int = 0, padding: int = 0, bias: bool = False) -> Path:
        folder = root / f"{kind}-{seed}-{padding}-{bias}"
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(KINDS[kind](tokenizers.size(tokenizer) + padding))
        if bias:  # after every text some padding is likelier than any token
            with torch.no_grad():
                model.lm_head.weight[-padding:] = torch.tensor([9 * i * (-1.0) ** i for i in range(padding)])[:, None]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def pair(config, made):
    """Function from two folders to a checked config of a pair that is taken as it is."""

    def choose(target=None, small=None, *overrides):
        of = [f"pair.target.source={target or made('llama')}", f"pair.small.source={small or made('tied', 1)}"]
        compared = [] if any(o.startswith("eval.retrained") for o in overrides) else ["eval.retrained=null"]
        there = any(o.startswith("pair.retrained") or o == "pair.target.finetune.epochs=1" for o in overrides)
        return config(*AS_IT_IS, *of, *(compared if there else []), *overrides)

    return choose


def retrained(made) -> str:
    return f"pair.retrained.source={made('llama', 2)}"
