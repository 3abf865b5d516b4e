"""The unlearned model as a model of transformers: a weighted sum of the next-token logits of its members.

logits = Σ_i (constant_i + slope_i · α) · logits_i (δ-Unlearning, arXiv 2404.11045, Eq. 1). What is summed up, an
export's config.json says: see ``configuration_unlearned.py``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache, GenerationConfig
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .configuration_unlearned import SUM, Place, UnlearnedConfig, factors, identity, located, target_of, weights, whole

HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")  # of from_pretrained: about the folder
IGNORED = ("adapter_kwargs", "trust_remote_code", "use_safetensors", "_from_auto", "_from_pipeline", "_commit_hash")
PLAIN = (torch.float32, torch.float16, torch.bfloat16)
REFUSED = ("subfolder", "output_loading_info")
FIXED = "must be chosen when the model is loaded, as from_pretrained(FOLDER, alpha=NUMBER)"
SAFE = {"trust_remote_code": False, "use_safetensors": True}  # a member brings numbers, never programs
Rule = Callable[..., Tensor]  # base, change [N, V], α and what it watches, if anything [N, V] → logits


class UnlearnedForCausalLM(PreTrainedModel, GenerationMixin):
    """The sum of its members at one α. ``models``: those that ``weights`` names; ``rule`` joins them, if not a sum."""

    config_class = UnlearnedConfig
    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: UnlearnedConfig, models: Mapping[str, nn.Module], rule: Rule | None = None):
        super().__init__(config)
        self.weights, self.alpha, self.rule = weights(config), config.alpha, rule
        self.members = nn.ModuleList(models[name] for name in self.weights)
        ends = accumulate((len(DynamicCache(config=m.config).layers) for m in self.members), initial=0)
        self.spans = list(pairwise(ends))  # of a cache: which layers are each member's
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        config: UnlearnedConfig | None = None,
        target: str | Path | nn.Module | None = None,
        base: str | Path | None = None,
        alpha: float | None = None,
        dtype: torch.dtype | str | None = None,
        **how: Any,
    ) -> UnlearnedForCausalLM:
        """Load an export, a folder or a name on the hub, and the models that it names.

        ``target``, ``base``: folders of those that it does not hold; None: the hub. A target that is a model is taken
        unchecked, and the others go to its device. ``alpha`` None: the export's; ``dtype`` None or ``auto``: each
        member as the export says. All else (``device_map``, …) is told to each member.
        Raises ``ValueError`` before any weights are loaded where a model is not the one that was exported.
        """
        if other := [key for key in REFUSED if how.pop(key, None)]:
            raise ValueError(f"{', '.join(other)}: an export is a folder of several models; leave it out")
        older = how.pop("torch_dtype", None)  # its name before transformers 5
        dtype = older if dtype is None else dtype
        hub = {k: how.pop(k) for k in HUB if how.get(k) is not None}
        how, wholes = {k: v for k, v in how.items() if k not in IGNORED}, {}
        folder = str(folder) if Path(folder).is_dir() else snapshot_download(str(folder), **hub)
        config = (
            UnlearnedConfig.from_pretrained(folder, trust_remote_code=False)
            if config is None
            else copy.deepcopy(config)
        )
        if isinstance(target, nn.Module):
            target, wholes[identity(target_of(config.members))] = None, target
            how.setdefault("device_map", {"": next(iter(wholes.values())).device})
        for key, value in {"target": target, "base": base, "alpha": alpha}.items():
            if value is not None:
                setattr(config, key, value)
        if config.alpha is None:  # as the auto classes were told
            config.alpha = UnlearnedConfig.from_pretrained(folder, trust_remote_code=False).alpha
        if config.alpha is None:
            raise ValueError("alpha=None: must be a finite number, and the export names none; give alpha=NUMBER")
        if config._attn_implementation is not None:
            how["attn_implementation"] = config._attn_implementation
        rule = None if config.rule == SUM else _rule(config)
        model = cls(config, loaded(config, located(folder, config, wholes), dtype, how, wholes), rule)
        generating = Path(folder) / "generation_config.json"
        if generating.is_file():
            model.generation_config = GenerationConfig.from_dict(json.loads(generating.read_text(encoding="utf-8")))
        return model

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        labels: Tensor | None = None,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """Ids [B, S] to the logits of the sum, [B, S, V] in fp32.

        ``past_key_values`` holds the layers of all members in their order; they are made if lacking, as other models
        do, unless ``use_cache`` (None: the config's) is False.
        """
        if self.config.alpha != self.alpha:
            raise ValueError(f"alpha={self.config.alpha}: {FIXED}; model.alpha is {self.alpha}")
        if input_ids is None or more.pop("inputs_embeds", None) is not None:
            raise ValueError("inputs_embeds: each member has embeddings of its own; give ids, not inputs_embeds")
        if use_cache is None:
            use_cache = getattr(self.config, "use_cache", True)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        base = change = watched = None
        caches = self._caches(past_key_values)
        home = _place(self) or input_ids.device
        # Places, not a slice: of a slice, torch would copy a frozen model's whole head.
        if isinstance(logits_to_keep, int) and logits_to_keep:
            logits_to_keep = torch.arange(-min(logits_to_keep, input_ids.shape[1]), 0)
        for model, cache, own in zip(self.members, caches, self.weights.values(), strict=True):
            place = _place(model) or input_ids.device
            told = {k: t if t is None else t.to(place) for k, t in given.items()}
            said = model(**told, past_key_values=cache, use_cache=cache is not None, logits_to_keep=logits_to_keep)
            logits = said.logits[..., : self.config.vocab_size].float().to(home)
            base, change = _plus(base, own.constant, logits), _plus(change, own.slope, logits)
            watched = _plus(watched, own.watch, logits)
        logits = self._joined(base, change, watched)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=logits.shape[-1], **more)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _joined(self, base: Tensor | None, change: Tensor | None, watched: Tensor | None) -> Tensor:
        """The change was summed up first: where offset and anchor agree, the sum is the target bit for bit."""
        if change is None or (base is not None and self.alpha == 0):
            return base
        if base is None or self.rule is None:
            return self.alpha * change if base is None else base + self.alpha * change
        more = [] if watched is None else [watched.flatten(0, -2)]
        return self.rule(base.flatten(0, -2), change.flatten(0, -2), self.alpha, *more).view_as(base)

    def _caches(self, whole: Cache | None) -> list[Cache | None]:
        """The members' own caches: slices of one, whose layers they share, so what is done to it is done to each."""
        if whole is None:
            return [None] * len(self.members)
        if not whole.layers:
            whole.layers.extend(layer for m in self.members for layer in DynamicCache(config=m.config).layers)
        if len(whole.layers) != self.spans[-1][1]:
            there = f"past_key_values has {len(whole.layers)} layers"
            raise ValueError(f"{there}, and the members have {self.spans[-1][1]} together; give DynamicCache()")
        caches = [copy.copy(whole) for _ in self.members]
        for cache, (start, end) in zip(caches, self.spans, strict=True):
            cache.layers = whole.layers[start:end]
        return caches

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *more) -> None:
        """Each member prepares its own, of whatever kind is asked for; theirs are put together."""
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            return super()._prepare_cache_for_generation(generation_config, model_kwargs, *more)
        caches = []
        for m in self.members:
            own = dict(model_kwargs)
            m._prepare_cache_for_generation(generation_config, own, *more)
            caches.append(own["past_key_values"])
        caches[0].layers = [layer for cache in caches for layer in cache.layers]
        model_kwargs["past_key_values"] = caches[0]

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
        """Masks of one member are not those of another: each makes its own."""
        return attention_mask

    def get_input_embeddings(self) -> nn.Module:
        return self.members[0].get_input_embeddings()

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("an unlearned model is written by python -m unlearn.export; copy its folder")

    def generate_batch(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("pages of a cache are one model's: use generate, or serve the export with vLLM")

    push_to_hub = save_pretrained  # it would make a repository before it saves


def _place(module: nn.Module) -> torch.device | int | str | None:
    """Where a module computes; None where its weights wait elsewhere, and nothing says where they will be."""
    place = next(module.parameters()).device
    return place if place.type != "meta" else getattr(getattr(module, "_hf_hook", None), "execution_device", None)


def _plus(total: Tensor | None, factor: float, logits: Tensor) -> Tensor | None:
    if factor == 0:
        return total
    term = logits if factor == 1 else factor * logits
    return term if total is None else total + term


def _rule(config: UnlearnedConfig) -> Rule:
    try:
        from unlearn.ensemble.combination import bind_rule
    except ImportError:
        raise ValueError(f"rule={config.rule!r}: needs the package that made this export; a sum needs none") from None
    return bind_rule(config.rule, config.numbers)


# --- its members --------------------------------------------------------------------------------------------------


def loaded(
    config: UnlearnedConfig,
    places: Mapping[str, Place],
    dtype: torch.dtype | str | None = None,
    how: Mapping[str, Any] | None = None,
    wholes: dict[str, nn.Module] | None = None,
) -> dict[str, nn.Module]:
    """Members' models by name. What several members are, or are made from, is in memory once: taken from ``wholes``,
    models by ``identity``, or added to them. ``dtype`` and ``how`` as ``from_pretrained`` takes them."""
    wholes, members, found = {} if wholes is None else wholes, {m["name"]: m for m in config.members}, {}
    for name, place in places.items():
        of = whole(members[name])
        if identity(of) not in wholes:
            held = of["dtype"] if dtype in (None, "auto") else dtype
            quantised = {"quantization_config": BitsAndBytesConfig(**of["quantisation"])} if of["quantisation"] else {}
            at, how_held = place.folder, {"dtype": held, **quantised, **(how or {})}
            if at.is_file():  # GGUF
                at, how_held["gguf_file"] = at.parent, at.name
            model = AutoModelForCausalLM.from_pretrained(str(at), **how_held, **SAFE)
            _check(place.folder, model.state_dict())
            wholes[identity(of)] = model.requires_grad_(False).eval()
        under = wholes[identity(of)]
        found[name] = under if place.adapter is None else _updated(under, place.adapter)
    return found


def _check(place: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` for a weight that is NaN or infinite, as in half precision: answers would be padding."""
    for name, tensor in tensors.items():
        if tensor.dtype in PLAIN and not tensor.is_meta and not tensor.isfinite().all():
            raise ValueError(f"{place}: {name} is NaN or infinite in {tensor.dtype}; no answer can come of it")


class Updated(nn.Module):
    """A layer with low-rank updates beside it, computed as in training: its weights may be another member's, too."""

    def __init__(self, layer: nn.Module, a: Tensor, b: Tensor, scale: float):
        super().__init__()
        place = _place(layer)  # of a layer on the disk or in the CPU's memory, where it will be put
        self.layer, self.scale = layer, scale
        self.a, self.b = (nn.Parameter(t.to(place), requires_grad=False) for t in (a, b))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return (out + F.linear(F.linear(x.to(self.a), self.a), self.b) * self.scale).to(out.dtype)


def _updated(model: nn.Module, adapter: Path) -> nn.Module:
    """A second view of the model, which shares every weight, with the updates in it."""
    view = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for name, a, b, scale in factors(adapter):
        _check(adapter, {f"{name}.lora_A": a, f"{name}.lora_B": b})
        view.set_submodule(name, Updated(view.get_submodule(name), a, b, scale))
    return view
