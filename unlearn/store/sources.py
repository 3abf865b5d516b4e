"""Pretrained models of a pair: which there are, what can be made of them, and what identifies them.

A source is a folder as ``save_pretrained`` writes it, a GGUF file, or else a name on the hub (``unlearn/models/hub.py``
loads all three). Where a function takes a model's folder, it takes a GGUF file, too.
Rules and run identities ask here before there is any work, so neither torch nor transformers is imported.
"""

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path

from unlearn.config.pair import ModelConfig, PairConfig, SourceConfig, StageConfig
from unlearn.config.schema import ConfigError
from unlearn.store.files import FileError, noted, read_json, sha256

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "spiece.model", "sentencepiece.bpe.model",
    "sentencepiece.model", "spm.model", "bpe.codes", "normalizer.json",
)  # fmt: skip
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")  # files that may run code when they are loaded
GGUF = ".gguf"
NEEDS_GGUF = "is read by the package gguf, which is not installed here: pip install gguf; or give a safetensors folder"
ROLES = ("target", "retrained", "small_general", "small_full", "small_retain")


def role(pair: PairConfig, model: str) -> str:
    """One of ROLES; ``small`` is the one that pair.offset_init says."""
    return f"small_{pair.offset_init}" if model == "small" else model


def size_of(pair: PairConfig, role: str) -> ModelConfig:
    return pair.small if role.startswith("small") else pair.target


def is_remote(pair: PairConfig, role: str) -> bool:
    """Whether a model is a server, whose weights nobody here sees."""
    return role == "target" and pair.target.kind == "http"


def last_stage(pair: PairConfig, role: str) -> StageConfig:
    """The stage that gives a model its knowledge of the data set, or of the general facts alone."""
    return size_of(pair, role).general if role == "small_general" else size_of(pair, role).finetune


def own_source(pair: PairConfig, role: str) -> SourceConfig | None:
    """The ready-made model that a setting names for a role other than ``target`` and ``small``; None without one."""
    found = getattr(pair, role) if role in ("retrained", "small_full", "small_retain") else None
    return found if found is not None and found.source is not None else None


def tokenizer_source(pair: PairConfig) -> SourceConfig:
    """Where a tokenizer of kind=pretrained is: its own source, else the target's."""
    return pair.tokenizer if pair.tokenizer.source is not None else pair.target


def is_pretrained(pair: PairConfig, role: str) -> bool:
    """Whether a model is, or is fine-tuned from, one that was not made here; a server's is neither."""
    given = own_source(pair, role) is not None or size_of(pair, role).source is not None
    return given and not is_remote(pair, role)


def ready_made(pair: PairConfig, role: str) -> SourceConfig | None:
    """Where the very model of a role was found; None where it was trained here."""
    source, stages = own_source(pair, role), (size_of(pair, role).pretrain, last_stage(pair, role))
    if source is None and not any(stage.epochs for stage in stages):
        source = size_of(pair, role)
    return None if source is None or source.source is None else source


def on_hub(pair: PairConfig, role: str) -> SourceConfig | None:
    """Where the hub has the very model of a role; None where it was trained here, or lies in a folder."""
    source = ready_made(pair, role)
    return None if source is None or is_folder(source.source) else source


def lacking(pair: PairConfig, role: str) -> str | None:
    """Why a model is not available, and what to set; None if it is: from scratch, by fine-tuning, or ready-made."""
    size = size_of(pair, role)
    if own_source(pair, role) or role in ("target", "small_general") or size.finetune.epochs:
        return None
    if role == "retrained" and (size.source is not None or pair.target.kind == "http"):
        why, more = f"pair.target.source={size.source!r} comes ready-made", "for both to be fine-tuned"
        if pair.target.kind == "http":
            why, more = "pair.target.kind='http' is a server", "for one to be trained here"
        give = "pair.retrained.source=NAME_OR_FOLDER, that never saw the forget set, or pair.target.finetune.epochs"
        return f"pair.retrained.source=None: there is no retrained reference, as {why}. Give {give} {more}"
    if size.source is None:
        return None
    why = f"pair.small.source={size.source!r} as it is knows nothing of the data set"
    give = f"pair.{role}.source=NAME_OR_FOLDER, or let it be fine-tuned: pair.small.finetune.epochs=5"
    return f"pair.{role}.source=None: {why}. Give {give}"


def is_folder(source: str) -> bool:
    """Whether a model lies here, and is not a name on the hub."""
    return bool(source) and (Path(source).is_dir() or is_gguf(Path(source)))


def is_gguf(path: Path) -> bool:
    return path.suffix == GGUF and path.is_file()


def local(source: str) -> Path:
    """The folder of a model that lies here; where that holds nothing but one GGUF file, this file."""
    path = Path(source)
    found = [] if (path / "config.json").is_file() else sorted(path.glob(f"*{GGUF}"))
    return found[0] if len(found) == 1 else path


def identity(source: SourceConfig, memo: Path) -> str:
    """What a pretrained model is, for the hash of a run: of a folder its content, wherever it lies; of the hub the
    name and revision, since asking for the content would be a download (``main`` may move: give a commit to pin it)."""
    if is_folder(source.source):
        return content(local(source.source), memo)
    return f"{source.source}@{source.revision or 'main'}"


def tokenizer_identity(source: SourceConfig, memo: Path) -> str:
    """As ``identity``, of the tokenizer (with its chat template) alone."""
    if not is_folder(source.source):
        return f"{source.source}@{source.revision or 'main'}"
    path = local(source.source)
    if is_gguf(path):
        return content(path, memo)
    return _joined([f"{file.name} {_file(file, memo)}" for file in tokenizer_files(path)])


def tokenizer_files(folder: Path) -> list[Path]:
    """Those that ``AutoTokenizer`` reads; empty where a folder has no tokenizer."""
    if is_gguf(folder):
        return [folder]
    found = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return found + sorted(folder.glob("additional_chat_templates/*.jinja"))


def content(folder: Path, memo: Path | None) -> str:
    """Hash of a model in a folder: its weights and config.json. ``memo``: a folder of known hashes; None: read all."""
    return _joined(list(checksums(folder, memo).values()))


def checksums(folder: Path, memo: Path | None) -> dict[str, str]:
    """SHA-256 of config.json and of the weights that would be loaded, by the file's name; of a GGUF file its own."""
    about = [] if is_gguf(folder) else [folder / "config.json"]
    return {path.name: _file(path, memo) for path in (*about, *weight_files(folder))}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that ``from_pretrained`` loads, or the one GGUF file; ``ConfigError`` if it could not."""
    if is_gguf(folder):
        if find_spec("gguf") is None:
            raise ConfigError(f"{folder.name} {NEEDS_GGUF}")
        return [folder]
    files, index = [folder / "model.safetensors"], folder / "model.safetensors.index.json"
    if not files[0].is_file() and index.is_file():
        try:
            names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
        except (FileError, TypeError, KeyError, AttributeError):
            raise ConfigError(f"{index}: must say in weight_map which file holds each tensor, and does not") from None
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ConfigError(f"{index}: {name!r}: must be a .safetensors file of the same folder")
        files = [folder / name for name in names]
    for path in (folder / "config.json", *files):
        if not path.is_file():
            there = sorted(folder.glob("*"))
            pickled, packed = ([p.name for p in there if p.suffix in kinds] for kinds in (PICKLES, (GGUF,)))
            rule = "a pretrained model is a folder with config.json and safetensors weights, no adapter"
            rule += f"; {', '.join(pickled)} may run code when loaded and is never read" if pickled else ""
            rule += f"; or one of its GGUF files: {', '.join(packed)}" if packed else ""
            raise ConfigError(f"{path.name} is missing in {folder}; {rule}")
    return files


def _joined(prints: list[str]) -> str:
    return hashlib.sha256(" ".join(prints).encode()).hexdigest()[:16]


def _file(path: Path, memo: Path | None) -> str:
    path = path.resolve()
    if memo is None:
        return sha256(path)
    if path.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", path.name):
        return path.name  # the hub's cache names a large file by its SHA-256
    return noted(memo, path, sha256)
