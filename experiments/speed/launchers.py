"""A grid of eight runs on all cores: Hydra's basic launcher, joblib, and submitit's local executor.

Everything that runs share (models, frozen rows, the references' evaluation, drafts) is in the store before: a first
run fills it, with models that are trained for a few epochs only, since how much they know changes no time. The eight
differ in algorithm and α. Seconds are wall clock, of whole commands, start-up and the table at the end included. Every
launcher runs the grid once in a study of its own; evaluations are equal byte for byte (checked).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import Result, publish

ROOT = Path(__file__).resolve().parent.parent.parent
SWEEP = ("algo=ga,kl", "alpha=0.5,1,1.5,2")
WORLD = ("pair.target.pretrain.epochs=1", "pair.target.finetune.epochs=2", "pair.small.pretrain.epochs=1",
         "pair.small.general.epochs=2", "wandb=disabled", "trainer.save_every=0")  # fmt: skip
LAUNCHERS = {
    "basic": (), "joblib": ("hydra/launcher=joblib",), "submitit_local": ("hydra/launcher=submitit_local",),
}  # fmt: skip
GOAL = "≥ 1.7"


def call(folder: Path, *arguments: str) -> float:
    """Wall-clock seconds of a command."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "unlearn.run", *WORLD, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return time.perf_counter() - start


def evaluations(study: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(study.glob("*/eval.json"))}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(folder, "study=first", "algo=npo")
        seconds = {launcher: call(folder, "-m", *SWEEP, f"study={launcher}", *more)
                   for launcher, more in LAUNCHERS.items()}  # fmt: skip
        found = {launcher: evaluations(folder / "runs" / launcher) for launcher in LAUNCHERS}
        if len(found["basic"]) != 8 or any(entries != found["basic"] for entries in found.values()):
            raise SystemExit("the launchers' evaluations differ")
    results = []
    for launcher in ("joblib", "submitit_local"):
        ratio = seconds["basic"] / seconds[launcher]
        times = f"basic {seconds['basic']:.1f} s, {launcher} {seconds[launcher]:.1f} s"
        results.append(Result(f"eight prepared runs, basic ÷ {launcher}", ratio, ratio, ratio, GOAL, times))
    publish("launchers", results, ["Wall clock, one call each; evaluations are equal byte for byte (checked)."])


if __name__ == "__main__":
    main()
