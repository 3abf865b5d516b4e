"""Every algorithm × every method over five worlds, at α = 1 and at matched forgetting.

    python experiments/methods/study.py [--jobs 2]
    python experiments/methods/study.py --leak     # the algorithms of LEAK alone, matched by what drawn answers leak

For each world (pair.seed) it runs the grids below with the settings of conf/, then calibrates every run to the
retrained reference's forget probability (an oracle: half of the forget questions choose α, everything is reported on
questions that did not). With ``--leak`` α is calibrated to the retrained model's leak instead: on all forget questions
by one draw of answers, reported by another. Runs that are done are not repeated. Writes results.csv (leak.csv) beside
itself; then ``python experiments/methods/table.py`` makes the tables and the figure from these files.
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
# Leak is drawn anew at every α, which takes most of a minute a run: what kept most by probability, and ga.
DEFER = ("algo=me_kl", "method=defer", "trainer.steps=300", "trainer.retain_batch=100")  # what leads the leaderboard
LEAK = ("npo", "simnpo", "kl", "gd", "wga", "dpo", "ga")


def grids(leak: bool) -> list[list[str]]:
    every = [p.stem for p in sorted((CONF / "algo").glob("*.yaml")) if p.stem not in ALONE]
    algos = ",".join(LEAK if leak else every)
    return [
        [f"algo={algos}", "method=direct"],
        [f"algo={algos}", "method=offset", f"pair.offset_init=general,full{'' if leak else ',retain'}"],
        [f"algo={algos}", "method=proxy"],
        ["algo=uld", "method=uld"],
        [*DEFER] if leak else ["algo=rmu", "method=direct"],
        ["method=dd,dd_rank"],
    ]


def world(seed: int, leak: bool) -> None:
    """All runs of one world, then their calibration: in a process of its own."""
    for grid in grids(leak):
        command = [sys.executable, "-m", "unlearn.run", "-m", *FIXED, f"pair.seed={seed}", *grid]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # a failed run is missing below, and named
    from unlearn.grid.rerun import open_run
    from unlearn.runs.calibration import FILE, calibrate_run
    from unlearn.runs.goal import Goal
    from unlearn.store.files import read_json

    metric = "forget/leak" if leak else "forget/prob"
    for path in sorted(Path("runs", STUDY).glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        calibrated = {each["metric"] for each in read_json(path.parent / FILE) or []}
        if manifest["run"]["pair_seed"] != seed or metric in calibrated:
            continue
        if manifest["status"] != "done":
            print(f"{path.parent.name}: {manifest['status']}: {manifest.get('error')}")
            continue
        more = ["eval.leak_samples=10", "eval.batch_size=512"] if leak else []
        calibrate_run(open_run(path.parent, ["eval.max_examples=100", *more]), Goal(metric))


def results(leak: bool) -> pd.DataFrame:
    """One row per run: what it is, what it cost, its values at α = 1 and at matched forgetting."""
    from unlearn.runs.calibration import FILE
    from unlearn.store.files import read_json

    rows = []
    for path in sorted(Path("runs", STUDY).glob("*/manifest.json")):
        manifest, folder = json.loads(path.read_text()), path.parent
        if manifest["status"] != "done":
            continue
        calibrations = read_json(folder / FILE) or []
        wanted = "forget/leak" if leak else "forget/prob"
        matched = next((entry for entry in calibrations if entry["oracle"] and entry["metric"] == wanted), None)
        if matched is None:  # a run of the other study
            continue
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
            named = ("model_utility", "forget_quality", *(("forget/leak@10", "forget/leak_gap") if leak else ()))
            row |= {f"{name}/{k}": values[k] for k in named if k in values}
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["algo", "method", "world"], ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="worlds at a time")
    parser.add_argument("--leak", action="store_true", help="match by leak; fewer algorithms")
    parser.add_argument("--world", type=int, help="only this world, and no CSV file")
    arguments = parser.parse_args()
    if arguments.world is not None:
        world(arguments.world, arguments.leak)
        return
    with ThreadPoolExecutor(arguments.jobs) as pool:
        own = [sys.executable, __file__, *(["--leak"] if arguments.leak else []), "--world"]
        list(pool.map(lambda seed: subprocess.run([*own, str(seed)], check=True), WORLDS))
    found, file = results(arguments.leak), HERE / ("leak.csv" if arguments.leak else "results.csv")
    found.round(5).to_csv(file, index=False)
    print(f"{len(found)} runs, {found['world'].nunique()} worlds: {file}")


if __name__ == "__main__":
    main()
