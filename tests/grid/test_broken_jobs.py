"""What failed or broke off is recorded, tried again by the same command, and never half taken for whole."""

import pandas as pd
import pytest
from filelock import FileLock
from support.helpers import TINY, Killed, command, compose, execute, job_of, python

from unlearn import run
from unlearn.grid import launchers
from unlearn.store import runlog
from unlearn.store.files import write_json, write_whole
from unlearn.store.identity import Job


def test_retry_failed_repeats_what_failed_and_begins_nothing_else(tmp_path, store):
    def job(seed: int) -> Job:
        options = (*TINY, f"paths.store={store}", f"paths.runs={tmp_path}/runs", "algo=ga", f"seed={seed}")
        return job_of(compose(*options))

    runlog.fail(job(0), OSError("the disk was full"))
    runlog.fail(job(1), KeyboardInterrupt("SIGTERM"), "interrupted")
    options = ("-m", *TINY, f"paths.store={store}", "algo=ga", "eval.groups=[]", "retry=failed")
    done = command("unlearn.run", *options, "seed=0,1,2", cwd=tmp_path)
    assert [runlog.manifest(job(seed).folder).get("status") for seed in (0, 1, 2)] == ["done", "done", None]
    rows = [line.split()[-1] for line in done.stdout.splitlines() if " offset " in line and line[0] != "["]
    assert rows == ["done", "done"]
    none = command("unlearn.run", *options, "seed=1,2", cwd=tmp_path)
    assert "of 2 runs asked for none failed or was interrupted" in none.stdout and not job(2).folder.exists()


def test_what_failed_is_tried_again_by_the_same_command(config, monkeypatch):
    cfg = config("algo=ga")
    job = job_of(cfg)
    runlog.fail(job, OSError("no space left on device"))
    assert runlog.manifest(job.folder)["status"] == "failed" and launchers.to_repeat(job)
    assert runlog.manifest(execute(cfg).folder)["status"] == "done" and not launchers.to_repeat(job)


def test_a_lock_left_by_a_killed_process_blocks_nobody(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from unlearn.grid import launchers\n"
        "launchers.lock(Path(sys.argv[1])).acquire(); print('held', flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = tmp_path / "runs" / "one"
    done = python("-c", script, str(run), check=False)
    assert done.returncode == -9 and done.stdout == "held\n"
    assert (run.parent / ".locks" / "one.lock").is_file()
    with launchers.lock(run).acquire(timeout=0):
        with pytest.raises(TimeoutError):
            FileLock(run.parent / ".locks" / "one.lock").acquire(timeout=0)


def test_an_evaluation_that_broke_off_is_made_whole_and_never_sealed_half(finished, config, monkeypatch):
    """A finished run gets another α; the disk is full after its examples were written and before eval.json was."""
    cfg, more = config("algo=ga"), config("algo=ga", "eval.alphas=[1,2]")
    folder = finished("algo=ga")

    def full(path, value):
        if path.name == runlog.EVAL:
            raise OSError("no space left on device")
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(runlog, "write_json", full)
        run.perform(job_of(more))
    assert runlog.manifest(folder)["status"] == "failed" and not job_of(cfg).was_done
    run.perform(job_of(more))
    assert job_of(more).was_done and list(runlog.evaluation(folder)["alphas"]) == ["1.0", "2.0"]
    assert set(pd.read_parquet(folder / "examples.parquet")["alpha"]) == {1.0, 2.0}


def test_entries_and_examples_of_two_settings_never_stand_beside_each_other(finished, config, monkeypatch):
    """A finished run is evaluated with other settings and killed between examples.parquet and eval.json."""
    folder = finished("algo=ga", "eval.alphas=[0,1]")
    cfg, other = config("algo=ga", "eval.alphas=[0,1]"), config("algo=ga", "eval.alphas=[1]", "eval.max_examples=2")
    before = pd.read_parquet(folder / "examples.parquet")

    def killed(path, write):
        write_whole(path, write)
        if path.name == runlog.EXAMPLES:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runlog, "write_whole", killed)
        execute(other)
    assert len(pd.read_parquet(folder / "examples.parquet")) < len(before)
    execute(cfg)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "examples.parquet"), before)
    execute(other)  # entries of other settings are dropped
    assert list(runlog.evaluation(folder)["alphas"]) == ["1.0"]
    examples = pd.read_parquet(folder / "examples.parquet")
    assert set(examples["alpha"]) == {1.0} and len(examples[examples["split"] == "retain"]) == 2
