"""Write an unlearned model as a folder that transformers, vLLM and ``unlearn.serve`` load."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.derived import tuning
from unlearn.config.pair import LAYERS, LoraConfig
from unlearn.config.schema import ConfigError, reason
from unlearn.config.setting import each, finite, one_of, setting
from unlearn.deploy.export.traces import Traces, forget_rows, tensors_fault
from unlearn.ensemble import engines
from unlearn.grid.refusal import Failed
from unlearn.runs.opened import Opened
from unlearn.store import runlog
from unlearn.store.files import sha256, write_json, write_text, write_whole
from unlearn.store.sources import HUB_NAME

if TYPE_CHECKING:
    from torch import nn

HUB = "hub:"
ENGINES = Path(engines.__file__).parent
CODE = {  # in the export's custom_generate/, what transformers runs for those who have not this package
    ENGINES / source: name for source, name in (
        ("custom_generate.py", "generate.py"),
        ("configuration_unlearned.py", "configuration_unlearned.py"),
        ("modeling_unlearned.py", "modeling_unlearned.py"),
    )
}  # fmt: skip


@dataclass
class ExportSettings:
    """What a call asks for, by the keys of ``python -m unlearn.export``."""

    run: str
    to: str
    offsets: list[str] = setting([])  # further runs, whose offsets are added to the same target
    alpha: list[float] | None = setting(None, finite("must be one of those the run was evaluated at"))  # null: its own
    weights: str = setting("auto", one_of("auto", "all"))  # all: also copies of what the hub has
    offset: str = setting("auto", one_of("auto", "merged"))  # auto: low-rank updates alone; merged: a whole model
    tokenizer: str = setting("yes", one_of("yes", "no"))
    collapsed: str = setting("no", one_of("no", "yes"))  # whether a run that collapsed is exported, too
    private: bool = True  # whether a repository that is made on the hub is seen by its owner alone
    overrides: list[str] = setting([])

    @property
    def hub(self) -> str | None:
        """The repository to upload to; None: nothing is uploaded."""
        return self.to.removeprefix(HUB) if self.to.startswith(HUB) else None

    @property
    def folder(self) -> Path:
        return Path(self.to) if self.hub is None else Path("exports", self.hub.replace("/", "--"))


def export(runs: Sequence[Opened], settings: ExportSettings) -> dict[str, Any]:
    """Write the folder, whole or not at all; the content of its offset.json. ``ConfigError`` where that cannot be."""
    from unlearn.deploy.parts import check, check_tokens, parts_of

    given = each(settings.alpha, len(runs))
    for problem in chain(_place(settings, runs), *map(partial(_problems, settings), runs, given)):
        raise ConfigError(problem)
    # as they are loaded, members are checked to be those that the run was made with
    parts = parts_of(runs, [_alpha(run, alpha) for run, alpha in zip(runs, given, strict=True)])
    for run in runs:
        for m in (m for m in run.ensemble.members if m.kind.encodes):
            raise ConfigError(f"{run.folder}: its {m.name} has an encoder (T5), and an export reads whole texts")
    check(parts)
    check_tokens(parts, [run.bench.encoder for run in runs])
    about: dict[str, Any] = {}
    write_whole(settings.folder, partial(_write_all, runs, parts, settings, about))
    return about


def _write_all(runs: Sequence[Opened], parts, settings: ExportSettings, about: dict[str, Any], folder: Path) -> None:
    from unlearn.decoding.generation import ends_of
    from unlearn.deploy.export import members
    from unlearn.deploy.export.about import card, facts, known_text
    from unlearn.deploy.export.loading import ABOUT, CARD

    folder.mkdir(parents=True)
    found, alpha = members.pieces(runs, parts)
    made = members.written(found, settings.weights == "all", settings.offset == "merged")
    loras = {p.name: p.run.cfg.pair.lora for p in found}
    for name, model in made.models.items():
        _write(model, folder / name, loras.get(name))
    encoder = runs[0].bench.encoder
    eos = encoder.tokenizer.eos_token_id
    stops = [eos, *sorted(ends_of(parts[0].ensemble, eos) - {eos})]  # tokens that end an answer
    chats = members.write_asking(encoder, stops, folder, settings.tokenizer == "yes")
    config = members.config(folder, found, alpha, made, stops)
    write_json(folder / "config.json", config)
    (folder / "custom_generate").mkdir()
    for source, name in CODE.items():
        shutil.copyfile(source, folder / "custom_generate" / name)
    about |= facts(runs, parts, found, config, made.models, settings.tokenizer == "yes", chats)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    about["files"] = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    traces = Traces(dict.fromkeys(row for run in runs for row in forget_rows(run.bench.data)), known_text())
    about["searched"] = {"forget_texts": traces.texts, "runs_of_words": traces.count, "ids": len(traces.ids)}
    write_text(folder / CARD, card(about, config, settings.hub))
    write_json(folder / ABOUT, about)
    left = traces.in_folder(folder)
    if left:
        advice = "; tokenizer=no leaves the tokenizer out" if any("token" in file for file in left) else ""
        rule = "An export holds nothing of the forget set"
        held = "; ".join(f"{file} holds text of row {row!r}" for file, row in left.items())
        raise ConfigError(f"nothing was exported: {held}. {rule}{advice}")
    if settings.folder.is_dir():
        settings.folder.rmdir()  # it was empty; what came in the meantime is not replaced


def _place(settings: ExportSettings, runs: Sequence[Opened]) -> Iterator[str]:
    """What is wrong with where it is to be written, and with how many α's there are."""
    to, name = settings.folder, settings.hub
    if name is not None and ("/" not in name or not HUB_NAME.fullmatch(name)):
        yield f"to={settings.to!r}: must be a folder, or {HUB}OWNER/NAME"
    elif not settings.to or to.is_file() or (to.is_dir() and any(to.iterdir())):
        again = f"; what lies there is uploaded by: hf upload {name} {to}" if name is not None else ""
        yield f"to={settings.to!r}: {to} must be a folder that is not there yet, or an empty one{again}"
    for run in runs:
        if to.resolve().is_relative_to(run.folder.resolve()):
            yield f"to={settings.to!r}: lies in the run's own folder; must be another place"
    if len(each(settings.alpha, len(runs))) != len(runs):
        yield f"alpha={settings.alpha}: must be one α, or a list of {len(runs)}, one for run and each of offsets"


def _problems(settings: ExportSettings, run: Opened, alpha: float | None) -> Iterator[str]:
    """What is known of a run before models are loaded."""
    cfg, manifest, folder = run.cfg, runlog.manifest(run.folder), run.folder
    if manifest.get("status") != "done":
        yield f"{folder}: its status is {manifest.get('status')!r}, and only a run that is done is exported"
    if manifest.get("collapsed") is not None and manifest.get("kept") != "best" and settings.collapsed == "no":
        choices = "collapsed=yes exports it all the same; with trainer.keep=best a run keeps its best point"
        yield f"{folder}: this run collapsed ({manifest['collapsed']}); {choices}"
    works = f"what works is python -m unlearn.serve run={folder}"
    if cfg.pair.target.kind == "http":
        yield f"pair.target.kind='http': an export is checked against the target's weights, not a server's; {works}"
    if cfg.method.file is not None:
        yield f"method.file={cfg.method.file!r}: an export holds no code of yours; {works}"
    if tuning(cfg) == LAYERS:
        yield f"{folder}: its tuning is {LAYERS}, and an export holds plain models; {works}"
    known = _known(run)
    again = f"python -m unlearn.evaluate run={folder}"
    if not known:
        yield f"{folder}: has no evaluation; make one: {again}"
    if alpha not in (None, *known):
        rule = f"must be one of those the run was evaluated at, {', '.join(f'{a:g}' for a in known)}"
        yield f"alpha={alpha:g}: {rule}; another: {again} eval.alphas=[{alpha:g}]"


def _known(run: Opened) -> list[float]:
    """The α's at which a run was evaluated."""
    return [float(a) for a in runlog.evaluation(run.folder)["alphas"]]


def _alpha(run: Opened, alpha: float | None) -> float:
    known, own = _known(run), run.cfg.alpha
    return alpha if alpha is not None else own if own in known else known[0]


def _write(model: nn.Module, folder: Path, lora: LoraConfig | None) -> None:
    """Weights and config, as ``from_pretrained`` reads them, or low-rank updates, as peft does, and nothing else."""
    from unlearn.models.tuning import UPDATES, added, has_updates, save_updates

    if has_updates(model):
        save_updates(model, lora, folder)
        weights = added(model, UPDATES)
    else:
        model.save_pretrained(folder, safe_serialization=True)
        weights = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    fault = tensors_fault(sorted(folder.glob("*.safetensors")), shapes)
    if fault:
        raise ConfigError(f"{folder.name}: {fault}; such weights are not exported")


PACKAGE, ALONE, VLLM, SERVE = WAYS = ("transformers with this package", "transformers alone", "vLLM", "unlearn.serve")
HINDRANCES = {  # by what an export has: its words, and the ways that it closes
    "rule": ("its rule is not a sum", (ALONE, VLLM)),
    "quantised": ("its target is quantised", (ALONE, VLLM)),
    "gguf": ("its target is a GGUF file", (VLLM,)),
}


def ways(config: Mapping[str, Any]) -> dict[str, str | None]:
    """Of the content of an export's config.json: by way None, or why it is closed."""
    from unlearn.ensemble.engines.configuration_unlearned import SUM, is_gguf, is_quantised  # and transformers

    members = config["members"]
    has = {"rule": config["rule"] != SUM}
    has |= {"quantised": any(map(is_quantised, members)), "gguf": any(map(is_gguf, members))}
    closed = {way: [words for key, (words, of) in HINDRANCES.items() if has[key] and way in of] for way in WAYS}
    return {way: " and ".join(why) or None for way, why in closed.items()}


def told(found: Mapping[str, str | None]) -> str:
    return " · ".join(f"{way}: {'yes' if why is None else f'no, {why}'}" for way, why in found.items())


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload a folder as the model repository ``name``; its address. What an older export there had beyond this one is
    removed; a repository with anything else is refused. ``Failed`` says how to continue."""
    from huggingface_hub import HfApi

    from unlearn.deploy.export.loading import ABOUT

    api = HfApi()
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        info = api.model_info(name)
        there = {file.rfilename for file in info.siblings or ()} - {".gitattributes"}
        if private and not info.private:
            raise Failed(f"hub:{name}: is seen by all there, and private=true; private=false uploads it all the same")
        if there and ABOUT not in there:
            instead = f"give another name: hf upload OWNER/NAME {folder}"
            raise Failed(f"hub:{name}: holds something else than an export, {min(there)}; {instead}")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload an export", delete_patterns="*")
    except Failed:
        raise
    except Exception as error:  # of the library, of its own libraries, of the system: the export is whole in any case
        later = f"the export is whole, in {folder}; once `hf auth login` was done: hf upload {name} {folder}"
        raise Failed(f"hub:{name}: not uploaded: {type(error).__name__}: {reason(error)}; {later}") from None
    return address
