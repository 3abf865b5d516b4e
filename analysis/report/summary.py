"""What a study says, in sentences made from its numbers.

Who wins depends on how far one wants to forget, so winners are named for levels of forgetting: among the settings that
forget at least so far and have not collapsed, the one that keeps most. A winner is called separated from the next only
where their difference is, as ``table --differences`` has it. Recommended is the setting whose worst count is best.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from .. import caption, matched, statistics
from ..curves import curve_columns
from ..runs import Study, StudyError
from ..state import evaluated, with_kept
from ..table_differences import Examples
from ..table_formats import name, number, signed
from ..table_rows import Row, Table, choose_by, groups, table, told

FORGET, KEEP = "forget/prob", "retain/prob"
LEAK = "forget/leak_gap"
FORGOTTEN = (FORGET, "forget/known", "forget/rougeL_recall", LEAK)  # as the retrained model has them
KEPT = (
    KEEP,
    "retain/known",
    "retain/rougeL_recall",
    "neighbours/prob",
    "model_utility",
    "kept",
)  # as the target has them
NAMED = 6  # settings in one sentence
REFERENCES = ("target", "retrained")
HALF, RETRAINED, TENTH = "half the target's level", "the retrained model's level", "a tenth of the target's level"


@dataclass(frozen=True)
class Level:
    """A level of forgetting, the setting that keeps most there, and whether it differs from the next best."""

    what: str
    value: float
    winner: Row | None
    said: str


def sentences(study: Study) -> list[str]:
    """The summary; only what the study's numbers can say."""
    found = table(study, [m for m in (FORGET, KEEP, LEAK) if m in study.metrics])
    said = [_asked(study), _scale(found), _recommended(study), _matched(study), _sure(study)]
    said += [level.said for level in levels(study, found)]
    said += [_leaks(found), _lost(study, found)]
    return [sentence for sentence in said if sentence]


def best(study: Study) -> Row | None:
    """The setting whose worst count is best: as the retrained model on the forget set, as the target elsewhere.

    Where the worst are equal within a hundredth, the next worst decides.
    """
    found = _judged(study)
    judged = [(losses, row) for row in _whole(found) if (losses := _losses(found, row))]
    return (
        min(judged, key=lambda pair: sorted((round(v, 2) for v in pair[0].values()), reverse=True))[1]
        if judged
        else None
    )


def _judged(study: Study) -> Table:
    return table(study, [m for m in (*FORGOTTEN, *KEPT) if m in with_kept(study).metrics])


def _losses(found: Table, row: Row) -> dict[str, float]:
    """How far each count is from the best, as a share of the way from there to the target, or to nothing."""
    losses = {}
    for metric in found.metrics:
        value, target, retrained = row.cells[metric].mean, *(_reference(found, k, metric) for k in REFERENCES)
        best = target if metric in KEPT else retrained if retrained == retrained else 0.0
        way = best if metric in KEPT else target - best
        if value == value and best == best:
            away = max(best - value, 0.0) if metric in KEPT else abs(value - best)
            losses[metric] = min(away / way if way > 0 else away, 1.0)
    return losses


def _recommended(study: Study) -> str:
    row, found = best(study), _judged(study)
    if row is None:
        return ""
    losses = _losses(found, row)
    worst = max(losses, key=lambda metric: losses[metric])
    counts = ", ".join(f"{m} {_cell(row, m)} ({_aim(found, m)})" for m in losses)
    return (
        f"Recommended is {name(found, row)}: its worst count, {worst} {_cell(row, worst)}, is the best of all. "
        f"Counts, and where they should be: {counts}."
    )


def _aim(found: Table, metric: str) -> str:
    kind = "target" if metric in KEPT else "retrained"
    return f"{kind} {number(_reference(found, kind, metric))}" if kind == "target" or found.retrained else "0"


def _matched(study: Study) -> str:
    """Who keeps most at exactly the retrained model's level, be it between two of the α that were evaluated."""
    if not {FORGET, KEEP} <= set(study.metrics):
        return ""
    forget = LEAK if LEAK in study.metrics else FORGET
    try:
        rows = matched.match(study, [KEEP], forget)
    except StudyError:
        return ""
    rows = rows[rows["n"] == rows["of"]]  # that get there in every world
    if rows.empty:
        return ""
    names = list(caption.names(rows.assign(n=1), curve_columns(study)).values())
    kept, at = (number(rows.loc[rows[KEEP].idxmax(), column]) for column in (KEEP, "at"))
    return (
        f"Where {forget} is exactly the retrained model's, interpolated between α, {names[rows[KEEP].argmax()]} keeps "
        f"most: {KEEP} {kept} at α = {at}."
    )


def levels(study: Study, found: Table) -> list[Level]:
    """Half of what the target knows, the retrained model's level, a tenth of what the target knows."""
    if not {FORGET, KEEP} <= set(found.metrics):
        return []
    target, retrained = (_reference(found, kind, FORGET) for kind in ("target", "retrained"))
    values = {HALF: target / 2, RETRAINED: retrained, TENTH: target / 10}
    known = {what: value for what, value in values.items() if value == value}
    if not known:  # no references were logged: the furthest that any setting went
        reached = [row.cells[FORGET].mean for row in _whole(found) if row.cells[FORGET].n]
        known = {"the furthest level": min(reached)} if reached else {}
    ordered = [_level(study, found, *item) for item in sorted(known.items(), key=lambda item: -item[1])]
    for before, after in zip(ordered[:-1], ordered[1:], strict=True):
        if after.winner is not None and after.winner is before.winner:
            said = f"Down to {after.what} ({FORGET} ≤ {number(after.value)}), the same setting keeps most."
            ordered[ordered.index(after)] = replace(after, said=said)
    return ordered


def _level(study: Study, found: Table, what: str, value: float) -> Level:
    """Who keeps most among the settings that forget at least as far as ``value``."""
    there = [row for row in _whole(found) if row.cells[FORGET].mean <= value and row.cells[KEEP].n]
    there = sorted(there, key=lambda row: -row.cells[KEEP].mean)
    head = f"Forgetting down to {what} or further ({FORGET} ≤ {number(value)})"
    if not there:
        return Level(what, value, None, f"{head}: no setting that has not collapsed.")
    first = there[0]
    said = f"{head}, {name(found, first)} keeps most: {KEEP} {_cell(first, KEEP)} at {FORGET} {_cell(first, FORGET)}"
    others = [row for row in there if _curve(row) != _curve(first)]
    if not others:
        return Level(what, value, first, f"{said}; nothing else forgets so far without collapsing.")
    said += f". Next is {name(found, others[0])} with {_cell(others[0], KEEP)}"
    gap = Examples(study, [KEEP]).paired(_rows(study, found, first), _rows(study, found, others[0]), KEEP)
    if gap.n > 1:
        apart = "separated" if gap.separated else "not separated"
        ends = f"{signed(gap.mean)} [{signed(gap.low)}, {signed(gap.high)}]"
        said += f"; the difference, {ends} over {gap.n} pair seeds, is {apart}"
    return Level(what, value, first, said + ".")


def _curve(row: Row) -> dict[str, object]:
    """What distinguishes settings but for α: the next best is another way to forget, not the same way further."""
    return {c: v for c, v in row.settings.items() if c not in ("alpha", "eval_alpha")}


def _asked(study: Study) -> str:
    runs = study.runs
    words = {"algo": "algorithms", "method": "methods", "alpha": "α in training", "eval_alpha": "α in evaluation"}
    words |= {"pair": "pairs", "data": "data sets", "pair_seed": "pair seeds", "seed": "unlearning seeds"}
    seen = runs[runs["eval_alpha"].notna()]
    if (seen["eval_alpha"] == seen["alpha"]).all():
        words = {k: v.replace(" in training", "") for k, v in words.items() if k != "eval_alpha"}
    said = []
    for column, word in {**words, **{c: c for c in study.varied}}.items():
        values = runs[column].dropna().drop_duplicates()
        values = values.sort_values() if pd.api.types.is_numeric_dtype(values) else values.astype(str).sort_values()
        shown = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
        word = word.removesuffix("s") if len(shown) == 1 else word
        said.append(f"{word} {', '.join(shown)}")
    return f"{runs['folder'].nunique()} runs were asked for: {'; '.join(said)}."


def _scale(found: Table) -> str:
    target, retrained = (_reference(found, kind, FORGET) for kind in ("target", "retrained"))
    if target != target:
        return ""
    said = f"Asked what should be forgotten, the target gives the right answer a probability of {number(target)}"
    if retrained != retrained:
        guess = _reference(found, "guess", FORGET)
        level = f"; asked the same about names that no model can know, it gives it {number(guess)}" * (guess == guess)
        return f"{said}{level}. There is no retrained model to compare with."
    return (
        f"{said}; the retrained model, which never saw it, {number(retrained)}. That, not zero, is perfect forgetting."
    )


def _sure(study: Study) -> str:
    worlds = study.runs.loc[evaluated(study), statistics.UNIT].nunique()
    if worlds != 1:
        return ""
    return (
        "There is one pair seed, so one world and one set of models: a difference between settings may be the luck of "
        "that world. The same grid with pair.seed=0,1,2,3,4 would tell."
    )


def _leaks(found: Table) -> str:
    if LEAK not in found.metrics:
        return ""
    rows = sorted((r for r in _whole(found) if r.cells[LEAK].n), key=lambda row: abs(row.cells[LEAK].mean))
    if not rows:
        return ""
    more = [name(found, row) for row in rows if row.cells[LEAK].mean > 0]
    said = f"{len(more)} of {len(rows)} settings still give more away in drawn answers than the retrained model"
    said += f" ({'; '.join(more)})" if 0 < len(more) <= NAMED else ""
    return f"{said}; nearest to it is {name(found, rows[0])} ({LEAK} {_cell(rows[0], LEAK)})."


def _lost(study: Study, found: Table) -> str:
    gone: dict[str, list[str]] = {}
    for row in found.rows:
        if row.counts.get("collapsed"):
            curve, _, alpha = name(found, row).rpartition("α=")
            gone.setdefault(curve, []).append(alpha)
    named = [f"{curve}α={', '.join(alphas)}" for curve, alphas in gone.items()]
    more = f" and of {len(named) - NAMED} more curves" if len(named) > NAMED + 1 else ""
    said = "; ".join(named[:NAMED] if more else named) + more
    return f"{told(study)[0]}." + (f" Collapsed: {said}." if gone else " None collapsed.")


def _whole(found: Table) -> list[Row]:
    """Rows with results of which not every run has collapsed."""
    return [r for r in found.rows if r.kind == "run" and r.counts["done"] > r.counts["collapsed"] and r.units]


def _reference(found: Table, kind: str, metric: str) -> float:
    """The mean over all worlds; NaN where there is none."""
    values = [row.cells[metric].mean for row in found.rows if row.kind == kind and metric in row.cells]
    return sum(values) / len(values) if values else float("nan")


def _rows(study: Study, found: Table, row: Row) -> pd.DataFrame:
    """The rows of ``study.runs`` that a table's row is the mean of."""
    return groups(study.runs[evaluated(study)], choose_by(study, found.by))[tuple(row.settings.values())]


def _cell(row: Row, metric: str) -> str:
    cell = row.cells[metric]
    return number(cell.mean) + (f" ± {number(cell.half)}" if cell.half == cell.half else "")
