"""``python -m unlearn.export run=FOLDER to=FOLDER``: what a trained run needs to be deployed, and nothing of its data.

  alpha=1            the α to deploy, one of those the run was evaluated at (default: that of the run, else the first)
  weights=all        also copies frozen models that the hub has (default, auto: names and pins them)
  tokenizer=no       leaves the tokenizer out: it is the target's, and one that was trained here lists the data's words
  collapsed=yes      exports a run that collapsed, too

TO gets the trained weights, the frozen models beside them (never the target), the tokenizer, offset.json and a card,
README.md, with the code that loads them. Every file is searched for the forget set before it gets its final name.
May be given: trainer.device, trainer.threads, paths.store, data.path.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn import runlog
from unlearn.config import ConfigError
from unlearn.config_pair import LAYERS
from unlearn.data.rows import DataError
from unlearn.files import sha256, write_json, write_text
from unlearn.identity import Job, alpha_key, tuning
from unlearn.rerun import load, split
from unlearn.traces import Traces, forget_rows, tensors_fault

if TYPE_CHECKING:
    from torch import nn

    from unlearn.world import World

log = logging.getLogger(__name__)
CHOICES = {"weights": ("auto", "all"), "tokenizer": ("yes", "no"), "collapsed": ("no", "yes")}
OWN = ("run", "to", "alpha", *CHOICES)
TARGET = "target"


@dataclass(frozen=True)
class Asked:
    """What a call asks for, checked."""

    to: Path
    alpha: float
    everything: bool  # also copies of what the hub has
    tokenizer: bool


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    given, rest = split(arguments, OWN)
    if "--help" in arguments or not {"run", "to"} <= set(given):
        print(__doc__.strip())
        return 0 if "--help" in arguments else 2
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    try:
        _, job = load(given["run"], rest)
        asked = check(job, given)
        about = export(job, asked)
    except (ConfigError, DataError) as error:
        print(f"Refused:\n  {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written: nothing is left under the final name
        print(f"Nothing was exported: {error}", file=sys.stderr)
        return 1
    print(_summary(asked, about))
    return 0


# --- what is refused ----------------------------------------------------------------------------------------------


def check(job: Job, given: dict[str, str]) -> Asked:
    """The options of a call; refused where they, the run or the folder are not fit for it."""
    options = {key: given.get(key, choices[0]) for key, choices in CHOICES.items()}
    for key, value in options.items():
        if value not in CHOICES[key]:
            raise ConfigError(f"{key}={value!r}: must be one of {', '.join(CHOICES[key])}")
    _finished(job, options["collapsed"] == "yes")
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
            "the run's adapter/ beside its model (unlearn.layers.load, or peft)"
        )
    place, alpha = _place(job, given["to"]), _alpha(job, given.get("alpha"))
    return Asked(place, alpha, options["weights"] == "all", options["tokenizer"] == "yes")


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


def _place(job: Job, to: str) -> Path:
    place = Path(to)
    if not to or place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise ConfigError(f"to={to!r}: must be a folder that is not there yet, or an empty one")
    if place.resolve().is_relative_to(job.folder.resolve()):
        raise ConfigError(f"to={to!r}: lies in the run's own folder; must be another place")
    return place


def _alpha(job: Job, text: str | None) -> float:
    known = [float(a) for a in runlog.evaluation(job.folder)["alphas"]]
    if not known:
        raise ConfigError(f"{job.folder}: has no evaluation; make one: python -m unlearn.evaluate run={job.folder}")
    if text is None:
        return job.cfg.alpha if job.cfg.alpha in known else known[0]
    try:
        alpha = float(text)
    except ValueError:
        alpha = None
    if alpha not in known:
        raise ConfigError(
            f"alpha={text}: must be one of those the run was evaluated at, {', '.join(f'{a:g}' for a in known)}; "
            f"another: python -m unlearn.evaluate run={job.folder} eval.alphas=[{text}]"
        )
    return alpha


# --- what is written ----------------------------------------------------------------------------------------------


def export(job: Job, asked: Asked) -> dict[str, Any]:
    """Write the folder, whole or not at all; the content of its offset.json."""
    from unlearn.export_card import card, known_text
    from unlearn.export_facts import facts
    from unlearn.job import settle
    from unlearn.world import the_world

    settle(job.cfg)
    world = the_world(job.cfg)
    _same_models(job, world)
    _no_encoders(job, world)
    work = asked.to.with_name(f".{asked.to.name}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        models = _models(job, world, asked)
        for name, model in models.items():
            _write(model, work / name)
        if asked.tokenizer:
            _write_tokenizer(world, work / "tokenizer")
        about = facts(job, world, asked.alpha, models, asked.tokenizer)
        about["files"] = _files(work)
        traces = Traces(forget_rows(world.data), known_text())
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


def _no_encoders(job: Job, world: World) -> None:
    for member in job.cfg.method.members:
        if world.encodes(member.model):
            raise ConfigError(
                f"{job.folder}: its {member.name} has an encoder (T5), and the code of an export's card reads whole "
                "texts; deploy the run's offset/ with its own models"
            )


def _same_models(job: Job, world: World) -> None:
    """Weights go only with the models they were trained beside."""
    prints = {m.name: world.fingerprint(m.model) for m in job.cfg.method.members}
    before = runlog.manifest(job.folder).get("models", {})
    if {name: before.get(name) for name in prints} != prints:
        raise ConfigError(
            f"{job.folder} was trained with the models {before}, and the store now has {prints}; export it with the "
            "store it was made with"
        )


def _models(job: Job, world: World, asked: Asked) -> dict[str, nn.Module]:
    """The models whose weights are written, by the name of their folder. Never the target's."""
    from unlearn import sources
    from unlearn.models import llama
    from unlearn.trainer import device

    found = {}
    for m in job.cfg.method.members:
        role = sources.role(world.cfg.pair, m.model)
        if m.trained:
            found[m.name] = llama.freeze(llama.load(job.folder / runlog.OFFSET, device(world.cfg.trainer.device)))
        elif role != TARGET and (asked.everything or sources.on_hub(world.cfg.pair, role) is None):
            found[m.name] = world.model(m.model)
    return found


def _write(model: nn.Module, folder: Path) -> None:
    """Weights and config, as ``from_pretrained`` reads them; refused if a file has room for anything else."""
    model.save_pretrained(folder, safe_serialization=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    fault = tensors_fault(sorted(folder.glob("*.safetensors")), shapes)
    if fault:
        raise ConfigError(f"{folder.name}: {fault}; such weights are not exported")


def _write_tokenizer(world: World, folder: Path) -> None:
    world.encoder.tokenizer.save_pretrained(folder)


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


def _summary(asked: Asked, about: dict[str, Any]) -> str:
    searched, only = about["searched"], about["tokenizer"]["words_of_the_forget_set_alone"]
    lines = [f"{f['bytes']:>12,}  {name}" for name, f in about["files"].items()]
    words = f"; the tokenizer lists {only} words that occur in the forget set alone" if only else ""
    return "\n".join([
        *lines,
        f"written: {asked.to} (α={alpha_key(asked.alpha)}); none of {searched['forget_texts']} forget texts is in it, "
        f"no run of 4 of their words{words}",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
