"""The leaderboard's runs: every row of rows/ in worlds that no choice has seen, each at the α where it leaks no more.

    python experiments/leaderboard/study.py [--jobs 2] [--worlds 20 21 22 23 24]

A row is a YAML file with ``settings`` of ``unlearn.run``; methods and objectives of its own lie in conf/. α is
calibrated to the retrained model's leak on one half of the forget questions (an oracle), and everything is reported on
the others: what is kept, what still leaks, what the pair without the target gives away (group artefact). Runs that are
done are not repeated. Writes results.csv beside itself; ``python experiments/leaderboard/table.py`` makes the table and
the figure from that file.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import yaml

HERE = Path(__file__).resolve().parent
WORLDS, RUNS = (20, 21, 22, 23, 24), Path("runs", "leaderboard")
FIXED = (f"--config-dir={HERE / 'conf'}", "eval.max_examples=10", "eval.groups=[]",
         "trainer.eval_every=20", "trainer.save_every=0", "trainer.progress=false", "wandb=disabled")  # fmt: skip
REPORTED = ("eval.max_examples=100", "eval.groups=[leak,artefact]")
SHOWN = (
    "forget/leak_gap", "forget/leak@20", "forget/prob", "retain/prob", "real_authors/prob", "world_facts/prob",
    "model_utility", "forget_quality", "artefact/prob", "artefact/anchor_prob", "artefact/leak@20",
    "artefact/relearnt_prob", "artefact/anchor_relearnt_prob",
)  # fmt: skip


def rows() -> dict[str, list[str]]:
    """Settings of each row, by its name."""
    return {path.stem: yaml.safe_load(path.read_text())["settings"] for path in sorted((HERE / "rows").glob("*.yaml"))}


def world(seed: int) -> None:
    """All rows in one world, in a process of its own; a line of results each."""
    from unlearn.grid.rerun import open_run
    from unlearn.runs.calibration import Goal, calibrate_run

    for name, settings in rows().items():
        place = RUNS / name / str(seed)
        if (place / "result.json").is_file():
            continue
        given = [*FIXED, f"paths.runs={place}", f"pair.seed={seed}", *settings]
        subprocess.run([sys.executable, "-m", "unlearn.run", *given], stdout=subprocess.DEVNULL, check=True)
        (made,) = place.glob("*/*/manifest.json")
        result, manifest = (
            calibrate_run(open_run(made.parent, REPORTED), Goal("forget/leak")),
            json.loads(made.read_text()),
        )
        row = {"row": name, "world": seed, "alpha": result["alpha"], "asked": result["asked"],
               "reached": result["reached"], "note": result["note"], "seconds": manifest["seconds"].get("train", 0.0),
               "collapsed": manifest.get("collapsed") or "", **result["spread"]}  # fmt: skip
        sources = {"": result["report"], **{f"{of}/": values for of, values in result["references"].items()}}
        row |= {f"{of}{metric}": v[metric] for of, v in sources.items() for metric in SHOWN if metric in v}
        (place / "result.json").write_text(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="worlds at a time")
    parser.add_argument("--worlds", type=int, nargs="+", default=WORLDS)
    parser.add_argument("--world", type=int, help="only this world, and no results.csv")
    asked = parser.parse_args()
    if asked.world is not None:
        return world(asked.world)
    with ThreadPoolExecutor(asked.jobs) as pool:
        own = [[sys.executable, __file__, "--world", str(seed)] for seed in asked.worlds]
        list(pool.map(lambda command: subprocess.run(command, check=True), own))
    found = pd.DataFrame(json.loads(path.read_text()) for path in sorted(RUNS.glob("*/*/result.json")))
    found.round(5).to_csv(HERE / "results.csv", index=False)
    print(f"{len(found)} runs, {found['world'].nunique()} worlds: {HERE / 'results.csv'}")


if __name__ == "__main__":
    main()
