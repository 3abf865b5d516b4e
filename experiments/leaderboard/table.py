"""Table and figure of the leaderboard, and the table of the search, from the CSV files beside this one.

    python experiments/leaderboard/table.py

Means over worlds, ± half a 95 % interval (Student's t). Ranked by what is kept (mean of retain, real authors and world
facts) among those whose answers leak at most ``LEAK`` more than the retrained model's and whose artefact gives away at
most ``OWN`` more than its anchor; the others follow, by the same.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from analysis.statistics import mean
from analysis.style import LINES, look, save

HERE = Path(__file__).resolve().parent
LEAK = OWN = 0.02
BASES, LATER_BASES = ("direct_npo", "direct_npo_near", "offset_npo"), ("direct_npo", "uld", "defer")
MARKS, GRID = "o^sDvP*X<>h", np.linspace(-0.05, 0.4, 46)
KEPT = ("retain/prob", "real_authors/prob", "world_facts/prob")
COLUMNS = {
    "leak − retrained": "forget/leak_gap", "forget": "forget/prob",
    "retain": "retain/prob", "real authors": "real_authors/prob",
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


def table(found: pd.DataFrame, timed: pd.DataFrame | None = None) -> list[str]:
    """``timed``: seconds of each row's training, and the commit that took them."""
    heads = [*COLUMNS, *([] if timed is None else ("seconds", "commit"))]
    lines = ["| row | rule | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for name, meets in ranked(found):
        cells = [cell(found.loc[found["row"] == name, column]) for column in COLUMNS.values()]
        cells += [] if timed is None else [f"{timed.loc[name, 'seconds']:.1f}", f"{timed.loc[name, 'commit']}"]
        lines.append(f"| {name} | {'met' if meets else '–'} | " + " | ".join(cells) + " |")
    one = found.drop_duplicates("world")
    for of in ("target", "retrained"):
        there = [f"{of}/{column}" for column in COLUMNS.values()]
        cells = [cell(one[column]) if column in one else "–" for column in there]
        cells += ["–"] * (len(heads) - len(cells))
        lines.append(f"| *{of}* | | " + " | ".join(cells) + " |")
    return lines


def otherwise(found: pd.DataFrame) -> list[str]:
    """The forget questions asked otherwise, at matched leak: in other words, and with the answer's beginning."""
    columns = [column for column in found if column.startswith("forget/")]
    names = " | ".join(column.removeprefix("forget/") for column in columns)
    lines = [f"| row | {names} |", "|---|" + "---|" * len(columns)]
    for name, own in found.groupby("row", sort=False):
        lines.append(f"| {name} | " + " | ".join(cell(own[column]) for column in columns) + " |")
    return lines


def together(found: pd.DataFrame, later: pd.DataFrame) -> pd.DataFrame:
    """All worlds that judge, of the rows that are there in all."""
    return pd.concat([found[found["row"].isin(later["row"])], later], ignore_index=True)


def front(found: pd.DataFrame) -> list[str]:
    """README's table: the rows in their order, and means over worlds alone."""
    some = ("leak − retrained", "retain", "real authors", "world facts")
    columns = {name: COLUMNS[name] for name in some} | {"the deployed models alone say": COLUMNS["pair alone"]}
    lines = ["| row | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    means = found.groupby("row")[list(columns.values())].mean()
    return lines + [
        f"| {name} | " + " | ".join(f"{v:.3f}" for v in means.loc[name]) + " |" for name, _ in ranked(found)
    ]


def cell(values: pd.Series) -> str:
    found = mean(values)
    return "–" if math.isnan(found.mean) else f"{found.mean:.3f} ± {found.half:.3f}"


def differences(found: pd.DataFrame, base: str) -> list[str]:
    """Each row minus ``base``, paired by world: what is kept, and what still leaks, which is matched but for noise."""
    columns = {"retain": KEPT[0], "real authors": KEPT[1], "world facts": KEPT[2], "leak": "forget/leak_gap"}
    lines = [f"| row − {base} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    other = found[found["row"] == base].set_index("world")
    for name, _ in ranked(found):
        own = found[found["row"] == name].set_index("world")
        if name != base:
            cells = [cell((own[column] - other[column]).dropna()) for column in columns.values()]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def figure(found: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Real authors against what still leaks, a curve over α for each row; and at matched leak against what the pair
    alone gives away, which no α changes: a mark per row, with intervals over worlds."""
    fig = Figure(figsize=(7.5, 3.4), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True)
    for place, (name, _) in enumerate(ranked(found)):
        own, color = found[found["row"] == name], f"C{place}"
        left.plot(
            GRID, along(curves[curves["row"] == name], own), color=color, linestyle=LINES[place // 7], linewidth=1.2
        )
        x, y = mean(own["artefact/prob"]), mean(own["real_authors/prob"])
        mark = {"fmt": MARKS[place % len(MARKS)], "markersize": 5, "linewidth": 1, "color": color}
        right.errorbar(x.mean, y.mean, y.half, x.half, label=name.replace("_", " "), **mark)
    left.axvline(0, color="#999999", linewidth=0.8, linestyle="--")
    left.set_xlabel("leak − the retrained model's, as α grows\n(← better; dashed: matched)")
    left.set_ylabel("real authors: probability kept (better ↑)")
    right.axvline(found["artefact/anchor_prob"].mean(), color="#999999", linewidth=0.8, linestyle="--")
    right.set_xlabel("forgotten answers, from the pair alone\n(← better; dashed: its anchor)")
    fig.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return fig


def along(curves: pd.DataFrame, found: pd.DataFrame) -> np.ndarray:
    """Real authors at each leak of ``GRID``, between the α's that were looked at; the mean over worlds, NaN where one
    never leaks that little."""
    each = []
    for world, points in curves.groupby("world"):
        asked = found.loc[found["world"] == world, "asked"].item()
        points = points.sort_values("leak")
        each.append(np.interp(GRID, points["leak"] - asked, points["real_authors"], left=np.nan))
    return np.mean(each, axis=0)


def searched(tried: pd.DataFrame) -> list[str]:
    """A line for each hypothesis of the search, the best first: means over its worlds, and the difference to the
    default's mean in the same worlds."""
    kept = ["retain", "real_authors", "world_facts"]
    tried = tried.assign(kept=tried[kept].mean(axis=1), gain=tried["pair_alone"] - tried["anchor"])
    default = tried[tried["hypothesis"].str.contains("default")].set_index("world")["kept"]
    tried["more"] = tried["kept"] - tried["world"].map(default)
    lines = ["| hypothesis | worlds | kept − default | retain | real authors | world facts | pair − its anchor | α |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    means = tried.groupby("hypothesis").mean().assign(worlds=tried.groupby("hypothesis").size())
    for name, row in means.sort_values("more", ascending=False).iterrows():
        gain = "–" if np.isnan(row["gain"]) else f"{row['gain']:+.3f}"
        numbers = " | ".join(f"{row[split]:.3f}" for split in kept)
        lines.append(f"| {name} | {row['worlds']:.0f} | {row['more']:+.3f} | {numbers} | {gain} | {row['alpha']:.2f} |")
    return lines


def unhelpful(tried: pd.DataFrame) -> list[str]:
    """What did not help, in the order of the file: means over its worlds, at matched leak."""
    columns = {"leak − retrained": "leak_gap", "retain": "retain", "real authors": "real_authors",
               "world facts": "world_facts", "pair alone": "pair_alone", "α": "alpha"}  # fmt: skip
    lines = ["| hypothesis | worlds | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for name, own in tried.groupby("hypothesis", sort=False):
        means = own.mean(numeric_only=True)
        cells = ["–" if np.isnan(means[column]) else f"{means[column]:.3f}" for column in columns.values()]
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    found = pd.read_csv(HERE / "results.csv", keep_default_na=True)
    said = {p.stem: yaml.safe_load(p.read_text())["settings"] for p in sorted((HERE / "rows").glob("*.yaml"))}
    given = [f"{name}: `{' '.join(settings)}`" for name, settings in said.items()]
    paired = [line for base in BASES for line in ("", *differences(found, base))]
    later = pd.read_csv(HERE / "later.csv")
    after = ["", "In worlds 40 to 47, which came after the last choice:", "", *table(later)]
    after += [line for base in LATER_BASES for line in ("", *differences(later, base))]
    whole = together(found, later)
    after += ["", "In all thirteen worlds that judge:", "", *table(whole)]
    after += [line for base in LATER_BASES for line in ("", *differences(whole, base))]
    again = ["", "In the three worlds of the search:", "", *differences(pd.read_csv(HERE / "again.csv"), "offset_npo")]
    asked = ["", "Asked otherwise, at matched leak:", "", *otherwise(pd.read_csv(HERE / "asked.csv"))]
    tofu = ["", "Real TOFU at laptop size:", "", *table(pd.read_csv(HERE / "results_tofu.csv"))]
    timed = pd.read_csv(HERE / "seconds.csv", index_col="row", dtype={"commit": str})
    lines = [*table(found, timed), *paired, *after, *again, *asked, *tofu, "", "; ".join(given) + "."]
    (HERE / "table.md").write_text("\n".join(lines) + "\n")
    with look():
        save(figure(found, pd.read_csv(HERE / "curves.csv")), HERE, "frontier")
    print("README's table:", *front(found), sep="\n")
    print(f"written: table.md, frontier.png in {HERE}")


if __name__ == "__main__":
    main()
