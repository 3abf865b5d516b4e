"""Does the embedded world still show the phenomena? Reads a logged study and compares it with the gates.

    python -m unlearn.run -m study=gates algo=ga,npo,simnpo pair.seed=0,1,2 'eval.alphas=[0,0.5,1,2]'
    python experiments/gates/check.py runs/gates

Prints a Markdown table, one row per gate and one column per world (``pair.seed``); exit status 1 if a gate fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from analysis.runs import Study, load

ROUGE, PROB = "rougeL_recall", "prob"


def gates(study: Study, seed: int) -> list[tuple[str, float, str, bool]]:
    """(what, value, rule, passed) for one world."""
    references = study.references[study.references["pair_seed"] == seed].set_index("reference")
    runs = study.runs[(study.runs["pair_seed"] == seed) & (study.runs["method"] == "offset")]

    def run(algo: str, metric: str, alpha: float = 1.0) -> float:
        rows = runs[(runs["algo"] == algo) & (runs["eval_alpha"] == alpha)]
        if len(rows) != 1:
            raise SystemExit(f"pair.seed={seed}: expected one run of {algo} evaluated at α={alpha}, found {len(rows)}")
        return float(rows[metric].iloc[0])

    def at_least(what, value, bound):
        return what, value, f"≥ {bound}", value >= bound

    def at_most(what, value, bound):
        return what, value, f"≤ {bound}", value <= bound

    target, retrained = references.loc["target"], references.loc["retrained"]
    simnpo, ga = run("simnpo", f"retain/{ROUGE}"), run("ga", f"retain/{ROUGE}")
    rows = [
        at_least("target forget ROUGE", target[f"forget/{ROUGE}"], 0.97),
        at_least("target retain ROUGE", target[f"retain/{ROUGE}"], 0.97),
        at_most("retrained forget ROUGE", retrained[f"forget/{ROUGE}"], 0.45),
        at_most("retrained forget probability", retrained[f"forget/{PROB}"], 0.25),
        at_least("retrained retain ROUGE", retrained[f"retain/{ROUGE}"], 0.97),
        at_most("simnpo forget ROUGE", run("simnpo", f"forget/{ROUGE}"), 0.45),
        at_most("simnpo forget probability", run("simnpo", f"forget/{PROB}"), 0.25),
        at_least("simnpo retain ROUGE", simnpo, 0.95),
        at_most("ga retain ROUGE (it collapses)", ga, 0.6),
        at_least("simnpo − ga retain ROUGE", simnpo - ga, 0.3),
        at_least("npo − ga retain probability", run("npo", f"retain/{PROB}") - run("ga", f"retain/{PROB}"), 0.3),
    ]
    for algo in ("ga", "npo", "simnpo"):
        falling = [run(algo, f"forget/{PROB}", a) for a in (0.0, 0.5, 1.0, 2.0)]
        steps = min(a - b for a, b in zip(falling, falling[1:], strict=False))
        rows.append((f"{algo}: smallest fall of forget probability over α 0, .5, 1, 2", steps, "> 0", steps > 0))
        metrics = [m for m in study.metrics if m.endswith(("/prob", f"/{ROUGE}", "_options")) or m == "model_utility"]
        gap = max(abs(run(algo, m, 0.0) - target[m]) for m in metrics)
        rows.append(at_most(f"{algo}: largest distance of α = 0 from the target", gap, 1e-5))
    quality = float(target["forget_quality"])
    return [*rows, ("forget quality of the target", quality, "< 1e-4", quality < 1e-4)]


def main(folder: str) -> int:
    study = load(Path(folder))
    seeds = sorted(study.references["pair_seed"].unique())
    columns = {seed: gates(study, seed) for seed in seeds}
    table = pd.DataFrame(
        {f"pair.seed={s}": [f"{v:.3g}{'' if ok else ' ✗'}" for _, v, _, ok in columns[s]] for s in seeds}
    )
    table.insert(0, "gate", [what for what, *_ in columns[seeds[0]]])
    table.insert(1, "rule", [rule for _, _, rule, _ in columns[seeds[0]]])
    print("| " + " | ".join(table.columns) + " |\n" + "|---" * len(table.columns) + "|")
    for row in table.itertuples(index=False):
        print("| " + " | ".join(row) + " |")
    failed = sum(not ok for rows in columns.values() for *_, ok in rows)
    print(f"\n{failed} of {sum(map(len, columns.values()))} checks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
