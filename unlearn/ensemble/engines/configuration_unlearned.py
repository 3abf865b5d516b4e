"""The config.json of an export: which models are summed up, with which weights, and where they are.

This file and ``modeling_unlearned.py`` beside it need nothing else of ours: an export carries both, and engines with
another transformers than ours read exports by them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import snapshot_download
from transformers.configuration_utils import PretrainedConfig

if TYPE_CHECKING:
    from torch import Tensor

SUM = "sum"
WHAT = ("files", "dtype", "quantisation", "base")  # of a member: which model it is
ADAPTER, GGUF, WEIGHTS = "adapter_config.json", ".gguf", ".safetensors"
# Files that the loader of a model takes before others: where an export does not list them, they are not to be there.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LOADED = (ADAPTER, "config.json", SINGLE, INDEX)
PLAIN = {"use_dora": False, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none",
         "lora_bias": False, "modules_to_save": None, "layers_pattern": None}  # fmt: skip
EXPORT = "it is not as it was exported; get the export again"
Member = Mapping[str, Any]


class UnlearnedConfig(PretrainedConfig):
    """``members`` are summed up at ``alpha``; ``target`` and ``base`` are where models lie that no export holds."""

    model_type = "unlearned"

    def __init__(
        self,
        members: Sequence[Member] = (),
        alpha: float | None = 1.0,
        rule: str = SUM,
        numbers: Mapping[str, float] | None = None,
        target: str | None = None,
        base: str | None = None,
        **more: Any,
    ):
        self.members, self.alpha, self.rule, self.numbers = _own_names(members), alpha, rule, dict(numbers or {})
        self.target, self.base = target, base
        super().__init__(**more)

    def __setattr__(self, key: str, value: Any) -> None:
        if value is not None and key in ("target", "base"):
            value = os.fspath(value)
        elif value is not None and key == "alpha":
            value = _finite(value)
        super().__setattr__(key, value)


def _finite(number: Any, key: str = "alpha") -> float:
    try:
        found = float(number)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{key}={str(number)[:80]!r}: must be a finite number")
    return found


def _own_names(members: Sequence[Member]) -> list[Member]:
    """The members, each with a name of its own and weights that are numbers: of two with one name one would be lost."""
    if not all(isinstance(m, Mapping) and {"name", "constant", "slope"} <= m.keys() for m in members):
        raise ValueError("members: must be a list, each with name, constant and slope")
    for m in members:
        for key in ("constant", "slope", "watch"):
            _finite(m.get(key, 0.0), f"{m['name']}.{key}")
    names = [m["name"] for m in members]
    if len(set(names)) < len(names):
        raise ValueError(f"members={names}: each must have a name of its own")
    return list(members)


class Place(NamedTuple):
    """Where a member lies: a model's folder (or its GGUF file), and that of the low-rank updates that are put on it."""

    folder: Path | None
    adapter: Path | None = None


def identity(member: Member) -> str:
    """Which model a member is, or the model under its updates: equal for equal ones."""
    return json.dumps([member[k] for k in WHAT], sort_keys=True) if member.get("files") else member["name"]


def whole(member: Member) -> Member:
    """What is said of a member's model; of one with updates the model under them."""
    return member["base"] or member


def target_of(members: Sequence[Member]) -> Member:
    """What is said of the target: the member of that name, or the first; of one with updates the model under them."""
    return whole(next((m for m in members if m["name"] == "target"), members[0]))


def is_gguf(member: Member) -> bool:
    return any(name.endswith(GGUF) for name in whole(member)["files"])


def is_quantised(member: Member) -> bool:
    """Whether its model is loaded with fewer bits, or is stored so."""
    return bool(whole(member)["quantisation"]) or "quantization_config" in whole(member)["config"]


class Weights(NamedTuple):
    """Of a member: in the base, in the change, and in what a rule watches."""

    constant: float = 0.0
    slope: float = 0.0
    watch: float = 0.0


def weights(config: UnlearnedConfig) -> dict[str, Weights]:
    """Weights of each member that counts at the config's α, if it has one; those of one model are one."""
    found: dict[str, tuple[str, Weights]] = {}
    for m in config.members:
        name, before = found.get(identity(m), (m["name"], Weights()))
        own = (m.get(key, 0.0) for key in Weights._fields)  # exports of before watched nothing
        found[identity(m)] = name, Weights(*map(sum, zip(before, own, strict=True)))

    def counts(of: Weights) -> bool:
        if config.rule == SUM and config.alpha is not None:  # only a sum lets a constant and a slope cancel
            return of.constant + of.slope * config.alpha != 0
        return of.constant != 0 or (config.alpha != 0 and (of.slope != 0 or of.watch != 0))

    return {name: of for name, of in found.values() if counts(of)}


def terms(config: UnlearnedConfig) -> list[tuple[str, float]]:
    """The sum at the config's α: names of members, and the weight of each, none of which is zero."""
    return [(name, of.constant + of.slope * config.alpha) for name, of in weights(config).items()]


# --- where the models are -----------------------------------------------------------------------------------------


def located(folder: str | Path, config: UnlearnedConfig, there: Collection[str] = ()) -> dict[str, Place]:
    """Where the members that ``weights`` names lie; every file that the export lists is as it lists it.

    Models that are not in ``folder`` are where ``config.target`` and ``config.base`` say, else on the hub; those whose
    ``identity`` is in ``there`` are not looked for. Raises ``ValueError`` where one is absent or another.
    """
    if not config.members:
        raise ValueError(f"{folder}: {EXPORT} (it has no members)")
    width = getattr(config, "vocab_size", None)
    if not (isinstance(width, int) and width > 0):  # less would take tokens from the end
        raise ValueError(f"vocab_size={width!r}: must be a positive integer")
    folder, aimed, wholes, found = Path(folder), target_of(config.members)["files"], {}, {}
    counting = weights(config)
    for m in (m for m in config.members if m["name"] in counting):
        about = whole(m)
        files = json.dumps(about["files"], sort_keys=True)
        if identity(about) not in there and files not in wholes:
            key = "target" if about["files"] == aimed else "base"
            wholes[files] = _whole(folder, about, key, getattr(config, key))
        adapter = _inside(folder, m["folder"]) if m["base"] else None
        if adapter is not None:
            _check(adapter, m["files"], f"{adapter}: {EXPORT}")
        found[m["name"]] = Place(None if identity(about) in there else wholes[files], adapter)
    return found


def _inside(folder: Path, name: str) -> Path:
    place = folder / name
    if not place.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{place}: {EXPORT} (it lies outside the folder)")
    return place


def _whole(folder: Path, about: Member, key: str, given: str | None) -> Path:
    """The folder of a model, or its GGUF file; ``key`` names the setting that says where it is."""
    files, source = about["files"], about["source"]
    wrong = (
        f"{key}={given or source!r}: its files are not those of the {key} that the offset was trained for; with "
        "another model it unlearns nothing"
    )
    if about["folder"] is not None:
        place = _inside(folder, about["folder"])
        wrong = f"{place}: {EXPORT}"
    elif given is not None:
        place = Path(given)
        if not place.exists():
            raise ValueError(f"{key}={given!r}: must be the folder of a model; there is none")
    elif source is not None:
        wanted = [*files, *([INDEX] if _sharded(files) else [])]
        place = Path(snapshot_download(source, revision=about["revision"], allow_patterns=wanted))
    else:
        raise ValueError(f"{key}=None: this export does not hold its {key}; say where it is: {key}=FOLDER")
    if place.is_file():  # a GGUF file may have another name here
        files = {place.name: next(iter(files.values()))}
    elif is_gguf(about):
        place = place / next(iter(files))
    if ADAPTER in files:  # it would name a model of its own, that is listed nowhere
        raise ValueError(f"{place}: {EXPORT} (it lists {ADAPTER} as a whole model's)")
    _check(place if place.is_dir() else place.parent, files, wrong)
    return place


def _check(folder: Path, files: Mapping[str, str], wrong: str) -> None:
    """Raise ``ValueError``, which says ``wrong``, for files not as listed, or that would be loaded in their place."""
    if not all(Path(name).name == name for name in files):
        raise ValueError(f"{wrong} (it lists files of other folders)")
    with ThreadPoolExecutor() as pool:
        found = dict(zip(files, pool.map(_sha256, (folder / name for name in files)), strict=True))
    differing = [name for name in files if found[name] != files[name]]
    if differing:
        raise ValueError(f"{wrong} ({', '.join(differing)})")
    more = [name for name in LOADED if name not in files and (folder / name).exists()]
    if INDEX in (*files, *more) and _sharded(files):
        _check_index(folder / INDEX, files)
        more = [name for name in more if name != INDEX]
    if more and not any(name.endswith(GGUF) for name in files):
        raise ValueError(f"{folder}: holds {', '.join(more)}, which would change what is loaded; move it out")


def _sharded(files: Collection[str]) -> bool:
    """Whether a model's weights are in several files, which an index that needs not be listed leads to."""
    return not any(name in (SINGLE, ADAPTER) or name.endswith(GGUF) for name in files)


def _check_index(index: Path, files: Collection[str]) -> None:
    """Raise ``ValueError`` for an index that leads to other weights than those that are listed, or not to all."""
    listed = {name for name in files if name.endswith(WEIGHTS)}
    try:
        named = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, TypeError, KeyError, AttributeError):
        named = set()
    if named != listed:
        differing = ", ".join(sorted(named ^ listed))[:80]
        raise ValueError(f"{index}: must name the weights that the export lists, all and no others ({differing})")


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- low-rank updates ---------------------------------------------------------------------------------------------


def factors(adapter: Path) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Of an adapter's folder, layer by layer: name in the base, A [r, in], B [out, r] and alpha / r; the update of the
    layer's weight is ΔW = (alpha / r) · B · A. Raises ``ValueError`` for all that is not a plain LoRA."""
    from safetensors.torch import load_file

    about, tensors = json.loads((adapter / ADAPTER).read_text(encoding="utf-8")), {}
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        layer, _, part = name.removesuffix(".weight").rpartition(".lora_")
        tensors.setdefault(layer.removeprefix("base_model.model."), {})[part] = tensor
    other = [k for k, plain in PLAIN.items() if about.get(k, plain) != plain]
    if about.get("peft_type") != "LORA" or other or any(parts.keys() != {"A", "B"} for parts in tensors.values()):
        what = ", ".join(other) or "type, or a tensor,"
        raise ValueError(f"{adapter}: must be a plain LoRA adapter, of lora_A and lora_B alone; its {what} is another")
    rank, alpha = about.get("r"), _finite(about.get("lora_alpha"), "lora_alpha")
    for layer, (a, b) in {layer: (parts["A"], parts["B"]) for layer, parts in tensors.items()}.items():
        if not (a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] == rank):
            shapes = f"{layer} has A {tuple(a.shape)} and B {tuple(b.shape)}"
            raise ValueError(f"{adapter}: must be of rank r={rank}, as its config says; {shapes}")
        yield layer, a, b, alpha / rank
