"""``python -m unlearn.fuse runs=[FOLDER,…] to=FOLDER``: one trained member from those of several requests, as a run.

  how=regmean     unlearning layers, by the inner products that each run left (EUL's fusion): the default
  how=average     the mean of the weights: layers, or whole models
  how=sum         the sum of the changes: layers side by side, or base + Σ (model − base)
  ridge=1e-6      of regmean: a pull towards the average, as a share of the mean diagonal of the inner products

The runs share method, models and tuning; what they forgot may differ. TO gets the config of the first, whose data set
it is evaluated on, and can be given as run= to evaluate, generate, calibrate and harness; give it a study of its own.
Bottlenecks are aligned only if all runs began with the same layers (the same seed, pair.layers and model).
May be given: trainer.device, trainer.threads, paths.store, data.path.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unlearn.config.derived import describe, tuning
from unlearn.config.pair import ADAPTER_FILE, GRAM, LAYERS
from unlearn.config.schema import ConfigError
from unlearn.config.setting import need
from unlearn.data.rows import DataError
from unlearn.grid.rerun import load, split
from unlearn.store import runlog, seal
from unlearn.store.files import FileError, write_folder, write_json
from unlearn.store.identity import Job

log = logging.getLogger(__name__)
HOW = ("regmean", "average", "sum")
OWN = ("runs", "to", "how", "ridge")
RIDGE = 1e-6


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    given, rest = split(arguments, OWN)
    if "--help" in arguments or not {"runs", "to"} <= set(given):
        print(__doc__.strip())
        return 0 if "--help" in arguments else 2
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    try:
        folders = [f.strip() for f in given["runs"].strip("[]").split(",") if f.strip()]
        jobs = [load(folder, rest)[1] for folder in folders]
        how, ridge, to = given.get("how", HOW[0]), _ridge(given.get("ridge")), _place(given["to"])
        check(jobs, how)
        about = fuse(jobs, how, ridge, to)
    except (ConfigError, DataError, FileError) as error:
        print(f"Refused:\n  {error}", file=sys.stderr)
        return 2
    worst = max((r["outputs"] for r in about["residuals"].values()), default=None)
    note = "" if worst is None else f"; at most {worst:.1%} of a linear's outputs on the requests changed"
    print(f"written: {to}: {len(jobs)} requests by {how}{note}")
    return 0


def _ridge(text: str | None) -> float:
    try:
        ridge = RIDGE if text is None else float(text)
    except ValueError:
        ridge = math.nan
    if not 0 <= ridge < math.inf:
        raise ConfigError(f"ridge={text}: must be a finite number of at least 0")
    return ridge


def _place(to: str) -> Path:
    place = Path(to)
    if not to or place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise ConfigError(f"to={to!r}: must be a folder that is not there yet, or an empty one")
    return place


def check(jobs: Sequence[Job], how: str) -> None:
    """Raise ``ConfigError`` for runs that cannot be fused so."""
    problems = list(need(how in HOW, "how", how, f"must be one of {', '.join(HOW)}"))
    if not jobs:
        problems.append("runs=[]: needs the folder of one run at least")
    for job in jobs:
        seal.check_weights(job.folder, runlog.manifest(job.folder))
    for name, of in _SHARED.items():
        values = {str(job.folder): of(job) for job in jobs}
        if len({repr(v) for v in values.values()}) > 1:
            found = "; ".join(f"{value} ({folder})" for folder, value in values.items())
            problems.append(f"runs: {name} must be the same, and is {found}")
    if jobs and not any(m.trained for m in jobs[0].cfg.method.members):
        problems.append(f"method={jobs[0].cfg.method.name!r}: nothing was trained, so there is nothing to fuse")
    if jobs and how == "regmean":
        lacking = [str(job.folder) for job in jobs if not (job.folder / runlog.ADAPTER / GRAM).is_file()]
        if lacking:
            rule = f"needs the inner products of unlearning layers: no {runlog.ADAPTER}/{GRAM} in {lacking[0]}"
            problems.append(f"how='regmean': {rule}; take average or sum")
    if problems:
        raise ConfigError("\n  ".join(problems))
    starts = {(job.cfg.seed, repr(job.cfg.pair.layers)) for job in jobs}
    if how != "sum" and tuning(jobs[0].cfg) == LAYERS and len(starts) > 1:
        log.warning("the runs did not begin with the same layers (seed): the units of their bottlenecks do not match")


_SHARED = {
    "method": lambda job: (job.cfg.method.name, [asdict(m) for m in job.cfg.method.members]),
    "tuning": lambda job: tuning(job.cfg),
    "the models": lambda job: runlog.manifest(job.folder).get("models"),
}


def fuse(jobs: Sequence[Job], how: str, ridge: float, to: Path) -> dict[str, Any]:
    """Write the folder, whole or not at all; what its manifest says of the fusion."""
    first = jobs[0]
    manifests = [runlog.manifest(job.folder) for job in jobs]
    about = {
        "like": manifests[0].get("fused", {}).get("like", first.folder.resolve().name),
        "how": how,
        "ridge": ridge if how == "regmean" else None,
        "requests": [{"run": job.folder.resolve().name, "data": job.data, "weights": m[seal.WEIGHTS]}
                     for job, m in zip(jobs, manifests, strict=True)],
        "residuals": {},
    }  # fmt: skip

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / runlog.CONFIG).write_bytes((first.folder / runlog.CONFIG).read_bytes())
        make = _layers if tuning(first.cfg) == LAYERS else _whole
        about["residuals"] = make(jobs, how, ridge, folder)
        manifest = {
            "format": runlog.FORMAT, "status": "done", "error": None, "run": describe(first.cfg),
            "seed": first.cfg.seed, "trained": True, "completed": True, "collapsed": None, "kept": "last",
            "seconds": {}, "data": first.data,
            "models": manifests[0]["models"], "fused": about, **runlog.environment(),
        }  # fmt: skip
        sealed = {seal.WEIGHTS: seal.weights(folder), seal.RESULTS: seal.results(folder)}
        write_json(folder / runlog.MANIFEST, manifest | sealed)

    to.parent.mkdir(parents=True, exist_ok=True)
    write_folder(to, write)
    return about


def _layers(jobs: Sequence[Job], how: str, ridge: float, folder: Path) -> dict[str, Any]:
    """Write fused layers; by name of a linear, how well it stands for all requests.

    Fused inner products are the sum of the requests': with them the result can be fused on with later ones.
    """
    from safetensors.torch import save_file

    from unlearn.models import fusion, layers
    from unlearn.runs import begin

    runs = [job.folder for job in jobs]
    weights, configs = begin.tables(runs, ADAPTER_FILE), [layers.read_config(r / runlog.ADAPTER) for r in runs]
    if len({c.activation for c in configs}) > 1:
        raise ConfigError(f"runs: pair.layers.activation must be the same, and is {[c.activation for c in configs]}")
    residuals, grams = {}, begin.tables(runs, GRAM) if how == "regmean" else []
    try:
        if how == "regmean":
            found = fusion.fuse(weights, grams, ridge)
            fused, residuals = found.weights, {name: asdict(r) for name, r in found.residuals.items()}
        else:
            fused = (fusion.average if how == "average" else fusion.summed)(weights)
    except fusion.FusionError as error:
        raise ConfigError(f"runs: {error}") from None
    size = next(len(w) for name, w in fused.items() if layers.DOWN in name)
    place = folder / runlog.ADAPTER
    layers.write({n: w.float() for n, w in fused.items()}, replace(configs[0], bottleneck=size), place)
    if grams:
        save_file({name: sum(g[name] for g in grams) for name in grams[0]}, place / GRAM)
    return residuals


def _whole(jobs: Sequence[Job], how: str, ridge: float, folder: Path) -> Mapping[str, Any]:
    """Write a fused model of those that were trained whole (or by LoRA, whose updates are in the weights)."""
    from unlearn.config.schema import BeginConfig
    from unlearn.models import llama
    from unlearn.runs import begin
    from unlearn.runs.learner import initialise, save
    from unlearn.runs.workbench import workbench

    cfg = jobs[0].cfg
    initialise(cfg)
    bench = workbench(cfg)
    start = bench.model(next(m.model for m in cfg.method.members if m.trained))
    model = copy.deepcopy(start).cpu()
    share = 1.0 if how == "sum" else 1 / len(jobs)
    runs = BeginConfig([str(job.folder) for job in jobs], [share] * len(jobs))
    begin.take_over(model, runs, llama.fingerprint(start))
    save(model, bench, folder / runlog.OFFSET)
    return {}


if __name__ == "__main__":
    sys.exit(main())
