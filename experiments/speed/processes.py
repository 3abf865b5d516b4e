"""One run on several processes of one core each: speed of a step, and what becomes of the numbers.

Training is timed by the run itself (``seconds`` in its manifest), from calls in turn; the first call of a world is not
counted. A small model of 3 M parameters learns; target and rows play no part, since rows are stored.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import Result, compared, publish

SIZE = "hidden_size=256", "layers=4", "heads=4", "intermediate_size=1024"
EPOCHS = "pretrain.epochs=1", "finetune.epochs=1"
SETTINGS = (
    *(f"pair.{model}.{value}" for model in ("target", "small") for value in (*SIZE, *EPOCHS)),
    "pair.small.general.epochs=1", "data.people=20", "data.countries=10", "algo=npo", "trainer.steps=24",
    "trainer.retain_batch=24", "trainer.forget_batch=8", "trainer.eval_every=12", "trainer.device=cpu",
    "trainer.progress=false", "eval.max_examples=24", "eval.resamples=0", "trainer.log_every=1",
    "eval.groups=[leak]", "eval.leak_samples=4", "wandb=disabled",
)  # fmt: skip
ROUNDS = 3


def start(count: int, study: str, folder: Path) -> list[subprocess.Popen]:
    """Processes of one call, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(count):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        told = {k: str(v) for k, v in place.items()} if count > 1 else {}
        command = [sys.executable, "-m", "unlearn.run", *SETTINGS, f"study={study}"]
        found.append(subprocess.Popen(command, cwd=folder, env=os.environ | told, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL))  # fmt: skip
    return found


def call(count: int, study: str, folder: Path) -> None:
    if any([process.wait() for process in start(count, study, folder)]):
        raise SystemExit(f"{study} failed: {folder}")


def run_of(study: str, folder: Path) -> Path:
    return next((folder / "runs" / study).glob("npo-*"))


def seconds(study: str, folder: Path, stage: str) -> float:
    return json.loads((run_of(study, folder) / "manifest.json").read_text())["seconds"][stage]


def stopped_at(step: int, count: int, study: str, folder: Path) -> int:
    """Start a run and tell it to end when it has logged a step; the step of its checkpoint."""
    processes = start(count, study, folder)
    while not any(len(p.read_text().splitlines()) > step for p in folder.glob(f"runs/{study}/npo-*/metrics.jsonl")):
        time.sleep(0.02)
    processes[0].send_signal(signal.SIGTERM)
    statuses = [process.wait() for process in processes]
    if set(statuses) != {128 + signal.SIGTERM}:
        raise SystemExit(f"{study}: ended with {statuses}")
    return json.loads((run_of(study, folder) / "checkpoint" / "sealed.json").read_text())["step"]


def differences(study: str, folder: Path, straight: str = "one0") -> tuple[float, float]:
    """The largest of the losses, relative, and of the metrics."""
    logs = [[json.loads(x) for x in (run_of(s, folder) / "metrics.jsonl").open()] for s in (study, straight)]
    losses = [[row["train/loss"] for row in log if "train/loss" in row] for log in logs]
    found = []
    for name in (study, straight):
        entries = json.loads((run_of(name, folder) / "eval.json").read_text())["alphas"]
        found.append({k: v for k, v in next(iter(entries.values())).items() if isinstance(v, float | int)})
    metrics = max(abs(found[0][k] - found[1][k]) for k in found[1])
    ours, theirs = map(np.array, losses)
    return float(np.abs((ours - theirs) / theirs).max()), metrics


def main() -> None:
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(1, "world", folder)
        for round in range(ROUNDS):
            call(1, f"one{round}", folder)
            call(2, f"two{round}", folder)
        for stage, what in (
            ("train", "24 training steps and 3 points"),
            ("evaluate", "evaluation, with drawn answers"),
        ):
            of = {k: np.array([seconds(f"{k}{r}", folder, stage) for r in range(ROUNDS)]) for k in ("one", "two")}
            results.append(compared(f"{what}: one process ÷ two", of, "one", "two"))
        first, second = stopped_at(8, 2, "changing", folder), stopped_at(16, 1, "changing", folder)
        call(3, "changing", folder)
        call(3, "three", folder)
        for study, what in (("two0", "2 processes"), ("three", "3"), ("changing", "2, then 1, then 3")):
            loss, metric = differences(study, folder)
            results.append(_small(f"{what}: losses of all steps, 1e-6 of their size", loss / 1e-6, "≤ 1"))
            results.append(_small(f"{what}: metrics, 1e-4", metric / 1e-4, "≤ 1"))
    notes = [f"Wall clock. 2, then 1, then 3: resumed from checkpoints of steps {first} and {second}."]
    publish("processes", results, notes)


def _small(what: str, value: float, goal: str) -> Result:
    return Result(f"{what}, largest difference", value, value, value, goal, "against 1 process")


if __name__ == "__main__":
    main()
