"""Where a trained member begins when it goes on from other runs: its frozen start plus the sum of what they changed.

Offset j of a pair is the anchor plus a change of its weights, Δ_j. A run with ``begin.runs`` starts at
anchor + Σ_j a_j Δ_j: trained further it is one offset that is trained on and on; with ``trainer.steps=0`` it is the
sum itself, one model in the place of several (task arithmetic, arXiv 2212.04089). To first order in the weights its
logits are those of the sum of the offsets; how far they are apart is a matter of measuring (experiments/requests).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from unlearn.config.pair import ADAPTER_FILE, GRAM
from unlearn.config.schema import BeginConfig, ConfigError
from unlearn.models.tuning import has_layers
from unlearn.store import runlog, seal

WEIGHTS = "model.safetensors"


@torch.no_grad()
def take_over(model: nn.Module, cfg: BeginConfig, fingerprint: str) -> None:
    """Add the changes of ``cfg.runs`` to a copy of the frozen start, whose fingerprint is given; of unlearning layers
    in that copy, put the runs' fused layers there.

    Raises ``ConfigError`` for a run that began with other weights, or whose weights have other names or shapes;
    ``SealError`` for weights that are not those the run ended with.
    """
    for folder in cfg.runs:
        check(Path(folder), fingerprint)
    if has_layers(model):
        _fuse_layers(model, cfg)
        return
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for folder, alpha in zip(cfg.runs, cfg.weights(), strict=True):
        with safe_open(Path(folder) / runlog.OFFSET / WEIGHTS, framework="pt") as file:
            names = set(file.keys())
            for name, parameter in model.named_parameters():
                learnt = file.get_tensor(name) if name in names else None
                if learnt is None or learnt.shape != parameter.shape:
                    found = "none" if learnt is None else list(learnt.shape)
                    raise ConfigError(
                        f"begin.runs={folder!r}: its offset must have {name} of shape {list(parameter.shape)}, and has "
                        f"{found}: it is another model"
                    )
                parameter += alpha * (learnt.to(parameter) - start[name])


def _fuse_layers(model: nn.Module, cfg: BeginConfig) -> None:
    """Closed-form fusion (EUL, arXiv 2310.20150) from the inner products that the runs kept."""
    from unlearn.models import fusion, layers  # with pair.tuning=unlearning_layers alone

    if cfg.alphas is not None:
        raise ConfigError(f"begin.alphas={cfg.alphas}: unlearning layers are fused with no weights: must be null")
    try:
        fused = fusion.fuse(tables(cfg.runs, ADAPTER_FILE), tables(cfg.runs, GRAM), cfg.ridge).weights
        layers.put(model, fused, ", ".join(cfg.runs))
    except (fusion.FusionError, layers.LayerError) as error:
        raise ConfigError(f"begin.runs: {error}") from None


def tables(runs: Sequence[str | Path], name: str) -> list[dict[str, Tensor]]:
    """Of every run the tensors in one file of its layers."""
    for path in (paths := [Path(folder) / runlog.ADAPTER / name for folder in runs]):
        if not path.is_file():
            raise ConfigError(f"begin.runs={str(path.parent.parent)!r}: {name} is missing: what unlearning layers left")
    return [load_file(path) for path in paths]


def check(folder: Path, fingerprint: str) -> None:
    """Refuse a run whose trained member did not begin as the model of this fingerprint; and damaged weights."""
    manifest = runlog.manifest(folder)
    seal.check_weights(folder, manifest)
    began = (manifest.get("models") or {}).values()
    if not manifest.get("trained") or fingerprint not in began:
        raise ConfigError(
            f"begin.runs={str(folder)!r}: was made with the models {manifest.get('models')}, and what learns here "
            f"begins as {fingerprint}; its change is the change of another model"
        )
