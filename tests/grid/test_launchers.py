"""A grid on several cores: whatever starts its jobs, their results, the table and the exit status are the same."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from support.helpers import ROOT, TINY, command, compose, python, raw
from threadpoolctl import threadpool_info, threadpool_limits

from unlearn.config.schema import conf_dir
from unlearn.grid import launchers
from unlearn.grid.rules import parse
from unlearn.learning.loop import limit_threads
from unlearn.store import runlog

OWN = """
import os
import signal

from unlearn.learning.answers import Answers, PerAnswer

_steps = []


def fine(forget: Answers) -> PerAnswer:
    return forget.logp_of_answer


def bad(forget: Answers) -> PerAnswer:
    raise OSError("the disk of this job is gone")


def diverges(forget: Answers) -> PerAnswer:
    _steps.append(0)
    return forget.logp_of_answer * (float("nan") if len(_steps) == 2 else 1)


def killed(forget: Answers) -> PerAnswer:
    os.kill(os.getpid(), signal.SIGKILL)
"""
FORMS = {  # the threads that the call's own environment asks for differ, and change no digit
    "basic": (("algo.forget=bad,diverges,fine",), {}),
    "joblib": (("algo.forget=killed,bad,fine", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
               {"OMP_NUM_THREADS": "2"}),
    "submitit_local": (("algo.forget=killed,bad,fine", "hydra/launcher=submitit_local"),
                       {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "2"}),
}  # fmt: skip
STATUS = {"bad": "failed", "diverges": "failed", "killed": "killed", "fine": "done"}
GRID = ("-m", *TINY, "algo=ga", "algo.file=own.py", "algo.name=own", "trainer.eval_every=0")


@dataclass(frozen=True)
class Call:
    """A grid of jobs that raise, diverge, are killed, or are done, named by the term of their objective."""

    cwd: Path
    terms: list[str]
    done: subprocess.CompletedProcess[str]

    def folders(self) -> dict[str, Path]:
        found = {}
        for path in (self.cwd / "runs" / "default").glob("*/config.yaml"):
            config = path.read_text()
            found[next(term for term in STATUS if f"forget: {term}\n" in config)] = path.parent
        return found

    def manifests(self) -> dict[str, dict]:
        return {term: json.loads((folder / "manifest.json").read_text()) for term, folder in self.folders().items()}

    def rows(self) -> dict[str, list[str]]:
        """What the table at the end says of each term's run, without the seconds."""
        rows = [line.split() for line in self.done.stdout.splitlines() if line.startswith("own ")]
        return {next(word for word in row if word in STATUS): [*row[:-2], row[-1]] for row in rows}


def called(name: str, cwd: Path, store: Path) -> Call:
    given, threads = FORMS[name]
    (cwd / "own.py").write_text(OWN)
    arguments = ("unlearn.run", *GRID, f"paths.store={store}", *given)
    if name == "basic":
        done = command(*arguments, cwd=cwd, check=False)
    else:
        done = python("-m", *arguments, cwd=cwd, check=False, **threads)
    return Call(cwd, given[0].partition("=")[2].split(","), done)


@pytest.fixture(scope="module")
def basic(tmp_path_factory, store) -> Call:
    return called("basic", tmp_path_factory.mktemp("basic"), store)


@pytest.mark.parametrize(
    "launcher", ["basic", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("joblib", "submitit_local"))]
)
def test_a_broken_job_stops_no_other_whatever_starts_the_jobs(launcher, basic, tmp_path, store):
    """With joblib in a store of its own, which is empty at first."""
    own = launcher == "joblib"
    call = basic if launcher == "basic" else called(launcher, tmp_path, tmp_path / "store" if own else store)
    said = call.done.stdout + call.done.stderr
    assert call.done.returncode == 1, said
    found, folders = call.manifests(), call.folders()
    assert {term: m["status"] for term, m in found.items()} == {term: STATUS[term] for term in call.terms}, said
    assert {term: row[-1] for term, row in call.rows().items()} == {term: STATUS[term] for term in call.terms}, said
    assert found["bad"]["error"] == "OSError: the disk of this job is gone"
    assert "Traceback" in (folders["bad"] / "log.txt").read_text()
    if launcher == "basic":
        assert found["diverges"]["error"].startswith("Diverged: step 2: loss nan") and "Traceback" not in said
    else:
        assert "was killed" in found["killed"]["error"]
    for term, m in found.items():
        assert (f"{folders[term].name}: " in call.done.stdout) == (m["status"] != "done")
        assert m["hardware"]["threads"] == 1
        assert m["command"][:2] == ["run.py", "-m"] and FORMS[launcher][0][0] in m["command"]
    for file in ("metrics.jsonl", "eval.json", "offset/model.safetensors", "examples.parquet"):
        assert (folders["fine"] / file).read_bytes() == (basic.folders()["fine"] / file).read_bytes(), file
    assert all(call.rows()[term] == basic.rows()[term] for term in ("bad", "fine"))
    if own:  # two workers build each model once: two pretrained models; target, retrained and small from them
        trained = re.findall(r"training the (.*?):", call.done.stdout)
        assert len(trained) == len(set(trained)) == 5 and "it is built again" not in call.done.stdout


@pytest.mark.nightly
def test_a_job_that_is_preempted_resumes_from_its_checkpoint_to_the_same_bytes(tmp_path, store):
    """Submitit's own signal of a preemption, to the process of a job that W&B mirrors: it is saved and put back into
    submitit's queue, and the call that started it waits for its end."""
    grid = ("-m", *TINY[:-1], "wandb=offline", f"paths.store={store}", "algo=ga", "trainer.steps=400",
            "trainer.eval_every=100", "trainer.log_every=1", "hydra/launcher=submitit_local")  # fmt: skip
    (tmp_path / "straight").mkdir()
    python("-m", "unlearn.run", *grid, "hydra/launcher=basic", cwd=tmp_path / "straight")
    arguments = [sys.executable, "-m", "unlearn.run", *grid]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    main = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    deadline, folder = time.monotonic() + 120, None
    while folder is None or len((folder / "metrics.jsonl").read_text().splitlines()) < 20:
        assert time.monotonic() < deadline and main.poll() is None
        folder = next((p.parent for p in (tmp_path / "runs").glob("default/*/metrics.jsonl")), None)
        time.sleep(0.02)
    jobs = (p for p in Path("/proc").glob("[0-9]*/cmdline") if b"submitit.core._submit" in p.read_bytes())
    (job,) = (p for p in jobs if str(tmp_path).encode() in p.read_bytes())
    os.kill(int(job.parent.name), signal.SIGUSR2)
    said = main.communicate(timeout=120)[0]
    assert main.returncode == 0 and " done" in said and runlog.manifest(folder)["status"] == "done"
    log = (folder / "log.txt").read_text()
    (saved,) = re.findall(r"stopped after step (\d+) of 400: saved", log)
    assert f"resuming at step {saved} of 400" in log
    straight = tmp_path / "straight" / folder.relative_to(tmp_path)
    for file in ("metrics.jsonl", "eval.json", "offset/model.safetensors", "examples.parquet"):
        assert (folder / file).read_bytes() == (straight / file).read_bytes(), file


@pytest.mark.nightly
def test_the_same_call_again_with_another_launcher_does_nothing(basic, store):
    before, options = basic.manifests(), ("algo.forget=fine", f"paths.store={store}", "hydra/launcher=joblib")
    done = python("-m", "unlearn.run", *GRID, *options, cwd=basic.cwd)
    assert done.stdout.count("done before") == 1 and basic.manifests() == before


def test_every_library_that_computes_keeps_to_the_limit():
    with threadpool_limits(2):
        assert 2 in [p["num_threads"] for p in threadpool_info()] or os.cpu_count() == 1
        limit_threads(1)
        assert {p["num_threads"] for p in threadpool_info()} == {torch.get_num_threads()} == {1}


@pytest.fixture
def job_of():
    """Function that makes this process a job of a grid under a launcher."""

    def job(launcher: str, mode: str = "MULTIRUN", folder: str = "unused") -> None:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            overrides = [f"hydra/launcher={launcher}", f"hydra.mode={mode}", f"hydra.sweep.dir={folder}"]
            HydraConfig.instance().set_config(hydra_compose("config", overrides=overrides, return_hydra_config=True))

    yield job
    HydraConfig.instance().cfg = None


def test_there_are_bars_only_where_one_job_runs_at_a_time(job_of):
    config = raw()
    assert launchers.quiet(parse(config)).trainer.progress
    for launcher, mode, bars in (("basic", "MULTIRUN", True), ("joblib", "RUN", True), ("joblib", "MULTIRUN", False),
                                 ("submitit_local", "MULTIRUN", False)):  # fmt: skip
        job_of(launcher, mode)
        assert launchers.quiet(parse(config)).trainer.progress is bars
    assert config.trainer.progress  # the config itself is what was asked for


def test_submitit_jobs_wait_for_a_core_of_their_own(job_of, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    cfg = compose("trainer.threads=2")  # so: two at a time
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        first.release()

    first, second = (FileLock(tmp_path / f".place-{k}.lock") for k in (0, 1))
    first.acquire()
    second.acquire()
    monkeypatch.setattr(launchers.time, "sleep", sleep)
    job_of("joblib", folder=str(tmp_path))
    with launchers.turn(cfg):  # joblib has a limit of its own
        assert not slept
    job_of("submitit_local", folder=str(tmp_path))
    with launchers.turn(cfg):
        assert len(slept) == 1 and not first.is_locked
        with pytest.raises(TimeoutError):
            FileLock(tmp_path / ".place-0.lock").acquire(timeout=0)
    with FileLock(tmp_path / ".place-0.lock").acquire(timeout=0):
        assert second.is_locked
    second.release()
