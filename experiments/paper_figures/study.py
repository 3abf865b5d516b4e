"""The paper's figures (arXiv 2404.11045) on the embedded world: trajectories, trade-off and α, over five worlds.

    python experiments/paper_figures/study.py [--jobs 2]

Its four objectives, each as fine-tuning of the target and as δ-Unlearning; two of them trained at other α as well.
Runs that are done are not repeated. Writes the figures and results.csv beside itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis import alpha, matched, style, tradeoff, trajectories
from analysis.curves import curves
from analysis.runs import Study, load

HERE = Path(__file__).resolve().parent
STUDY = "paper_figures"
WORLDS = range(5)
GRIDS = (
    ("algo=ga,gd,kl,idk", "method=direct,offset"),
    ("algo=gd,kl", "method=offset", "alpha=0.5,2"),  # α in training, beside α at inference
)
SPLITS = ("forget", "retain", "real_authors", "world_facts")
METRICS = [f"{split}/{name}" for split in SPLITS for name in ("prob", "rougeL_recall")] + ["model_utility"]


def world(seed: int) -> None:
    """All runs of one world: in a process of its own, because its models are shared."""
    for grid in GRIDS:
        fixed = (f"experiment={STUDY}", f"pair.seed={seed}", "wandb=disabled")
        command = [sys.executable, "-m", "unlearn.run", "-m", *fixed, *grid]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # a failed run is counted in every figure


def figures(study: Study, folder: Path) -> None:
    """The paper's three, and what they leave open: who keeps more where all forget equally far."""
    one = _only(study, study.runs["alpha"] == 1)
    drawn = {
        "trajectories": trajectories.figure(one, ("forget/prob", "retain/prob", "real_authors/prob")),
        "tradeoff": tradeoff.figure(one),
        "alpha": alpha.figure(_only(study, study.runs["method"] == "offset")),
        "matched": matched.figure(one),
    }
    for name, figure in drawn.items():
        style.save(figure, folder, name)
        (folder / f"{name}.pdf").unlink()  # kept small: the pictures that the README shows


def _only(study: Study, rows: pd.Series) -> Study:
    """The study with these of its runs."""
    runs = study.runs[rows]
    steps = study.trajectories[study.trajectories["folder"].isin(runs["folder"])]
    return replace(study, runs=runs, trajectories=steps)


def results(study: Study) -> pd.DataFrame:
    """One row per algorithm, method, training α and α at inference: means and standard deviations over worlds."""
    table = curves(study, *METRICS)
    return table[["algo", "method", "alpha", "along", "n", *METRICS, *(f"sd/{metric}" for metric in METRICS)]]


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="worlds at a time")
    asked = parser.parse_args(arguments)
    with ThreadPoolExecutor(asked.jobs) as pool:
        list(pool.map(world, WORLDS))
    study = load(STUDY)
    figures(study, HERE)
    results(study).round(4).to_csv(HERE / "results.csv", index=False)
    print(f"{study.count('done')} runs done of {study.runs['folder'].nunique()}: {HERE}")


if __name__ == "__main__":
    main()
