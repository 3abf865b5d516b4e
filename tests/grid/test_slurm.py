"""hydra/launcher=submitit_slurm without a Slurm: its programs are scripts that answer what a test wrote down.

``make slurm-check`` does the same with a real one (experiments/slurm).
"""

import os
import pickle
import time
from pathlib import Path

import pytest
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import OmegaConf
from submitit.slurm.slurm import SlurmJob
from support.helpers import compose

from unlearn.grid import slurm
from unlearn.store import runlog
from unlearn.store.files import read_json, write_json
from unlearn.store.identity import Job

SCRIPTS = {
    "squeue": '[ -e "$FAKE/down" ] && { echo "error: Unable to contact slurm controller" >&2; exit 1; }\n'
    'cat "$FAKE/states" && exit\necho "slurm_load_jobs error: Invalid job id specified" >&2; exit 1\n',
    "sbatch": '[ -e "$FAKE/refusal" ] && { cat "$FAKE/refusal" >&2; exit 1; }\n'
    'cp "$1" "$FAKE/script"; echo "Submitted batch job 7"\n',
    "srun": "exit 1\n",
}


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """The folder in which a test says what Slurm answers."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in SCRIPTS.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(SlurmJob, "watcher", slurm.Watcher())
    monkeypatch.setattr(slurm.Watcher, "update_if_long_enough", lambda self, mode: mode == "cache" or self.update())
    monkeypatch.setattr(runlog, "is_done", lambda job: runlog.manifest(job.folder).get("status") == "done")
    return folder


def job(folder: Path) -> Job:
    return Job(compose(), folder, "data", was_done=False)


def becomes(run: Job, status: str | None) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    if status is not None:
        write_json(run.folder / "manifest.json", {"format": 1, "status": status, "seconds": {}})


class Stub:
    """Submits nothing. ``ends``: how each job ends: its state in Slurm, the run's status, and whether it answered."""

    def __init__(self, fake: Path, run: Job, ends: list[tuple[str, str | None, bool]]):
        self.fake, self.run, self.ends, self.given, self.folder = fake, run, ends, [], fake / "own" / "%j"

    def map_array(self, launcher, *given) -> list[SlurmJob]:
        state, status, answered = self.ends[len(self.given)]
        self.given.append(given)
        made = SlurmJob(self.folder, f"{len(self.given)}_0")
        if state:
            (self.fake / "states").write_text(f"{made.job_id}|{state}|None\n")
        becomes(self.run, status)
        if answered:
            made.paths.result_pickle.parent.mkdir(parents=True)
            made.paths.result_pickle.write_bytes(pickle.dumps(("error", TRACE)))
        return [made]


def waiting(run: Job) -> slurm.Waiting:
    return slurm.Waiting(SlurmLauncher(**params()), {0: (run, ["seed=0"])})


def params(**more) -> dict:
    config = OmegaConf.to_container(OmegaConf.structured(SlurmQueueConf)) | {"submitit_folder": "own/%j", "name": "run"}
    return {key: value for key, value in config.items() if key != "_target_"} | more


TRACE = "Traceback (most recent call last):\n  …\nsubmitit.UncompletedJobError: timed-out too many times."
DONE = ("COMPLETED", "done", True)
ENDS = {  # how the jobs of a run end one after the other; what is said of it
    "done at once": ([DONE], ""),
    "killed: SIGKILL": ([("FAILED", "running", False), DONE], "is killed; it is submitted again"),
    "killed: no memory": ([("OUT_OF_MEMORY", "running", False), DONE], "(OUT_OF_MEMORY)"),
    "node lost before it began": ([("NODE_FAIL", None, False), DONE], "not started; it is submitted again"),
    "out of time, unheard": ([("TIMEOUT", "interrupted", False), DONE], "(TIMEOUT)"),
    "preempted and cancelled": ([("PREEMPTED", "interrupted", False), DONE], "(PREEMPTED)"),
    "forgotten by Slurm, killed": ([("", "running", False), DONE], "(GONE)"),
    "killed each time": ([("FAILED", "running", False)] * 3, "it was submitted 3 times"),
    "cancelled by its user": ([("CANCELLED", "interrupted", False)], "(CANCELLED), run is interrupted"),
    "cancelled, and it did not end by itself": ([("CANCELLED", "running", False)], "(CANCELLED), run is killed"),
    "cancelled in the queue": ([("CANCELLED", None, False)], "(CANCELLED), run is not started"),
    "preempted with time to end": ([("FAILED", "interrupted", False), DONE], "is interrupted; it is submitted again"),
    "out of time too often": ([("FAILED", "interrupted", True)], "UncompletedJobError: timed-out too many times."),
    "failed by itself": ([("COMPLETED", "failed", True)], ""),
    "failed before the run began": ([("FAILED", None, False)], "not started; see"),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_slurm_took_away_is_submitted_again_a_few_times_and_nothing_else_is(
    name, fake, tmp_path, monkeypatch, capsys
):
    ends, words = ENDS[name]
    run = job(tmp_path / "study" / "run")
    stub = Stub(fake, run, ends)
    monkeypatch.setattr(slurm, "_executor", lambda params: stub)
    waiting(run).all()
    said = capsys.readouterr().err
    assert len(stub.given) == len(ends) and words in said, said
    assert said.count("ended") == len([end for end in ends if end[1] not in ("done", "failed")])
    assert stub.given[0][0] == (["seed=0"],) and stub.given[0][2] == (0,)  # as the plugin's own launch gives them


def test_a_job_that_a_killed_call_left_is_waited_for_and_not_submitted_again(fake, tmp_path, monkeypatch, capsys):
    run = job(tmp_path / "study" / "run")
    write_json(slurm._note(run.folder), {"folder": str(tmp_path / "own" / "%j"), "job_id": "5_1"})
    (fake / "states").write_text("5_0|RUNNING|None\n5_1|PENDING|BadConstraints\n")

    def ends(seconds):
        becomes(run, "done")
        (fake / "states").write_text("5_1|COMPLETED|None\n")

    monkeypatch.setattr(slurm.time, "sleep", ends)
    waiting(run).all()
    said = capsys.readouterr().err
    assert "waiting for job 5_1, which works on run" in said and "submitted" not in said
    assert "job 5_1 waits: BadConstraints" in said  # a reason that may last for ever


def test_ctrl_c_ends_the_wait_and_says_how_to_end_the_jobs(fake, tmp_path, monkeypatch, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    run = job(tmp_path / "study" / "run")
    (fake / "states").write_text("7|RUNNING|None\n")
    monkeypatch.setattr(slurm.time, "sleep", interrupt)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        waiting(run).all()
    assert "the jobs continue" in (said := capsys.readouterr().err) and "scancel 7\n" in said
    assert read_json(slurm._note(run.folder)) == {"folder": str(tmp_path / "own" / "%j"), "job_id": "7"}
    script = (fake / "script").read_text()
    assert "#SBATCH --requeue\n" in script and "#SBATCH --signal=USR2@120\n" in script and "--cpus" not in script


def test_a_step_gets_the_cores_of_its_job(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slurm._executor(params(cpus_per_task=3, srun_args=["--cpu-bind=none"])).map_array(print, [1])
    assert "--cpus-per-task=3 --cpu-bind=none" in next(
        line for line in (fake / "script").read_text().splitlines() if "srun" in line
    )


REFUSED = {
    "a partition": ("sbatch: error: invalid partition specified: nowhere", {}, "invalid partition specified: nowhere"),
    "a folder that cannot be written": (None, {"submitit_folder": "/proc/own/%j"}, "/proc/own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_submitted_is_one_message_and_exit_status_2(name, fake, tmp_path, monkeypatch, capsys):
    refusal, more, words = REFUSED[name]
    if refusal:
        (fake / "refusal").write_text(refusal)
    monkeypatch.chdir(tmp_path)
    asked = slurm.Waiting(SlurmLauncher(**params(**more)), {0: (job(tmp_path / "study" / "run"), [])})
    with pytest.raises(SystemExit) as stop:
        asked.all()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "hydra.launcher: no job was submitted: " in said and words in said


def test_two_alphas_of_one_run_are_two_jobs_one_after_the_other(fake, tmp_path, monkeypatch):
    run, other = job(tmp_path / "study" / "run"), job(tmp_path / "study" / "run")
    stub = Stub(fake, run, [("COMPLETED", "failed", True), DONE])
    monkeypatch.setattr(slurm, "_executor", lambda params: stub)
    slurm.Waiting(SlurmLauncher(**params()), {0: (run, []), 1: (other, [])}).all()
    assert [given[2] for given in stub.given] == [(0,), (1,)]


def test_states_of_an_array_are_asked_for_at_once_and_a_silent_slurm_ends_no_job(fake, capsys):
    watcher = slurm.Watcher()
    states = {"1_0": "RUNNING", "1_1": "SUSPENDED", "1_2": "REQUEUE_HOLD", "1_3": "TIMEOUT", "2": "COMPLETED"}
    for each in (*states, "3_0"):
        watcher.register_job(each)
    (fake / "states").write_text("".join(f"{each}|{state}|None\n" for each, state in states.items()))
    (fake / "down").touch()
    watcher.update()
    watcher.update()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Unable to contact slurm controller" in said
    assert not any(watcher.is_done(each, "cache") for each in (*states, "3_0"))
    (fake / "down").unlink()
    calls = watcher.num_calls
    watcher.update()
    assert watcher.num_calls == calls + 1
    ended = {each for each in (*states, "3_0") if watcher.is_done(each, "cache")}
    assert ended == {"1_3", "2", "3_0"} and watcher.get_state("3_0", "cache") == slurm.GONE
    began = time.time()
    assert not watcher.is_done("1_0", "cache") and time.time() - began < 1
