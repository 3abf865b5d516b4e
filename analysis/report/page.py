"""The page: what it shows, gathered from a study, and put into the template.

Easy to get wrong: questions, answers, errors and names are strangers' text. The template escapes everything; only the
page's own style and script are put in as they are, and a policy in its head forbids whatever else could be loaded.
"""

from __future__ import annotations

import base64
import importlib
import io
import shlex
from pathlib import Path, PurePath

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import style, table_formats
from ..runs import Study, StudyError
from ..state import manifests
from ..table import differences, table
from ..table_rows import Table
from . import chart, examples, summary

HERE = Path(__file__).parent
FIGURES = {  # module of analysis → what its figure shows
    "tradeoff": "What forgetting costs elsewhere. Best is the retrained model's forgetting with nothing lost.",
    "matched": "What is kept where all have forgotten as far as the retrained model.",
    "alpha": "Every split over α.",
    "trajectories": "What training does, step by step.",
    "leakage": "What the worst of k drawn answers gives away, over k.",
    "forgetting": "How much single questions changed.",
    "cost": "Seconds, memory and trained parameters against what came out.",
}
DPI = 144


def page(study: Study, wanted: dict[str, object] | None = None, again: str | None = None) -> str:
    """The report as HTML.

    ``wanted`` are column → value of the setting whose examples are shown, ``again`` is the command that makes the page.
    """
    if study.runs.empty:
        raise StudyError(f"study {study.name!r} in {study.folder} has no runs")
    figures, absent = _figures(study)
    template = _environment().get_template("page.html.j2")
    return template.render(
        study=study,
        summary=summary.sentences(study),
        chart=chart.data(study),
        figures=figures,
        absent=absent,
        tables=_tables(study),
        examples=examples.choose(study, wanted or {}),
        failures=_failures(study),
        provenance=_provenance(study),
        again=again or shlex.join(["python", "-m", "analysis.report", str(study.folder)]),
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
    )


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _figures(study: Study) -> tuple[list[dict], list[str]]:
    """The figures that apply to the study, as PNG in base64; and why others do not."""
    drawn, absent = [], []
    for name, caption in FIGURES.items():
        try:
            figure = importlib.import_module(f"..{name}", __package__).figure(study)
        except StudyError as error:
            absent.append(f"{name}: {error}")
            continue
        out = io.BytesIO()
        with style.look():
            figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
        width, height = (round(side * 96) for side in figure.get_size_inches())
        image = base64.b64encode(out.getvalue()).decode("ascii")
        drawn.append({"name": name, "caption": caption, "png": image, "width": width, "height": height})
    return drawn, absent


def _tables(study: Study) -> list[dict]:
    """The study's means, and differences where some setting has a natural counterpart."""
    shown = [_shown("Means", table(study))]
    methods = study.runs["method"].unique()
    best = summary.best(study)
    if len(methods) > 1 and "direct" in methods:
        base = "method=direct"
    elif study.runs["algo"].nunique() > 1 and best is not None:
        base = f"algo={best.settings['algo']}"
    else:
        return shown
    try:
        return [*shown, _shown(f"Differences from {base}", differences(study, base))]
    except StudyError:  # nothing shares all other settings: there is no difference to show
        return shown


def _shown(title: str, found: Table) -> dict:
    rows = [
        {
            "kind": row.kind,
            "words": table_formats.words(found, row),
            "cells": [
                {"text": table_formats.text(found, row, m, "{}".format), "marked": table_formats.marked(found, row, m)}
                for m in found.metrics
            ],
            "runs": table_formats.runs(row),
            "lost": row.kind == "run" and not row.units,
        }
        for row in found.rows
    ]
    heads = [title for _, title in table_formats.labels(found)]
    return {"title": title, "heads": heads, "metrics": table_formats.titles(found), "rows": rows, "notes": found.notes}


def _failures(study: Study) -> list[dict]:
    """Runs that are not done, or are done with an error of a later evaluation."""
    rows = study.runs.drop_duplicates("folder")
    lost = rows[(rows["status"] != "done") | (rows["error"].str.strip() != "")]
    return [
        {"name": PurePath(row["folder"]).name, "status": row["status"], "error": row["error"].strip()}
        for row in lost.to_dict("records")
    ]


def _provenance(study: Study) -> dict:
    """Commands, versions, code and machines of the runs; each distinct value once."""
    found = list(manifests(study).values())
    versions: dict[str, list[str]] = {}
    for manifest in found:
        for package, version in (manifest.get("versions") or {}).items():
            versions[package] = _with(versions.get(package, []), version or "not installed")
    commands, code, machines = [], [], []
    for manifest in found:
        commands = _with(commands, _command(manifest.get("command")))
        if git := manifest.get("git"):
            code = _with(code, f"{git.get('commit', '')[:12]}{' with local changes' * bool(git.get('dirty'))}")
        if hardware := manifest.get("hardware"):
            kinds = [hardware.get("gpu") or "no GPU", hardware.get("machine"), hardware.get("system")]
            machines = _with(machines, ", ".join(str(kind) for kind in kinds if kind))
    once = study.runs.drop_duplicates("folder")
    return {
        "commands": commands,
        "versions": {package: ", ".join(values) for package, values in versions.items()},
        "code": code,
        "machines": machines,
        "seconds": once["seconds"].sum(),
        "memory": once["peak_memory_mb"].max(),
    }


def _with(values: list[str], value: str | None) -> list[str]:
    return values if not value or value in values else [*values, value]


def _command(words: list[str] | None) -> str | None:
    """A logged command as one types it."""
    if not words:
        return None
    program = f"python -m unlearn.{PurePath(words[0]).stem}" if words[0].endswith(".py") else words[0]
    return " ".join([program, *map(shlex.quote, words[1:])])
