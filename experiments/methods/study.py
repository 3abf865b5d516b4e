"""Every algorithm × every method over five worlds, at α = 1 and at matched forgetting.

    python experiments/methods/study.py [--jobs 2]

For each world (pair.seed) it runs the grids below with the settings of conf/, then calibrates every run to the
retrained reference's forget probability (an oracle: half of the forget questions choose α, everything is reported on
questions that did not). Runs that are done are not repeated. Writes results.csv beside itself; then
``python experiments/methods/table.py`` makes the tables and the figure from that file alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
CONF = HERE.parent.parent / "conf"
WORLDS = range(5)
STUDY = "methods"
FIXED = (f"study={STUDY}", "eval.max_examples=10", "trainer.eval_every=20", "trainer.save_every=0",
         "trainer.progress=false", "wandb=disabled")  # fmt: skip
ALONE = {"uld", "rmu"}  # objectives of one method only
SPLITS = ("forget", "retain", "real_authors", "world_facts")


def grids() -> list[list[str]]:
    algos = ",".join(p.stem for p in sorted((CONF / "algo").glob("*.yaml")) if p.stem not in ALONE)
    return [
        [f"algo={algos}", "method=direct"],
        [f"algo={algos}", "method=offset", "pair.offset_init=general,full,retain"],
        [f"algo={algos}", "method=proxy"],
        ["algo=uld", "method=uld"],
        ["algo=rmu", "method=direct"],
        ["method=dd,dd_rank"],
    ]


def world(seed: int) -> None:
    """All runs of one world, then their calibration: in a process of its own."""
    for grid in grids():
        command = [sys.executable, "-m", "unlearn.run", "-m", *FIXED, f"pair.seed={seed}", *grid]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # a failed run is missing below, and named
    from unlearn.grid.rerun import open_run
    from unlearn.runs.calibration import FILE, Goal, calibrate_run

    for path in sorted(Path("runs", STUDY).glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        if manifest["run"]["pair_seed"] != seed or (path.parent / FILE).is_file():
            continue
        if manifest["status"] != "done":
            print(f"{path.parent.name}: {manifest['status']}: {manifest.get('error')}")
            continue
        calibrate_run(open_run(path.parent, ["eval.max_examples=100"]), Goal("forget/prob"))


def results() -> pd.DataFrame:
    """One row per run: what it is, what it cost, its values at α = 1 and at matched forgetting."""
    rows = []
    for path in sorted(Path("runs", STUDY).glob("*/manifest.json")):
        manifest, folder = json.loads(path.read_text()), path.parent
        if manifest["status"] != "done":
            continue
        calibrations = json.loads((folder / "calibration.json").read_text())
        matched = next(entry for entry in calibrations if entry["oracle"])
        init = re.search(r"^  offset_init: (.*)$", (folder / "config.yaml").read_text(), re.M)[1]
        method = manifest["run"]["method"]
        row = {
            "algo": manifest["run"]["algo"], "method": f"offset, {init}" if method == "offset" else method,
            "world": manifest["run"]["pair_seed"], "trainable": manifest.get("trainable", 0),
            "seconds": manifest["seconds"].get("train", 0.0), "collapsed": manifest.get("collapsed") or "",
            "matched_alpha": matched["alpha"], "matched_note": matched["note"],
            "chosen_asked": matched["asked"], "chosen_reached": matched["reached"],
        }  # fmt: skip
        beside = matched["references"]
        sources = {"one": matched["report_at_given_alpha"], "matched": matched["report"],
                   "target": beside["target"], "retrained": beside["retrained"]}  # fmt: skip
        for name, values in sources.items():
            row |= {f"{name}/{s}/{m}": values[f"{s}/{m}"] for s in SPLITS for m in ("prob", "rougeL_recall")}
            row |= {f"{name}/{k}": values[k] for k in ("model_utility", "forget_quality")}
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["algo", "method", "world"], ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="worlds at a time")
    parser.add_argument("--world", type=int, help="only this world, and no results.csv")
    arguments = parser.parse_args()
    if arguments.world is not None:
        world(arguments.world)
        return
    with ThreadPoolExecutor(arguments.jobs) as pool:
        own = [[sys.executable, __file__, "--world", str(seed)] for seed in WORLDS]
        list(pool.map(lambda command: subprocess.run(command, check=True), own))
    found = results()
    found.round(5).to_csv(HERE / "results.csv", index=False)
    print(f"{len(found)} runs, {found['world'].nunique()} worlds: {HERE / 'results.csv'}")


if __name__ == "__main__":
    main()
