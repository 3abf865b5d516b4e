"""Seconds until a study of 300 runs × 200 logged steps is tables, from its folders and from its offline W&B files.

The runs are made up and written as real ones are: the folders by their own file formats, the W&B files by wandb itself
through the mirror. Writing them is not counted; it takes minutes, so bench.py does it only when it is asked to.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from bench import Result, publish

from analysis.runs import load
from unlearn.config.schema import WandbConfig
from unlearn.store.identity import flatten
from unlearn.store.mirror import opened

RUNS, STEPS, EVERY, ROUNDS = 300, 200, 10, 3
SPLITS = ("forget", "retain", "real_authors", "world_facts")
ALGOS = ("ga", "gd", "kl", "npo", "simnpo", "undial")
NAMES = ("prob", "rougeL_recall", "exact_memorization", "truth_ratio", "fluency")
METRICS = [f"{split}/{name}" for split in SPLITS for name in NAMES]


def steps(generator: np.random.Generator) -> list[dict[str, float]]:
    """Loss and gradient norm at each step, and every tenth a point of the trajectory."""
    found = []
    for step in range(STEPS):
        row = {"step": step, "epoch": step / 10, "train/loss": float(generator.normal()), "train/npo": 0.5}
        row |= {"train/nll": float(generator.random()), "train/grad_norm": 1.5, "train/lr": 1e-3 / (step + 1)}
        if step % EVERY == 0:
            row |= {f"{s}/{m}": float(generator.random()) for s in SPLITS for m in ("prob", "exact_memorization")}
        found.append(row)
    return found


def entry(generator: np.random.Generator) -> dict:
    values = {name: float(generator.random()) for name in METRICS}
    about = {"intervals": {k: [v - 0.1, v + 0.1] for k, v in values.items()}, "distance": values}
    return values | about | {"settings": {"references": "made up"}}


def write(study: Path, number: int) -> None:
    """One run: its folder, with its offline W&B run in it."""
    generator = np.random.default_rng(number)
    algo, alpha, seed = ALGOS[number % 6], 0.5 * (1 + number // 6 % 5), number // 30
    given = yaml.safe_load((Path(__file__).parent / "loading_config.yaml").read_text(encoding="utf-8"))
    config = given | {"algo": given["algo"] | {"name": algo}, "alpha": alpha, "seed": seed, "study": study.name}
    run = {"study": study.name, "algo": algo, "method": "offset", "pair": "bios", "data": "bios", "alpha": alpha}
    manifest = {"status": "done", "run": run, "seconds": {"train": 4.5, "evaluate": 8.0}, "peak_memory_mb": 700.0}
    evaluated = {"alphas": {str(alpha): entry(generator)}, "references": {"target": entry(np.random.default_rng(0))}}
    folder = study / f"{algo}-offset-a{alpha:g}-s{seed}-{number:010x}"
    folder.mkdir(parents=True)
    rows = steps(generator)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "eval.json").write_text(json.dumps(evaluated))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with opened(WandbConfig("offline"), folder, run, flatten(config), None) as mirror:
        for row in rows:
            mirror.log(row)
        mirror.manifest(manifest)
        mirror.run.summary.update(evaluated)


def wait_until_written(source: str) -> None:
    """wandb's service goes on writing for a moment after a run's end."""
    logging.disable(logging.WARNING)
    while len(load(source).trajectories) < RUNS * STEPS:
        time.sleep(1)
    logging.disable(logging.NOTSET)


def measure(source: str) -> np.ndarray:
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        study = load(source)
        found.append(time.process_time() - start)
        assert len(study.runs) == RUNS and len(study.trajectories) == RUNS * STEPS and not study.notes
    return np.array(found)


def result(what: str, walls: np.ndarray) -> Result:
    low, middle, high = np.quantile(walls, (0.25, 0.5, 0.75))
    return Result(f"{what}, CPU seconds", float(middle), float(low), float(high), "< 10", f"{middle:.2f} s")


def main() -> None:
    kept = Path(sys.argv[1]) if len(sys.argv) > 1 else None  # a folder to keep the made-up study in
    folder = kept or Path(tempfile.mkdtemp())
    os.environ |= {"WANDB_DATA_DIR": str(folder / "data"), "WANDB_CACHE_DIR": str(folder / "cache")}
    study = folder / "made-up"
    try:
        if not study.is_dir():
            for number in range(RUNS):
                write(study, number)
            wait_until_written(f"offline:{study}")
        walls = {"run folders": measure(str(study)), "offline W&B files": measure(f"offline:{study}")}
    finally:
        if kept is None:
            shutil.rmtree(folder)
    results = [result(f"{RUNS} runs × {STEPS} steps from {source}", v) for source, v in walls.items()]
    publish("loading", results, ["Seconds of CPU, not ratios; examples are read only when they are asked for."])


if __name__ == "__main__":
    main()
