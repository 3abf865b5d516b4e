"""Learning rates for every algorithm × method of the embedded world, each found with the same budget.

    python experiments/presets/search.py [--jobs 2]

Every algorithm × method gets the four values of its method's grid in the first search world; then the best of them,
half of it and twice it in both worlds, so that a best at the grid's edge has a neighbour on either side. Winner: the
highest mean score over both worlds, by the declared rule of ``unlearn/runs/trajectory.py`` at the last step,
α = 1. The rule sees neither the retrained model nor forget quality, and no world of the search is used in a study.

Writes search.csv (every run), presets.csv and presets.md (the winners) beside itself; ``--write`` puts the winners into
conf/algo. Runs that are done are not repeated.
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
WORLDS = (100, 101)
SMALL = (2.5e-4, 5e-4, 1e-3, 2e-3)
LARGE = (1e-4, 2e-4, 4e-4, 8e-4)
GRID = {"offset": SMALL, "proxy": SMALL, "uld": SMALL, "direct": LARGE}
STUDY = "presets"
# A search needs the last point of the trajectory only, and the final evaluation not at all: it is kept tiny.
FIXED = ("trainer.eval_every=1000", "trainer.save_every=0", "trainer.progress=false", "eval.max_examples=10",
         "wandb=disabled", f"study={STUDY}")  # fmt: skip


def cells() -> list[tuple[str, str]]:
    """Every algorithm with every method that it has a learning rate for."""
    found = []
    for path in sorted((CONF / "algo").glob("*.yaml")):
        methods = re.findall(r"(\w+):", re.search(r"^lr: \{(.*)\}", path.read_text(), re.M)[1])
        found += [(path.stem, method) for method in methods]
    return found


def run(algos: list[str], method: str, rates: list[float], world: int) -> None:
    command = [sys.executable, "-m", "unlearn.run", "-m", *FIXED, f"pair.seed={world}", f"method={method}",
               f"algo={','.join(algos)}", f"trainer.lr={','.join(map(str, rates))}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{method} {algos}: exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def results() -> pd.DataFrame:
    """One row per run of the search."""
    rows = []
    for path in sorted(Path("runs", STUDY).glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        of = manifest["run"]
        rate = float(
            re.search(r"^  lr: (.*)$", (path.parent / "config.yaml").read_text().split("trainer:")[1], re.M)[1]
        )
        rows.append({
            "algo": of["algo"], "method": of["method"], "lr": rate, "world": of["pair_seed"],
            "score": manifest.get("score", float("nan")), "collapsed": manifest.get("collapsed") or "",
        })  # fmt: skip
    columns = ["algo", "method", "lr", "world", "score", "collapsed"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:4], ignore_index=True)


def winners(found: pd.DataFrame) -> pd.DataFrame:
    """The best mean score over both worlds, among what was tried in both."""
    if found.duplicated(["algo", "method", "lr", "world"]).any():
        raise SystemExit(f"runs/{STUDY} holds runs of another version of the configs: remove it and search again")
    means = found.groupby(["algo", "method", "lr"])["score"].agg(["mean", "count"]).reset_index()
    means = means[means["count"] == len(WORLDS)]
    return means.loc[means.groupby(["algo", "method"])["mean"].idxmax()].drop(columns="count")


def table(found: pd.DataFrame, best: pd.DataFrame) -> str:
    """Winners as Markdown, with their scores; an arrow where the winner is the largest or smallest that was tried."""
    methods = list(GRID)
    lines = ["| algorithm | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for algo, rows in best.groupby("algo"):
        cells = {}
        for r in rows.itertuples():
            tried = found.loc[(found["algo"] == algo) & (found["method"] == r.method), "lr"]
            arrow = " ↑" if r.lr == tried.max() else " ↓" if r.lr == tried.min() else ""
            cells[r.method] = f"{r.lr:g}{arrow} ({r.mean:.2f})"
        lines.append(f"| `{algo}` | " + " | ".join(cells.get(m, "") for m in methods) + " |")
    collapsed = int((found["collapsed"] != "").sum())
    return "\n".join([*lines, "", f"{len(found)} runs, {collapsed} of them collapsed.", ""])


def write(best: pd.DataFrame) -> None:
    """Put the winners into the algorithms' YAML."""
    for algo, rows in best.groupby("algo"):
        path = CONF / "algo" / f"{algo}.yaml"
        text = path.read_text()
        old = dict(pair.split(": ") for pair in re.search(r"^lr: \{(.*)\}", text, re.M)[1].split(", "))
        new = old | {r.method: f"{r.lr:g}" for r in rows.itertuples()}
        rates = ", ".join(f"{method}: {rate}" for method, rate in new.items())
        path.write_text(re.sub(r"^lr: \{.*\}", f"lr: {{{rates}}}", text, flags=re.M))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--write", action="store_true", help="put the winners into conf/algo")
    arguments = parser.parse_args()
    wanted = cells()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        first = {method: [a for a, m in wanted if m == method] for method in GRID}
        list(pool.map(lambda m: run(first[m], m, GRID[m], WORLDS[0]), ("direct", "offset", "proxy", "uld")))
        first_world = results().query("world == @WORLDS[0]").dropna(subset="score")
        again: dict[tuple[int, str, float], list[str]] = {}
        for (algo, method), rows in first_world.groupby(["algo", "method"]):
            rows = rows[rows["lr"].isin(GRID[method])]
            center = float(rows.loc[rows["score"].idxmax(), "lr"])
            for world in WORLDS:
                for rate in (center / 2, center, center * 2):
                    again.setdefault((world, method, rate), []).append(algo)
        list(pool.map(lambda key: run(again[key], key[1], [key[2]], key[0]), sorted(again, reverse=True)))
    found = results()
    best = winners(found)
    found.round({"score": 4}).to_csv(HERE / "search.csv", index=False)
    best.round({"mean": 4}).to_csv(HERE / "presets.csv", index=False)
    (HERE / "presets.md").write_text(table(found, best))
    print(best.pivot(index="algo", columns="method", values="lr").to_string())
    if arguments.write:
        write(best)


if __name__ == "__main__":
    main()
