"""Pretrained models and tokenizers, from a folder or the hub, and whether they can be members of one pair."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase

from unlearn.config.pair import SourceConfig, TargetConfig
from unlearn.config.schema import ConfigError, reason
from unlearn.models import llama, seq2seq, tokenizers
from unlearn.store.files import noted
from unlearn.store.sources import content, is_folder, local, tokenizer_files, weight_files

log = logging.getLogger(__name__)
QUANTISATION: dict[str, dict[str, Any]] = {
    "none": {}, "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
}  # fmt: skip
LARGE = 1e4  # logits that no cap lets pass
CHECKED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WEIGHTS = {"model.safetensors", "model.safetensors.index.json"}
SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]  # config and tokenizer


def locate(key: str, source: SourceConfig, weights: bool = True) -> Path:
    """The folder or GGUF file of a pretrained model; of a name on the hub the folder in its cache, downloaded if it is
    not there (``weights=False``: config and tokenizer alone). ``key`` names the setting in ``ConfigError``."""
    if is_folder(source.source):
        folder = local(source.source)
    else:
        wanted = [*SMALL_FILES, "model*.safetensors"] if weights else SMALL_FILES
        try:
            folder = Path(snapshot_download(source.source, revision=source.revision, allow_patterns=wanted))
        except (HFValidationError, OSError) as error:
            raise _absent(key, source, error) from None
    if weights:
        weight_files(folder)
    return folder


def _absent(key: str, source: SourceConfig, error: Exception) -> ConfigError:
    return ConfigError(
        f"{key}={source.source!r}: no folder in {Path.cwd()}, and as a name on the hub "
        f"(revision {source.revision or 'main'}) not available: {type(error).__name__}: "
        f"{reason(error)} A gated model needs its licence accepted and `hf auth login`; "
        "without a network, give the folder of a copy"
    )


def has_encoder(folder: Path) -> bool:
    return bool(llama.config(folder).is_encoder_decoder)


def tokenizer(key: str, source: SourceConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a pretrained model; ``key`` names the setting in ``ConfigError``."""
    folder = locate(key, source, weights=False)
    try:
        return tokenizers.load(folder)
    except Exception as error:  # what its libraries raise has no kind of its own
        raise ConfigError(f"{key}={source.source!r}: its tokenizer cannot be read: {reason(error)}") from None


def check(key: str, source: SourceConfig, shared: PreTrainedTokenizerBase, max_length: int) -> int:
    """Refuse a pretrained model that reads other ids than ``shared``, the pair's tokenizer, gives; or shorter texts
    than ``max_length``. Returns the rows of its output head, by its config."""
    folder = locate(f"{key}.source", source, weights=False)
    about = llama.config(folder).get_text_config()
    takes = getattr(about, "max_position_embeddings", None)
    if takes is not None and max_length > takes:
        rule = f"examples may have {max_length}: lower pair.target.max_length or pair.small.max_length"
        raise ConfigError(f"{key}.source={source.source!r} takes at most {takes} tokens, and {rule}")
    if not tokenizer_files(folder):
        log.warning("%s.source=%r has no tokenizer: that it reads the pair's ids is not checked", key, source.source)
        return about.vocab_size
    own = {id: token for token, id in tokenizer(f"{key}.source", source).get_vocab().items()}
    for token, id in sorted(shared.get_vocab().items(), key=lambda entry: entry[1]):
        if own.get(id) != token:
            here = f"is not the pair's, {shared.name_or_path!r}: id {id} is {own.get(id)!r} there and {token!r} here"
            rule = "all models of a pair must share one vocabulary, index for index"
            raise ConfigError(f"{key}.source={source.source!r}: its tokenizer {here}; {rule}")
    return about.vocab_size


def common_width(widths: Mapping[str, int], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many logits of the models are read: all that the narrowest has; ``widths`` by a name for the message.
    Families pad their heads; only logits beyond every id of the tokenizer may be cut."""
    width, ids = min(widths.values()), tokenizers.size(tokenizer)
    if width < ids:
        sizes = ", ".join(f"{name} {size:,}" for name, size in widths.items())
        has = f"the tokenizer {tokenizer.name_or_path!r} has {ids:,} ids, and the widths of the heads are: {sizes}"
        raise ConfigError(f"pair: models must share one vocabulary, but for padding beyond the tokenizer's ids: {has}")
    return width


def load(folder: Path, cfg: TargetConfig, run_device: torch.device) -> nn.Module:
    """A target or retrained reference, held in memory as its settings say."""
    dtype = precision(folder, cfg)
    place = str(run_device) if cfg.device_map is None else cfg.device_map
    if cfg.quantisation == "none" and place != "auto":
        return llama.load(folder, place, dtype)
    how = QUANTISATION[cfg.quantisation]
    model = llama.exact(
        folder, dtype=dtype, device_map=place if place == "auto" else {"": place},
        quantization_config=BitsAndBytesConfig(**how) if how else None,
    )  # fmt: skip
    if any(p.device.type == "meta" for p in model.parameters()):
        raise ConfigError("pair.target.device_map='auto': does not fit on the GPUs here; quantise, or take a smaller")
    return model.eval()


def precision(folder: Path, cfg: TargetConfig) -> torch.dtype:
    """``dtype: auto`` is what the model's config says it was saved in."""
    saved = llama.config(folder).dtype if cfg.dtype == "auto" else getattr(torch, cfg.dtype)
    return saved or torch.float32


def fingerprint(folder: Path, memo: Path, width: int, held: TargetConfig | None) -> str:
    """Of a pretrained model as it is held (None: in fp32) and read: from its files, without loading it."""
    how = (torch.float32, "none") if held is None else (precision(folder, held), held.quantisation)
    parts = content(folder, memo), str(width), *map(str, how)
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


@torch.no_grad()
def check_head(model: nn.Module, name: str) -> nn.Module:
    """The model, unless its logits are something else than its output head on its last hidden states (scaled, capped
    …), as members' rows are computed; told from large ones, since small ones may pass a cap. Or a weight is NaN."""
    ids, taken = torch.arange(1, 5, device=next(model.parameters()).device)[None], []

    def say(_: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        taken.extend((given[0], torch.linspace(-LARGE, LARGE, logits.numel()).view(logits.shape).to(logits)))
        return taken[1]

    hook = model.get_output_embeddings().register_forward_hook(say)
    try:
        if llama.has_encoder(model):
            logits = model(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits
            read: Any = seq2seq.read(model, ids, torch.ones_like(ids), ids)
        else:
            logits = model(input_ids=ids, use_cache=False).logits
            read = model.base_model(input_ids=ids, use_cache=False)
    finally:
        hook.remove()
    _check_finite(name, model.named_parameters())
    states, said = taken
    states, gap = states.float(), (logits.float() - said.float().to(logits.device)).abs().max().item()
    if gap > 0 or (states - read.last_hidden_state.to(states)).abs().max() > 0.01 * states.abs().max():
        more = f"does more to its logits than its output head does (up to {gap:.3g} of {LARGE:g})"
        raise ConfigError(f"{name}: {type(model).__name__} {more}; such models cannot be members of a pair here")
    return model


def check_files(key: str, folder: Path, memo: Path) -> None:
    """Refuse weight files that are not whole, hold NaN or are not those of the model, told without building it; ``key``
    names the folder's setting. A whole file is noted in ``memo``, and not read again while it does not change."""
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            noted(memo, path, partial(_check_file, f"{key}={str(folder)!r}"), "finite ")
    if folder.is_dir() and getattr(llama.config(folder), "quantization_config", None) is None:
        llama.exact(folder, device_map={"": "meta"})


def check_named(key: str, source: SourceConfig, memo: Path) -> None:
    """The same of a name on the hub: of its cached files, or that the hub has a known architecture; no download."""
    folder = locate(key, source, weights=False)
    try:
        weight_files(folder)
    except ConfigError:
        try:
            names = list_repo_files(source.source, revision=source.revision)
        except (HFValidationError, OSError) as error:
            raise _absent(key, source, error) from None
        if not WEIGHTS.intersection(names):
            raise ConfigError(f"{key}={source.source!r}: has no safetensors weights on the hub") from None
        with torch.device("meta"):
            llama.class_of(folder).from_config(llama.config(folder), **llama.NO_CODE)
    else:
        check_files(key, folder, memo)


def _check_file(given: str, path: Path) -> str:
    try:
        with safe_open(path, "pt") as file:
            _check_finite(given, ((name, file.get_tensor(name)) for name in file.keys()), f" in {path.name}")
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{given}: {path.name} is not a whole safetensors file ({error}): copy it again") from None
    return "finite"


def _check_finite(given: str, tensors: Iterable[tuple[str, Tensor]], place: str = "") -> None:
    for name, tensor in tensors:
        if tensor.dtype in CHECKED and tensor.device.type != "meta" and not torch.isfinite(tensor).all():
            raise ConfigError(f"{given}: the tensor {name!r}{place} holds NaN or infinity; copy or train it again")
