"""A checkpoint is whole and its run's own, or refused by name; every signal that ends a call saves one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from support.helpers import FEW, ROOT, Killed, execute, job_of

from unlearn import run
from unlearn.runs import stopping
from unlearn.store import runlog

OPTIONS = ("algo=ga", "trainer.lr=0.3", "trainer.steps=7", "trainer.save_every=2", *FEW)  # its best point is early
SAME = ("metrics.jsonl", "eval.json", "offset/model.safetensors")


def after(step: int, act: Callable[[], None]):
    """In the place of ``RunLog.log``: the same, and then ``act``, at a step."""

    def log(self, number, epoch, values, real=runlog.RunLog.log):
        real(self, number, epoch, values)
        if number == step:
            act()

    return log


def flipped(place) -> None:
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(bytes(data))


def renamed(place) -> None:
    sealed = json.loads(place.read_text())
    place.write_text(json.dumps(sealed | {"run": "npo-offset-a1-s0-0123456789"}))


DAMAGE = [
    ("state-*.pt", flipped, "was changed or damaged"), ("weights-*", flipped, "was changed or damaged"),
    ("best-*", flipped, "was changed or damaged"), ("weights-*", lambda place: place.unlink(), "is missing"),
    ("sealed.json", renamed, "is the checkpoint of another run, npo-offset-a1-s0-0123456789"),
    ("sealed.json", lambda place: place.write_text("{"), "not valid JSON"),
]  # fmt: skip


def test_a_damaged_checkpoint_or_another_runs_is_refused_by_name(config, tmp_path, monkeypatch):
    cfg = config(*OPTIONS)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runlog.RunLog, "log", after(5, mock.Mock(side_effect=Killed)))
        execute(cfg)
    checkpoint = job_of(cfg).folder / "checkpoint"
    sound = shutil.copytree(checkpoint, tmp_path / "sound")
    for pattern, damage, said in DAMAGE:
        shutil.rmtree(checkpoint)
        shutil.copytree(sound, checkpoint)
        (place,) = checkpoint.glob(pattern)
        damage(place)
        with pytest.raises(ValueError, match=said) as error:
            execute(cfg)
        assert str(checkpoint) in str(error.value)
    shutil.rmtree(checkpoint)
    shutil.copytree(sound, checkpoint)
    assert runlog.manifest(execute(cfg).folder)["status"] == "done"


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.nightly) for n in (signal.SIGUSR2, signal.SIGHUP))]
)
def test_a_preempted_job_is_saved_before_its_launcher_hears_of_it_and_ends_as_if_undisturbed(
    config, tmp_path, monkeypatch, number
):
    """submitit listens to the signal of a preemption in a job's process, and puts the job back into Slurm's queue."""
    straight = execute(config(*OPTIONS, f"paths.runs={tmp_path}/straight")).folder
    job, heard = job_of(config(*OPTIONS)), []

    def hear(*_) -> None:
        heard.append(json.loads((job.folder / "checkpoint" / "sealed.json").read_text())["step"])

    before = signal.signal(number, hear)
    try:
        with monkeypatch.context() as patch, pytest.raises(stopping.Stopped):
            patch.setattr(runlog.RunLog, "log", after(3, lambda: os.kill(os.getpid(), number)))
            run.perform(job)
        assert heard == [3] and runlog.manifest(job.folder)["status"] == "interrupted"
        run.perform(job)
    finally:
        signal.signal(number, before)
    assert runlog.manifest(job.folder)["status"] == "done"
    assert all((job.folder / name).read_bytes() == (straight / name).read_bytes() for name in SAME)


def test_in_a_job_of_slurm_a_signal_that_comes_twice_at_once_is_one_and_all_listeners_are_told(monkeypatch):
    """A preempted process gets SIGTERM by Slurm and by srun; submitit waits for SIGUSR2, which may come after it."""
    heard, ended, pair = [], [], (signal.SIGTERM, signal.SIGUSR2)
    before = [signal.signal(number, lambda got, _: heard.append(got)) for number in pair]
    monkeypatch.setattr(stopping.os, "_exit", ended.append)

    def told(*numbers: int) -> None:
        with pytest.raises(stopping.Stopped, match="SIGTERM"), stopping.listening(), stopping.patiently():
            for number in numbers:
                os.kill(os.getpid(), number)

    try:
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        told(signal.SIGTERM, signal.SIGTERM)
        assert ended == [143]
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        heard.clear()
        told(signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2)
        assert ended == [143] and heard == list(pair)
        monkeypatch.setattr(stopping, "ECHO", -1.0)  # later
        told(signal.SIGTERM, signal.SIGTERM)
        assert ended == [143, 143]
    finally:
        for number, handler in zip(pair, before, strict=True):
            signal.signal(number, handler)


WORKER = """
import multiprocessing, os, sys, time
sys.path.insert(0, sys.argv[1])

def work(queue):
    from unlearn.runs import stopping
    stopping.end_with_parent()
    queue.put(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    context.Process(target=work, args=(queue,)).start()
    print(queue.get(), flush=True)
    time.sleep(60)
"""


def test_a_worker_ends_when_the_process_that_started_it_was_killed(tmp_path):
    (tmp_path / "main.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "main.py"), str(ROOT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as main:
        worker = int(main.stdout.readline())
        main.kill()
    deadline = time.monotonic() + 10
    while not gone(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody asks what became of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
