"""The run folder: the whole truth about a run, which W&B mirrors (``mirror.py``).

Files are written under a temporary name and renamed; only ``metrics.jsonl`` grows, and is cut back on a resume.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from unlearn.config.derived import alpha_key, describe, eval_alphas
from unlearn.config.redaction import redact, redacted
from unlearn.config.schema import Config
from unlearn.store import processes, seal
from unlearn.store.files import FileError, read_json, saving, sweep, sync, write_json, write_text, write_whole
from unlearn.store.identity import Job, run_folder
from unlearn.store.locks import Place
from unlearn.store.mirror import Mirror, opened

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
MANIFEST, METRICS, EVAL, EXAMPLES, CONFIG = (
    "manifest.json", "metrics.jsonl", "eval.json", "examples.parquet", "config.yaml",
)  # fmt: skip
REFERENCES = "references.parquet"  # the same of target and retrained
OFFSET, ADAPTER, BEST, CHECKPOINT = seal.OFFSET, seal.ADAPTER, seal.BEST, "checkpoint"
PARTS = "parts"  # of an evaluation that is not whole (evaluation/scoring.py)
DIVERGED = "diverged.json"  # the step at which a loss or gradient was no longer a number, and what it read
FORMAT = 1
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is seven times as fast
MISSED = "wandb_missed"  # in the manifest: the mirror lacks something
NAME = "delta-unlearning"  # of the package
COMMAND = "UNLEARN_COMMAND"  # in the environment: what the user called, for jobs in processes of their own
PACKAGES = ("torch", "transformers", "accelerate", "hydra-core", "wandb", "datasets", "evaluate", "pandas", "numpy")
unrecorded: dict[Path, str] = {}  # errors of this process's jobs that could not be written into their folders


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder; empty where there is none."""
    found = read_json(path := folder / MANIFEST)
    if found is None:
        return {}
    format = found.get("format", FORMAT) if isinstance(found, dict) else None
    if format != FORMAT:
        raise FileError(f"{path}: run format {format!r}, and this program reads {FORMAT}; remove the folder to rerun")
    return found


def evaluation(folder: Path) -> dict[str, Any]:
    """The content of eval.json: entries by α, and those of target and retrained model."""
    return read_json(folder / EVAL) or {"alphas": {}, "references": {}}


def missing_alphas(job: Job) -> list[float]:
    """α's asked for that were not evaluated yet, or were under other settings."""
    entries = evaluation(job.folder)["alphas"]
    return [a for a in eval_alphas(job.cfg) if entries.get(alpha_key(a), {}).get("settings") != job.settings]


def job(cfg: Config, data: str) -> Job:
    """The run that a config asks for; ``data`` is the fingerprint of its data set."""
    found = Job(cfg, run_folder(cfg, data), data, was_done=False)
    return replace(found, was_done=is_done(found))


def is_done(job: Job) -> bool:
    """Whether a run is trained, and evaluated at every α asked for; and its files are as it left them."""
    try:
        found = manifest(job.folder)
        seal.check_results(job.folder, found)
        return found.get("status") == "done" and not missing_alphas(job)
    except ValueError:  # a damaged file: the job itself refuses it by name, and stops no other job
        return False


def status(folder: Path, verify: bool = True) -> dict[str, Any]:
    """The manifest as a table shows it: of a damaged run it says so and why; and no damage hides other runs.

    ``verify``: compare its files with their checksums, too.
    """
    found: dict[str, Any] = {}
    try:
        found = manifest(folder)
        if verify:
            seal.check_results(folder, found)
    except ValueError as error:
        return found | {"status": "damaged", "error": str(error)}
    return found | ({"status": "failed", "error": unrecorded[folder]} if folder in unrecorded else {})


def fail(job: Job, error: BaseException, status: str = "failed", **more: Any) -> None:
    """Record the error; what was already written stays, and a run that was complete before stays done.

    A manifest that cannot be read is not written over: it is evidence, and the table of the call names it.
    """
    unrecorded.pop(job.folder, None)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        record = {"format": FORMAT, "run": describe(job.cfg), "seconds": {}} | manifest(job.folder)
        write_json(job.folder / MANIFEST, record | _failed(job.folder, record, error, status) | more)
    except FileError:
        return
    except OSError as other:  # a disk that is full or read-only holds no record of that either
        unrecorded[job.folder] = redact(f"{type(error).__name__}: {error}")
        log.error("the failure of %s could not be recorded in its folder: %s", job.folder.name, other)


def _failed(folder: Path, manifest: Mapping[str, Any], error: BaseException, status: str = "failed") -> dict[str, Any]:
    """What a manifest says of an error. Done stays only what is still as it was sealed."""
    done = {"status": "done", "error": redact(f"{type(error).__name__}: {error}")}
    with suppress(ValueError):
        if manifest.get("completed"):
            seal.check_results(folder, manifest | done)
            return done
    return done | {"status": status}


def own_seconds(manifest: dict[str, Any]) -> float:
    """Seconds that the run took itself; preparing what all runs share is left out."""
    return sum(v for stage, v in manifest.get("seconds", {}).items() if stage != "prepare")


class RunLog:
    """Writes one run folder, and mirrors it to W&B within ``mirrored``. ``Gone`` where that is no longer there."""

    def __init__(self, job: Job, config_yaml: str):
        self.job, self.folder = job, job.folder
        with saving(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._place = Place(self.folder)
        sweep(self.folder)
        self.mirror = Mirror()
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

    @contextmanager
    def mirrored(self, cfg: Config) -> Iterator[None]:
        """Mirror the run to W&B for the length of the block, with the config it was trained with."""
        config = yaml.load((self.folder / CONFIG).read_text(encoding="utf-8"), Loader=LOADER)
        id, rows = self.manifest.get("wandb"), self.folder / METRICS
        start = self.manifest.get("wandb_row", 0)
        if id is not None:  # more rows than the part before this one can have
            start += 10 + (len(rows.read_text(encoding="utf-8").splitlines()) if rows.is_file() else 0)
        with opened(cfg.wandb, self.folder, describe(cfg), config, id, start) as self.mirror:
            if self.mirror.id is not None:
                self.status(self.manifest["status"], wandb=self.mirror.id, wandb_row=start)
            try:
                yield
                if self.manifest.get(MISSED):
                    self._mirror_again()
            except Exception as error:
                self.mirror.manifest(self.manifest | _failed(self.folder, self.manifest, error))
                raise
            finally:
                self.mirror = Mirror()

    def _mirror_again(self) -> None:
        """Mirror the folder from its first row: W&B did not work for a while, in this call or an earlier one."""
        import pandas as pd

        rows = self.folder / METRICS
        self.mirror.again()
        self.mirror.rewind(-1)
        for line in rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else ():
            self.mirror.log(json.loads(line))
        if (self.folder / EVAL).is_file():
            tables = (pd.read_parquet(self.folder / name) for name in (EXAMPLES, REFERENCES))
            self._mirror_evaluation(evaluation(self.folder), *tables)
        self.manifest.pop(MISSED)
        self.status(self.manifest["status"], wandb=self.mirror.id)

    def status(self, status: str, **more: Any) -> None:
        self.manifest |= {"status": status} | more | ({MISSED: True} if self.mirror.missed else {})
        write_json(self._place.still() / MANIFEST, self.manifest)
        self.mirror.manifest(self.manifest)

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
        alphas = evaluation(self.folder)["alphas"].items()
        values = [f"α={float(a):g} forget {m['forget/prob']:.3f}, retain {m['retain/prob']:.3f}" for a, m in alphas]
        return f"{self.folder.name} done in {own_seconds(self.manifest):.0f} s: probability at {'; '.join(values)}"

    def rewind(self, step: int) -> None:
        """Drop logged steps after ``step``: a resumed run writes them again."""
        path, kept = self.folder / METRICS, []
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        with suppress(json.JSONDecodeError):  # the line a kill tore apart
            for line in lines:
                if json.loads(line)["step"] > step:
                    break
                kept.append(line)
        write_text(path, "".join(line + "\n" for line in kept))
        if len(kept) < len(lines):
            self.mirror.rewind(step)

    def log(self, step: int, epoch: float, values: dict[str, float]) -> None:
        record = {"step": step, "epoch": round(epoch, 4)} | values
        path = self._place.still() / METRICS
        with saving(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        self.mirror.log(record)

    def sync(self) -> None:
        """Have the logged steps on the disk, before a checkpoint or the weights say that they were made."""
        sync(self.folder / METRICS)

    def diverged(self, found: Mapping[str, Any]) -> None:
        write_json(self.folder / DIVERGED, found)

    def evaluated(
        self, alphas: Mapping[float, dict[str, Any]], examples: pd.DataFrame, references: Mapping[str, Any]
    ) -> None:
        """Add evaluated α's with a table of their examples, and the ``metrics`` and ``examples`` of each reference.

        Entries that were evaluated under other settings are dropped: they do not belong on one curve with these.
        """
        import pandas as pd

        path, settings = self.folder / EXAMPLES, next(iter(alphas.values()))["settings"]
        before = evaluation(self.folder)
        known = {a: m for a, m in before["alphas"].items() if m.get("settings") == settings}
        if len(known) < len(before["alphas"]):  # first: a kill in between must not leave entries without their examples
            write_json(self.folder / EVAL, before | {"alphas": known})
        if path.is_file() and known:
            old = pd.read_parquet(path)
            kept = old["alpha"].isin([float(a) for a in known]) & ~old["alpha"].isin(list(alphas))
            examples = pd.concat([old[kept], examples], ignore_index=True)
        examples = examples.sort_values("alpha", kind="stable")
        write_whole(path, lambda p: examples.to_parquet(p, index=False))
        theirs = pd.concat([r.examples.assign(model=name) for name, r in references.items()], ignore_index=True)
        write_whole(self.folder / REFERENCES, lambda p: theirs.to_parquet(p, index=False))
        entries = known | {alpha_key(a): m for a, m in alphas.items()}
        entries = dict(sorted(entries.items(), key=lambda item: float(item[0])))
        found = {"alphas": entries, "references": {name: dict(r.metrics) for name, r in references.items()}}
        write_json(self.folder / EVAL, found)
        self._mirror_evaluation(found, examples, theirs)

    def _mirror_evaluation(self, found: Mapping[str, Any], examples: pd.DataFrame, theirs: pd.DataFrame) -> None:
        files = [self.folder / name for name in (EVAL, EXAMPLES, REFERENCES)]
        weights = [self.folder / name for name in (OFFSET, ADAPTER)]
        self.mirror.evaluated(found, examples, theirs, files, weights)


def environment() -> dict[str, Any]:
    """Where and with what a run was made."""
    import torch

    several = {"processes": processes.size()} if processes.together() else {}
    return {
        "command": json.loads(os.environ.get(COMMAND, "null")) or [Path(sys.argv[0]).name, *redacted(sys.argv[1:])],
        "git": _commit(Path(__file__).resolve().parent),
        "versions": _versions(),
        "hardware": {"machine": platform.machine(), "system": platform.system(), "threads": torch.get_num_threads(),
                     "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None} | several,
    }  # fmt: skip


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


@cache
def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in (NAME, *PACKAGES)}


@cache  # a process continues with the code that it has imported
def _commit(store: Path) -> dict[str, Any] | None:
    """What the code is of: by git in a checkout, else as the build of the wheel wrote it down (hatch_build.py)."""
    if not (store.parents[1] / ".git").exists():  # an installed package may lie in somebody else's repository
        return read_json(store.parent / "commit.json")
    commit, changes = _git(store, "rev-parse", "HEAD"), _git(store, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says of the checkout that a folder is in; None without one."""
    call = "git", "-C", str(folder), *arguments
    try:
        return subprocess.check_output(call, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
