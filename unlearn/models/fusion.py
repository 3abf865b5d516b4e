"""Several requests' trained members made into one, without their data (EUL's fusion, arXiv 2310.20150, §3.3; RegMean).

Of a request there are the weights W_i of each linear of its unlearning layers and the inner products G_i = X_iᵀX_i of
what went into it, X_i [tokens, in]. The fused weights are nearest to every request's outputs on its own tokens:

    W = argmin Σ_i ‖X_i Wᵀ − X_i W_iᵀ‖²    ⇒    Wᵀ = (Σ G_i)⁻¹ Σ G_i W_iᵀ

in fp64. Directions that no request went in say nothing of W; there it is the average of the W_i, and a ridge pulls
towards that average, not towards zero: so one request alone is given back as it is, whatever the ridge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearn.config.pair import ADAPTER_PREFIX
from unlearn.data.encoding import Example, by_length, collate
from unlearn.models import seq2seq
from unlearn.models.layers import DOWN, UP, LayerError, UnlearningLayer
from unlearn.models.llama import has_encoder

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Residual:
    """Of one linear."""

    condition: float  # largest over smallest eigenvalue of Σ G_i + ridge, of those that are not zero
    rank: int  # how many are not
    equation: float  # ‖A D − B‖ / ‖B‖ of the equations that were solved
    outputs: float  # root of Σ ‖X_i (W − W_i)ᵀ‖² / Σ ‖X_i W_iᵀ‖²: 0 where every request keeps its own outputs


@dataclass(frozen=True)
class Fused:
    weights: dict[str, Tensor]  # fp64
    residuals: dict[str, Residual]


@torch.no_grad()
def gram(model: nn.Module, examples: Sequence[Example], pad_id: int, batch_size: int = 32) -> dict[str, Tensor]:
    """XᵀX [in, in] in fp64 of what goes into both linears of every unlearning layer, the layers being on, by the name
    of their weights in the layers' file: over all tokens of the examples but padding (of an encoder–decoder the
    prompt's in the encoder, the answer's in the decoder)."""
    names = {
        getattr(layer, part)["default"]: (place, f"{ADAPTER_PREFIX}{place}.{part}.weight")
        for place, layer in model.named_modules() if isinstance(layer, UnlearningLayer) for part in (DOWN, UP)
    }  # fmt: skip
    if not names:
        raise LayerError(f"{type(model).__name__} has no unlearning layers: there is nothing to take inner products of")
    found: dict[str, Tensor] = {}

    def add(linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        place, name = names[linear]
        mask = next(mask for stack, mask in masks.items() if place.startswith(stack))
        x = inputs[0][mask.to(inputs[0].device)].double()  # [tokens, in]
        found[name] = found.get(name, 0) + x.T @ x

    hooks = [linear.register_forward_pre_hook(add) for linear in names]
    training = model.training
    model.eval()
    try:
        for chosen in by_length(examples, batch_size):
            taken, masks = _inputs(model, [examples[i] for i in chosen], pad_id)
            model.base_model(**taken, use_cache=False)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {name: g.cpu() for name, g in found.items()}


def _inputs(model: nn.Module, chosen: Sequence[Example], pad_id: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a forward pass takes, and which of its tokens count, by the beginning of a module's name."""
    batch = collate(chosen, pad_id).to(next(model.parameters()).device)
    if not has_encoder(model):
        return {"input_ids": batch.ids, "attention_mask": batch.mask}, {"": batch.mask.bool()}
    (ids, mask), (answers, where) = seq2seq.prompts(model, batch), seq2seq.answers(model, batch)
    there = torch.zeros_like(answers, dtype=torch.bool).flatten()
    there[where] = True
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": answers}
    return inputs, {"encoder.": mask.bool(), "decoder.": there.view(answers.shape)}


def fuse(layers: Sequence[Weights], grams: Sequence[Weights], ridge: float) -> Fused:
    """Weights [out, in] of one set of layers from those of several requests and their inner products. ``ridge``: a
    share of the mean diagonal of Σ G_i. ``LayerError`` for layers of different shape or number."""
    _check(layers)
    if len(grams) != len(layers) or any(set(g) != set(layers[0]) for g in grams):
        raise LayerError(f"{len(layers)} requests need as many inner products, each of all their linears")
    if not ridge >= 0:
        raise LayerError(f"ridge={ridge!r}: must be a number of at least 0")
    found = {name: _fused([w[name] for w in layers], [g[name] for g in grams], ridge) for name in layers[0]}
    return Fused({name: w for name, (w, _) in found.items()}, {name: r for name, (_, r) in found.items()})


def _fused(weights: Sequence[Tensor], grams: Sequence[Tensor], ridge: float) -> tuple[Tensor, Residual]:
    own, grams = [w.double() for w in weights], [g.double() for g in grams]
    mean = torch.stack(own).mean(0)  # of one alone that one, bit for bit
    total = torch.stack(grams).sum(0)
    left = total + ridge * total.diagonal().mean() * torch.eye(len(total), dtype=total.dtype)
    right = sum(g @ (w - mean).T for w, g in zip(own, grams, strict=True))  # [in, out]
    values, vectors = torch.linalg.eigh(left)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(kept, 1 / values.where(kept, torch.ones_like(values)), torch.zeros_like(values))
    move = vectors @ (inverse[:, None] * (vectors.T @ right))
    fused = mean + move.T
    return fused, Residual(
        condition=float(values[kept].max() / values[kept].min()) if kept.any() else 1.0,
        rank=int(kept.sum()),
        equation=_ratio((left @ move - right).norm(), right.norm()),
        outputs=_ratio(_energy([w - fused for w in own], grams) ** 0.5, _energy(own, grams) ** 0.5),
    )


def _energy(weights: Sequence[Tensor], grams: Sequence[Tensor]) -> Tensor:
    """Σ ‖X_i W_iᵀ‖²."""
    return sum(((w @ g) * w).sum() for w, g in zip(weights, grams, strict=True)).clamp(min=0)


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 0.0


def average(layers: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of each weight, fp64."""
    _check(layers)
    return {name: torch.stack([w[name].double() for w in layers]).mean(0) for name in layers[0]}


def summed(layers: Sequence[Weights]) -> dict[str, Tensor]:
    """Layers whose change is the sum of the changes: their bottlenecks side by side, fp64."""
    # all but the bottlenecks must have one size
    _check([{name: w.select(int(UP in name), 0) for name, w in each.items()} for each in layers])
    return {name: torch.cat([w[name].double() for w in layers], dim=int(UP in name)) for name in layers[0]}


def _check(layers: Sequence[Weights]) -> None:
    if not layers:
        raise LayerError("there is nothing to fuse")
    first = {name: w.shape for name, w in layers[0].items()}
    for other in layers[1:]:
        found = {name: w.shape for name, w in other.items()}
        if found != first:
            name = next(n for n in (*first, *found) if first.get(n) != found.get(n))
            rule = "what is fused must have the same shapes in the same places"
            raise LayerError(f"{name}: {found.get(name)} beside {first.get(name)}; {rule}")
