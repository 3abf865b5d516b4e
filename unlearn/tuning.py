"""How the trained member learns: with all its weights, or through low-rank updates (LoRA, by peft)."""

from __future__ import annotations

import torch
from torch import nn

from unlearn.config_pair import LoraConfig


def lora(model: nn.Module, cfg: LoraConfig, seed: int) -> nn.Module:
    """The same model with trainable low-rank updates in every linear layer but the head; all else is frozen.

    The update starts at zero, so the model's logits are unchanged; ``seed`` decides its random half.
    """
    import peft  # a second of imports that full fine-tuning does not need

    settings = peft.LoraConfig(
        r=cfg.rank, lora_alpha=cfg.alpha, lora_dropout=cfg.dropout, target_modules="all-linear", task_type=None
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.inject_adapter_in_model(settings, model)


def merge(model: nn.Module) -> nn.Module:
    """The model with its low-rank updates added to its weights; any other model as it is."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    return model
