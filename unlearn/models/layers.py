"""Unlearning layers (EUL, arXiv 2310.20150): a small bottleneck after each feed-forward block of a frozen model.

Where a block has the output y, the next reads y + up(act(down(y))): before the residual stream is added, as the output
adapters of the library that EUL's repository brings do it. ``up`` starts at zero, so a model with fresh layers is the
model, bit for bit. Neither linear has a bias: what fusion solves for is then the whole layer (docs/eul.md).

A model with layers is a second view of a frozen model's own weights. They are a method of peft's, registered where
this module is imported: ``PeftModel.from_pretrained`` then reads what ``save`` wrote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from unlearn.config.pair import ADAPTER_CONFIG, ADAPTER_FILE, LayersConfig
from unlearn.models.tuning import LAYER, LayerError, added, put, second_view, write
from unlearn.store.files import read_json

KIND: Any = "UNLEARNING_LAYERS"  # peft_type, of which peft has an enumeration
DOWN, UP = "unlearning_down", "unlearning_up"
SHARE = 0.005  # of the model's parameters: the paper's share (≈ 0.5 %), where no bottleneck is given
SUPPORTED = "Llama, Qwen2 and others of their form (mlp.down_proj), GPT-2 (mlp.c_proj), T5 (DenseReluDense.wo)"
ACTIVATION = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}


@dataclass
class UnlearningLayersConfig(peft.PeftConfig):
    """What ``adapter_config.json`` says, as peft reads it."""

    target_modules: list[str] | None = None  # the feed-forward blocks, by name
    bottleneck: int = 1
    activation: str = "relu"

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = KIND


class UnlearningLayer(nn.Module, BaseTunerLayer):
    """A feed-forward block with the layer behind it."""

    adapter_layer_names = (DOWN, UP)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: UnlearningLayersConfig):
        super().__init__()
        self.base_layer = base_layer
        self.unlearning_down, self.unlearning_up = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck, self.activation = config.bottleneck, config.activation
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: UnlearningLayersConfig) -> None:
        last = _last(self.base_layer)
        width, place = _outputs(last), last.weight.device
        # always fp32: the base may be held in less, or quantised, and what learns needs more
        held = last.weight.dtype if last.weight.dtype.is_floating_point else torch.float32
        how = {"bias": False, "device": place, "dtype": torch.promote_types(held, torch.float32)}
        self.unlearning_down[adapter_name] = nn.Linear(width, config.bottleneck, **how)
        self.unlearning_up[adapter_name] = nn.Linear(config.bottleneck, width, **how)
        nn.init.zeros_(self.unlearning_up[adapter_name].weight)
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def widen(self, bottleneck: int) -> None:
        """A fresh layer of another size instead of the one that learns."""
        self.bottleneck = bottleneck
        self.update_layer("default", UnlearningLayersConfig(bottleneck=bottleneck))

    def forward(self, *args, **kwargs) -> Tensor:
        out = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return out
        change = None
        for name in self.active_adapters:
            if name in self.unlearning_down:
                down, up = self.unlearning_down[name], self.unlearning_up[name]
                here = up(ACTIVATION[self.activation](down(out.to(down.weight.dtype))))
                change = here if change is None else change + here
        return out if change is None else out + change.to(out.dtype)


class UnlearningModel(BaseTuner):
    """peft's name for the class that puts the layers into a model."""

    prefix = "unlearning_"
    tuner_layer_cls = UnlearningLayer
    target_module_mapping: dict[str, list[str]] = {}  # the config always says where

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key, **_) -> None:
        if isinstance(target, UnlearningLayer):
            target.update_layer(adapter_name, peft_config)
            return
        setattr(parent, target_name, UnlearningLayer(target, adapter_name, peft_config).train(target.training))

    def _replace_module(self, parent, child_name, new_module, child) -> None:
        setattr(parent, child_name, new_module)  # when peft takes the layers out again


peft.PEFT_TYPE_TO_CONFIG_MAPPING[KIND] = UnlearningLayersConfig
peft.PEFT_TYPE_TO_TUNER_MAPPING[KIND] = UnlearningModel
PEFT_TYPE_TO_PREFIX_MAPPING[KIND] = UnlearningModel.prefix


# --- into a model, and out of it ------------------------------------------------------------------------------------


def add(model: nn.Module, cfg: LayersConfig, seed: int) -> nn.Module:
    """A view of the model with fresh layers, which alone learn; weights and buffers are the model's own. ``seed``
    decides the random half (``down``): requests to be fused begin with the same. ``LayerError`` for unknown blocks."""
    places = feed_forward(model, cfg.where)
    size = cfg.bottleneck or bottleneck(model, places)
    how = UnlearningLayersConfig(target_modules=list(places), bottleneck=size, activation=cfg.activation)
    return _view(model, how, seed)


def bottleneck(model: nn.Module, places: Mapping[str, int]) -> int:
    """The size that gives about ``SHARE`` of the model's parameters over all places, at least 1."""
    total = sum(p.numel() for p in model.parameters())
    return max(1, round(SHARE * total / (2 * sum(places.values()))))


def save(model: nn.Module, folder: Path) -> None:
    """Write the layers alone, as ``load`` and peft read them."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, UnlearningLayer)}
    if not found:
        raise LayerError(f"{type(model).__name__} has no unlearning layers to save")
    one = next(iter(found.values()))
    how = UnlearningLayersConfig(target_modules=list(found), bottleneck=one.bottleneck, activation=one.activation)
    write(weights(model), how, folder)


def load(model: nn.Module, folder: Path) -> nn.Module:
    """A view of the model with the layers that ``save`` wrote. ``LayerError`` where they are not this model's."""
    view = _view(model, read_config(folder), seed=0)
    put(view, LAYER, load_file(folder / ADAPTER_FILE), str(folder / ADAPTER_FILE))
    return view


def read_config(folder: Path) -> UnlearningLayersConfig:
    """What ``adapter_config.json`` says; read as data, without peft's loader, which would also ask the hub."""
    path = Path(folder) / ADAPTER_CONFIG
    found = read_json(path) or {}
    kind, wanted = found.get("peft_type"), ("target_modules", "bottleneck", "activation")
    if kind != KIND or any(name not in found for name in wanted):
        raise LayerError(f"{path}: needs the config of unlearning layers (peft_type {KIND}), found {kind}")
    return UnlearningLayersConfig(inference_mode=True, **{name: found[name] for name in wanted})


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The layers' own weights by their name in the file; they are the model's, not copies."""
    return added(model, LAYER)


def _view(model: nn.Module, config: UnlearningLayersConfig, seed: int) -> nn.Module:
    """A second view of the model's weights, with layers where the config says."""
    there, wanted = feed_forward(model), config.target_modules  # peft may have shortened names to their ends
    known = not isinstance(wanted, str) and all(any(f".{n}".endswith(f".{w}") for n in there) for w in wanted or ())
    sized = isinstance(config.bottleneck, int) and config.bottleneck >= 1
    if not (known and wanted and sized and config.activation in ACTIVATION):
        has = f"{type(model).__name__} has the places {', '.join(there)}, and activations are {', '.join(ACTIVATION)}"
        raise LayerError(f"layers after {wanted}, of size {config.bottleneck!r} with {config.activation!r}: this {has}")
    return second_view(model, config, seed)


# --- where a model has feed-forward blocks --------------------------------------------------------------------------


def feed_forward(model: nn.Module, where: Sequence[int] | None = None) -> dict[str, int]:
    """Feed-forward blocks by name, in order, with the width of their output; of the layers ``where`` alone, counted
    from 0 in encoder and decoder each. Found by structure, whatever the class is called."""
    if any(isinstance(m, UnlearningLayer) for m in model.modules()):
        raise LayerError(f"this {type(model).__name__} has unlearning layers already")
    found: dict[str, int] = {}
    for stack, blocks in model.named_modules():
        if isinstance(blocks, nn.ModuleList) and (inside := [_inside(b) for b in blocks]) and all(inside):
            beyond = [i for i in where or () if i >= len(inside)]
            if beyond:
                raise LayerError(f"pair.layers.where={list(where)}: {stack} has the layers 0 to {len(inside) - 1}")
            for i in range(len(inside)) if where is None else sorted(where):
                name, last = inside[i]
                found[f"{stack}.{i}.{name}"] = _outputs(last)
    if not found:
        raise LayerError(f"{type(model).__name__}: no feed-forward blocks of a known form; supported are {SUPPORTED}")
    return found


def _inside(block: nn.Module) -> tuple[str, nn.Module] | None:
    """Name of the feed-forward block in a transformer layer, and its last linear; None where there is none."""
    parts = getattr(block, "layer", None)
    name, inner = "mlp", getattr(block, "mlp", None)
    if isinstance(parts, nn.ModuleList) and hasattr(parts[-1], "DenseReluDense"):
        name, inner = f"layer.{len(parts) - 1}.DenseReluDense", parts[-1].DenseReluDense
    last = _last(inner)
    return None if last is None else (name, last)


def _last(inner: nn.Module | None) -> nn.Module | None:
    """The linear that a feed-forward block ends with."""
    found = (getattr(inner, name, None) for name in ("down_proj", "c_proj", "wo"))
    return next((m for m in found if isinstance(m, nn.Module) and _outputs(m)), None)


def _outputs(linear: nn.Module) -> int | None:
    return getattr(linear, "out_features", None) or getattr(linear, "nf", None)  # nf: of GPT-2's Conv1D
