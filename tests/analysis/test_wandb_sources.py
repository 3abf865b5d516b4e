"""Run folders, offline W&B files and a W&B server give the same tables of the same runs.

The runs are real ones of the tiny world; the server is a fake on loopback (``fake_wandb.py``): what is checked against
it is our use of wandb's own ``sync`` and ``Api``.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support.fake_wandb import ENTITY, FakeWandb
from support.helpers import TINY, compose, execute, killed_at, raising_at
from wandb.sdk import wandb_setup

from analysis import runs
from analysis.runs import StudyError, load
from analysis.sources import offline, online
from unlearn.data.readers import read
from unlearn.grid import call as grid
from unlearn.grid import rerun
from unlearn.grid.perform import perform
from unlearn.learning.loop import Loop
from unlearn.store import runlog

TABLES = ("runs", "references", "trajectories", "examples")
WANDB = Path(sys.executable).parent / "wandb"


@pytest.fixture(scope="module")
def study(tmp_path_factory, store) -> Path:
    """Done, evaluated again, resumed, killed and failed runs, one that trains nothing, and two that differ in β."""
    base = tmp_path_factory.mktemp("sources")

    few = ("eval.max_examples=4",)

    def config(*overrides):
        return compose(*TINY, f"paths.store={store}", f"paths.runs={base}/runs", "wandb=offline", *few, *overrides)

    with pytest.MonkeyPatch.context() as patch:
        again = execute(config("algo=ga", "eval.alphas=[0,1]")).folder
        perform(rerun.open_run(again, ["eval.alphas=[2]"]).job)
        execute(config("algo=ga", "method=dd"))
        for beta in (0.1, 0.2):
            execute(config("algo=npo", f"algo.beta={beta}", "pair.seed=0"))
        resumed = config("algo=kl", "trainer.steps=4", "trainer.save_every=2")
        killed_at(3, resumed, patch)
        execute(resumed)
        killed_at(1, config("algo=gd"), patch)
        failing, error = config("algo=ga", "seed=5"), ValueError("no memory [NaN]")
        patch.setattr(Loop, "run", raising_at(1, error))  # a run that fails after a step, as ``unlearn.run`` ends it
        with pytest.raises(ValueError, match="no memory"):
            execute(failing)
        runlog.fail(grid.job(failing, read(failing).fingerprint()), error)
    return base / "runs" / "default"


@pytest.fixture(scope="module")
def server(study):
    """The fake with the study's offline runs synced to it."""
    fake = FakeWandb()
    environment = {
        "WANDB_BASE_URL": fake.url, "WANDB_API_KEY": "x" * 40, "WANDB_ERROR_REPORTING": "false",
        "WANDB_CONFIG_DIR": str(study.parent / "wandb-config"),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        folders = [str(p.parent) for p in offline.files(study)]
        done = subprocess.run([WANDB, "sync", *folders], cwd=study.parent, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and not fake.problems, done.stdout + done.stderr + "\n".join(fake.problems)
        yield fake
    fake.shutdown()
    fake.server_close()


def test_the_study_has_what_makes_reading_hard_and_offline_files_give_the_tables_of_the_folders(study):
    found = load(study)
    assert (found.count("done"), found.count("failed"), found.count("running")) == (5, 1, 1)
    assert len(offline.files(study)) == 9  # two runs have two parts
    assert found.varied == ("algo.beta",) and set(found.runs["algo"]) == {"ga", "none", "npo", "kl", "gd"}
    assert found.runs.loc[found.runs["status"] == "failed", "error"].tolist() == ["ValueError: no memory [NaN]"]
    same(load(study), load(f"offline:{study}"), ("trajectories",))
    for source in ("wandb://entity", "wandb://a/b/c", "wandb:///project", "wandb://a/b?group"):
        with pytest.raises(StudyError, match=r"must be"):
            load(source)


def same(folders: runs.Study, others: runs.Study, unordered: tuple[str, ...]) -> None:
    """All tables, with the run's name for its folder: that alone is told by where it was read."""
    assert others.notes == () and others.varied == folders.varied
    for name in TABLES:
        one, other = (
            t.assign(folder=t["folder"].map(lambda f: Path(f).name)) if "folder" in t else t
            for t in (getattr(study, name) for study in (folders, others))
        )
        pd.testing.assert_frame_equal(one, other, check_like=name in unordered)


def test_the_server_gives_the_tables_of_the_folders_and_has_the_artifacts_and_tables_too(study, server):
    synced = load(f"wandb://{ENTITY}/unlearn?group=default")
    same(load(study), synced, TABLES)
    assert synced.name == "default" and server.problems == []
    kinds = {a["artifactTypeName"] for a in server.artifacts}
    assert kinds == {"evaluation", "offset", "run_table"}
    finished = next(r for r in server.runs.values() if r.fields["displayName"].startswith("ga-offset-a1-s0"))
    assert {"examples.parquet", "references.parquet"} <= set(finished.files)
    assert any(name.startswith("media/table/examples") for name in finished.files)
    assert finished.fields["jobType"] == "unlearn" and finished.fields["groupName"] == "default"
    assert finished.fields["tags"] == ["ga", "offset", "bios"]  # pair and data set have the same name here


def test_runs_are_read_page_by_page_and_chosen_by_their_settings(study, server, monkeypatch):
    monkeypatch.setattr(online, "PER_PAGE", 2)
    server.operations.clear()
    some = load(f"wandb://{ENTITY}/unlearn?group=default&algo=npo&algo.beta=0.2")
    assert server.operations.count("Runs") == 4  # seven runs
    assert some.runs["algo"].tolist() == ["npo"] and some.records[0].config["algo.beta"] == 0.2
    assert len(load(f"wandb://{ENTITY}/unlearn?algo=npo&algo=ga&method=offset&state=finished").records) == 3
    with pytest.raises(StudyError, match="none of the 0 runs"):
        load(f"wandb://{ENTITY}/unlearn?group=other")
    assert server.problems == []


@pytest.mark.nightly
def test_a_server_that_is_asked_too_often_is_asked_again_later(study, server, monkeypatch):
    waited = []
    monkeypatch.setattr(wandb_setup.singleton().settings, "x_graphql_retry_max", 1)  # wandb's client tries, too
    monkeypatch.setattr(online.patiently, "__defaults__", (waited.append,))
    server.refuse, server.refused = {"Runs": 3}, 0
    assert len(load(f"wandb://{ENTITY}/unlearn?algo=npo").records) == 2
    assert server.refused == 3 and len(waited) == 1  # wandb's own client had asked twice each time
    server.refuse = {"Runs": 1000}
    with pytest.raises(StudyError, match="429: rate limit exceeded"):
        load(f"wandb://{ENTITY}/unlearn?algo=npo")
    server.refuse = {}
    assert len(waited) == 1 + len(online.WAITS)
    assert all(0.75 * w <= had <= 1.25 * w for w, had in zip(online.WAITS, waited[1:], strict=True))
