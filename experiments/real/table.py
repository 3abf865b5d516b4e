"""results.csv and answers.csv of the study's runs, and from results.csv the table and the figure.

python -m experiments.real.table          # from runs/real, in the folder that study.py was called in
python -m experiments.real.table --again  # table and figure from results.csv alone
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.real.common import HERE, runs
from experiments.real.study import STUDY
from unlearn.store.files import read_json

SPLITS = {"forget": "forget", "neighbours": "neighbours", "world_facts": "others"}
METRICS = ("prob", "known", "target_logp", "repetition")
KEY = ["topic", "model", "method", "algo", "neighbours_trained", "seed", "point"]
POINTS = {"one": "α = 1", "tolerance": "α by retain", "fixed": "α by forgetting"}
COLOURS = {"npo": "tab:blue", "simnpo": "tab:orange", "kl": "tab:green", "idk": "tab:red", "uld": "tab:purple"}


def points(folder: Path) -> dict[float, str]:
    """By α how it was chosen: `one`, `tolerance` (without a reference) or `fixed` (at a fixed forgetting)."""
    entries = read_json(folder / "calibration.json") or []
    chosen = {round(e["alpha"], 2): "tolerance" if e["goal"].startswith("largest") else "fixed" for e in entries}
    return chosen | {1.0: "one"}


def results() -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row per run and point and one per target; and every answer at these points."""
    rows, answers = [], []
    for folder, manifest in runs(STUDY):
        run, found = manifest["run"], read_json(folder / "eval.json")
        topic, near = run["data"].removesuffix("_near"), run["data"].endswith("_near")
        about = dict(zip(KEY, (topic, run["pair"], run["method"], run["algo"], near, run["seed"]), strict=False))
        texts = pd.read_parquet(folder / "examples.parquet")
        for alpha, how in points(folder).items():
            entry = found["alphas"].get(str(alpha), {})
            if "forget/known" in entry:
                rows.append(about | {"point": how, "alpha": alpha} | values(entry))
                answers.append(texts[texts["alpha"] == alpha].assign(**about, point=how))
        for level in (name for name in ("target", "guess") if "forget/known" in found["references"].get(name, {})):
            beside = {"method": level, "algo": "", "neighbours_trained": False, "seed": 0, "point": ""}
            rows.append(about | beside | {"alpha": 0.0} | values(found["references"][level]))
    columns = ["split", "prompt", "gold", "generation", "known", "prob"]
    said = pd.concat(answers)[[*KEY, "alpha", *columns]]
    return pd.DataFrame(rows).drop_duplicates(KEY).sort_values(KEY, ignore_index=True), said


def merged(new: pd.DataFrame, name: str, key: list[str]) -> pd.DataFrame:
    """The file's rows and the new ones behind them, which replace those of the same key: of runs that this folder has
    not, the file's stay."""
    old = pd.read_csv(HERE / f"{name}.csv").fillna({"algo": "", "point": ""})
    return pd.concat([old, new.round(4)]).drop_duplicates(key, keep="last")


def values(entry: dict[str, Any]) -> dict[str, float]:
    named = ((f"{name}/{m}", f"{split}/{m}") for split, name in SPLITS.items() for m in METRICS)
    return {ours: entry[key] for ours, key in named if key in entry}


READ = ["topic", "algo", "method", "neighbours_trained", "alpha"]


def judged() -> pd.DataFrame:
    """Of the answers to forget questions that a person read: in how many the fact is gone, and how many are fluent."""
    read = pd.read_csv(HERE / "read.csv")
    return read.groupby(READ)[["forgotten", "fluent"]].agg(lambda answers: int((answers == "yes").sum()))


def table(found: pd.DataFrame) -> str:
    """Shares of questions that are still answered rightly, and probabilities of the right answer, in Markdown."""
    columns = [f"{split}/{m}" for split in SPLITS.values() for m in ("known", "prob")]
    heads = ["topic", "model", "neighbours trained", "α", *(c.replace("/", " ") for c in columns)]
    heads += ["fluency", "repetition", "read: gone, fluent"]
    read = judged()
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for r in found[found["seed"] == 0].to_dict("records"):
        level = r["method"] in ("target", "guess")
        name = f"{r['method']} {r['model']}" if level else f"`{r['algo']}` {r['method']}"
        alpha = "" if level else f"{r['alpha']:g} ({POINTS[r['point']]})"
        numbers = [r.get(key) for key in (*columns, "forget/target_logp", "forget/repetition")]
        shown = ["" if pd.isna(v) else f"{v:.2f}".replace("-", "−") for v in numbers]
        key = tuple(r[k] for k in READ)
        shown.append("{}, {}".format(*read.loc[key]) if key in read.index else "")
        lines.append(
            "| " + " | ".join([r["topic"], name, "yes" if r["neighbours_trained"] else "", alpha, *shown]) + " |"
        )
    return "\n".join([*lines, ""])


def ability() -> pd.DataFrame:
    """Of the first run that lm-eval saw: everyday questions answered rightly, and answered otherwise than before."""
    for folder, _ in runs(STUDY):
        for task, found in (read_json(folder / "harness.json") or {}).items():
            before, after = found["target"]["right"], found["alphas"]["1.0"]["right"]
            changed = sum(a != b for a, b in zip(before, after, strict=True))
            rows = [("target", before.count("1"), 0), ("unlearned", after.count("1"), changed)]
            return pd.DataFrame(rows, columns=["model", "right", "changed"]).assign(run=folder.name, task=task)
    return pd.DataFrame()


def figure(found: pd.DataFrame, path: Path) -> None:
    """What is still known of the topic against what is still known beside it, a panel per topic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    topics = sorted(found["topic"].unique())
    image, axes = plt.subplots(1, len(topics), figsize=(5 * len(topics), 4.2), sharey=True, squeeze=False)
    for ax, topic in zip(axes[0], topics, strict=True):
        rows = found[(found["topic"] == topic) & (found["seed"] == 0)]
        for (method, algo, near), part in rows.query("algo != ''").groupby(KEY[2:5]):
            part = part.sort_values("alpha")
            name = (
                f"{algo}{'' if method in ('offset', 'uld') else ', ' + method}{', neighbours trained' if near else ''}"
            )
            colour = "tab:gray" if method == "direct" else COLOURS[algo]
            style = {"marker": "o" if near else "x", "markerfacecolor": "none", "markersize": 9 if near else 6}
            ax.plot(part["forget/known"], part["neighbours/known"], color=colour, label=name, **style)
        target = rows[(rows["method"] == "target") & (rows["model"] == "qwen15")]
        ax.plot(target["forget/known"], target["neighbours/known"], "k*", markersize=13, label="target")
        ax.set(title=topic, xlabel="of the topic still answered rightly", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes[0][0].set_ylabel("neighbours still answered rightly")
    axes[0][-1].legend(fontsize=7, loc="lower right")
    image.tight_layout()
    image.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="table and figure from results.csv alone")
    if not parser.parse_args().again:
        found, said = results()
        merged(found, "results", KEY).sort_values(KEY).to_csv(HERE / "results.csv", index=False)
        merged(said, "answers", [*KEY, "split", "prompt"]).to_csv(HERE / "answers.csv", index=False)
        if len(able := ability()):
            able.to_csv(HERE / "ability.csv", index=False)
    found = pd.read_csv(HERE / "results.csv").fillna({"algo": "", "point": ""})
    (HERE / "table.md").write_text(table(found), encoding="utf-8")
    figure(found, HERE / "real.png")


if __name__ == "__main__":
    main()
