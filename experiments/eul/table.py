"""Tables and figure of the study from results.csv alone:  python experiments/eul/table.py

Means over worlds with 95 % intervals (Student's t over the worlds' values), beside the paper's figures; and the
distance to the model that was trained again, world by world. Writes shares.md, dialogues.md, ablation.md, sequence.md
and sequence.png beside itself, of the sections that results.csv has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from paper import ABLATION, DIALOGUES, SEQUENCE, SHARES

from analysis.statistics import mean
from analysis.style import look, save

HERE = Path(__file__).resolve().parent
ORDER = ("original", "re-train", "fine-tune", "SISA before", "SISA", "reverse gradient", "EUL", "bounded EUL")
JOINED = ("re-train", "fuse", "average", "sum", "continued", "joint")
ALGOS = {"eul": "EUL", "eul_bounded": "bounded EUL"}
NAMED = {"test": "test", "retain": "retained", "forget": "forgotten"}
SPLITS = tuple(NAMED)


def cell(values: pd.Series, scale: float = 1.0, digits: int = 1) -> str:
    """Mean ± half width of its 95 % interval, over worlds."""
    found = mean(scale * values.astype(float))
    if found.n == 0:
        return "–"
    return f"{found.mean:.{digits}f}" + (f" ± {found.half:.{digits}f}" if found.n > 1 else "")


def distance(group: pd.DataFrame, again: pd.DataFrame, metric: str, scale: float = 100.0) -> str:
    """To the model that was trained again, world by world."""
    both = group.merge(again, on="world", suffixes=("", " again"))
    return cell(both[metric] - both[f"{metric} again"], scale)


def lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    made = [list(heads), ["---"] * len(heads), *map(list, rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in made) + "\n"


def figures(known: Sequence | None) -> str:
    """The paper's row, as it prints it."""
    if known is None:
        return "–"
    return " / ".join("–" if v is None else v if isinstance(v, str) else f"{v:g}" for v in known)


def shares(found: pd.DataFrame) -> str:
    heads = ["share", "what", "test", "retained", "forgotten", "name loss, forgotten", "name loss, retained", "seconds",
             "forgotten − re-train", "name loss − re-train", "collapsed",
             "paper: test / retained / forgot / MLM / s"]  # fmt: skip
    rows = []
    for share in SHARES:
        here = found[found["forgotten"] == share]
        again = here[here["what"] == "re-train"]
        for what in ORDER:
            group = here[here["what"] == what]
            if not group.empty:
                rows.append([
                    share, what, *(cell(group[f"{s}/accuracy"], 100) for s in SPLITS),
                    *(cell(group[f"{s}/mlm_loss"], digits=2) for s in ("forget", "retain")), cell(group["seconds"]),
                    distance(group, again, "forget/accuracy"), distance(group, again, "forget/mlm_loss", 1.0),
                    _collapsed(group), figures(SHARES[share].get(what)),
                ])  # fmt: skip
    return lines(heads, rows)


def dialogues(found: pd.DataFrame) -> str:
    heads = ["what", "test R1/R2/RL", "retained", "forgotten", "name loss", "seconds", "forgotten RL − re-train",
             "collapsed", "paper: test, retained, forgot, MLM, s"]  # fmt: skip
    again, rows = found[found["what"] == "re-train"], []
    for what in ORDER:
        group = found[found["what"] == what]
        if not group.empty:
            rouge = [" / ".join(cell(group[f"{s}/rouge{n}_f1"], 100) for n in ("1", "2", "L")) for s in SPLITS]
            rows.append([what, *rouge, cell(group["forget/mlm_loss"], digits=2), cell(group["seconds"]),
                         distance(group, again, "forget/rougeL_f1"), _collapsed(group),
                         figures(DIALOGUES.get(what))])  # fmt: skip
    return lines(heads, rows)


def ablation(found: pd.DataFrame) -> str:
    heads = ["objective", "test", "retained", "forgotten", "name loss, forgotten", "name loss, retained", "collapsed",
             "paper (0.5 %): test / retained / forgot / MLM"]  # fmt: skip
    rows = []
    for algo, name in ALGOS.items():
        for part in ABLATION:
            group = found[found["what"] == (algo if part == "EUL" else f"{algo} {part}")]
            if not group.empty:
                said = name if part == "EUL" else f"{name} {part}"
                rows.append([said, *(cell(group[f"{s}/accuracy"], 100) for s in SPLITS),
                             *(cell(group[f"{s}/mlm_loss"], digits=2) for s in ("forget", "retain")),
                             _collapsed(group), figures(ABLATION[part] if name == "EUL" else None)])  # fmt: skip
    return lines(heads, rows)


def after(found: pd.DataFrame, what: str, count: int) -> pd.DataFrame:
    """One row per world: the mean over all sets, or orders, of ``count`` requests."""
    group = found[(found["what"] == what) & (found["forgotten"].str.len() == count)]
    return group.groupby("world", as_index=False).mean(numeric_only=True)


def sequence(found: pd.DataFrame) -> str:
    heads = ["layers", "how", *(f"{k} request{'s' * (k > 1)}: test, retained, forgotten" for k in (1, 2, 3)),
             "forgotten − re-train, after 3", "paper (order 2, 1, 3): test / forgot after 1, 2, 3"]  # fmt: skip
    rows = []
    for algo, name in ALGOS.items():
        for how in JOINED:
            what = how if how == "re-train" else f"{algo} {how}"
            steps = [after(found, what, k) for k in (1, 2, 3)]
            if any(step.empty for step in steps) or (how == "re-train" and rows):
                continue
            cells = [", ".join(cell(step[f"{s}/accuracy"], 100) for s in SPLITS) for step in steps]
            known = SEQUENCE.get(how)
            rows.append(["–" if how == "re-train" else name, how, *cells,
                         distance(steps[2], after(found, "re-train", 3), "forget/accuracy"),
                         "–" if known is None else ", ".join(figures(pair) for pair in known)])  # fmt: skip
    return lines(heads, rows)


def figure(found: pd.DataFrame) -> Figure:
    """Fig. 2: test, retained and forgotten accuracy over the number of requests, averaged over sets or orders."""
    there = {algo: name for algo, name in ALGOS.items() if found["what"].str.startswith(f"{algo} ").any()}
    fig = Figure(figsize=(11, 0.6 + 3.1 * len(there)), layout="constrained")
    axes = fig.subplots(len(there), len(SPLITS), sharex=True, sharey="col", squeeze=False)
    for line, (algo, name) in zip(axes, there.items(), strict=True):
        for ax, split in zip(line, SPLITS, strict=True):
            for how in JOINED:
                again = how == "re-train"
                steps = [after(found, how if again else f"{algo} {how}", k) for k in (1, 2, 3)]
                if not any(step.empty for step in steps):
                    values = [100 * step[f"{split}/accuracy"].mean() for step in steps]
                    style = {"color": "grey", "linestyle": ":"} if again else {"marker": "o"}
                    ax.plot((1, 2, 3), values, label=how, **style)
            ax.set_title(f"{name}: {NAMED[split]} accuracy (%)", fontsize=9)
            ax.set_xticks((1, 2, 3))
    for ax in axes[-1]:
        ax.set_xlabel("requests answered")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(JOINED))
    return fig


def _collapsed(group: pd.DataFrame) -> str:
    known = group["collapsed"].dropna() if "collapsed" in group else pd.Series(dtype=float)
    return f"{int(known.sum())}/{len(known)}" if len(known) else "–"


def main() -> None:
    found = pd.read_csv(HERE / "results.csv", dtype={"forgotten": str})
    made = {"shares": shares, "dialogues": dialogues, "ablation": ablation, "sequence": sequence}
    for section, table in made.items():
        rows = found[found["section"] == section]
        if rows.empty:
            continue
        worlds = rows["world"].nunique()
        note = f"\nMeans over {worlds} world{'s' * (worlds > 1)}" + (", ± 95 % interval.\n" if worlds > 1 else ".\n")
        (HERE / f"{section}.md").write_text(table(rows) + note)
    if "sequence" in set(found["section"]):
        with look():
            save(figure(found[found["section"] == "sequence"]), HERE, "sequence")


if __name__ == "__main__":
    main()
