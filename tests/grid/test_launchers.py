"""A grid on several cores: whatever starts its jobs, their results, the table and the exit status are the same."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from support.helpers import ROOT, TINY, broken, compose, python, raw

from unlearn.config.schema import conf_dir
from unlearn.grid import launchers
from unlearn.grid.rules import parse

# Two runs that fail and two that do not, of one world.
GRID = ("-m", *TINY, "algo=ga,npo", "method.file=null,broken.py", "eval.groups=[]")
FORMS = {  # the threads that the call's own environment asks for differ, and change no digit
    "basic": ((), {"OMP_NUM_THREADS": "2"}),
    "joblib": (("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), {}),
    "submitit_local": (("hydra/launcher=submitit_local",), {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "2"}),
}


@dataclass(frozen=True)
class Call:
    cwd: Path
    done: subprocess.CompletedProcess[str]

    def folders(self) -> dict[str, Path]:
        return {p.parent.name: p.parent for p in sorted((self.cwd / "runs" / "default").glob("*/manifest.json"))}

    def manifests(self) -> dict[str, dict]:
        return {name: json.loads((folder / "manifest.json").read_text()) for name, folder in self.folders().items()}

    def table(self) -> list[str]:
        """What is printed at the end, without the seconds."""
        lines = self.done.stdout.splitlines()
        first = next(i for i, line in enumerate(lines) if "algorithm" in line) - 1
        return [re.sub(r"\s+\d+\s+(done|failed)", r" \1", line).rstrip() for line in lines[first:]]


def called(name: str, cwd: Path, store: Path) -> Call:
    arguments, threads = FORMS[name]
    broken(cwd)
    plain = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-m", "unlearn.run", *GRID, f"paths.store={store}", *arguments], cwd=cwd, text=True,
        env=plain | threads | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=300,
    )  # fmt: skip
    return Call(cwd, done)


@pytest.fixture(scope="module")
def basic(tmp_path_factory, store) -> Call:
    return called("basic", tmp_path_factory.mktemp("basic"), store)


@pytest.fixture(scope="module", params=["joblib", "submitit_local"])
def parallel(request, tmp_path_factory, store) -> Call:
    """With joblib in a store of its own, which is empty at first."""
    cwd = tmp_path_factory.mktemp(request.param)
    return called(request.param, cwd, cwd / "store" if request.param == "joblib" else store)


@pytest.mark.nightly
def test_results_are_the_same_to_the_last_digit(basic, parallel):
    assert parallel.folders().keys() == basic.folders().keys() and len(basic.folders()) == 4
    done = [name for name, manifest in basic.manifests().items() if manifest["status"] == "done"]
    assert len(done) == 2
    for name in done:
        for file in ("metrics.jsonl", "eval.json", "offset/model.safetensors", "examples.parquet"):
            one, other = (call.folders()[name] / file for call in (basic, parallel))
            assert one.read_bytes() == other.read_bytes(), f"{name}/{file}"


@pytest.mark.nightly
def test_a_failing_job_loses_no_other_and_status_and_table_are_the_same(basic, parallel):
    assert basic.done.returncode == parallel.done.returncode == 1
    for call in (basic, parallel):
        found = call.manifests()
        assert sorted(m["status"] for m in found.values()) == ["done", "done", "failed", "failed"]
        assert all("ZeroDivisionError" in m["error"] for m in found.values() if m["status"] == "failed")
        assert "Traceback" not in call.done.stdout + call.done.stderr
    assert parallel.table() == basic.table()
    runs = [line.split()[0] for line in basic.table() if line.endswith((" done", " failed"))]
    assert runs == ["ga", "ga", "npo", "npo"]


@pytest.mark.nightly
def test_jobs_have_one_thread_and_say_what_was_called(basic, parallel):
    for call in (basic, parallel):
        for manifest in call.manifests().values():
            assert manifest["hardware"]["threads"] == 1
            assert manifest["command"][:2] == ["run.py", "-m"] and "algo=ga,npo" in manifest["command"]


@pytest.mark.nightly
def test_two_workers_build_each_model_once(parallel):
    if not (parallel.cwd / "store").is_dir():
        pytest.skip("this one had its models in the store")
    trained = re.findall(r"training the (.*?):", parallel.done.stdout)
    assert len(trained) == len(set(trained)) == 5  # two pretrained models; target, retrained and small from them
    assert "it is built again" not in parallel.done.stdout


@pytest.mark.nightly
def test_the_same_call_again_with_another_launcher_does_nothing(basic, tmp_path, store):
    manifests = basic.manifests()
    argument = next(m["run"]["algo"] for m in manifests.values() if m["status"] == "done")
    options = (f"algo={argument}", "eval.groups=[]", f"paths.store={store}", "hydra/launcher=joblib")
    done = python("-m", "unlearn.run", *GRID[:-3], *options, cwd=basic.cwd)
    assert done.stdout.count("done before") == 1
    assert basic.manifests() == manifests


def test_every_library_that_computes_keeps_to_the_limit():
    script = (
        "import unlearn.learning.loop, scipy.linalg, json\n"
        "from threadpoolctl import threadpool_info\n"
        "before = [p['num_threads'] for p in threadpool_info()]\n"
        "unlearn.learning.loop.limit_threads(1)\n"
        "print(json.dumps([before, [p['num_threads'] for p in threadpool_info()]]))\n"
    )
    done = python("-c", script, OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2")
    before, after = json.loads(done.stdout)
    assert 2 in before or os.cpu_count() == 1
    assert set(after) == {1}


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
