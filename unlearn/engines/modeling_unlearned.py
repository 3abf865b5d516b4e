"""The unlearned model as an ordinary model of transformers: a weighted sum of the next-token logits of its members.

logits = Σ_i (constant_i + slope_i · α) · logits_i (δ-Unlearning, arXiv 2404.11045, Eq. 1). A folder that
``python -m unlearn.export`` wrote says in its config.json which models these are. This file stands alone, so that an
export can carry it, and so that engines with another transformers than ours can read exports.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache, GenerationConfig
from transformers.cache_utils import Cache
from transformers.configuration_utils import PretrainedConfig
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

SUM = "sum"
ADAPTER = "adapter_config.json"
WHAT = ("files", "dtype", "quantisation", "base")  # of a member: which model it is
# Files that the loader of a member takes before others: where an export does not list them, they are not to be there.
LOADED = (ADAPTER, "config.json", "model.safetensors", "model.safetensors.index.json")
HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")  # of from_pretrained: about the folder
IGNORED = ("adapter_kwargs", "trust_remote_code", "use_safetensors", "_from_auto", "_from_pipeline", "_commit_hash")
SAFE = {"trust_remote_code": False, "use_safetensors": True}  # a member brings numbers, never programs
PLAIN = {"use_dora": False, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none",
         "lora_bias": False, "modules_to_save": None, "layers_pattern": None}  # fmt: skip
Rule = Callable[[Tensor, Tensor, float], Tensor]  # base, change [N, V] and α → logits


class UnlearnedConfig(PretrainedConfig):
    """The config.json of an export. ``target`` and ``base`` are where the user has the models that it does not hold."""

    model_type = "unlearned"

    def __init__(
        self,
        members: Sequence[Mapping[str, Any]] = (),
        alpha: float = 1.0,
        rule: str = SUM,
        numbers: Mapping[str, float] | None = None,
        target: str | None = None,
        base: str | None = None,
        **more: Any,
    ):
        self.members, self.alpha, self.rule, self.numbers = list(members), alpha, rule, dict(numbers or {})
        self.target, self.base = target, base
        super().__init__(**more)

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, str(value) if key in ("target", "base") and value is not None else value)


# --- which models an export means, and where they are ------------------------------------------------------------


class Place(NamedTuple):
    """Where a member lies: a model's folder (or its GGUF file), and that of the low-rank updates that are put on it."""

    folder: Path
    adapter: Path | None = None


def weights(config: UnlearnedConfig) -> dict[str, tuple[float, float]]:
    """Constant and slope of each member that counts at the config's α; members that are one model are one member."""
    found: dict[str, tuple[str, float, float]] = {}
    for m in config.members:
        same = json.dumps([m[k] for k in WHAT], sort_keys=True) if m.get("files") else m["name"]
        name, constant, slope = found.get(same, (m["name"], 0.0, 0.0))
        found[same] = name, constant + m["constant"], slope + m["slope"]
    if config.rule == SUM:  # only a sum lets a constant and a slope cancel
        return {name: (c, s) for name, c, s in found.values() if c + s * config.alpha != 0}
    return {name: (c, s) for name, c, s in found.values() if c != 0 or (s != 0 and config.alpha != 0)}


def terms(config: UnlearnedConfig) -> list[tuple[str, float]]:
    """The sum at the config's α: names of members, and the weight of each, none of which is zero."""
    return [(name, constant + slope * config.alpha) for name, (constant, slope) in weights(config).items()]


def located(folder: str | Path, config: UnlearnedConfig) -> dict[str, Place]:
    """Where the members that count at the config's α lie. Every file that the export lists is as it lists it.

    Models that are not in ``folder`` are where ``config.target`` and ``config.base`` say, else on the hub; ``target``
    is the member of that name, or the first. Raises ``ValueError`` where a model is absent or another.
    """
    folder, found, wholes = Path(folder), {}, {}
    first = next((m for m in config.members if m["name"] == "target"), config.members[0])
    aimed = (first["base"] or first)["files"]
    for m in (m for m in config.members if m["name"] in weights(config)):
        whole = m["base"] or m
        key = json.dumps(whole["files"], sort_keys=True)
        if key not in wholes:
            wholes[key] = _whole(
                folder, whole, *(("target", config.target) if whole["files"] == aimed else ("base", config.base))
            )
        adapter = folder / m["folder"] if m["base"] else None
        if adapter is not None:
            _check(adapter, m["files"], f"{adapter}: ", "it is not as it was exported; get the export again")
        found[m["name"]] = Place(wholes[key], adapter)
    return found


def _whole(folder: Path, about: Mapping[str, Any], key: str, given: str | None) -> Path:
    """The folder of a model, or its GGUF file."""
    files, said = about["files"], f"{key}={given!r}: "
    wrong = (
        f"its files are not those of the {key} that the offset was trained for; with another model it unlearns nothing"
    )
    if about["folder"] is not None:
        place, said, wrong = (
            folder / about["folder"],
            f"{folder}: ",
            "it is not as it was exported; get the export again",
        )
    elif given is not None:
        place = Path(given)
        if not place.exists():
            raise ValueError(f"{said}must be the folder of a model; there is none")
    elif about["source"] is not None:
        place = Path(snapshot_download(about["source"], revision=about["revision"], allow_patterns=list(files)))
    else:
        raise ValueError(
            f"{key}=None: this export does not hold its {key}; give {key}=FOLDER, where you have that model"
        )
    if place.is_file():  # a GGUF file may have another name here
        files = {place.name: next(iter(files.values()))}
    elif list(files) == [name for name in files if name.endswith(".gguf")]:
        place = place / next(iter(files))
    _check(place.parent if place.suffix == ".gguf" else place, files, said, wrong)
    return place


def _check(folder: Path, files: Mapping[str, str], said: str, wrong: str) -> None:
    """Raise ``ValueError`` where files are not those that are listed."""
    if not all(Path(name).name == name for name in files):
        raise ValueError(f"{said}a file is listed that lies elsewhere")
    paths = [folder / name for name in files]
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(_sha256, paths)
        differing = [path.name for path, found in zip(paths, hashes, strict=True) if found != files[path.name]]
    if differing:
        raise ValueError(f"{said}{wrong} ({', '.join(differing)})")
    more = [name for name in LOADED if name not in files and (folder / name).exists()]
    if more and not any(name.endswith(".gguf") for name in files):
        raise ValueError(f"{said}holds {', '.join(more)}, which would change what is loaded: move it out")


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- low-rank updates ---------------------------------------------------------------------------------------------


def updates(adapter: Path) -> dict[str, Tensor]:
    """ΔW [out, in] = (alpha / r) · B · A in fp32, by the name of the base's weight that it is added to."""
    return {f"{name}.weight": scale * (b.float() @ a.float()) for name, a, b, scale in _factors(adapter)}


def _factors(adapter: Path) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Of an adapter's folder: name of a layer, A [r, in], B [out, r] and alpha / r. ``ValueError`` for all that is no
    plain LoRA."""
    about = json.loads((adapter / ADAPTER).read_text(encoding="utf-8"))
    other = [k for k, plain in PLAIN.items() if about.get(k, plain) != plain]
    tensors = load_file(adapter / "adapter_model.safetensors")
    names = {n.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight") for n in tensors}
    if about.get("peft_type") != "LORA" or other or len(tensors) != 2 * len(names):
        raise ValueError(
            f"{adapter}: needs a plain LoRA adapter; its {', '.join(other) or 'type or tensors'} is another"
        )
    for name in sorted(names):
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        yield name.removeprefix("base_model.model."), a, b, about["lora_alpha"] / about["r"]


class Updated(nn.Module):
    """A layer with low-rank updates beside it, computed as in training: the layer's weights may be another member's."""

    def __init__(self, layer: nn.Module, a: Tensor, b: Tensor, scale: float):
        super().__init__()
        place = next(layer.parameters()).device
        self.layer, self.scale = layer, scale
        self.a, self.b = (nn.Parameter(t.to(place), requires_grad=False) for t in (a, b))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return (out + F.linear(F.linear(x.to(self.a), self.a), self.b) * self.scale).to(out.dtype)


def _updated(model: nn.Module, adapter: Path) -> nn.Module:
    """A second view of the model, which shares every weight, with the updates in it."""
    view = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for name, a, b, scale in _factors(adapter):
        view.set_submodule(name, Updated(view.get_submodule(name), a, b, scale))
    return view


# --- the model ----------------------------------------------------------------------------------------------------


class UnlearnedForCausalLM(PreTrainedModel, GenerationMixin):
    """The sum of its members at one α. ``models`` are the members that ``weights`` names; ``rule`` joins them where it
    is no sum."""

    config_class = UnlearnedConfig
    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: UnlearnedConfig, models: Mapping[str, nn.Module], rule: Rule | None = None):
        super().__init__(config)
        self.weights, self.alpha, self.rule = weights(config), config.alpha, rule
        self.members = nn.ModuleList(models[name] for name in self.weights)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        config: UnlearnedConfig | None = None,
        target: str | Path | None = None,
        base: str | Path | None = None,
        alpha: float | None = None,
        dtype: torch.dtype | str | None = None,
        **how: Any,
    ) -> UnlearnedForCausalLM:
        """Load an export, a folder or a name on the hub, and the models that it names.

        ``target``, ``base``: folders of those that it does not hold; None: the hub. ``alpha`` None: the export's;
        ``dtype`` None or ``auto``: each member as the export says. All else (``device_map``, …) is told to each
        member. Raises ``ValueError`` before any weights are loaded where a model is not the one that was exported.
        """
        hub = {k: how.pop(k) for k in HUB if how.get(k) is not None}
        folder = str(folder) if Path(folder).is_dir() else snapshot_download(str(folder), **hub)
        how = {k: v for k, v in how.items() if k not in IGNORED}
        config = UnlearnedConfig.from_pretrained(folder, trust_remote_code=False) if config is None else config
        for key, value in {"target": target, "base": base, "alpha": alpha}.items():
            if value is not None:
                setattr(config, key, value)
        if config._attn_implementation is not None:
            how["attn_implementation"] = config._attn_implementation
        rule = None if config.rule == SUM else _rule(config)
        model = cls(config, _loaded(config, located(folder, config), dtype, how), rule)
        generating = Path(folder) / "generation_config.json"
        if generating.is_file():
            model.generation_config = GenerationConfig.from_dict(json.loads(generating.read_text(encoding="utf-8")))
        return model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        labels: Tensor | None = None,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """Ids [B, S] to the logits of the sum, [B, S, V] in fp32.

        ``past_key_values`` holds the layers of all members, one member after the other; None with ``use_cache``: a new
        one is made.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        base = change = None
        parts = self._parts(past_key_values)
        for model, part, (constant, slope) in zip(self.members, parts, self.weights.values(), strict=True):
            told = [None if t is None else t.to(model.device) for t in (input_ids, attention_mask, position_ids)]
            logits = model(
                **dict(zip(("input_ids", "attention_mask", "position_ids"), told, strict=True)),
                past_key_values=part, use_cache=part is not None, logits_to_keep=logits_to_keep,
            ).logits  # fmt: skip
            logits = logits[..., : self.config.vocab_size].float().to(self.device)
            base, change = _plus(base, constant, logits), _plus(change, slope, logits)
        logits = self._joined(base, change)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=logits.shape[-1], **more)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _joined(self, base: Tensor | None, change: Tensor | None) -> Tensor:
        """The change is summed first: where offset and anchor agree, the sum is the target bit for bit."""
        if change is None:
            return base
        if base is None:
            return change if self.alpha == 1 else self.alpha * change
        if self.rule is None:
            return base + self.alpha * change
        return self.rule(base.flatten(0, -2), change.flatten(0, -2), self.alpha).view_as(base)

    def _parts(self, whole: Cache | None) -> list[Cache | None]:
        """The members' own caches: slices of one, whose layers they share, so that what is done to the whole (beams are
        put in another order, tokens taken back) is done to each."""
        if whole is None:
            return [None] * len(self.members)
        if not whole.layers:
            whole.layers.extend(layer for m in self.members for layer in DynamicCache(config=m.config).layers)
        sizes = [len(DynamicCache(config=m.config).layers) for m in self.members]
        if sum(sizes) != len(whole.layers):
            raise ValueError(f"past_key_values has {len(whole.layers)} layers, and the members have {sum(sizes)}")
        parts = []
        for start, end in pairwise(accumulate(sizes, initial=0)):
            parts.append(copy.copy(whole))
            parts[-1].layers = whole.layers[start:end]
        return parts

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *more) -> None:
        """Each member prepares its own, whatever kind is asked for; theirs are put together."""
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


def _plus(total: Tensor | None, factor: float, logits: Tensor) -> Tensor | None:
    if factor == 0:
        return total
    term = logits if factor == 1 else factor * logits
    return term if total is None else total + term


def _rule(config: UnlearnedConfig) -> Rule:
    try:
        from unlearn.ensemble.combination import bind_rule
    except ImportError:
        raise ValueError(f"rule={config.rule!r}: needs the package that made this export; sum needs none") from None
    return bind_rule(config.rule, config.numbers)


def _loaded(
    config: UnlearnedConfig, places: Mapping[str, Place], dtype: torch.dtype | str | None, how: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """The members' models by name. What several members are, or are made from, is in memory once."""
    wholes: dict[str, nn.Module] = {}
    about, found = {m["name"]: m for m in config.members}, {}
    for name, place in places.items():
        of = about[name]["base"] or about[name]
        key = json.dumps([of["files"], of["dtype"], of["quantisation"]], sort_keys=True)
        if key not in wholes:
            held = of["dtype"] if dtype in (None, "auto") else dtype
            quantised = BitsAndBytesConfig(**of["quantisation"]) if of["quantisation"] else None
            more = how | ({"quantization_config": quantised} if quantised else {})
            wholes[key] = _model(place.folder, held, more)
        found[name] = wholes[key] if place.adapter is None else _updated(wholes[key], place.adapter)
    return found


def _model(place: Path, dtype: torch.dtype | str, how: Mapping[str, Any]) -> nn.Module:
    where = {"gguf_file": place.name} if place.suffix == ".gguf" else {}
    folder = place.parent if where else place
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, **where, **how, **SAFE)
    return model.requires_grad_(False).eval()
