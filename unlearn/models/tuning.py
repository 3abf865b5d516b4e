"""How the trained member learns: with all weights, by low-rank updates (LoRA, of peft), or by layers (``layers.py``).

With LoRA and layers the trained member is a second view of a frozen model: it reads the very same weights and has its
updates beside them. So offset and anchor are one set of weights in memory, the anchor is the offset without its
updates, and nothing has to be switched off and on again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearn.config.pair import ADAPTER_CONFIG, ADAPTER_FILE, ADAPTER_PREFIX, LAYERS, LoraConfig, PairConfig
from unlearn.store.files import read_json

if TYPE_CHECKING:
    import peft

UPDATES, LAYER = "lora_", ".unlearning_"  # what the names of added parameters contain


class LayerError(ValueError):
    """A model that has no place for what would be added to it, or files that are not those of its layers."""


def learner(model: nn.Module, how: str, pair: PairConfig, seed: int) -> nn.Module:
    """What learns: a copy of the frozen model, or a view of it with what learns beside its weights."""
    if how == "lora":
        return lora(model, pair.lora, seed)
    if how == LAYERS:
        from unlearn.models import layers  # a second of imports, by peft

        return layers.add(model, pair.layers, seed)
    return copy.deepcopy(model).requires_grad_(True)


def learnt(model: nn.Module, folder: Path) -> nn.Module:
    """A view of the frozen model with updates or layers that a run wrote; ``LayerError`` where they are another's."""
    if not is_lora(folder):
        from unlearn.models import layers

        return layers.load(model, folder)
    found = read_json(folder / ADAPTER_CONFIG)
    view = lora(model, LoraConfig(rank=found["r"], alpha=found["lora_alpha"], dropout=found["lora_dropout"]), 0)
    put(view, UPDATES, load_file(folder / ADAPTER_FILE), str(folder / ADAPTER_FILE))
    return view


def is_lora(folder: Path) -> bool:
    """Whether a folder holds low-rank updates; read as data, without peft's loader, which would also ask the hub."""
    return (read_json(folder / ADAPTER_CONFIG) or {}).get("peft_type") == "LORA"


def lora(model: nn.Module, cfg: LoraConfig, seed: int) -> nn.Module:
    """A view of the model with trainable low-rank updates in every linear layer but the head. They start at zero, so
    the logits are those of ``model``; ``seed`` decides their random half."""
    return second_view(model, _settings(cfg), seed)


def second_view(model: nn.Module, settings: peft.PeftConfig, seed: int) -> nn.Module:
    """The model once more, with what peft adds; weights and buffers are those of ``model``: read, never written."""
    import peft  # a second of imports that full fine-tuning does not need

    view = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.inject_adapter_in_model(settings, view)


def merged(model: nn.Module) -> nn.Module:
    """A plain model with the same logits: a copy whose weights hold the low-rank updates; without any, the model.
    (Unlearning layers are no change of weights: a model with them stays what it is.)"""
    if not has_updates(model):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = copy.deepcopy(model)  # the weights below the updates are shared with models that must not change
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    return model


def has_updates(model: nn.Module) -> bool:
    return bool(added(model, UPDATES))


def has_layers(model: nn.Module) -> bool:
    return bool(added(model, LAYER))


def layer_parameters(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in added(model, LAYER).values())


def added(model: nn.Module, mark: str) -> dict[str, Tensor]:
    """What peft added to the model, by its name in an adapter's file: the model's own tensors, not copies."""
    named = ((name, p.detach()) for name, p in model.named_parameters() if mark in name)
    return {ADAPTER_PREFIX + name.replace(".default.", "."): tensor for name, tensor in named}


@torch.no_grad()
def put(view: nn.Module, mark: str, found: Mapping[str, Tensor], said: str) -> None:
    """Weights, by their name in the file, into what was ``added``. ``LayerError`` where they are not this model's."""
    own = added(view, mark)
    wrong = sorted(set(found) ^ set(own)) or [n for n, t in own.items() if t.shape != found[n].shape]
    if wrong:
        sizes = " beside ".join(str(list(w[wrong[0]].shape)) if wrong[0] in w else "none" for w in (found, own))
        raise LayerError(f"{said}: its layers are not those of this {type(view).__name__}: {wrong[0]} {sizes}")
    for name, tensor in own.items():
        tensor.copy_(found[name])


def write(weights: Mapping[str, Tensor], settings: peft.PeftConfig, folder: Path) -> None:
    """An adapter's two files, as peft reads them: weights by their name in the file, and the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    settings.inference_mode = True
    settings.save_pretrained(str(folder))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / ADAPTER_FILE)


def save_updates(model: nn.Module, cfg: LoraConfig, folder: Path) -> None:
    """Write the updates alone, as an adapter that peft can put on the model they belong to."""
    write(added(model, UPDATES), _settings(cfg), folder)


def _settings(cfg: LoraConfig) -> peft.LoraConfig:
    import peft

    return peft.LoraConfig(
        r=cfg.rank, lora_alpha=cfg.alpha, lora_dropout=cfg.dropout, target_modules="all-linear", task_type=None
    )
