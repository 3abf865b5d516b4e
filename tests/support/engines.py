"""Exports written by hand: folders of tiny models whose sum is one model for transformers and for engines."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

WIDTH = 40
LORA = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 6,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": "all-linear",
}


def tiny(folder: Path, seed: int, layers: int = 2, heads: int = 2, width: int = WIDTH, **more: Any) -> Path:
    """A random Llama in a folder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=width, hidden_size=8 * heads, intermediate_size=24, num_hidden_layers=layers, eos_token_id=1,
        num_attention_heads=heads, num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5,
        pad_token_id=0, bos_token_id=None, **more,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, seed: int, scale: float = 0.25) -> Path:
    """Random low-rank updates of every linear layer of a model, as peft writes them."""
    random, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in AutoModelForCausalLM.from_pretrained(base).named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            for part, shape in (("A", (2, module.in_features)), ("B", (module.out_features, 2))):
                tensors[f"base_model.model.{name}.lora_{part}.weight"] = torch.randn(shape, generator=random) * scale
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(LORA))
    return folder


def described(folder: Path, inside: str | None = None, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """What an export says of a model."""
    files = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if p.name != "generation_config.json"
    }
    config = None if base else json.loads((folder / "config.json").read_text())
    return {"folder": inside, "source": None, "revision": None, "dtype": "float32", "quantisation": None,
            "files": files, "config": config, "base": base}  # fmt: skip


def export(to: Path, members: Sequence[tuple[str, float, float, dict[str, Any]]], **more: Any) -> Path:
    """Write config.json of an export whose members are (name, constant, slope, description)."""
    to.mkdir(exist_ok=True)
    about = {"model_type": "unlearned", "architectures": ["UnlearnedForCausalLM"], "alpha": 1.0, "rule": "sum",
             "numbers": {}, "vocab_size": WIDTH, "max_position_embeddings": 64, "eos_token_id": 1, "pad_token_id": 0,
             "bos_token_id": None} | more  # fmt: skip
    about["members"] = [{"name": n, "constant": c, "slope": s} | of for n, c, s, of in members]
    (to / "config.json").write_text(json.dumps(about))
    generating = {"eos_token_id": 1, "pad_token_id": 0, "do_sample": False}
    (to / "generation_config.json").write_text(json.dumps(generating))
    return to


def offset(to: Path, target: Path, small: Path, learnt: Path, **more: Any) -> Path:
    """An export of target + α (offset − anchor); ``learnt`` is a whole model, or an adapter of ``small``."""
    shutil.copytree(learnt, to / "offset")
    anchor = described(small)
    updated = anchor if (learnt / "adapter_config.json").is_file() else None
    members = [("target", 1.0, 0.0, described(target)), ("offset", 0.0, 1.0, described(learnt, "offset", updated)),
               ("anchor", 0.0, -1.0, anchor)]  # fmt: skip
    return export(to, members, **more)
