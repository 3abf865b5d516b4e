"""Table and figure of the leaderboard from results.csv alone:  python experiments/leaderboard/table.py

Means over worlds, ± half a 95 % interval (Student's t). Ranked by what is kept (mean of retain, real authors and world
facts) among those whose answers leak at most ``LEAK`` more than the retrained model's and whose artefact gives away at
most ``OWN`` more than its anchor; the others follow, by the same.
"""

import math
from pathlib import Path

import pandas as pd
import yaml
from matplotlib.figure import Figure

from analysis.statistics import mean
from analysis.style import look, save

HERE = Path(__file__).resolve().parent
LEAK = OWN = 0.02
MARKS = "o^sDvP*"
KEPT = ("retain/prob", "real_authors/prob", "world_facts/prob")
COLUMNS = {
    "leak − retrained": "forget/leak_gap", "retain": "retain/prob", "real authors": "real_authors/prob",
    "world facts": "world_facts/prob", "utility": "model_utility", "forget quality p": "forget_quality",
    "pair alone": "artefact/prob", "its anchor": "artefact/anchor_prob", "pair, trained": "artefact/relearnt_prob",
    "anchor, trained": "artefact/anchor_relearnt_prob", "α": "alpha",
}  # fmt: skip


def ranked(found: pd.DataFrame) -> list[tuple[str, bool]]:
    """Rows in their order, and whether each meets the rule."""
    means = found.groupby("row").mean(numeric_only=True)
    anchor = means["artefact/anchor_prob"].fillna(means["artefact/anchor_prob"].min())
    meets = (means["forget/leak_gap"] <= LEAK) & (means["artefact/prob"] <= anchor + OWN)
    order = means[list(KEPT)].mean(axis=1).to_frame("kept").assign(meets=meets)
    order = order.sort_values(["meets", "kept"], ascending=False)
    return list(order["meets"].items())


def table(found: pd.DataFrame) -> list[str]:
    lines = ["| row | rule | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for name, meets in ranked(found):
        cells = [cell(found.loc[found["row"] == name, column]) for column in COLUMNS.values()]
        lines.append(f"| {name} | {'met' if meets else '–'} | " + " | ".join(cells) + " |")
    one = found.drop_duplicates("world")
    for of in ("target", "retrained"):
        there = [f"{of}/{column}" for column in COLUMNS.values()]
        cells = [cell(one[column]) if column in one else "–" for column in there]
        lines.append(f"| *{of}* | | " + " | ".join(cells) + " |")
    return lines


def cell(values: pd.Series) -> str:
    found = mean(values)
    return "–" if math.isnan(found.mean) else f"{found.mean:.3f} ± {found.half:.3f}"


def differences(found: pd.DataFrame, base: str = "direct_npo") -> list[str]:
    """Each row minus ``base``, paired by world."""
    lines = [f"| row − {base} | " + " | ".join(KEPT) + " |", "|---|" + "---|" * len(KEPT)]
    other = found[found["row"] == base].set_index("world")
    for name, _ in ranked(found):
        own = found[found["row"] == name].set_index("world")
        if name != base:
            lines.append(f"| {name} | " + " | ".join(cell((own[k] - other[k]).dropna()) for k in KEPT) + " |")
    return lines


def figure(found: pd.DataFrame) -> Figure:
    """What is kept against what the pair alone gives away: a mark per row, with intervals over worlds."""
    fig = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = fig.subplots(1, 2, sharex=True)
    for ax, kept in zip(axes, ("real_authors/prob", "retain/prob"), strict=True):
        for place, (name, _) in enumerate(ranked(found)):
            own = found[found["row"] == name]
            x, y = mean(own["artefact/prob"]), mean(own[kept])
            mark = {"fmt": MARKS[place % len(MARKS)], "markersize": 5, "linewidth": 1}
            ax.errorbar(x.mean, y.mean, y.half, x.half, label=name.replace("_", " "), **mark)
        ax.axvline(found["artefact/anchor_prob"].mean(), color="#999999", linewidth=0.8, linestyle="--")
        ax.set_ylabel(f"{kept.split('/')[0].replace('_', ' ')}: probability kept (better ↑)")
        ax.set_xlabel("forgotten answers, from the pair alone\n(← better; dashed: its anchor)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return fig


def main() -> None:
    found = pd.read_csv(HERE / "results.csv", keep_default_na=True)
    said = {p.stem: yaml.safe_load(p.read_text())["settings"] for p in sorted((HERE / "rows").glob("*.yaml"))}
    given = [f"{name}: `{' '.join(settings)}`" for name, settings in said.items() if name in set(found["row"])]
    lines = [*table(found), "", *differences(found), "", "; ".join(given) + "."]
    (HERE / "table.md").write_text("\n".join(lines) + "\n")
    with look():
        save(figure(found), HERE, "frontier")
    print(f"written: table.md, frontier.png in {HERE}")


if __name__ == "__main__":
    main()
