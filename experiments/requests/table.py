"""The tables of the study, from its CSV files:  python experiments/requests/table.py [FOLDER]"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from analysis.statistics import mean

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


def write(folder: Path) -> None:
    """``tables.md`` beside the CSV files."""
    found = {name: pd.read_csv(folder / f"{name}.csv", dtype={"at": str}) for name in NAMES}
    (folder / "tables.md").write_text(tables(found), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
