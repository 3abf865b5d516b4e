"""Several processes do one run: to the numbers of one, whatever ends them, and only the first of them writes."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from support.crews import crew
from support.helpers import execute, job_of, lines

from unlearn.grid.perform import perform
from unlearn.learning.loop import Loop
from unlearn.runs import following, stopping
from unlearn.store import processes, runlog

LONG = ("algo=npo", "trainer.steps=6", "trainer.eval_every=2", "trainer.save_every=0", "trainer.retain_batch=5")
GROUPS = "eval.groups=[leak]"


def find(name: str) -> processes.Task:
    return getattr(following, name)


def watched(folder: Path) -> processes.Task:
    """Tasks that end their process where they would write into the folder."""

    def hook(event: str, arguments: tuple) -> None:
        path, kind = str(arguments[0]) if arguments else "", event.split(".")[-1]
        writes = kind in ("rename", "mkdir", "remove", "rmdir", "truncate", "utime", "symlink")
        if event == "open" and isinstance(arguments[2], int):
            writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and path.startswith(str(folder)):
            os._exit(99)

    def found(name: str) -> processes.Task:
        sys.addaudithook(hook)
        return find(name)

    return found


def numbers(entry: dict) -> dict[str, float]:
    return {k: v for k, v in entry.items() if isinstance(v, float | int)}


def equal(folder: Path, straight: Path) -> None:
    """Losses within 1e-6 of their size, and metrics within 1e-4."""
    for ours, theirs in zip(lines(folder), lines(straight), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    found, wanted = (runlog.evaluation(x)["alphas"] for x in (folder, straight))
    assert found.keys() == wanted.keys()
    for alpha, entry in wanted.items():
        assert numbers(found[alpha]) == pytest.approx(numbers(entry), abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_several_processes_do_a_run_to_the_numbers_of_one_and_the_first_alone_writes(config, tmp_path, count):
    straight = execute(config(*LONG, GROUPS, f"paths.runs={tmp_path}/straight")).folder
    # a forget batch of one example leaves the others without one
    job = job_of(config(*LONG, GROUPS))
    assert crew(count, lambda: int(perform(job)), watched(tmp_path)) == [0] * count
    assert runlog.manifest(job.folder)["status"] == "done"
    equal(job.folder, straight)


def at_step(number: int, whom: list[int], what) -> None:
    """In forks: some of the processes do something when they have done a step."""
    real = Loop.agreed

    def agreed(self, asked):
        if self.step == number and processes.index() in whom:
            what()
        return real(self, stopping.asked())  # by now

    Loop.agreed = agreed


def kill(number: int):
    return lambda: os.kill(os.getpid(), number)


def raising() -> None:
    raise MemoryError("no room on purpose")


ENDS = {
    "the second is killed": ([1], kill(signal.SIGKILL), [143, -9], "interrupted"),
    "the second is told": ([1], kill(signal.SIGTERM), [143, 143], "interrupted"),
    "the first is told": ([0], kill(signal.SIGUSR2), [140, 140], "interrupted"),
    "both are told": ([0, 1], kill(signal.SIGINT), [130, 130], "interrupted"),
    "the second raises": ([1], raising, [0, 0], "failed"),
}
USUAL = "the second is killed", "the second is told"  # the others at night


@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x in USUAL else pytest.mark.nightly) for x in ENDS])
def test_whatever_ends_one_of_two_ends_both_with_a_checkpoint_and_one_process_goes_on(
    config, tmp_path, monkeypatch, name
):
    whom, what, statuses, status = ENDS[name]
    job, began = job_of(config(*LONG)), time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "agreed", Loop.agreed)  # what is set below goes with the context
        at_step(3, whom, what)
        assert crew(2, lambda: int(perform(job)), find) == statuses
    assert time.monotonic() - began < 60
    found = runlog.manifest(job.folder)
    assert found["status"] == status and ("no room on purpose" in found["error"]) == (status == "failed")
    assert json.loads((job.folder / "checkpoint" / "sealed.json").read_text())["step"] == 3
    perform(job)
    equal(job.folder, execute(config(*LONG, f"paths.runs={tmp_path}/straight")).folder)


@pytest.mark.nightly
@pytest.mark.parametrize("who", ["killed", "told"])
def test_an_end_in_the_evaluation_ends_both_and_the_same_command_goes_on(config, tmp_path, monkeypatch, who):
    number = {"killed": signal.SIGKILL, "told": signal.SIGUSR2}[who]
    job = job_of(config("algo=npo", "eval.groups=[leak]"))
    with monkeypatch.context() as patch:

        def dies(*_: object, real=following.baselines.evaluate, **__: object) -> None:
            os.kill(os.getpid(), number)
            time.sleep(60)

        patch.setattr(following.baselines, "evaluate", dies)  # the first process has its own name for it
        assert crew(2, lambda: int(perform(job)), find) == ([143, -9] if who == "killed" else [140, 140])
    found = runlog.manifest(job.folder)
    assert found["status"] == "interrupted" and found["trained"]
    perform(job)
    assert runlog.manifest(job.folder)["status"] == "done"


@pytest.mark.nightly
def test_a_run_of_two_processes_goes_on_with_one_and_then_with_three(config, tmp_path, monkeypatch):
    job = job_of(config(*LONG, GROUPS))
    for count, step in ((2, 2), (1, 4)):
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "agreed", Loop.agreed)
            at_step(step, [0], kill(signal.SIGTERM))
            if count > 1:
                assert crew(count, lambda: int(perform(job)), find) == [143] * count
            else:
                with pytest.raises(stopping.Stopped):
                    perform(job)
        assert json.loads((job.folder / "checkpoint" / "sealed.json").read_text())["step"] == step
    assert crew(3, lambda: int(perform(job)), find) == [0, 0, 0]
    equal(job.folder, execute(config(*LONG, GROUPS, f"paths.runs={tmp_path}/straight")).folder)


@pytest.mark.nightly
def test_after_a_job_that_failed_in_one_process_the_next_one_is_done_by_all(config, monkeypatch):
    jobs = [job_of(config("algo=npo", f"alpha={alpha}")) for alpha in (1, 2)]
    real = following.train

    def train(cfg, *about) -> None:
        if cfg.alpha == 1:
            raise ValueError("broken on purpose")
        real(cfg, *about)

    monkeypatch.setattr(following, "train", train)
    assert crew(2, lambda: sum(map(perform, jobs)), find) == [0, 0]
    first, second = (runlog.manifest(job.folder) for job in jobs)
    assert (first["status"], second["status"]) == ("failed", "done")
    assert "process 1 of 2: ValueError: broken on purpose" in first["error"]
