"""The run folder: the whole truth about a run. W&B mirrors it and holds nothing that the folder lacks.

Files are written under a temporary name and renamed; ``metrics.jsonl`` alone grows line by line, and is cut back to
the checkpoint when a run is resumed.
"""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unlearn.config import Config
from unlearn.files import read_json, write_json, write_text
from unlearn.identity import Job, alpha_key, describe, eval_alphas, eval_settings
from unlearn.redaction import redact, redacted

log = logging.getLogger(__name__)
MANIFEST, METRICS, EVAL, EXAMPLES, CONFIG = (
    "manifest.json", "metrics.jsonl", "eval.json", "examples.parquet", "config.yaml",
)  # fmt: skip
OFFSET, BEST, CHECKPOINT = "offset", "best", "checkpoint"
FORMAT = 1
PACKAGES = ("torch", "transformers", "accelerate", "hydra-core", "wandb", "datasets", "evaluate", "pandas", "numpy")


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder; empty where there is none."""
    return read_json(folder / MANIFEST) or {}


def evaluation(folder: Path) -> dict[str, Any]:
    return read_json(folder / EVAL) or {"alphas": {}, "references": {}}


def missing_alphas(folder: Path, cfg: Config, data: str) -> list[float]:
    """α's asked for that were not evaluated yet, or were under other settings; ``data`` is the data's fingerprint."""
    entries, settings = evaluation(folder)["alphas"], eval_settings(cfg, data)
    return [a for a in eval_alphas(cfg) if entries.get(alpha_key(a), {}).get("settings") != settings]


def is_done(folder: Path, cfg: Config, data: str) -> bool:
    """Trained, and evaluated at every α asked for under these settings."""
    try:
        return manifest(folder).get("status") == "done" and not missing_alphas(folder, cfg, data)
    except ValueError:  # a damaged file: the job itself refuses it by name, and stops no other job
        return False


def fail(job: Job, error: Exception) -> None:
    """Record the error; what was already written stays, and a run that was complete before stays done."""
    job.folder.mkdir(parents=True, exist_ok=True)
    record = {"run": describe(job.cfg), "seconds": {}} | manifest(job.folder)
    write_json(
        job.folder / MANIFEST,
        record
        | {
            "status": "done" if record.get("completed") else "failed",
            "error": redact(f"{type(error).__name__}: {error}"),
        },
    )


def own_seconds(manifest: dict[str, Any]) -> float:
    """Seconds that the run took itself; preparing what all runs share is left out."""
    return sum(v for stage, v in manifest.get("seconds", {}).items() if stage != "prepare")


class RunLog:
    """Writes one run folder, and mirrors it to W&B when given a W&B run."""

    def __init__(self, job: Job, config_yaml: str):
        self.folder = job.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.wandb = None
        old = manifest(self.folder)
        fixed = {"format": FORMAT, "error": None, "run": describe(job.cfg), "seed": job.cfg.seed}
        if old.get("trained"):  # config and provenance stay those of the training; later calls are added
            self.manifest = old | fixed
            self.manifest["evaluations"] = [*old.get("evaluations", []), environment()]
        else:
            write_text(self.folder / CONFIG, config_yaml)
            self.manifest = old | fixed | environment()
        self.manifest.setdefault("seconds", {})
        self.status("running")

    def status(self, status: str, **more: Any) -> None:
        self.manifest |= {"status": status} | more
        write_json(self.folder / MANIFEST, self.manifest)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of a stage to the manifest."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = self.manifest["seconds"].get(name, 0.0) + time.perf_counter() - start
            self.manifest["seconds"][name] = round(spent, 3)
            self.status(self.manifest["status"])

    def headline(self) -> str:
        """One line about a finished run."""
        values = [
            f"α={float(a):g} forget {m['forget/prob']:.3f}, retain {m['retain/prob']:.3f}"
            for a, m in evaluation(self.folder)["alphas"].items()
        ]
        return f"{self.folder.name} done in {own_seconds(self.manifest):.0f} s: probability at {'; '.join(values)}"

    def rewind(self, step: int) -> None:
        """Drop logged steps after ``step``: a resumed run writes them again."""
        path = self.folder / METRICS
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] > step:
                    break
            except json.JSONDecodeError:  # the line a kill tore apart
                break
            kept.append(line)
        write_text(path, "".join(line + "\n" for line in kept))

    def log(self, step: int, epoch: float, values: dict[str, float]) -> None:
        record = {"step": step, "epoch": round(epoch, 4)} | values
        with (self.folder / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        self._mirror(lambda run: run.log(record))

    def evaluated(self, alphas: dict[float, dict[str, Any]], references: dict[str, dict[str, Any]], examples) -> None:
        """Add evaluated α's (a DataFrame of their examples with them).

        Entries that were evaluated under other settings are dropped: they do not belong on one curve with these.
        """
        import pandas as pd

        path, settings = self.folder / EXAMPLES, next(iter(alphas.values()))["settings"]
        known = {a: m for a, m in evaluation(self.folder)["alphas"].items() if m.get("settings") == settings}
        if path.is_file() and known:
            old = pd.read_parquet(path)
            kept = old["alpha"].isin([float(a) for a in known]) & ~old["alpha"].isin(list(alphas))
            examples = pd.concat([old[kept], examples], ignore_index=True)
        temporary = path.with_name("." + path.name)
        examples.sort_values("alpha", kind="stable").to_parquet(temporary, index=False)
        temporary.replace(path)
        entries = known | {alpha_key(a): m for a, m in alphas.items()}
        entries = dict(sorted(entries.items(), key=lambda item: float(item[0])))
        write_json(self.folder / EVAL, {"alphas": entries, "references": references})
        self._mirror(lambda run: run.summary.update({"alphas": entries, "references": references}))
        self._mirror(self._artifact)

    def _mirror(self, act: Callable[[Any], None]) -> None:
        """Do something with the W&B run; if that fails, say so once and go on without W&B: the folder is the truth."""
        if self.wandb is None:
            return
        try:
            act(self.wandb)
        except Exception as error:
            log.warning("W&B stopped working (%s: %s); the run goes on without it", type(error).__name__, error)
            self.wandb = None

    def _artifact(self, run: Any) -> None:
        import wandb

        artifact = wandb.Artifact(f"run-{run.id}", type="run")
        for path in (self.folder / EVAL, self.folder / EXAMPLES, *sorted((self.folder / OFFSET).glob("*"))):
            # immutable: the file is uploaded from where it lies, not copied into a staging folder first
            artifact.add_file(str(path.resolve()), name=str(path.relative_to(self.folder)), policy="immutable")
        run.log_artifact(artifact)


@contextmanager
def wandb_run(
    record: RunLog, mode: str, project: str, entity: str | None, group: str, config: dict[str, Any]
) -> Iterator[None]:
    """Mirror the run to W&B for the length of the block; nothing is imported when W&B is disabled."""
    if mode == "disabled":
        yield
        return
    import wandb

    # finish_previous: without it, a job whose predecessor failed would write into the predecessor's W&B run.
    with wandb.init(
        project=project,
        entity=entity,
        group=group,
        name=record.folder.name,
        job_type="unlearn",
        mode=mode,
        config=config,
        dir=str(record.folder),
        tags=[config["algo.name"], config["data.name"]],
        id=record.manifest.get("wandb"),  # a resumed run goes on in the W&B run it began
        resume="allow",
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off"),
    ) as run:
        for name in ("train/*", "forget/*", "retain/*", "real_authors/*", "world_facts/*", "held_out/*"):
            run.define_metric(name, step_metric="step")
        record.wandb = run
        record.manifest["wandb"] = run.id
        try:
            yield
        finally:
            record.wandb = None


def environment() -> dict[str, Any]:
    """Where and with what a run was made."""
    import torch

    return {
        "command": [Path(sys.argv[0]).name, *redacted(sys.argv[1:])],
        "git": _git(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "hardware": {"machine": platform.machine(), "system": platform.system(), "threads": torch.get_num_threads(),
                     "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None},
    }  # fmt: skip


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the checkout the code runs from; None for an installed package."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None
