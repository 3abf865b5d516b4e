"""An exported folder and its target, ready to answer: what ``python -m unlearn.export`` wrote, loaded and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearn.config.data import TemplateConfig
from unlearn.config.pair import SourceConfig, TargetConfig
from unlearn.config.schema import ConfigError, MemberConfig
from unlearn.data.encoding import Encoder
from unlearn.decoding.generation import Decoding, greedy
from unlearn.engines.live import causal_lm
from unlearn.engines.modeling_unlearned import UnlearnedForCausalLM
from unlearn.ensemble.combination import bind_rule
from unlearn.ensemble.ensemble import Ensemble, build
from unlearn.models import hub, llama, tokenizers
from unlearn.models.tuning import learnt
from unlearn.store import sources
from unlearn.store.files import read_json, sha256

FORMATS = 1, 2  # of plain models alone; with low-rank updates
ABOUT, CARD = "offset.json", "README.md"


class ExportError(ConfigError):
    """A folder that is no export, is damaged, or belongs to another target."""


@dataclass(frozen=True)
class Deployed:
    """The unlearned model of an export. ``lm`` gives logits [B, S, V] of ids [B, S] at the export's α."""

    ensemble: Ensemble
    encoder: Encoder
    alpha: float
    about: dict[str, Any]

    @property
    def lm(self) -> UnlearnedForCausalLM:
        return causal_lm(self.ensemble, self.alpha)

    def answer(self, question: str, max_new_tokens: int = 200) -> str:
        """The greedy answer to a question, asked by the run's own template."""
        prompt = self.encoder.prompt(question)
        how = Decoding.by(self.encoder.tokenizer, min(max_new_tokens, self.encoder.max_length - len(prompt)))
        return self.encoder.decode(greedy(self.ensemble, [prompt], self.alpha, how)[0])


def load(
    folder: str | Path,
    target: str | Path,
    device: torch.device | str = "cpu",
    alpha: float | None = None,
    beside: Deployed | None = None,
    base: str | Path | None = None,
) -> Deployed:
    """Load an export beside its target, a folder or the name on the hub that the export says.

    ``base``: likewise, the model that an offset of low-rank updates was trained on; None: where the export says.
    ``alpha`` None: the export's. Models are those of ``beside`` where it has the same. Raises ``ExportError`` where a
    file is not the one that was written, or target or base are not those that the offset was trained for.
    """
    folder = Path(folder)
    about = checked(folder)
    try:
        return _loaded(folder, about, target, base, device, alpha, beside)
    except ConfigError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ExportError(
            f"{folder / ABOUT}: not as this program writes it ({error!r}); export the run again"
        ) from None


def _loaded(
    folder: Path,
    about: dict[str, Any],
    target: str | Path,
    base: str | Path | None,
    device: torch.device | str,
    alpha: float | None,
    beside: Deployed | None,
) -> Deployed:
    where, members = _target(target, about), about["method"]["members"]
    there = {} if beside is None else {m.fingerprint: m.model for m in beside.ensemble.members if not m.trained}

    def model(m: dict[str, Any]) -> nn.Module:
        """One for each fingerprint, whatever the number of members that are it; updates are put on theirs."""
        if m.get("base") is not None:
            return llama.freeze(learnt(model(m["base"]), folder / m["weights"]))
        if m["fingerprint"] not in there:
            there[m["fingerprint"]] = _member(m, folder, where, about, device, base)
        return there[m["fingerprint"]]

    models = {m["name"]: model(m) for m in members}
    ensemble = build(
        [MemberConfig(m["name"], m["model"], m["constant"], m["alpha"], m["trained"]) for m in members],
        models,
        {m["name"]: m["fingerprint"] for m in members},
        {name: llama.vocabulary(model) for name, model in models.items()},
        bind_rule(about["method"]["rule"], about["method"]["numbers"]),
    )
    tokenizer = tokenizers.load(folder / "tokenizer" if about["tokenizer"]["weights"] else where)
    encoder = Encoder(tokenizer, TemplateConfig(**about["template"]), about["max_length"])
    return Deployed(ensemble, encoder, about["alpha"] if alpha is None else float(alpha), about)


def checked(folder: Path) -> dict[str, Any]:
    """The content of offset.json; every file that it lists is as it was written, and there is no other."""
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict) or about.get("format") not in FORMATS:
        found = f"its format is {about.get('format')!r}" if isinstance(about, dict) else "there is none"
        raise ExportError(
            f"{folder}: needs an {ABOUT} of format {FORMATS[0]} or {FORMATS[1]}, and {found}; export the run again"
        )
    files = about.get("files")
    if not (
        isinstance(files, dict) and all(isinstance(f, dict) and {"bytes", "sha256"} <= set(f) for f in files.values())
    ):
        raise ExportError(f"{folder}/{ABOUT}: says nothing of the files; export the run again")
    for name, expected in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ExportError(f"{folder}/{ABOUT}: lists {name!r}, which lies outside the folder")
        if not path.is_file() or path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
            raise ExportError(f"{path}: is missing, or not the file that was exported; get the export again")
    for path in sorted(p for p in folder.rglob("[!.]*") if not p.is_dir()):
        name = path.relative_to(folder).as_posix()
        if name not in (*files, ABOUT, CARD) and not name.startswith("."):  # as the hub's .cache/
            raise ExportError(f"{path}: is no file of the export; libraries may read it with the weights: remove it")
    return about


def _target(target: str | Path, about: dict[str, Any]) -> Path:
    asked = SourceConfig(str(target), None if sources.is_folder(str(target)) else about["target"]["revision"])
    where = hub.locate("target", asked)
    content = sources.content(where, None)
    if content != about["target"]["content"]:
        raise ExportError(
            f"target={str(target)!r}: its files have the fingerprint {content}, and the offset was trained for "
            f"{about['target']['content']}; added to another model it unlearns nothing"
        )
    return where


def _member(
    member: dict[str, Any],
    folder: Path,
    target: Path,
    about: dict[str, Any],
    device: torch.device | str,
    base: str | Path | None,
) -> nn.Module:
    if member["weights"] is not None:
        model = llama.load(folder / member["weights"], device)
    elif member["model"] == "target":
        held = TargetConfig(dtype=about["target"]["dtype"], quantisation=about["target"]["quantisation"])
        model = hub.load(target, held, torch.device(device))
    else:
        model = llama.load(_elsewhere(member, target, about, base), device)
    return llama.freeze(llama.narrow(model, about["logits"]))


def _elsewhere(member: dict[str, Any], target: Path, about: dict[str, Any], base: str | Path | None) -> Path:
    """Where a model lies that the export names and does not hold; ``ExportError`` where another one does."""
    expected, named, key = member["content"], member["source"], member.get("name", "base")
    if base is not None and expected in {m["base"]["content"] for m in about["method"]["members"] if m.get("base")}:
        named, key = str(base), "base"
    elif named is None and expected == about["target"]["content"]:
        return target
    if named is None:
        raise ExportError(
            f"base=None: this export holds updates of a model with the fingerprint {expected}, and not the model; give "
            "base=FOLDER, or its name on the hub"
        )
    where = hub.locate(key, SourceConfig(named, None if sources.is_folder(named) else member["revision"]))
    content = sources.content(where, None)
    if content != expected:
        raise ExportError(
            f"{key}={named!r}: its files have the fingerprint {content}, and the offset was trained with {expected}; "
            "with another model it unlearns nothing"
        )
    return where
