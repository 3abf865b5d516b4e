"""Learning rates for low-rank offsets of pretrained models: one small search for all algorithms.

    python -m experiments.real.rates.search MODELS [--check] [--write]     # MODELS/smollm2; --check: qwen15, qwen05

The forget set is that of both tuning topics, which the study does not judge; SmolLM2-135M is target and small model.
Where both are one model, δ-Unlearning at α = 1 *is* direct unlearning, as the anchor cancels the target: the rates
found serve both methods. Every algorithm gets two rates, a factor of three apart, and further ones until its best has
one on either side. Winner: the highest score by the declared rule of ``unlearn/runs/trajectory.py`` at the last
step: harmonic mean of the share of forget probability that is lost and of the share that is kept on neighbours, other
facts and held-out retain questions. ``--check`` tries npo and simnpo with the Qwen pair at the rate found and at the
next smaller one. Runs that are done are not repeated.

Writes search.csv (every run) and rates.md beside itself; ``--write`` puts the winners into conf/algo.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pandas as pd

from experiments.real.common import TOPICS, called, pair, runs, setting

HERE = Path(__file__).resolve().parent
CONF = HERE.parents[2] / "conf" / "algo"
STUDY = "real_rates"
FILES = {"forget": ("europe/forget", "languages/forget"), "real_authors": ("europe/neighbours", "languages/neighbours"),
         "retain": ("europe/retain",), "world_facts": ("europe/others",)}  # fmt: skip
ALGOS, RATES = ("npo", "simnpo", "kl", "idk", "ga", "gd"), (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# A search needs the last point of the trajectory only: it evaluates the target (α = 0), whose answers are stored.
FIXED = ("trainer.steps=6", "trainer.forget_batch=4", "trainer.retain_batch=4", "trainer.held_out=0.25",
         "trainer.eval_every=6", "trainer.eval_examples=8", "trainer.save_every=0", "trainer.progress=false",
         "eval.alphas=[0]", "eval.max_examples=1", "eval.max_new_tokens=16", "eval.groups=[]", 
         "eval.resamples=0", "wandb=disabled")  # fmt: skip


def call(models: list[str], *overrides: str) -> None:
    files = {key: ",".join(f"{TOPICS / place}.jsonl" for place in places) for key, places in FILES.items()}
    of = [f"data.{key}=[{both}]" for key, both in files.items()] + [f"data.refusals={TOPICS / 'refusals.txt'}"]
    spent = called("run", "-m", f"study={STUDY}", *models, "data=jsonl", *of, *FIXED, *overrides)
    print(f"{' '.join(overrides)}: {spent:.0f} CPU seconds", flush=True)


def results() -> pd.DataFrame:
    """One row per run."""
    rows = []
    for folder, manifest in runs(STUDY):
        last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        rows.append({
            "algo": manifest["run"]["algo"], "method": manifest["run"]["method"], "model": manifest["run"]["pair"],
            "lr": float(setting(folder, "trainer", "lr")),
            "score": manifest["score"] or 0.0, "collapsed": bool(manifest.get("collapsed")),
            **{name: last[f"{name}/prob"] for name in ("forget", "real_authors", "world_facts", "held_out")},
        })  # fmt: skip
    found = pd.DataFrame(rows).rename(columns={"real_authors": "neighbours", "world_facts": "others"})
    return found.sort_values(["model", "algo", "lr"], ignore_index=True)


def winners(found: pd.DataFrame) -> dict[tuple[str, str], float]:
    """The rate with the best score, by algorithm and method."""
    small = found[found["model"] == "smollm2"]
    best = small.loc[small.groupby(["algo", "method"])["score"].idxmax()]
    return {(row.algo, row.method): row.lr for row in best.itertuples()}


def beside(found: pd.DataFrame) -> dict[tuple[str, str], float]:
    """The next rate of the list where a best one is the largest or smallest that was tried."""
    further = {}
    for (algo, method), lr in winners(found).items():
        tried = found.loc[(found["algo"] == algo) & (found["model"] == "smollm2"), "lr"]
        at = RATES.index(lr)
        lacking = [r for r in (*RATES[at - 1 : at], *RATES[at + 1 : at + 2]) if r not in set(tried)]
        if lacking:
            further[algo, method] = lacking[0]
    return further


def table(found: pd.DataFrame, best: dict[tuple[str, str], float]) -> str:
    """Scores by rate, the winner in bold."""
    rates = sorted(found["lr"].unique())
    lines = ["| model | algorithm | " + " | ".join(f"{r:g}" for r in rates) + " |", "|---" * (len(rates) + 2) + "|"]
    for (model, algo, method), rows in found.groupby(["model", "algo", "method"]):
        scores = rows.set_index("lr")["score"]
        marks = {lr: "**" if model == "smollm2" and best[algo, method] == lr else "" for lr in rates}
        cells = (f"{marks[r]}{scores[r]:.2f}{marks[r]}" if r in scores else "" for r in rates)
        lines.append(f"| {model} | `{algo}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def write(best: dict[tuple[str, str], float]) -> None:
    """Put the next smaller rate than the winner's into the algorithms' YAML: what the larger pair needs (README)."""
    for (algo, method), lr in best.items():
        path, names = CONF / f"{algo}.yaml", ("offset", "direct") if method == "offset" else (method,)
        rate = RATES[RATES.index(lr) - 1]
        line = "lr_pretrained: {" + ", ".join(f"{name}: {rate:g}" for name in names) + "}\n"
        text = re.sub(r"^lr_pretrained: .*\n", "", path.read_text(encoding="utf-8"), flags=re.M)
        path.write_text(re.sub(r"^(lr: .*\n)", rf"\1{line}", text, flags=re.M), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="the folder with smollm2, and for --check qwen15 and qwen05")
    parser.add_argument("--check", action="store_true", help="the rates found on the Qwen pair, too")
    parser.add_argument("--write", action="store_true", help="put the winners into conf/algo")
    arguments = parser.parse_args()
    smollm2, qwen = pair(arguments.models, "smollm2", "smollm2"), pair(arguments.models, "qwen15", "qwen05")
    call(smollm2, f"algo={','.join(ALGOS)}", f"trainer.lr={','.join(map(str, RATES[2:4]))}")
    call(smollm2, "algo=uld", "method=uld", f"trainer.lr={','.join(map(str, RATES[2:4]))}")
    while further := beside(results()):  # until the best rate of each has been tried with one on either side
        for (algo, method), rate in further.items():
            call(smollm2, f"algo={algo}", f"method={method}", f"trainer.lr={rate}")
    best = winners(results())
    for algo in ("npo", "simnpo") if arguments.check else ():
        rate = best[algo, "offset"]
        call(qwen, f"algo={algo}", f"trainer.lr={RATES[RATES.index(rate) - 1]},{rate}")
    found = results()
    found.round(4).to_csv(HERE / "search.csv", index=False)
    (HERE / "rates.md").write_text(table(found, best), encoding="utf-8")
    print(table(found, best))
    if arguments.write:
        write(best)


if __name__ == "__main__":
    main()
