"""The end of a call: its runs on the terminal, and the whole study in ``summary.csv``."""

import csv
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from unlearn.config.derived import algo_name, alpha_key, eval_alphas, protocol, training_alpha
from unlearn.evaluation.collapse import collapsed, kept
from unlearn.grid.refusal import unread
from unlearn.store import runlog
from unlearn.store.files import write_whole
from unlearn.store.identity import Job, distinguishing, flatten

COLUMNS = {  # in the words of the figures (analysis/goals.py)
    "forget/prob": "forget set\nprobability\n→ retrained", "forget/known": "forget set\nknown\n→ retrained",
    "forget/rougeL_recall": "forget set\nROUGE-L\nrecall\n→ retrained",
    "forget/leak_gap": "leak beyond\nretrained\n→ 0", "forget/leak_gap_guess": "leak beyond\nguess level\n→ 0",
    "retain/prob": "retain set\nprobability\n↑", "retain/known": "retain set\nknown\n↑",
    "retain/rougeL_recall": "retain set\nROUGE-L\nrecall\n↑", "neighbours/prob": "neighbours\nprobability\n↑",
    "neighbours/known": "neighbours\nknown\n↑", "kept": "kept\n↑", "model_utility": "model\nutility\n↑",
    "forget_quality": "forget\nquality\n↑", "seconds": "seconds",
}  # fmt: skip
# where a terminal lacks room, the first goes first; the other columns are in every table
LEAST = ("forget_quality", "retain/rougeL_recall", "forget/rougeL_recall", "seconds", "model_utility",
         "neighbours/known", "kept", "neighbours/prob", "retain/known")  # fmt: skip
LACKING = {  # column → what would fill it
    "forget/leak_gap": "leak beyond retrained needs a retrained model and the group leak",
    "forget/leak_gap_guess": "leak beyond guess level, for want of a retrained model, needs a guess_question in the "
    "forget rows and eval.groups=[leak,guess]",
    "model_utility": "model utility needs wrong answers (perturbed_answer) of retain set, real authors and world facts",
    "forget_quality": "forget quality needs wrong answers of the forget set, and a retrained model",
}
OF_LEARNER = ("pair.tuning", "pair.lora.", "pair.layers.", "pair.offset_init")  # that references do not share
UNREAD = "/rouge_unread"  # of eval.json (evaluation/measures.py)
WIDTH = 100  # characters in a file, at least
PLAIN: Any = {"markup": False, "highlight": False, "soft_wrap": True}  # of what is printed below a table


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise it, where rich would end the process."""
        raise BrokenPipeError


def made(left: Sequence[str], right: Sequence[str] = (), title: str | None = None) -> Table:
    """An empty table as all are drawn here: names to the left, numbers to the right."""
    narrow: Any = {"box": box.SIMPLE, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(**narrow, header_style="bold", title=title)
    for name in left:
        table.add_column(name, overflow="fold", vertical="bottom")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    return table


def show(table: Table, console: Console | None = None) -> None:
    """Print a table. Where it is wider than a terminal, names take several lines; a file has it as wide as it is."""
    console = console or _Console(markup=False)
    wide = _wide(table, console)
    console.width = max(_room(console), wide.minimum if _fixed(console) else wide.maximum)
    console.print(table)


def _fixed(console: Console) -> bool:
    """Whether somebody looks at lines of a width, rather than at a file."""
    return console.is_terminal or "COLUMNS" in os.environ


def _room(console: Console) -> int:
    return console.width if _fixed(console) else max(console.width, WIDTH)


def _wide(table: Table, console: Console) -> Measurement:
    return console.measure(table, options=console.options.update(max_width=10**4))


def show_metrics(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one line of ``COLUMNS`` for each name."""
    found = {name: {"kept": kept(metrics, rows.get("target"))} | metrics for name, metrics in rows.items()}

    def table(shown: Sequence[str]) -> Table:
        drawn = made([""], titles(rows, shown))
        for name, metrics in found.items():
            drawn.add_row(name, *cells(metrics, shown))
        return drawn

    console = _Console(markup=False)
    left = _fitting(table, columns(found.values()), console)
    _remark(list(rows.values()), left, console)


def _fitting(table: Callable[[Sequence[str]], Table], shown: Sequence[str], console: Console) -> list[str]:
    """Print a table of columns but those of least interest for which there is no room; the names of these."""
    left: list[str] = []
    least = [key for key in LEAST if key in shown]
    while least and _wide(table([key for key in shown if key not in left]), console).maximum > _room(console):
        left.append(least.pop(0))
    show(table([key for key in shown if key not in left]), console)
    return left


def _remark(rows: Sequence[Mapping[str, Any]], left: Sequence[str], console: Console) -> None:
    """Say what would give lacking columns, and of which splits' answers the dialect's ROUGE drops letters."""
    plain = PLAIN | {"soft_wrap": not _fixed(console)}  # on a terminal lines end between words
    there = {key for metrics in rows for key in LACKING if metrics.get(key) is not None}
    there |= {"forget/leak_gap_guess"} if "forget/leak_gap" in there else set()  # the better one is there
    empty = [why for key, why in LACKING.items() if key not in there]
    if rows and empty:
        console.print(f"no column: {'; '.join(empty)}", **plain)
    if left:
        console.print(f"no room for {', '.join(left)}: a wider terminal shows them", **plain)
    shares = {k.removesuffix(UNREAD): v for metrics in rows for k, v in metrics.items() if k.endswith(UNREAD)}
    if shares:
        said = ", ".join(f"{share:.0%} of {split}" for split, share in shares.items())
        how = "ROUGE of this eval.semantics drops all letters but a to z, and answers have others"
        console.print(f"warning: {how}: {said}; eval.semantics=default reads any script", **plain)


def columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Those of ``COLUMNS`` that a table of these metrics has."""
    there = {key for metrics in rows for key in COLUMNS if isinstance(metrics.get(key), (int, float))}
    return [key for key in COLUMNS if key in there]


def titles(rows: Iterable[str], shown: Sequence[str]) -> list[str]:
    """The heads of columns: without a retrained model among the rows less of the forget set is the aim."""
    compared = any(name.startswith("retrained") for name in rows)
    return [COLUMNS[key] if compared else COLUMNS[key].replace("→ retrained", "↓") for key in shown]


def report(jobs: Sequence[Job], console: Console | None = None) -> int:
    """Write ``summary.csv``, print a call's table, and where to look; how many jobs are not done. No text is markup."""
    unfinished = [job for job in jobs if not runlog.is_done(job)]
    manifests = {job.folder: runlog.status(job.folder) for job in jobs}
    measured = {job.folder: _evaluation(job.folder) for job in jobs}
    places = []
    for folder in sorted({job.folder.parent for job in jobs}):
        try:
            path: Path | str = summarise(folder, manifests)
        except OSError as error:
            path = f"not written: {error}"
        places.append(f"runs:    {folder}\nsummary: {path}")
        if any(found["alphas"] for place, found in measured.items() if place.parent == folder):
            places.append(f"figure:  python -m analysis.tradeoff {folder}")
        if list(folder.glob("*/wandb/offline-run-*")):
            quoted = shlex.quote(str(folder))
            places.append(f"upload:  wandb sync {quoted}/wandb/offline-run-* {quoted}/*/wandb/offline-run-*")
    console = console or _Console(markup=False)
    with unread():
        rows = [m for found in measured.values() for m in found["alphas"].values()]
        there = columns([*rows, *(m for found in measured.values() for m in found["references"].values())])
        shown = [key for key in COLUMNS if key in (*there, "seconds") or (key == "kept" and rows)]
        _remark(rows, _fitting(partial(_table, jobs, unfinished, manifests, measured), shown, console), console)
        for job in unfinished:
            error = manifests[job.folder].get("error") or "interrupted; rerun the same command to resume"
            console.print(f"{job.folder.name}: {error}\n  see {job.folder / 'log.txt'}", style="red", **PLAIN)
        settings = dict.fromkeys(said.partition(": ")[0] for job in jobs if (said := protocol(job.cfg)))
        for said in [f"setting: {setting}" for setting in settings] + places:
            console.print(said, **PLAIN)
    return len(unfinished)


def _table(
    jobs: Sequence[Job],
    unfinished: Sequence[Job],
    manifests: Mapping[Path, dict[str, Any]],
    measured: Mapping[Path, dict[str, Any]],
    shown: Sequence[str],
) -> Table:
    """A call's table of some columns; ``manifests`` and ``measured``, what eval.json holds, by run folder."""
    varying = distinguishing([flatten(asdict(job.cfg)) for job in jobs])
    references = list(_references(jobs, measured, varying))
    heads = titles((label for label, _ in references), shown)
    table = made(["\n".join(n.rsplit(".", 1)) for n in ("algorithm", "method", "α", *varying)], heads)
    table.add_column("status", no_wrap=True, vertical="bottom")
    for label, metrics in references:
        table.add_row(label, *[""] * (2 + len(varying)), *cells(metrics, shown), "reference", style="cyan")
    table.add_section()
    for job in jobs:
        manifest = manifests[job.folder]
        said = "done before" if job.was_done else manifest.get("status", "not started")
        found = measured[job.folder]
        entries = {a: m for a, m in found["alphas"].items() if m.get("settings") == job.settings}
        for alpha in eval_alphas(job.cfg):
            metrics, status = entries.get(alpha_key(alpha), {}), said
            left = kept(metrics, found["references"].get("target"))
            if manifest.get("status") == "done" and job in unfinished:
                status = "not evaluated"
            elif manifest.get("status") == "done" and collapsed(manifest, left, alpha == training_alpha(job.cfg)):
                status = "collapsed"
            names = [algo_name(job.cfg), job.cfg.method.name, f"{alpha:g}", *_settings(job, varying)]
            numbers = cells(metrics | {"kept": left, "seconds": runlog.own_seconds(manifest)}, shown)
            table.add_row(*names, *numbers, status, style="red" if job in unfinished else None)
    return table


def _evaluation(folder: Path) -> dict[str, Any]:
    try:
        return runlog.evaluation(folder)
    except ValueError:  # named where the run is listed
        return {"alphas": {}, "references": {}}


def _references(
    jobs: Sequence[Job], measured: Mapping[Path, dict[str, Any]], varying: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Target and retrained reference of the call's jobs, each distinct world once."""
    found: dict[str, tuple[Job, dict[str, Any]]] = {}
    for job in jobs:
        references = measured[job.folder]["references"]
        if references:
            found.setdefault(references["target"]["settings"]["references"], (job, references))
    entries = [entry for each in measured.values() for entry in each["alphas"].values()]
    own = {"retrained": "forget/leak_gap", "guess": "forget/leak_gap_guess"}
    of_world = [k for k in varying if k.startswith(("pair", "data")) and not k.startswith(OF_LEARNER)]
    for job, references in found.values():
        bench = [f"{k.rsplit('.', 1)[-1]} {v}" for k, v in zip(of_world, _settings(job, of_world), strict=True)]
        for name, metrics in references.items():
            metrics = metrics | {"kept": kept(metrics, references["target"])}
            if any(own.get(name) in entry for entry in entries):  # from itself, which is in no file
                metrics[own[name]] = 0.0
            yield f"{name} ({', '.join(bench)})" if bench and len(found) > 1 else name, metrics


def _settings(job: Job, keys: Sequence[str]) -> list[str]:
    flat = flatten(asdict(job.cfg))
    return [str(flat.get(key)) for key in keys]


def cells(metrics: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    """A row's text under each column; a dash where there is no value."""
    values = [math.nan if metrics.get(key) is None else metrics[key] for key in shown]
    texts = [f"{v:.0f}" if key == "seconds" else f"{v:.3f}" if abs(v) >= 0.001 or v == 0 else f"{v:.0e}"
             for key, v in zip(shown, values, strict=True)]  # fmt: skip
    return ["–" if math.isnan(v) else text for v, text in zip(values, texts, strict=True)]


def summarise(study: Path, checked: Mapping[Path, dict[str, Any]] | None = None) -> Path:
    """Write ``summary.csv``: one row per run and evaluated α, failed and unfinished runs included.

    Beside the run's name, settings in which runs of the study differ have a column of their own. ``checked``: manifests
    of runs whose files were compared with their checksums (``runlog.status``). Other runs of the study are taken as
    their manifests say: to compare the files of all would read the whole study at the end of every call.
    """
    folders = sorted(p for p in study.iterdir() if (p / runlog.MANIFEST).is_file())
    texts = [p.read_text(encoding="utf-8") if (p := f / runlog.CONFIG).is_file() else "{}" for f in folders]
    configs = [flatten(yaml.load(text, Loader=runlog.LOADER)) for text in texts]
    differ = [k for k in distinguishing([c for c in configs if c]) if k not in ("seed", "pair.seed")]
    rows = []
    for folder, config in zip(folders, configs, strict=True):
        manifest = (checked or {}).get(folder) or runlog.status(folder, verify=False)
        fixed = {
            "folder": folder.name, **manifest.get("run", {}), **{k: config.get(k) for k in differ},
            "status": manifest.get("status"), "error": manifest.get("error"), "collapsed": manifest.get("collapsed"),
            "trainable": manifest.get("trainable", 0), "trainable_share": manifest.get("trainable_share", 0.0),
            "seconds": round(runlog.own_seconds(manifest), 2),
        }  # fmt: skip
        found = _evaluation(folder)
        for alpha, metrics in found["alphas"].items() or [(None, {})]:
            numbers = {k: v for k, v in metrics.items() if not isinstance(v, dict)}
            left = kept(metrics, found["references"].get("target"))
            rows.append(fixed | {"eval_alpha": alpha} | numbers | ({} if math.isnan(left) else {"kept": left}))

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)

    write_whole(study / "summary.csv", write)
    return study / "summary.csv"
