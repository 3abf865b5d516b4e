"""W&B mirrors a run and never decides about it: what breaks is made up for, what others left there is not read."""

import json
import os
import subprocess
from pathlib import Path
from unittest import mock

import pytest
from support.helpers import execute, lines

from analysis.runs import load
from analysis.sources import offline
from unlearn.config.schema import WandbConfig
from unlearn.store import mirror, runlog

CHOICES = {"study": "s", "algo": "npo", "method": "offset", "pair": "tiny", "data": "bios", "alpha": 1.0, "seed": 0}
OTHERS = {  # what another project may leave in the environment
    "RUN_ID": "abc123", "RUN_GROUP": "theirs", "JOB_TYPE": "theirs", "NAME": "theirs", "NOTES": "theirs", "TAGS": "a,b",
    "RESUME": "must", "SWEEP_ID": "s1", "SWEEP_PARAM_PATH": "nowhere.yaml", "MODE": "disabled", "PROJECT": "theirs",
    "DIR": "/nowhere", "SERVICE": "3-1-tcp-localhost-1", "DISABLE_CODE": "true",
}  # fmt: skip


def parts(folder: Path) -> list:
    return [offline._part(path) for path in offline.files(folder)]


@pytest.fixture
def services(monkeypatch) -> list[subprocess.Popen]:
    """W&B's services of this process, in the order of their starts."""
    from wandb.sdk.lib.service.service_process import ServiceProcess

    found = []

    def started(self, *, process, real=ServiceProcess.__init__, **more):
        found.append(process)
        real(self, process=process, **more)

    monkeypatch.setattr(ServiceProcess, "__init__", started)
    return found


@pytest.fixture(autouse=True)
def no_service_of_an_earlier_test():
    import wandb

    wandb.teardown()


def test_what_another_project_left_in_the_environment_identifies_no_run(tmp_path, monkeypatch):
    for name, value in OTHERS.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        cfg = WandbConfig("offline", project="ours")
        with mirror.opened(cfg, tmp_path / name, CHOICES, {"a": {"b": 1}}, None) as m:
            m.log({"step": 0, "epoch": 0.0, "retain/prob": 0.9})
            m.log({"step": 1, "epoch": 0.5, "retain/prob": 0.2})
            m.manifest({"status": "running"})
    assert {name: os.environ[f"WANDB_{name}"] for name in OTHERS} == OTHERS
    found = parts(tmp_path)
    assert len({p.id for p in found} - {"abc123"}) == 2
    for part in found:
        assert (part.group, part.job_type, part.name) == ("s", "unlearn", part.path.parents[2].name)
        assert json.loads(json.loads(part.summary["manifest"])) == {"status": "running"}
        assert part.config["a"] == {"b": 1}


def test_the_service_that_this_process_had_before_is_not_named_to_those_that_come_after(tmp_path, services):
    from wandb.sdk import wandb_setup

    wandb_setup.singleton().ensure_service()
    assert "WANDB_SERVICE" in os.environ
    with mirror.surroundings(tmp_path):
        assert services[0].poll() is not None
    assert "WANDB_SERVICE" not in os.environ  # ``wandb sync`` would ask it and fail


def test_the_summary_has_no_best_value_that_step_0_would_win_and_a_dozen_numbers_of_the_evaluation(
    tmp_path, monkeypatch
):
    wandb = mock.Mock()
    monkeypatch.setattr(mirror, "start_run", lambda *_, **__: wandb)
    for name in ("_chart", "_table", "_artifact"):
        monkeypatch.setattr(mirror, name, mock.Mock())
    entry = {name: 0.5 for name in (*mirror.HEADLINES, *(f"group/{n}" for n in range(600)))}
    with mirror.opened(WandbConfig("offline"), tmp_path, CHOICES, {}, None) as m:
        m.evaluated({"alphas": {"1.0": entry}, "references": {}}, None, None, [], [])
        m.manifest({"status": "done", "seconds": {}})
    assert wandb.define_metric.called and not any("summary" in c.kwargs for c in wandb.define_metric.call_args_list)
    summary = {k: v for c in wandb.summary.update.call_args_list for k, v in c.args[0].items()}
    assert set(summary) == {"manifest", "status", "alphas", "references", "eval/alpha"} | {
        f"eval/{name}" for name in mirror.HEADLINES
    }
    assert len(mirror.HEADLINES) < 20 and summary["status"] == "done" and summary["eval/alpha"] == 1
    assert json.loads(summary["alphas"]) == {"1.0": entry} and not m.missed


def broken(*_, **__):
    raise ConnectionResetError("the service is gone")


@pytest.mark.parametrize(
    "what", ["init", "Run.log", "Run.finish", pytest.param("Run.define_metric", marks=pytest.mark.nightly)]
)
def test_wandb_failing_at_any_time_does_not_stop_a_run(config, monkeypatch, caplog, services, what):
    import wandb

    place, _, name = what.rpartition(".")
    monkeypatch.setattr(getattr(wandb, place) if place else wandb, name, broken)
    folder = execute(config("algo=ga", "wandb=offline")).folder
    assert runlog.manifest(folder)["status"] == "done" and "the service is gone" in caplog.text
    early = what != "Run.finish"
    assert caplog.text.count("what it misses follows at the end") == early
    assert runlog.manifest(folder).get(runlog.MISSED, False) == early  # the next call tries again
    assert all(service.poll() is not None for service in services)


def test_what_wandb_missed_is_mirrored_at_the_end(config, monkeypatch, caplog, services):
    """Its service is killed in the middle of the training."""

    def log(self, step, epoch, values, real=runlog.RunLog.log):
        if step == 2 and len(services) == 1:
            services[0].kill()
            services[0].wait()
        real(self, step, epoch, values)

    monkeypatch.setattr(runlog.RunLog, "log", log)
    folder = execute(config("algo=ga", "wandb=offline", "trainer.steps=4")).folder
    manifest = runlog.manifest(folder)
    assert manifest["status"] == "done" and caplog.text.count("W&B stopped working") == 1
    assert runlog.MISSED not in manifest
    assert len({p.id for p in parts(folder) if p is not None}) == 1 and len(services) == 2
    mirrored, own = load(f"offline:{folder}"), load(folder.parent)
    assert mirrored.runs["forget/prob"].tolist() == own.runs["forget/prob"].tolist()
    assert len(mirrored.trajectories) == len(own.trajectories) == len(lines(folder))
