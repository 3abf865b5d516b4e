"""The data of the page's interactive trade-off: points, curves through them, references, and what is good.

Every number is the mean over pair seeds that the tables show, and its interval that of the figures. Easy to get wrong:
JSON has no NaN; NaN and infinity are null, and the page draws no point for it.
"""

from __future__ import annotations

import math
from pathlib import PurePath

import pandas as pd

from .. import goals, panels, statistics
from ..curves import is_share, over_inference
from ..runs import INTERVAL, Study
from ..state import collapsed, evaluated
from ..table_rows import choose_by, groups

SHOWN = ("forget/prob", "retain/prob")  # what the page shows first: x, y


def data(study: Study) -> dict:
    """What the script on the page needs; an empty ``points`` where nothing is evaluated."""
    metrics = [m for m in study.metrics if goals.goal(m) is not None and study.runs[m].notna().any()]
    metrics = [*(m for m in goals.HEADLINE if m in metrics), *(m for m in metrics if m not in goals.HEADLINE)]
    retrained = "retrained" in set(study.references["reference"])
    points, curves = _points(study, metrics)
    first = [m for m in SHOWN if m in metrics] + [m for m in metrics if m not in SHOWN]
    return {
        "metrics": [
            {
                "key": m,
                "title": goals.named(m),
                "better": goals.WORDS[goals.goal(m, retrained)],
                "headline": m in goals.HEADLINE,
                "share": is_share(m),
            }
            for m in metrics
        ],
        "curves": curves,
        "points": points if len(metrics) > 1 else [],
        "odds": {"end": panels.END, "ticks": panels.TICKS},
        "references": _references(study, metrics),
        "x": first[0] if first else None,
        "y": first[1] if len(first) > 1 else None,
    }


def _points(study: Study, metrics: list[str]) -> tuple[list[dict], list[dict]]:
    """A point per setting, along a curve over the alpha at inference or in training, and the curves' looks."""
    by = choose_by(study, ())
    frame = study.runs.assign(gone=collapsed(study))[evaluated(study)]
    along_inference = over_inference(study)
    points, names = [], {}
    several = {c for c in by if frame[c].nunique(dropna=False) > 1}
    for key, part in groups(frame, by).items():
        settings = dict(zip(by, key, strict=True))
        over = bool(along_inference.loc[part.index[0]])
        left = {c: v for c, v in settings.items() if c != "eval_alpha" and (c != "alpha" or (over and c in several))}
        curve = names.setdefault(tuple(left.items()), _name(left, several))
        along = settings["eval_alpha" if over else "alpha"]
        points.append({"curve": list(names.values()).index(curve), "along": along, "name": f"{curve}, α = {along:g}"})
        points[-1] |= _numbers(part, metrics)
    return points, _looks(list(names), list(names.values()))


def _name(settings: dict[str, object], several: set[str]) -> str:
    """A curve's name, of what differs between curves; never empty, never that of another curve."""
    told = {c: v for c, v in settings.items() if c == "algo" or (c in several and v is not None)}
    said = [f"trained at α={v:g}" if c == "alpha" else str(v) if "." not in c else f"{c.rsplit('.', 1)[-1]}={v}"
            for c, v in told.items()]  # fmt: skip
    return ", ".join(said)


def _numbers(part: pd.DataFrame, metrics: list[str]) -> dict:
    units = part.groupby(statistics.UNIT)[metrics].mean()
    found = {m: statistics.mean(units[m]) for m in metrics}
    ends = {m: [cell.low, cell.high] for m, cell in found.items()}
    if len(units) == 1:  # then over people or questions, where that was measured
        ends = {m: [part[end + m].mean() for end in INTERVAL] for m in metrics if f"{INTERVAL[0]}{m}" in part}
    return {
        "runs": sorted({PurePath(folder).name for folder in part["folder"]}),
        "n": len(units),
        "collapsed": int(part.loc[part["gone"], "folder"].nunique()),
        "values": {m: _plain(cell.mean) for m, cell in found.items()},
        "ends": {m: pair for m, pair in ends.items() if all(map(math.isfinite, pair))},
    }


def _looks(keys: list[tuple], names: list[str]) -> list[dict]:
    """Colour and marker tell the algorithm, the line the rest; with one algorithm, all tell the rest."""
    algos = list(dict.fromkeys(key[0] for key in keys))
    rest = list(dict.fromkeys(key[1:] for key in keys))
    places = (
        [(algos.index(k[0]), rest.index(k[1:])) for k in keys] if len(algos) > 1 else list(enumerate(range(len(keys))))
    )
    return [{"name": n, "colour": c, "line": line} for n, (c, line) in zip(names, places, strict=True)]


def _references(study: Study, metrics: list[str]) -> list[dict]:
    """Target and retrained: the mean over pair seeds of each pair and data set."""
    found = []
    table = study.references[study.references["reference"] != "guess"]
    several = [c for c in ("pair", "data") if table[c].nunique() > 1]
    for (name, *setting), part in table.groupby(["reference", *several]):
        means = part.reindex(columns=[statistics.UNIT, *metrics]).groupby(statistics.UNIT).mean().mean()
        values = {m: _plain(v) for m, v in means.items()}
        found.append({"kind": name, "name": ", ".join([f"{name} model", *setting]), "values": values})
    return found


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
