"""Tables and figure of the study from results.csv and leak.csv alone:  python experiments/methods/table.py

Means over worlds with 95 % intervals (Student's t over the worlds' values). Writes leak.md and table.md (every cell,
matched by leak and by probability), differences.md (each method against direct, paired by world), summary.md and
matched.png beside itself.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.goals import named
from analysis.matched import draw as matched_marks
from analysis.statistics import mean
from analysis.style import look, save

HERE = Path(__file__).resolve().parent
METHODS = ("direct", "offset, general", "offset, full", "offset, retain", "proxy", "defer", "uld", "dd", "dd_rank")
SHOWN = ("retain", "real_authors", "world_facts")
BASE = "npo"
REACHED = 0.02  # a value further than this from what was asked was not matched


def cell(values: pd.Series) -> str:
    found = mean(values)
    return f"{found.mean:.3f} ± {found.half:.3f}"


def matched(group: pd.DataFrame) -> pd.DataFrame:
    """Worlds in which some α reaches the leak, or the forget probability, that was asked for."""
    return group[(group["chosen_reached"] - group["chosen_asked"]).abs() <= REACHED]


def table(found: pd.DataFrame) -> list[str]:
    heads = ["algorithm", "method", "forget", *SHOWN, "α matched", "forget", *SHOWN, "matched", "collapsed", "seconds",
             "trainable"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for (algo, method), group in _groups(found):
        there = matched(group)
        row = [algo, method, *(cell(group[f"one/{s}/prob"]) for s in ("forget", *SHOWN))]
        row.append(f"{there['matched_alpha'].mean():.2f}" if len(there) else "–")
        row += [cell(there[f"matched/{s}/prob"]) if len(there) > 1 else "–" for s in ("forget", *SHOWN)]
        row += [f"{len(there)}/{len(group)}", f"{(group['collapsed'] != '').sum()}/{len(group)}"]
        row += [f"{group['seconds'].mean():.1f}", f"{group['trainable'].iloc[0]:,.0f}"]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def leaks(found: pd.DataFrame, by_prob: pd.DataFrame) -> list[str]:
    """What is kept where drawn answers leak as the retrained model's do; beside it, by probability."""
    gap, rest = "leak − retrained", [f"{split}, by probability" for split in SHOWN]
    heads = ["algorithm", "method", "α", gap, "forget", *SHOWN, "matched", "α, by probability", *rest]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    other = dict(list(by_prob.groupby(["algo", "method"])))
    for key, group in _groups(found):
        there, beside = matched(group), matched(other.get(key, by_prob[:0]))
        row = [*key, f"{there['matched_alpha'].mean():.2f}" if len(there) else "–"]
        wanted = ["matched/forget/leak_gap", *(f"matched/{split}/prob" for split in ("forget", *SHOWN))]
        row += [cell(there[column]) if len(there) > 1 else "–" for column in wanted]
        row += [f"{len(there)}/{len(group)}", f"{beside['matched_alpha'].mean():.2f}" if len(beside) else "–"]
        row += [cell(beside[f"matched/{split}/prob"]) if len(beside) > 1 else "–" for split in SHOWN]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def references(found: pd.DataFrame) -> list[str]:
    """Target and retrained model on the same questions."""
    one = found.drop_duplicates("world")
    return [
        f"{name}: " + ", ".join(f"{s} {cell(one[f'{name}/{s}/prob'])}" for s in ("forget", *SHOWN)) + "."
        for name in ("target", "retrained")
    ]


def differences(found: pd.DataFrame) -> list[str]:
    """Method minus direct of the same algorithm and world, at matched forgetting; of methods without a counterpart,
    minus direct ``BASE``."""
    lines = ["| algorithm | method | worlds | " + " | ".join(SHOWN) + " |", "|---|---|---|" + "---|" * len(SHOWN)]
    for (algo, method), group in _groups(found):
        if method == "direct":
            continue
        other = BASE if method in ("uld", "defer", "dd", "dd_rank") else algo
        base = found[(found["algo"] == other) & (found["method"] == "direct")]
        both = matched(group).merge(matched(base), on="world", suffixes=("", " direct"))
        if len(both) < 2:
            continue
        row = [cell(both[f"matched/{s}/prob"] - both[f"matched/{s}/prob direct"]) for s in SHOWN]
        name = f"{method} − direct" if other == algo else f"{method} − direct {other}"
        lines.append(f"| {algo} | {name} | {len(both)} | " + " | ".join(row) + " |")
    return lines


def summary(found: pd.DataFrame) -> list[str]:
    """Per method: the mean over all algorithms that are run with every method, and against direct, paired by world,
    in how many algorithms the interval of the difference lies wholly above or below zero."""
    many = found[~found["algo"].isin(("none", "uld", "rmu", "me_kl"))]
    heads = [f"{s}: mean, above / below direct" for s in SHOWN]
    lines = ["| method | algorithms | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(SHOWN)]
    for method in [m for m in METHODS if m in set(many["method"])]:
        own = matched(many[many["method"] == method])
        cells = []
        for s in SHOWN:
            above = below = 0
            for algo, group in own.groupby("algo"):
                base = matched(many[(many["algo"] == algo) & (many["method"] == "direct")])
                both = group.merge(base, on="world", suffixes=("", " direct"))
                minus = mean(both[f"matched/{s}/prob"] - both[f"matched/{s}/prob direct"])
                above, below = above + (minus.low > 0), below + (minus.high < 0)
            counts = "" if method == "direct" else f", {above} / {below}"
            cells.append(f"{own.groupby('algo')[f'matched/{s}/prob'].mean().mean():.3f}{counts}")
        lines.append(f"| {method} | {own['algo'].nunique()} | " + " | ".join(cells) + " |")
    return lines


def _groups(found: pd.DataFrame):
    order = {m: i for i, m in enumerate(METHODS)}
    groups = list(found.groupby(["algo", "method"]))
    return sorted(groups, key=lambda g: (g[0][0] == "none", g[0][0], order[g[0][1]]))


def figure(found: pd.DataFrame) -> Figure:
    """Kept probability at matched forgetting: a row per algorithm, a mark per method, a panel per split."""
    rows = [_row(algo, method, group) for (algo, method), group in _groups(found)]
    rows = pd.DataFrame(sorted(rows, key=lambda row: METHODS.index(row["series"])))  # the order of the legend
    algos = dict.fromkeys(algo for (algo, _), _ in _groups(found))
    rows = pd.concat([rows[rows["algo"] == algo] for algo in algos])
    fig = Figure(figsize=(9.5, 0.42 * len(algos) + 1.4), layout="constrained")
    axes = fig.subplots(1, len(SHOWN), sharey=True)
    handles = matched_marks(axes, rows, {f"{s}/prob": named(f"{s}/prob") for s in SHOWN})
    handles = sorted(handles, key=lambda handle: METHODS.index(handle.get_label()))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    worlds = found["world"].nunique()
    what = f"α where drawn answers leak as the retrained model's; mean and 95 % interval over {worlds} worlds"
    fig.suptitle(f"{what}\nopen: some worlds never reach it; absent: fewer than two do; axes in odds", fontsize=9)
    return fig


def _row(algo: str, method: str, group: pd.DataFrame) -> dict:
    """One mark of the figure, absent where fewer than two worlds reach the match."""
    there = matched(group)
    row = {"algo": algo, "series": method, "n": len(there), "of": len(group)}
    for split in SHOWN:
        one = mean(there[f"matched/{split}/prob"] if len(there) > 1 else [])
        row |= {f"{split}/prob": one.mean, f"low/{split}/prob": max(one.low, 0), f"high/{split}/prob": min(one.high, 1)}
    return row


def main() -> None:
    by_prob, by_leak = (pd.read_csv(HERE / f"{name}.csv", keep_default_na=False) for name in ("results", "leak"))
    same = by_prob.merge(by_leak[["algo", "method", "world"]])  # the runs that both have
    parts = {
        "leak": [*leaks(by_leak, same), "", *references(by_leak)],
        "table": [*table(by_prob), "", *references(by_prob)],
        "differences": ["Matched by leak:", "", *differences(by_leak),
                        "", "By probability:", "", *differences(by_prob)],
        "summary": ["Matched by leak:", "", *summary(by_leak), "", "The same runs, by probability:", "", *summary(same),
                    "", "All, by probability:", "", *summary(by_prob)],
    }  # fmt: skip
    for name, lines in parts.items():
        (HERE / f"{name}.md").write_text("\n".join(lines) + "\n")
    with look():
        save(figure(by_leak), HERE, "matched")
    print(f"written: {', '.join(f'{name}.md' for name in parts)}, matched.png in {HERE}")


if __name__ == "__main__":
    main()
