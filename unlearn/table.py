"""The end of a call: its runs on the terminal, and the whole study in ``summary.csv``."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from unlearn import runlog
from unlearn.config import Job, alpha_key, describe, eval_alphas
from unlearn.files import write_whole

COLUMNS = {
    "forget/prob": "forget\nprob ↓", "forget/rougeL_recall": "forget\nROUGE ↓", "retain/prob": "retain\nprob ↑",
    "retain/rougeL_recall": "retain\nROUGE ↑", "model_utility": "model\nutility ↑",
    "forget_quality": "forget\nquality ↑",
}  # fmt: skip
WIDTH = 118  # characters; a narrower pipe or terminal wraps lines rather than losing columns


def report(jobs: Sequence[Job], console: Console | None = None) -> int:
    """Print the table of a call and where to look next; write ``summary.csv``. Returns how many jobs are not done."""
    console = console or Console()
    console.width = max(console.width, WIDTH)
    table = Table(box=box.SIMPLE, pad_edge=False, header_style="bold")
    varying = _varying(jobs)
    for name in ("algorithm", "method", "α", *varying):
        table.add_column(name, no_wrap=True)
    for title in (*COLUMNS.values(), "seconds\n"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for label, metrics in _references(jobs):
        table.add_row(label, *[""] * (2 + len(varying)), *_cells(metrics), "", "reference", style="cyan")
    table.add_section()
    bad = 0
    for job in jobs:
        manifest = runlog.manifest(job.folder)
        status = manifest.get("status", "not started")
        bad += status != "done"
        for row in _rows(job, manifest, "done before" if job.was_done else status, varying):
            table.add_row(*row, style=None if status == "done" else "red")
    console.print(table)
    for job in jobs:
        manifest = runlog.manifest(job.folder)
        if manifest.get("status") != "done":
            error = manifest.get("error") or "stopped before its end; the same command goes on from there"
            console.print(f"[red]{job.folder.name}[/red]: {error}\n  see {job.folder / 'log.txt'}", highlight=False)
    for folder in sorted({job.folder.parent for job in jobs}):
        path = summarise(folder)
        console.print(
            f"runs:    {folder}\nsummary: {path}\nfigure:  python -m analysis.tradeoff {folder}", highlight=False
        )
    return bad


def _references(jobs: Sequence[Job]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Target and retrained reference of the call's jobs, each distinct pair once."""
    seen = []
    for job in jobs:
        for name, metrics in runlog.evaluation(job.folder)["references"].items():
            if (name, metrics) not in seen:
                seen.append((name, metrics))
                several = len({j.cfg.pair.seed for j in jobs}) > 1
                yield f"{name} (pair.seed {job.cfg.pair.seed})" if several else name, metrics


def _varying(jobs: Sequence[Job]) -> list[str]:
    """Seeds are shown where they differ between the jobs."""
    return [name for name in ("seed", "pair_seed") if len({describe(j.cfg)[name] for j in jobs}) > 1]


def _rows(job: Job, manifest: dict[str, Any], status: str, varying: list[str]) -> Iterator[list[str]]:
    cfg, entries = job.cfg, runlog.evaluation(job.folder)["alphas"]
    seconds = runlog.own_seconds(manifest)
    for alpha in eval_alphas(cfg):
        yield [
            cfg.algo.name,
            cfg.method.name,
            f"{alpha:g}",
            *(str(describe(cfg)[v]) for v in varying),
            *_cells(entries.get(alpha_key(alpha), {})),
            f"{seconds:.0f}",
            status,
        ]


def _cells(metrics: dict[str, Any]) -> list[str]:
    return [_number(metrics.get(key)) for key in COLUMNS]


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if value >= 0.001 or value == 0 else f"{value:.0e}"


def summarise(study: Path) -> Path:
    """Write ``summary.csv``: one row per run and evaluated α, failed and unfinished runs included."""
    rows = []
    for folder in sorted(p for p in study.iterdir() if (p / runlog.MANIFEST).is_file()):
        manifest, entries = runlog.manifest(folder), runlog.evaluation(folder)
        fixed = {
            "folder": folder.name,
            **manifest.get("run", {}),
            "status": manifest.get("status"),
            "error": manifest.get("error"),
            "seconds": round(runlog.own_seconds(manifest), 2),
        }
        for alpha, metrics in entries["alphas"].items() or [(None, {})]:
            numbers = {k: v for k, v in metrics.items() if k != "settings"}
            rows.append(fixed | {"eval_alpha": alpha} | numbers)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path = study / "summary.csv"

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)
    return path
