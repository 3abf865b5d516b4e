"""The summary run of a study: logged once a grid has done something, and never in the way."""

from glob import glob

import pytest
from support.helpers import TINY, compose, whole

from analysis.runs import load
from analysis.sources import offline
from unlearn.grid import overview, table
from unlearn.store.files import write_json
from unlearn.store.identity import Job


@pytest.fixture
def jobs(finished, config) -> list[Job]:
    """Two finished tiny runs, as the jobs of a grid; made without W&B, whose files of the study alone are looked at."""
    folders = {algo: finished(f"algo={algo}") for algo in ("ga", "npo")}
    return [Job(config("wandb=offline", f"algo={algo}"), folder, "", False) for algo, folder in folders.items()]


def parts(job: Job) -> list:
    for path in offline.files(job.folder.parent):
        whole(path)
    return [offline._part(path) for path in offline.files(job.folder.parent)]


@pytest.mark.nightly
def test_one_run_with_one_id_however_often_a_grid_ends(jobs, monkeypatch, capsys):
    overview.log_studies(jobs)
    monkeypatch.setattr(overview, "_figures", lambda study: {})  # drawing takes seconds
    overview.log_studies(jobs)
    found = parts(jobs[0])
    assert len(found) == 2 and len({p.id for p in found}) == 1
    assert {(p.job_type, p.group) for p in found} == {("summary", "default")}
    rows = [{key.split(".")[0] for key in row} for row in found[0].history]
    assert len(rows) == 1 and {"runs", "figures/tradeoff"} <= rows[0]
    assert list(found[0].path.parent.glob("files/media/images/figures/tradeoff*.png"))
    assert [*load(f"offline:{jobs[0].folder.parent}").runs["folder"]] == []  # it is no run of the study
    for job in jobs:
        (job.folder / "wandb" / "offline-run-1-x").mkdir(parents=True)
    table.report(jobs)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("upload:"))
    uploaded = {found for pattern in line.split("wandb sync ")[1].split() for found in glob(pattern)}
    assert uploaded == {str(found) for found in jobs[0].folder.parent.rglob("offline-run-*")} and len(uploaded) == 4


def test_nothing_is_logged_where_wandb_is_disabled_or_nothing_was_done(jobs, monkeypatch):
    monkeypatch.setattr(overview, "_log", lambda *_: pytest.fail("logged"))
    done = [Job(j.cfg, j.folder, j.data, True) for j in jobs]
    disabled = [Job(compose(*TINY), j.folder, j.data, False) for j in jobs]
    overview.log_studies([*done, *disabled])


def test_a_study_without_a_finished_run_has_a_table_and_no_figure(jobs, tmp_path, monkeypatch):
    folder = tmp_path / "study" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text((jobs[0].folder / "config.yaml").read_text())
    write_json(folder / "manifest.json", {"status": "failed", "error": "no memory"})
    assert overview._figures(overview.analysis.module("runs").load(folder.parent)) == {}
    assert load(folder.parent).runs["status"].tolist() == ["failed"]


def test_wandb_failing_is_said_and_no_more(jobs, monkeypatch, caplog):
    import wandb

    def broken(*_, **__):
        raise wandb.errors.CommError("no network")

    monkeypatch.setattr(wandb, "init", broken)
    overview.log_studies(jobs)
    assert "is not in W&B (CommError: no network)" in caplog.text
