"""Made-up run folders for the tests of figures, and what a figure drew, read back from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.text import Text
from support.made_up import write_made_up_run

ALL = ("forget", "retain", "real_authors", "world_facts")
REFERENCES = {
    "target": {"forget/prob": 0.99, "retain/prob": 0.97, "real_authors/prob": 0.96, "world_facts/prob": 0.95},
    "retrained": {"forget/prob": 0.15, "retain/prob": 0.94, "real_authors/prob": 0.93, "world_facts/prob": 0.92},
}


def rewrite(path: Path, change: Callable[[dict], object]) -> dict:
    """Changes a JSON file in place; returns its new content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return content


def write_run(study: Path, values: dict[float, dict], references: dict | None = None, **settings) -> Path:
    """A made-up run with these metrics by evaluated alpha."""
    folder = write_made_up_run(study, {alpha: () for alpha in values}, references=REFERENCES, **settings)

    def fill(evaluated: dict) -> None:
        for alpha, metrics in values.items():
            evaluated["alphas"][str(alpha)] |= metrics
        for name, metrics in (references or {}).items():
            evaluated["references"][name] |= metrics

    if values:
        rewrite(folder / "eval.json", fill)
    return folder


def write_steps(folder: Path, steps: dict[int, dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, **v}) + "\n" for s, v in steps.items()))


def probs(*values: float) -> dict[str, float]:
    """Probabilities on the splits, forget first."""
    return {f"{split}/prob": value for split, value in zip(ALL, values, strict=False)}


def lines(ax) -> list[tuple]:
    """The points of every line that a panel holds, in the order of drawing."""
    return [tuple(zip(*(np.asarray(d, float).tolist() for d in line.get_data()), strict=True)) for line in ax.lines]


def band(ax, place: int = 0) -> set[tuple[float, float]]:
    """The corners of a panel's band."""
    return {(round(x, 9), round(y, 9)) for x, y in ax.collections[place].get_paths()[0].vertices.tolist()}


def note(fig) -> str:
    return fig.get_supxlabel().replace("\n", " ")


def entries(fig) -> list[str]:
    """The legend's names."""
    return [text.get_text() for text in fig.legends[0].get_texts()]


def outside(fig) -> list[tuple]:
    """Points of lines that lie outside their panel."""
    found = []
    for ax in fig.axes:
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        own = [line for line in ax.lines if line.get_transform() == ax.transData]  # not lines across the panel
        points = [point for line in own for point in line.get_xydata().tolist()]
        found += [(x, y) for x, y in points if not (left <= x <= right and low <= y <= high)]
    return found


def cut_off(fig) -> list[str]:
    """Words that reach out of the figure, and axis labels that touch their neighbours'."""
    fig.draw_without_rendering()
    texts = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text() and t.get_window_extent().width]
    page = fig.bbox.padded(1)
    out = [t.get_text() for t in texts if not page.contains(*t.get_window_extent().min)]
    out += [t.get_text() for t in texts if not page.contains(*t.get_window_extent().max)]
    labels = [label for ax in fig.axes for label in (ax.xaxis.label, ax.yaxis.label) if label.get_text()]
    boxes = [(label.get_text(), label.get_window_extent()) for label in labels]
    return out + [a for i, (a, box) in enumerate(boxes) for _, other in boxes[i + 1 :] if box.overlaps(other)]
