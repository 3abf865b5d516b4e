"""Tables and figure of the study, from its CSV files:  python experiments/requests/table.py [FOLDER]"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.caption import footnote
from analysis.goals import split_of
from analysis.panels import curve, legend, reference_handles, shares
from analysis.statistics import Interval, mean
from analysis.style import look, reference_line, save, series

HERE = Path(__file__).resolve().parent
NAMES = ("results", "returns", "gate", "cost")
SPLITS = ("forget", "retain", "real_authors", "world_facts")
SHOWN = {
    **{f"{split}/prob": f"{split.replace('_', ' ')} prob" for split in SPLITS}, "model_utility": "utility",
    "forget/leak_gap": "leak − retr.", "forget_quality_log10": "log₁₀ FQ",
}  # fmt: skip
DEFENCES = ("target", "offset", "gated", "refusing")
WAYS = ("direct", "paraphrased", "prefix", "composite", "composite_paraphrased", "misspelt")
OTHERS = ("retain", "real_authors", "world_facts")


def cell(values: pd.Series) -> str:
    """Mean over worlds ± half of its 95 % interval."""
    found = mean(values)
    return "–" if found.n == 0 else f"{found.mean:.3f}" + (f" ± {found.half:.3f}" if found.n > 1 else "")


def lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    table = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return [*table, *("| " + " | ".join(r) + " |" for r in rows), ""]


def tables(found: dict[str, pd.DataFrame]) -> str:
    results, worlds = found["results"], found["results"]["world"].nunique()
    text = [f"Means over {worlds} worlds (`pair.seed`) ± half of the 95 % t-interval.", ""]
    for at, title in (("1", "At α = 1"), ("matched", "At matched forgetting (an oracle: the retrained model's)")):
        shown = [k for k in ("alpha", *SHOWN) if k in results and results.loc[results["at"] == at, k].notna().any()]
        text += [f"**{title}**, all five forget sets together", ""]
        rows = [(name, *(cell(some[k]) for k in shown)) for name, some in
                results[results["at"].isin([at, "–"])].groupby("answer", sort=False)]  # fmt: skip
        text += lines(["", *(SHOWN.get(k, "scale") for k in shown)], rows)
    text += ["**After each request**: probability of the answers of the request asked for first, second, …", ""]
    for name, some in found["returns"].groupby("answer", sort=False):
        places = sorted(some["place"].unique())
        rows = []
        for after, step in some.groupby("after"):
            each = [cell(step.loc[step["place"] == p, "prob"]) for p in places]
            other = [cell(step.loc[step["place"] == 1, s]) for s in OTHERS]
            rows.append((str(after), *each, *other))
        text += [f"{name}:", "", *lines(["after", *(f"request {p}" for p in places), *OTHERS], rows)]
    text += [
        "Coming back: probability of the first request's answers after the last request minus right after its own:"
    ]
    text += ["", *lines(["", "first request"], [(name, cell(back(some))) for name, some in
             found["returns"].groupby("answer", sort=False)])]  # fmt: skip
    text += ["**What a token costs** (greedy, one prompt at a time, one core)", ""]
    rows = [(name, f"{some['members'].iloc[0]}", cell(some["ms_per_token"])) for name, some in
            found["cost"].groupby("answer", sort=False)]  # fmt: skip
    text += lines(["", "members", "ms per token"], rows)
    for answer, some in found["gate"].groupby("answer", sort=False):
        text += [f"**Gate beside {answer}**: share flagged, and ROUGE-L recall of the greedy answer", ""]
        rows = [(way.replace("composite_", "composite, ").replace("_", " "), cell(some[f"gate/overlap/flagged_{way}"]),
                 cell(some[f"gate/likelihood/flagged_{way}"]), *(cell(some[f"gate/{d}_{way}"]) for d in DEFENCES))
                for way in (*WAYS, *OTHERS)]  # fmt: skip
        head = ["asked", "flagged: overlap", "flagged: likelihood", "target", "offset", "gate and offset", "gate alone"]
        text += lines(head, rows)
    return "\n".join(text)


def back(some: pd.DataFrame) -> pd.Series:
    first = some[some["place"] == 1].pivot(index="world", columns="after", values="prob")
    return first[first.columns.max()] - first[1]


def figure(found: dict[str, pd.DataFrame]) -> Figure:
    """What is left of the requests answered so far, and of everything else, after each; means over worlds and their
    95 % intervals. One offset for all five is measured at the end alone."""
    results, returns = found["results"], found["returns"]
    last, ends = returns["after"].max(), results[results["at"].isin(["1", "–"])]
    fig = Figure(figsize=(11, 3.4), layout="constrained")
    looks = {answer: series(i, i) for i, answer in enumerate(("sum", "continued", "fused", "joint"))}
    for ax, split in zip(fig.subplots(1, 4, sharey=True), SPLITS, strict=True):
        for answer in ("sum", "continued"):
            some = returns[returns["answer"] == answer]
            some = some[some["place"] <= some["after"]] if split == "forget" else some[some["place"] == 1]
            column = "prob" if split == "forget" else split
            steps = [mean(own) for _, own in some.groupby(["after", "world"])[column].mean().groupby("after")]
            curve(ax, _points(range(1, last + 1), steps), "after", "kept", looks[answer])
        for answer in ("fused", "joint"):
            end = mean(ends[ends["answer"] == answer][f"{split}/prob"])
            ax.errorbar(last, end.mean, end.half, fmt="none", ecolor=looks[answer]["color"], elinewidth=0.8, zorder=2)
            ax.plot(last, end.mean, **looks[answer] | {"linestyle": "none", "markersize": 7, "zorder": 4})
        ax.axhline(ends[ends["answer"] == "retrained"][f"{split}/prob"].mean(), **reference_line("retrained"))
        ax.set_title("asked so far" if split == "forget" else split_of(split), loc="left")
        ax.set_xlabel("requests answered")
        ax.set_xticks(range(1, last + 1))
        shares(ax.yaxis)
    fig.axes[0].set_ylabel("probability of the right answer")
    ways = {"fused": "fused (measured at the end)", "joint": "joint, one offset for all"}
    handles = [
        Line2D([], [], label=ways.get(a, a), **look | ({"linestyle": "none"} if a in ways else {}))
        for a, look in looks.items()
    ]
    legend(fig, [*reference_handles(["retrained"]), *handles])
    footnote(fig, [f"bands and bars: 95 % over {results['world'].nunique()} pair seeds"])
    return fig


def _points(steps: Iterable[int], found: Sequence[Interval]) -> pd.DataFrame:
    rows = [(step, f.mean, max(f.low, 0), min(f.high, 1)) for step, f in zip(steps, found, strict=True)]
    return pd.DataFrame(rows, columns=["after", "kept", "low/kept", "high/kept"])


def write(folder: Path) -> None:
    """``tables.md`` and ``requests.png`` beside the CSV files."""
    found = {name: pd.read_csv(folder / f"{name}.csv", dtype={"at": str}) for name in NAMES}
    (folder / "tables.md").write_text(tables(found), encoding="utf-8")
    with look():
        save(figure(found), folder, "requests")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
