"""Table and figure of the study from results.csv alone:  python experiments/tofu_scratch/table.py

forget01: mean over worlds, and the mean half width of the item-bootstrap intervals; forget10: the value with its own.
Writes table.md (the headline metrics), metrics.md (every metric) and tradeoff.png beside itself.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.caption import footnote
from analysis.goals import named
from analysis.panels import around, legend, odds
from analysis.style import INK, LINES_OF, look, reference, save, series

HERE = Path(__file__).resolve().parent
ALGOS = ("target", "retrained", "ga", "gd", "kl", "npo", "simnpo")
HEADLINE = {
    "forget/prob": "forget prob → retr.", "forget/rougeL_recall": "forget ROUGE → retr.",
    "forget/extraction_strength": "ES → retr.",
    "forget/leak_gap": "leak gap → 0", "retain/prob": "retain prob ↑", "retain/rougeL_recall": "retain ROUGE ↑",
    "model_utility": "model utility ↑", "forget_quality_log10": "log₁₀ FQ ↑", "privleak": "PrivLeak → 0",
    "three_sample/statistic": "three-sample ↑", "mia/vulnerable": "vulnerable ↓", "ou/agg/clipped": "Agg ↑",
}  # fmt: skip


def groups(found: pd.DataFrame):
    """(forget set, algorithm, method) and its runs, forget01 first, references before algorithms."""
    parts = list(found.groupby(["forget_set", "algo", "method"]))
    return sorted(parts, key=lambda part: (part[0][0], ALGOS.index(part[0][1]), part[0][2]))


def cell(group: pd.DataFrame, name: str) -> str:
    """Mean over worlds ± mean half width of the runs' own intervals; the spread over worlds in brackets."""
    values = group[name].dropna() if name in group else pd.Series(dtype=float)
    if values.empty:
        return "–"
    text = f"{values.mean():.3f}"
    if f"{name}/low" in group and group[f"{name}/low"].notna().any():
        text += f" ± {((group[f'{name}/high'] - group[f'{name}/low']) / 2).mean():.3f}"
    return text + (f" ({values.std(ddof=1):.3f})" if len(values) > 1 else "")


def table(found: pd.DataFrame, names: dict[str, str]) -> list[str]:
    heads = ["forget set", "algorithm", "method", *names.values(), "seconds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for (forget, algo, method), group in groups(found):
        seconds = f"{group['seconds'].mean():.0f}" if group["seconds"].notna().any() else ""
        lines.append(
            f"| {forget} | {algo} | {method} | " + " | ".join(cell(group, n) for n in names) + f" | {seconds} |"
        )
    return lines


def every_metric(found: pd.DataFrame) -> list[str]:
    """A row per metric, a column per algorithm and method, a table per forget set."""
    skip = {"forget_set", "world", "algo", "method", "seconds", "collapsed"}
    names = [c for c in found if c not in skip and not c.endswith(("/low", "/high"))]
    lines = []
    for forget in sorted(found["forget_set"].unique()):
        parts = [(f"{a} {m}".strip(), g) for (f, a, m), g in groups(found) if f == forget]
        lines += [f"**{forget}**", "", "| metric | " + " | ".join(p for p, _ in parts) + " |"]
        lines += ["|" + "---|" * (len(parts) + 1)]
        lines += [f"| {n} | " + " | ".join(cell(g, n) for _, g in parts) + " |" for n in names] + [""]
    return lines


def figure(found: pd.DataFrame) -> Figure:
    """Leak gap against retain ROUGE in odds: a panel per forget set, a colour and mark per algorithm, offset open."""
    sets = sorted(found["forget_set"].unique())
    fig = Figure(figsize=(4.6 * len(sets), 3.9), layout="constrained")
    x, y = "forget/leak_gap", "retain/rougeL_recall"
    axes = fig.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    for ax, forget in zip(axes, sets, strict=True):
        for (own, algo, method), group in groups(found):
            if own != forget or algo == "retrained":
                continue
            mark = reference("target") if algo == "target" else series(ALGOS.index(algo) - 2, method == "offset")
            ends = [
                around(group.rename(columns={f"{m}/{end}": f"{end}/{m}" for end in ("low", "high")}), m) for m in (x, y)
            ]
            bars = {"fmt": "none", "ecolor": mark.get("color", INK), "elinewidth": 0.8, "alpha": 0.55, "zorder": 2}
            ax.errorbar(group[x], group[y], *ends[::-1], **bars)
            ax.plot(group[x], group[y], **mark | {"linestyle": "none"}, label=f"{algo}, {method}".strip(", "))
        ax.axvline(0, color="#999999", linewidth=0.8, linestyle=LINES_OF["retrained"], zorder=1)
        ax.set_title(f"{forget}   (dotted: the aim, as the retrained model)", loc="left")
        ax.set_xlabel(f"{named(x)}   (aim: 0)")
    odds(axes[0].yaxis)
    axes[0].set_ylabel(f"{named(y)}   (better →)")
    handles, _ = axes[0].get_legend_handles_labels()
    legend(fig, handles)
    footnote(fig, ["a mark per pair seed; bars: 95 % over questions; shares have an axis in odds"])
    return fig


def main() -> None:
    found = pd.read_csv(HERE / "results.csv").fillna({"method": ""})
    (HERE / "table.md").write_text("\n".join(table(found, HEADLINE)) + "\n")
    (HERE / "metrics.md").write_text("\n".join(every_metric(found)))
    with look():
        save(figure(found), HERE, "tradeoff")
    (HERE / "tradeoff.pdf").unlink(missing_ok=True)
    print(f"written: table.md, metrics.md, tradeoff.png in {HERE}")


if __name__ == "__main__":
    main()
