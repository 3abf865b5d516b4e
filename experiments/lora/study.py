"""LoRA beside full fine-tuning: the demo's grid in three worlds, at α = 1 and at matched forgetting.

    python experiments/lora/study.py

First the one number that LoRA adds, its factor of the learning rate, is searched in two worlds that the grid does not
use, by the rule of the presets (experiments/presets): highest mean score at the last step, blind to the retrained model
and to forget quality. Then every run of the grid is calibrated to the retrained reference's forget probability, as in
experiments/methods. Runs that are done are not repeated. Writes search.csv, results.csv and table.md beside itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
ALGOS = ("ga", "npo", "simnpo")
WORLDS, SEARCH_WORLDS, FACTORS = (0, 1, 2), (100, 101), (0.3, 1, 3, 10, 30)
FIXED = ("trainer.progress=false", "trainer.save_every=0", "eval.groups=[]", "wandb=disabled")
SEARCH = ("study=lora_search", "trainer.eval_every=1000", "eval.max_examples=10", "eval.retrained=none",
          "pair.tuning=lora")  # fmt: skip
SHOWN = {
    "one/forget/prob": "forget prob, α = 1", "one/retain/prob": "retain prob, α = 1",
    "matched/alpha": "matched α", "matched/forget/prob": "forget prob, matched",
    "matched/retain/prob": "retain prob, matched", "matched/model_utility": "utility, matched",
    "seconds": "s of training",
}  # fmt: skip


def call(*overrides: str) -> None:
    command = [sys.executable, "-m", "unlearn.run", "-m", *FIXED, *overrides]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # a run that failed is missing below, and named


def listed(values: tuple) -> str:
    return ",".join(map(str, values))


def runs(study: str) -> list[tuple[Path, dict]]:
    """Folders of finished runs with their manifests; others are named."""
    found = []
    for path in sorted(Path("runs", study).glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        if manifest["status"] == "done":
            found.append((path.parent, manifest))
        else:
            print(f"{path.parent.name}: {manifest['status']}: {manifest.get('error')}")
    return found


def setting(folder: Path, key: str) -> str:
    return re.search(rf"^ +{key}: (.*)$", (folder / "config.yaml").read_text(), re.M)[1]


def search() -> float:
    """The factor of the learning rate with the best mean score over algorithms and worlds."""
    call(*SEARCH, f"algo={listed(ALGOS)}", f"pair.lora.lr_factor={listed(FACTORS)}",
         f"pair.seed={listed(SEARCH_WORLDS)}")  # fmt: skip
    found = pd.DataFrame(
        {"algo": m["run"]["algo"], "world": m["run"]["pair_seed"], "lr_factor": float(setting(f, "lr_factor")),
         "score": m["score"], "collapsed": m.get("collapsed") or ""} for f, m in runs("lora_search")
    )  # fmt: skip
    found.sort_values(["algo", "lr_factor", "world"]).round(4).to_csv(HERE / "search.csv", index=False)
    means = found.groupby("lr_factor")["score"].mean()
    print(means.to_string())
    return float(means.idxmax())


def grid(factor: float) -> pd.DataFrame:
    """One row per run: what it is and cost, its values at α = 1 and at matched forgetting."""
    for tuning in ("full", "lora"):  # a process of its own: it reports its peak memory
        call("study=lora", f"algo={listed(ALGOS)}", f"pair.seed={listed(WORLDS)}", f"pair.tuning={tuning}",
             f"pair.lora.lr_factor={factor:g}")  # fmt: skip
    from unlearn.grid.rerun import open_run
    from unlearn.runs.calibration import FILE, calibrate_run
    from unlearn.runs.goal import Goal

    rows = []
    for folder, manifest in runs("lora"):
        if not (folder / FILE).is_file():
            calibrate_run(open_run(folder), Goal("forget/prob"))
        matched = json.loads((folder / FILE).read_text())[0]
        share, learns = manifest["trainable_share"], manifest["trainable"]
        weights = 2 * learns if share == 1 else learns / share  # offset and anchor, which LoRA keeps once
        row = {
            "algo": manifest["run"]["algo"], "tuning": setting(folder, "tuning"), "world": manifest["run"]["pair_seed"],
            "trainable": learns, "trainable_share": share, "seconds": manifest["seconds"]["train"],
            "pair_mb": 4 * (weights + 3 * learns) / 1e6,  # with gradients and AdamW's two moments
            "peak_memory_mb": manifest["peak_memory_mb"], "collapsed": manifest.get("collapsed") or "",
            "matched/alpha": matched["alpha"],
        }  # fmt: skip
        for name, values in (("one", matched["report_at_given_alpha"]), ("matched", matched["report"])):
            row |= {f"{name}/{key}": values[key] for key in ("forget/prob", "retain/prob", "model_utility")}
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["algo", "tuning", "world"], ignore_index=True)


def table(found: pd.DataFrame, factor: float) -> str:
    """Means over the worlds, with the smallest and largest; both tunings of an algorithm under each other."""
    lines = ["| | " + " | ".join(SHOWN.values()) + " | collapsed |", "|---" * (len(SHOWN) + 2) + "|"]
    for (algo, tuning), rows in found.groupby(["algo", "tuning"]):
        cells = [f"{rows[k].mean():.3f} ({rows[k].min():.3f} to {rows[k].max():.3f})" for k in SHOWN]
        lines.append(f"| `{algo}` {tuning} | " + " | ".join(cells) + f" | {(rows['collapsed'] != '').sum()} |")
    sizes = found.groupby("tuning")[["trainable", "trainable_share", "pair_mb", "peak_memory_mb"]].max()
    lines += ["", "| | parameters that learn | share | pair while it learns, MB | peak of the process, MB |",
              "|---|---|---|---|---|"]  # fmt: skip
    for tuning, size in sizes.iterrows():
        lines.append(f"| {tuning} | {size['trainable']:,.0f} | {size['trainable_share']:.1%} | {size['pair_mb']:.2f} | "
                     f"{size['peak_memory_mb']:.0f} |")  # fmt: skip
    return "\n".join([*lines, "", f"Mean over worlds {listed(WORLDS)}; learning rate of LoRA × {factor:g}.", ""])


def main() -> None:
    factor = search()
    found = grid(factor)
    found.round(5).to_csv(HERE / "results.csv", index=False)
    (HERE / "table.md").write_text(table(found, factor), encoding="utf-8")
    print(table(found, factor))


if __name__ == "__main__":
    main()
