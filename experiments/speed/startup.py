"""Seconds of ``python -m unlearn.run --help`` and of a grid of nine runs that are all finished.

The nine runs are written as finished ones are (manifest, config, evaluation) without being run: only whether they are
done, and what the table shows, is read. Python's own start is beside them, as are the imports of torch and
transformers, which a call with nothing to do never makes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import Result, alternate, publish
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from unlearn.config.derived import alpha_key, describe
from unlearn.config.schema import Config, conf_dir
from unlearn.data.readers import read, register
from unlearn.grid import call as grid
from unlearn.grid.rules import parse
from unlearn.grid.table import COLUMNS
from unlearn.store import runlog
from unlearn.store.files import write_json, write_text
from unlearn.store.identity import eval_settings

ROOT = Path(__file__).resolve().parent.parent.parent
ALGOS, ALPHAS = ("ga", "kl", "npo"), (0.5, 1.0, 2.0)
SWEEP = ("-m", f"algo={','.join(ALGOS)}", f"alpha={','.join(map(str, ALPHAS))}")


def finish(folder: Path) -> None:
    """Nine finished runs of the embedded world."""
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for algo in ALGOS:
            for alpha in ALPHAS:
                raw = compose("config", overrides=[f"algo={algo}", f"alpha={alpha}", f"paths.runs={folder}/runs"])
                write(parse(raw))


def write(cfg: Config) -> None:
    job = grid.job(cfg, read(cfg).fingerprint())
    job.folder.mkdir(parents=True)
    entry = dict.fromkeys(COLUMNS, 0.5) | {"settings": eval_settings(cfg, job.data)}
    write_text(job.folder / runlog.CONFIG, OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    write_json(job.folder / runlog.MANIFEST, {"status": "done", "run": describe(cfg), "seconds": {"train": 5.0}})
    references = {"target": entry, "retrained": entry}
    write_json(job.folder / runlog.EVAL, {"alphas": {alpha_key(cfg.alpha): entry}, "references": references})


def call(*arguments: str, cwd: Path, says: str = "", times: int = 0):
    """Function that runs a command to its end, and checks what it printed."""

    def run() -> None:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        if done.stdout.count(says) < times:
            raise SystemExit(f"{arguments}: {says!r} is not {times} times in what it printed:\n{done.stdout}")

    return run


def children() -> float:
    """CPU seconds of all processes that this one has started and seen end."""
    times = os.times()
    return times.children_user + times.children_system


def seconds(what: str, walls: np.ndarray, goal: str = "") -> Result:
    low, middle, high = np.quantile(walls, (0.25, 0.5, 0.75))
    return Result(f"{what}, seconds", float(middle), float(low), float(high), goal, f"{middle:.2f} s")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finish(folder)
        calls = {
            "help": call("-m", "unlearn.run", "--help", cwd=folder, says="Choices", times=1),
            "grid": call("-m", "unlearn.run", *SWEEP, cwd=folder, says="done before", times=9),
            "heavy": call("-c", "import torch, transformers", cwd=folder),
        }
        used, waited = alternate(calls, 5, children), alternate(calls, 3, time.perf_counter)
    nine = "`python -m unlearn.run -m algo=ga,kl,npo alpha=0.5,1,2`, nine finished runs"
    publish("startup", [
        seconds("`python -m unlearn.run --help`, CPU", used["help"], "< 1.5"),
        seconds("the same, wall clock", waited["help"]),
        seconds(f"{nine}, CPU", used["grid"], "< 3"),
        seconds("the same, wall clock", waited["grid"]),
        seconds("`import torch, transformers`, which neither does, CPU", used["heavy"]),
    ], ["Seconds of whole processes, not ratios. They have one thread and hardly wait for the disk: on a machine with "
        "nothing else to do, wall clock and CPU are the same; here other jobs were running."])  # fmt: skip


if __name__ == "__main__":
    main()
