"""Where a trained member begins when it resumes from other runs: what they learnt, fused into one (``begin.how``).

``sum``      the frozen start plus Σ_j a_j Δ_j, Δ_j the change of run j's weights (task arithmetic, arXiv 2212.04089);
             unlearning layers are put side by side, so that the changes of their blocks add up
``average``  the start plus the mean of the changes; the mean of the layers
``regmean``  unlearning layers in closed form (EUL, arXiv 2310.20150), from the inner products that each run kept

Trained further it is one offset that learns request after request; with ``trainer.steps=0`` the run is the fusion
itself, one model in the place of several. To first order in the weights the logits of a sum of changes are the sum of
the offsets' logits; how far apart they are is measured in experiments/requests.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unlearn.config.pair import ADAPTER_FILE, GRAM
from unlearn.config.schema import BeginConfig, Config, ConfigError
from unlearn.models.tuning import has_layers
from unlearn.store import runlog, seal

if TYPE_CHECKING:
    from unlearn.models.fusion import Fused

log = logging.getLogger(__name__)
WEIGHTS = f"{runlog.OFFSET}/model.safetensors"
LAYERS, PRODUCTS = f"{runlog.ADAPTER}/{ADAPTER_FILE}", f"{runlog.ADAPTER}/{GRAM}"


@torch.no_grad()
def take_over(model: nn.Module, cfg: BeginConfig, fingerprint: str) -> dict[str, Any]:
    """Put what ``cfg.runs`` learnt into a fresh learner, whose frozen start has this fingerprint; what the manifest
    says of it.

    Raises ``ConfigError`` for a run that began with other weights, or whose weights have other names or shapes;
    ``SealError`` for weights that are not those the run ended with.
    """
    manifests = [_manifest(Path(folder), fingerprint) for folder in cfg.runs]
    layered, residuals = has_layers(model), {}
    how = cfg.fusion(layered)
    if layered:
        residuals = _put_layers(model, cfg, how)
        if how != "sum" and len({m["seed"] for m in manifests}) > 1:
            log.warning("begin.runs: began with different layers (seed): the units of their bottlenecks do not match")
    else:
        _add_changes(model, cfg, how)
    log.info("Begins at %d runs by %s", len(cfg.runs), how)
    if residuals:
        worst = max(residual["outputs"] for residual in residuals.values())
        log.info("Changed at most %.1f %% of a linear's outputs on the requests", 100 * worst)
    runs = [{"run": Path(folder).resolve().name, "data": m.get("data"), "weights": m[seal.WEIGHTS]}
            for folder, m in zip(cfg.runs, manifests, strict=True)]  # fmt: skip
    return {"how": how, "runs": runs, "residuals": residuals}


def _add_changes(model: nn.Module, cfg: BeginConfig, how: str) -> None:
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    shares = cfg.weights() if how == "sum" else [1 / len(cfg.runs)] * len(cfg.runs)
    for folder, share in zip(cfg.runs, shares, strict=True):
        learnt = _table(folder, WEIGHTS)
        for name, parameter in model.named_parameters():
            found = learnt.get(name)
            shape = "none" if found is None else list(found.shape)
            if shape != list(parameter.shape):
                rule = f"its offset must have {name} of shape {list(parameter.shape)}, and has {shape}"
                raise ConfigError(f"begin.runs={folder!r}: {rule}: it is another model")
            parameter += share * (found.to(parameter) - start[name])


def _put_layers(model: nn.Module, cfg: BeginConfig, how: str) -> dict[str, Any]:
    from unlearn.models import layers  # with pair.tuning=unlearning_layers alone

    places = [m for m in model.modules() if isinstance(m, layers.UnlearningLayer)]
    own = places[0].activation
    try:
        fused = fused_layers(cfg.runs, how, cfg.ridge)
        found = [layers.read_config(Path(folder) / runlog.ADAPTER).activation for folder in cfg.runs]
        if set(found) != {own}:
            raise ConfigError(f"begin.runs: pair.layers.activation must be {own!r} in all runs, and is {found}")
        if how == "sum":
            width = next(len(w) for name, w in fused.weights.items() if layers.DOWN in name)
            for place in places:
                place.widen(width)
        layers.put(model, fused.weights, ", ".join(cfg.runs))
    except layers.LayerError as error:
        raise ConfigError(f"begin.runs: {error}") from None
    return {name: asdict(residual) for name, residual in fused.residuals.items()}


def fused_layers(runs: Sequence[str | Path], how: str, ridge: float) -> Fused:
    """The runs' layers made into one; residuals of ``regmean`` alone."""
    from unlearn.models import fusion

    own = [_table(folder, LAYERS) for folder in runs]
    try:
        if how == "regmean":
            return fusion.fuse(own, [_table(folder, PRODUCTS) for folder in runs], ridge)
        return fusion.Fused((fusion.average if how == "average" else fusion.summed)(own), {})
    except fusion.FusionError as error:
        raise ConfigError(f"begin.runs: {error}") from None


def products(cfg: Config) -> dict[str, Tensor] | None:
    """The inner products of a fusion in closed form, the sum of its runs': it can be fused on with later requests.
    None for a run that learns something itself, or was fused in another way."""
    if not cfg.begin.runs or cfg.trainer.steps != 0 or cfg.begin.fusion(layered=True) != "regmean":
        return None
    found = [_table(folder, PRODUCTS) for folder in cfg.begin.runs]
    return {name: sum(each[name] for each in found) for name in found[0]}


def _table(folder: str | Path, name: str) -> dict[str, Tensor]:
    path = Path(folder) / name
    if not path.is_file():
        raise ConfigError(f"begin.runs={str(folder)!r}: {name} is missing; needs a run of the same tuning")
    return load_file(path)


def _manifest(folder: Path, fingerprint: str) -> dict[str, Any]:
    """Of a run whose weights are sound and whose trained member began as the model of this fingerprint."""
    manifest = runlog.manifest(folder)
    seal.check_weights(folder, manifest)
    models = manifest.get("models")
    if not manifest.get("trained") or fingerprint not in (models or {}).values():
        why = f"and what learns here begins as {fingerprint}; its change is the change of another model"
        raise ConfigError(f"begin.runs={str(folder)!r}: was made with the models {models}, {why}")
    return manifest
