"""What figures say in words: the names of curves, which way is better, what is not drawn.

Nothing is dropped in silence: runs that failed, still run or collapsed are counted in the footnote of every figure.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.figure import Figure

from . import style
from .curves import SETTING, collapsed, finished, over_inference
from .goals import goal, named
from .runs import Study

WORDS = {  # on the y axis "→" is turned upwards
    "higher": "   (better →)", "lower": "   (← better)", "retrained": "   (aim: retrained)", "zero": "   (aim: 0)",
    None: "",
}  # fmt: skip
LONG = 20  # characters of a name that leave no room for words beside it
STEPS = "steps are measured on at most trainer.eval_examples questions per split, target and retrained on all"
# in the order in which figures show them
METHODS = ("direct", "eul", "offset", "proxy", "defer", "refuse", "uld", "dd", "dd_rank")


def title(study: Study) -> str:
    """The study, its pairs and its data."""
    done = finished(study)
    setting = "; ".join(f"{c} {', '.join(sorted(done[c].unique()))}" for c in SETTING)
    return f"{study.name}   ({setting})"


def names(table: pd.DataFrame, columns: Sequence[str]) -> dict[tuple, str]:
    """Curve → its name in the legend, made of what differs between the curves only.

    ``table`` has a row per point; ``columns`` are its first ones and tell its curves apart.
    """
    told = [
        c
        for c in columns
        if c == "algo" or (c == "method" and "none" in set(table["algo"])) or table[c].nunique(dropna=c == "alpha") > 1
    ]
    repeated = table["n"].max() > 1
    found = {}
    for curve, points in table.groupby(list(columns), dropna=False, sort=False):
        own = [c for c in told if c != "alpha" or points[c].notna().all()]  # a curve over training alphas has no own
        settings = zip(columns, curve, strict=True)
        said = [say(c, value) for c, value in settings if c in own and (c, value) != ("algo", "none")]
        low, high = points["n"].min(), points["n"].max()
        curve = tuple(None if pd.isna(value) else value for value in curve)  # unlike NaN, None equals itself
        found[curve] = ", ".join(said) + (f" (n={low if low == high else f'{low}–{high}'})" if repeated else "")
    return found


def say(column: str, value) -> str:
    """A setting in words."""
    if column in ("algo", "method", *SETTING):
        return str(value)
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    shown = "default" if pd.isna(value) else shown
    return f"trained at α={shown}" if column == "alpha" else f"{column.split('.')[-1]}={shown}"


def looks(curves: Iterable[tuple]) -> dict[tuple, dict]:
    """Colour and marker tell the algorithm, line and filling the rest; with one algorithm, both tell the rest."""
    curves = list(curves)
    algos = list(dict.fromkeys(curve[0] for curve in curves))
    rest = list(dict.fromkeys(curve[1:] for curve in curves))
    if len(algos) == 1 or len(rest) == 1:
        return {
            curve: style.series(i, i) | {"markerfacecolor": style.series(i)["color"]} for i, curve in enumerate(curves)
        }
    return {curve: style.series(algos.index(curve[0]), rest.index(curve[1:])) for curve in curves}


def member(table: pd.DataFrame, curve: tuple) -> pd.Series:
    """Which rows of a table, whose first columns are its curves', belong to a curve."""
    same = pd.Series(True, index=table.index)
    for column, value in zip(table.columns, curve, strict=False):
        same &= table[column].isna() if pd.isna(value) else table[column] == value
    return same


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods as figures show them: the known ones in their order, then others by name."""
    return sorted(set(methods), key=lambda m: (METHODS.index(m) if m in METHODS else len(METHODS), m))


def axis_label(axis, study: Study, metric: str, words: str | None = None) -> None:
    """A metric's name and what its aim is; ``words`` in the name's stead. What is long takes two lines."""
    name, way = words or named(metric), WORDS[goal(metric, "retrained" in set(study.references["reference"]))]
    axis.set_label_text(f"{name}\n{way.strip()}" if way and len(name) > LONG else name + way)


def alphas(study: Study) -> str:
    """Which alpha the numbers along the curves are."""
    seen = over_inference(study)
    joined = finished(study)[~seen].dropna(subset=["eval_alpha"])  # rows of curves that join trainings
    if joined.empty:
        return "α at inference"
    evaluated = ", ".join(f"{alpha:g}" for alpha in sorted(joined["eval_alpha"].unique()))
    same = (joined["eval_alpha"] == joined["alpha"]).all()
    if seen.any():
        more = "in training, too" if same else f"α in training (at inference: {evaluated})"
        return f"α at inference;\n{more}, where each\npoint is a training of its own"
    return "α in training\n" + ("and at inference" if same else f"(α at inference: {evaluated})")


def at(alpha: float | None) -> str:
    """At which alpha every run is shown."""
    return "each run at the evaluated α nearest to its training's" if alpha is None else f"all at α = {alpha:g}"


def spread(study: Study, table: pd.DataFrame, metrics: Sequence[str], what: str = "bars") -> str:
    """What is drawn around the values of a table of curves, and how many seeds there are."""
    done = finished(study)
    worlds, seeds = done["pair_seed"].nunique(), done["seed"].nunique()
    asked = table[[f"low/{m}" for m in metrics if f"low/{m}" in table.columns]]
    within = asked[table["n"] == 1].notna().any(axis=None)  # a world
    if worlds > 1:
        return f"{what}: 95 % over {worlds} pair seeds" + (
            ", 95 % over its people or questions where n=1" * bool(within)
        )
    return f"{what}: 95 % over people or questions; " * bool(within) + f"1 pair seed, unlearning seeds: {seeds}"


def left_out(study: Study, drawn: pd.DataFrame) -> list[str]:
    """What a figure does not show: runs not drawn, runs that collapsed, references at odds.

    ``drawn`` holds the rows that are drawn, with their ``folder``.
    """
    said, done = [], finished(study)
    absent = [f"{study.count(status)} {status}" for status in study.runs["status"].unique() if status != "done"]
    unseen = done.loc[done["eval_alpha"].isna(), "folder"].nunique()
    absent += [f"{unseen} done but not evaluated"] if unseen else []
    evaluated = set(done.loc[done["eval_alpha"].notna(), "folder"])
    absent += [f"{len(lost)} done without the numbers shown"] if (lost := evaluated - set(drawn["folder"])) else []
    if absent:
        said.append(f"not drawn: {', '.join(absent)} of {study.runs['folder'].nunique()} runs")
    if gone := collapsed(study):
        kept = "below half of the target's probability outside the forget set"
        said.append(f"collapsed ({kept}): {gone} of {study.count('done')} done")
    if (difference := study.references["disagreement"].max()) > 0.005:
        said.append(f"runs report references that differ by up to {difference:.2g}")
    if study.notes:
        said.append(f"left out in reading: {len(study.notes)} (the command says what)")
    return said


def footnote(fig: Figure, said: Iterable[str]) -> None:
    """Writes the footnote, in lines that fit the figure; again when more is known."""
    text = textwrap.fill(" · ".join(s for s in said if s), int(fig.get_figwidth() * 20))  # characters that fit
    fig.supxlabel(text, x=0.01, ha="left", fontsize=6.5, color="#555555")
