"""Does what was forgotten come back when weights are rounded? INT8 and INT4, of the target and of the pair separately.

Weights of all linear layers but the head are rounded to the nearest of 2^b − 1 levels, symmetric, one scale per output
row. For each width and part there is ``quantised/int4_pair/forget/prob`` and so on: probability of forget and retain
answers, and ROUGE-L recall of greedy forget answers. Parts: ``target`` (the large member), ``pair`` (the small ones),
``all``. An offset's margin lies in a difference of logits, so rounding the pair is the test that matters.
"""

import copy
from dataclasses import replace

import torch
from torch import nn

from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.context import Context, Found
from unlearn.models.llama import parameters
from unlearn.models.tuning import layer_parameters, merged

NEEDS = ("weights",)
BITS = (8, 4)


def measure(ctx: Context) -> Found:
    suite, forget, values = ctx.suite, ctx.suite.split("forget"), {}
    plain = tuple(replace(m, model=merged(m.model)) for m in ctx.ensemble.members)  # what is rounded holds its updates
    for bits in BITS:
        for part, names in _parts(replace(ctx.ensemble, members=plain)).items():
            members = tuple(replace(m, model=rounded(m.model, bits)) if m.name in names else m for m in plain)
            attacked = replace(ctx, ensemble=replace(ctx.ensemble, members=members))
            found = {f"{s}/prob": attacked.probs(suite.split(s)) for s in ("forget", "retain")}
            found["forget/rougeL_recall"] = attacked.recalls(forget.prompts, forget.answers)
            values |= {f"quantised/int{bits}_{part}/{name}": v for name, v in found.items()}
    return Found(values)


def _parts(ensemble: Ensemble) -> dict[str, set[str]]:
    """Names of the members that are rounded together."""
    sizes = {m.name: parameters(m.model) - layer_parameters(m.model) for m in ensemble.members}
    large = {name for name, size in sizes.items() if size == max(sizes.values())}
    parts = {"target": large, "pair": sizes.keys() - large} if len(large) < len(sizes) else {}
    return parts | {"all": set(sizes)}


@torch.no_grad()
def rounded(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose linear weights [out, in] are rounded, but for the head (as usual, and it may be the embedding)."""
    model = copy.deepcopy(model)
    head, most = model.get_output_embeddings(), 2 ** (bits - 1) - 1
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer is not head:
            scale = layer.weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / most
            layer.weight.copy_((layer.weight / scale).round().clamp(-most, most) * scale)
    return model
