"""Write an unlearned model as a folder that loads without this program."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.derived import tuning
from unlearn.config.pair import LAYERS
from unlearn.config.schema import ConfigError
from unlearn.deploy.export.traces import Traces, forget_rows, tensors_fault
from unlearn.runs.opened import Opened
from unlearn.store import runlog
from unlearn.store.files import sha256, write_json, write_text
from unlearn.store.identity import Job

if TYPE_CHECKING:
    from torch import nn

    from unlearn.runs.workbench import Workbench


TARGET = "target"


@dataclass(frozen=True)
class Asked:
    """What a call asks for."""

    to: Path
    alpha: float | None = None  # to deploy; None: that of the run, else the first that it was evaluated at
    everything: bool = False  # also copies of what the hub has
    tokenizer: bool = True
    collapsed: bool = False  # whether a run that collapsed is exported, too


def export(run: Opened, asked: Asked) -> dict[str, Any]:
    """Write the folder, whole or not at all; the content of its offset.json. ``ConfigError`` where run or folder are
    not fit for it."""
    from unlearn.deploy.export.card import card, known_text
    from unlearn.deploy.export.facts import facts

    job, alpha = run.job, check(run.job, asked)
    bench = run.bench
    _same_models(job, bench)
    _no_encoders(job, bench)
    work = asked.to.with_name(f".{asked.to.name}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        models = _models(job, bench, asked)
        for name, model in models.items():
            _write(model, work / name)
        if asked.tokenizer:
            _write_tokenizer(bench, work / "tokenizer")
        about = facts(job, bench, alpha, models, asked.tokenizer)
        about["files"] = _files(work)
        traces = Traces(forget_rows(bench.data), known_text())
        about["searched"] = {"forget_texts": traces.texts, "runs_of_words": traces.count, "ids": len(traces.ids)}
        write_text(work / "README.md", card(about))
        write_json(work / "offset.json", about)
        _refuse_traces(traces, work)
        if asked.to.is_dir():
            asked.to.rmdir()  # it is empty
        work.rename(asked.to)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return about


def check(job: Job, asked: Asked) -> float:
    """What can be told before models are loaded; the α to deploy."""
    _finished(job, asked.collapsed)
    if job.cfg.pair.target.kind == "http":
        raise ConfigError(
            "pair.target.kind='http': an export is loaded beside the target's weights and checked against them, and "
            f"these are on a server; the offset itself is in {job.folder / runlog.OFFSET}"
        )
    if job.cfg.method.file is not None:
        raise ConfigError(
            f"method.file={job.cfg.method.file!r}: an export holds no code, and this method's rule is a function of "
            "your own; there are exports of the rules sum, plausible and rank"
        )
    if tuning(job.cfg) == LAYERS:
        raise ConfigError(
            f"{job.folder}: its tuning is {LAYERS}, and an export holds plain models that need no code of ours; deploy "
            "the run's adapter/ beside its model (unlearn.models.layers.load, or peft)"
        )
    if asked.to.is_file() or (asked.to.is_dir() and any(asked.to.iterdir())):
        raise ConfigError(f"to={str(asked.to)!r}: must be a folder that is not there yet, or an empty one")
    if asked.to.resolve().is_relative_to(job.folder.resolve()):
        raise ConfigError(f"to={str(asked.to)!r}: lies in the run's own folder; must be another place")
    known = [float(a) for a in runlog.evaluation(job.folder)["alphas"]]
    again = f"python -m unlearn.evaluate run={job.folder}"
    if not known:
        raise ConfigError(f"{job.folder}: has no evaluation; make one: {again}")
    if asked.alpha is None:
        return job.cfg.alpha if job.cfg.alpha in known else known[0]
    if asked.alpha not in known:
        raise ConfigError(
            f"alpha={asked.alpha:g}: must be one of those the run was evaluated at, "
            f"{', '.join(f'{a:g}' for a in known)}; another: {again} eval.alphas=[{asked.alpha:g}]"
        )
    return asked.alpha


def _finished(job: Job, collapsed: bool) -> None:
    manifest = runlog.manifest(job.folder)
    status = manifest.get("status")
    if status != "done":
        raise ConfigError(f"{job.folder}: its status is {status!r}, and only a run that is done is exported")
    if manifest.get("collapsed") is not None and manifest.get("kept") != "best" and not collapsed:
        raise ConfigError(
            f"{job.folder}: this run collapsed ({manifest['collapsed']}); collapsed=yes exports it all the same, and "
            "trainer.keep=best keeps the best point of such a run"
        )


def _no_encoders(job: Job, bench: Workbench) -> None:
    for member in job.cfg.method.members:
        if bench.encodes(member.model):
            raise ConfigError(
                f"{job.folder}: its {member.name} has an encoder (T5), and the code of an export's card reads whole "
                "texts; deploy the run's offset/ with its own models"
            )


def _same_models(job: Job, bench: Workbench) -> None:
    """Weights go only with the models they were trained beside."""
    prints = {m.name: bench.fingerprint(m.model) for m in job.cfg.method.members}
    before = runlog.manifest(job.folder).get("models", {})
    if {name: before.get(name) for name in prints} != prints:
        raise ConfigError(
            f"{job.folder} was trained with the models {before}, and the store now has {prints}; export it with the "
            "store it was made with"
        )


def _models(job: Job, bench: Workbench, asked: Asked) -> dict[str, nn.Module]:
    """The models whose weights are written, by the name of their folder. Never the target's."""
    from unlearn.learning.loop import device
    from unlearn.models import llama
    from unlearn.store import sources

    found = {}
    for m in job.cfg.method.members:
        role = sources.role(bench.cfg.pair, m.model)
        if m.trained:
            found[m.name] = llama.freeze(llama.load(job.folder / runlog.OFFSET, device(bench.cfg.trainer.device)))
        elif role != TARGET and (asked.everything or sources.on_hub(bench.cfg.pair, role) is None):
            found[m.name] = bench.model(m.model)
    return found


def _write(model: nn.Module, folder: Path) -> None:
    """Weights and config, as ``from_pretrained`` reads them; refused if a file has room for anything else."""
    model.save_pretrained(folder, safe_serialization=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    fault = tensors_fault(sorted(folder.glob("*.safetensors")), shapes)
    if fault:
        raise ConfigError(f"{folder.name}: {fault}; such weights are not exported")


def _write_tokenizer(bench: Workbench, folder: Path) -> None:
    bench.encoder.tokenizer.save_pretrained(folder)


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file, by its path in the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}


def _refuse_traces(traces: Traces, folder: Path) -> None:
    found = traces.in_folder(folder)
    if found:
        advice = "; tokenizer=no leaves the tokenizer out" if any("tokenizer" in f.file for f in found) else ""
        raise ConfigError(
            f"nothing was exported: {'; '.join(map(str, found))}. An export holds nothing of the forget set{advice}"
        )
