"""Real TOFU, pairs from scratch: direct against offset for five algorithms, every metric.

    python experiments/tofu_scratch/study.py FOLDER_OF_TOFU [--jobs 2]

forget01 with three worlds (pair.seed: other models, the same text), forget10 with one. Runs that are done are not
repeated. Writes results.csv beside itself; then ``python experiments/tofu_scratch/table.py`` makes table and figure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
STUDY = Path("runs", "tofu_scratch")
GRID = ("experiment=tofu_scratch", "algo=ga,gd,kl,npo,simnpo", "method=direct,offset", "wandb=disabled",
        "trainer.eval_every=0", "trainer.save_every=0", "trainer.progress=false")  # fmt: skip
# forget10: ten times the questions, so half the epochs, larger batches and fewer drawn answers
LARGE = ("data.forget=forget10", "trainer.epochs=10", "trainer.forget_batch=20", "trainer.retain_batch=40",
         "eval.leak_samples=5")  # fmt: skip
WORLDS = [("forget10", 0), ("forget01", 0), ("forget01", 1), ("forget01", 2)]  # the longest first


def world(forget: str, seed: int, folder: str) -> None:
    more = LARGE if forget == "forget10" else ()
    command = [sys.executable, "-m", "unlearn.run", "-m", *GRID, f"pair.seed={seed}", f"data.path={folder}", *more]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # a failed run is missing below, and named


def results() -> pd.DataFrame:
    """One row per run and reference: what it is, its seconds, every metric with its interval's ends."""
    rows = []
    for path in sorted(STUDY.glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        if manifest["status"] != "done":
            print(f"{path.parent.name}: {manifest['status']}: {manifest.get('error')}")
            continue
        run, found = manifest["run"], json.loads((path.parent / "eval.json").read_text())
        common = {"forget_set": _forget_set(path), "world": run["pair_seed"]}
        own = {"algo": run["algo"], "method": run["method"], "seconds": manifest["seconds"].get("train", 0.0)}
        rows.append(common | own | {"collapsed": manifest.get("collapsed") or ""} | _numbers(found["alphas"]["1.0"]))
        for name, metrics in found["references"].items():
            rows.append(common | {"algo": name, "method": ""} | _numbers(metrics))
    frame = pd.DataFrame(rows).drop_duplicates(["forget_set", "world", "algo", "method"])
    return frame.sort_values(["forget_set", "algo", "method", "world"], ignore_index=True)


def _forget_set(path: Path) -> str:
    lines = (path.parent / "config.yaml").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("  forget: forget"))


def _numbers(metrics: dict) -> dict[str, float]:
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    ends = {f"{k}/{end}": v[i] for k, v in metrics["intervals"].items() for i, end in enumerate(("low", "high"))}
    return numbers | ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with TOFU's files: forget01.json …")
    parser.add_argument("--jobs", type=int, default=2, help="worlds at a time")
    arguments = parser.parse_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda w: world(*w, arguments.folder), WORLDS))
    found = results()
    found.round(6).to_csv(HERE / "results.csv", index=False)
    print(f"{len(found)} rows: {HERE / 'results.csv'}")


if __name__ == "__main__":
    main()
