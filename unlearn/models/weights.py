"""Whether the weight files of a pretrained model are whole and hold numbers alone, told without building the model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from unlearn.config.schema import ConfigError
from unlearn.store.files import noted
from unlearn.store.sources import weight_files

RULE = "holds NaN or infinity: such a model gives no probabilities. Copy or train it again"
CHECKED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_files(key: str, folder: Path, memo: Path) -> None:
    """Raise ``ConfigError`` naming file and tensor. ``key`` is the setting that names the folder.

    A file that was found whole is noted in ``memo``, as hashes are, and not read again while it does not change.
    """
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            noted(memo, path, partial(_check, f"{key}={str(folder)!r}"), "finite ")


def _check(given: str, path: Path) -> str:
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                if tensor.dtype in CHECKED and not torch.isfinite(tensor).all():
                    raise ConfigError(f"{given}: the tensor {name!r} in {path.name} {RULE}")
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{given}: {path.name} is no whole safetensors file ({error}): copy or download it again"
        ) from None
    return "finite"


def check(model: nn.Module, given: str) -> nn.Module:
    """The model, unless one of its weights is no number; for what a model was loaded from without ``check_files``."""
    for name, tensor in model.named_parameters():
        if tensor.dtype in CHECKED and tensor.device.type != "meta" and not torch.isfinite(tensor).all():
            raise ConfigError(f"{given}: the tensor {name!r} {RULE}")
    return model
