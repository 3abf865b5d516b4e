"""Write an unlearned model as a folder that loads without this program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.derived import tuning
from unlearn.config.pair import LAYERS, PairConfig
from unlearn.config.schema import Config, ConfigError
from unlearn.config.setting import finite, one_of, setting
from unlearn.deploy.export.traces import Traces, forget_rows, tensors_fault
from unlearn.runs.opened import Opened
from unlearn.store import runlog, sources
from unlearn.store.files import sha256, write_json, write_text, write_whole
from unlearn.store.identity import Job

if TYPE_CHECKING:
    from torch import nn

BASE = "{}.base"  # folder of the model that the updates of a member belong to, where no other member is that model


@dataclass
class ExportSettings:
    """What a call asks for, by the keys of ``python -m unlearn.export``."""

    run: str
    to: str
    overrides: list[str] = setting([])
    alpha: float | None = setting(None, finite("must be one of those the run was evaluated at"))  # null: the run's own
    weights: str = setting("auto", one_of("auto", "all"))  # all: also copies of what the hub has
    # of a run with low-rank updates: auto: these alone, for the model that they were trained on; merged: a whole model
    offset: str = setting("auto", one_of("auto", "merged"))
    tokenizer: str = setting("yes", one_of("yes", "no"))
    collapsed: str = setting("no", one_of("no", "yes"))  # whether a run that collapsed is exported, too


def export(run: Opened, settings: ExportSettings) -> dict[str, Any]:
    """Write the folder, whole or not at all; the content of its offset.json. ``ConfigError`` where run or folder are
    not fit for it."""
    for problem in _problems(run.job, settings):
        raise ConfigError(problem)
    # as they are loaded, members are checked to be those that the run was made with
    for m in (m for m in run.ensemble.members if m.kind.encodes):
        raise ConfigError(
            f"{run.folder}: its {m.name} has an encoder (T5), and the code of an export's card reads whole texts; "
            "deploy what the run trained with its own models"
        )
    known, own, about = [float(a) for a in runlog.evaluation(run.folder)["alphas"]], run.cfg.alpha, {}
    alpha = settings.alpha if settings.alpha is not None else own if own in known else known[0]
    write_whole(Path(settings.to), partial(_write_all, run, settings, alpha, about))
    return about


def _write_all(run: Opened, settings: ExportSettings, alpha: float, about: dict[str, Any], folder: Path) -> None:
    from unlearn.deploy.export.about import card, facts, known_text

    folder.mkdir(parents=True)
    models = _models(run, settings)
    for name, model in models.items():
        _write(model, folder / name, run.cfg)
    if settings.tokenizer == "yes":
        run.bench.encoder.tokenizer.save_pretrained(folder / "tokenizer")
    about |= facts(run.job, run.bench, alpha, models, settings.tokenizer == "yes")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    about["files"] = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    traces = Traces(forget_rows(run.bench.data), known_text())
    about["searched"] = {"forget_texts": traces.texts, "runs_of_words": traces.count, "ids": len(traces.ids)}
    write_text(folder / "README.md", card(about))
    write_json(folder / "offset.json", about)
    found = traces.in_folder(folder)
    if found:
        advice = "; tokenizer=no leaves the tokenizer out" if any("tokenizer" in f.file for f in found) else ""
        raise ConfigError(
            f"nothing was exported: {'; '.join(map(str, found))}. An export holds nothing of the forget set{advice}"
        )
    if Path(settings.to).is_dir():
        Path(settings.to).rmdir()  # it was empty; what came in the meantime is not replaced


def _problems(job: Job, settings: ExportSettings) -> Iterator[str]:
    """What can be told before models are loaded."""
    cfg, manifest, to = job.cfg, runlog.manifest(job.folder), Path(settings.to)
    if manifest.get("status") != "done":
        yield f"{job.folder}: its status is {manifest.get('status')!r}, and only a run that is done is exported"
    if manifest.get("collapsed") is not None and manifest.get("kept") != "best" and settings.collapsed == "no":
        yield (
            f"{job.folder}: this run collapsed ({manifest['collapsed']}); collapsed=yes exports it all the same, and "
            "trainer.keep=best keeps the best point of such a run"
        )
    if cfg.pair.target.kind == "http":
        yield (
            "pair.target.kind='http': an export is loaded beside the target's weights and checked against them, and "
            f"these are on a server; the offset itself is in {job.folder}"
        )
    if cfg.method.file is not None:
        yield (
            f"method.file={cfg.method.file!r}: an export holds no code, and this method's rule is a function of "
            "your own; there are exports of the rules sum, plausible and rank"
        )
    if tuning(cfg) == LAYERS:
        yield (
            f"{job.folder}: its tuning is {LAYERS}, and an export holds plain models that need no code of ours; deploy "
            "the run's adapter/ beside its model (unlearn.models.layers.load, or peft)"
        )
    if not settings.to or to.is_file() or (to.is_dir() and any(to.iterdir())):
        yield f"to={settings.to!r}: must be a folder that is not there yet, or an empty one"
    if to.resolve().is_relative_to(job.folder.resolve()):
        yield f"to={settings.to!r}: lies in the run's own folder; must be another place"
    known = [float(a) for a in runlog.evaluation(job.folder)["alphas"]]
    again = f"python -m unlearn.evaluate run={job.folder}"
    if not known:
        yield f"{job.folder}: has no evaluation; make one: {again}"
    if settings.alpha not in (None, *known):
        yield (
            f"alpha={settings.alpha:g}: must be one of those the run was evaluated at, "
            f"{', '.join(f'{a:g}' for a in known)}; another: {again} eval.alphas=[{settings.alpha:g}]"
        )


def _models(run: Opened, settings: ExportSettings) -> dict[str, nn.Module]:
    """The models of which something is written, by the name of its folder: of one with low-rank updates these, of any
    other all weights. Never the target's; nor those that updates were trained on, where these were found and not
    trained here."""
    from unlearn.models.tuning import has_updates, merged

    pair, trained, found = run.cfg.pair, run.ensemble.trained, {}
    learnt = None if trained is None else trained.model
    learnt = merged(learnt) if learnt is not None and settings.offset == "merged" else learnt
    alone = learnt is not None and has_updates(learnt)
    base = next((sources.role(pair, m.model) for m in run.cfg.method.members if m.trained and alone), None)
    lies = {role: _lies_elsewhere(pair, role, role == base) and settings.weights == "auto" for role in sources.ROLES}
    lies["target"] = True
    for m in run.cfg.method.members:
        if m.trained:
            found[m.name] = learnt
        elif not lies[sources.role(pair, m.model)]:
            found[m.name] = run.bench.model(m.model)
    there = {sources.role(pair, m.model) for m in run.cfg.method.members if m.name in found and not m.trained}
    if base is not None and not lies[base] and base not in there:
        found[BASE.format(trained.name)] = run.bench.model(base)
    return found


def _lies_elsewhere(pair: PairConfig, role: str, is_base: bool) -> bool:
    """Whether whoever loads an export has a model from elsewhere: from the hub, or as the base of low-rank updates."""
    return (sources.ready_made if is_base else sources.on_hub)(pair, role) is not None


def _write(model: nn.Module, folder: Path, cfg: Config) -> None:
    """Weights and config, as ``from_pretrained`` reads them, or low-rank updates, as peft does; refused if a file has
    room for anything else."""
    from unlearn.models.tuning import UPDATES, added, has_updates, save_updates

    if has_updates(model):
        save_updates(model, cfg.pair.lora, folder)
        weights = added(model, UPDATES)
    else:
        model.save_pretrained(folder, safe_serialization=True)
        weights = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    fault = tensors_fault(sorted(folder.glob("*.safetensors")), shapes)
    if fault:
        raise ConfigError(f"{folder.name}: {fault}; such weights are not exported")
