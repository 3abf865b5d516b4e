"""Run folders of the contract's shape in which every number is made up, and what a figure drew, read back from it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

METRICS = ("forget/prob", "retain/prob", "forget/rougeL_recall", "retain/rougeL_recall")
MADE_UP_REFERENCES = {
    "target": dict(zip(METRICS, (0.99, 0.99, 0.998, 0.997), strict=True)),
    "retrained": dict(zip(METRICS, (0.15, 0.99, 0.293, 0.996), strict=True)),
}


def write_made_up_run(
    study: Path, alphas: dict, status="done", algo="npo", alpha=1.0, seed=0, pair_seed=0, **more
) -> Path:
    """A run folder; ``alphas`` is {evaluated alpha: (forget/prob, retain/prob, …) or {metric: value}}.

    A direct run trains at 1, whatever alpha its config holds.
    """
    method, people, lr = more.get("method", "offset"), more.get("people", 1), more.get("lr", 1e-3)
    config = {
        "algo": {"name": algo, "terms": ["npo", "gd"]}, "method": {"name": method},
        "pair": {"name": "tiny", "seed": pair_seed}, "data": {"name": "bios", "forget_people": people},
        "alpha": alpha, "seed": seed, "study": study.name,
        "trainer": {"lr": lr, "log_every": 10}, "eval": {"alphas": list(alphas) or None},
    }  # fmt: skip
    folder = study / f"{algo}-{method}-a{alpha}-s{seed}-p{pair_seed}-lr{lr}-f{people}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run = {"algo": algo, "method": method, "alpha": 1.0 if method == "direct" else alpha, "seed": seed}
    manifest = {"status": status, "run": run, "seconds": {"train": 3.0, "evaluate": 2.5}, "peak_memory_mb": 617.0}
    (folder / "manifest.json").write_text(json.dumps(manifest | ({"error": "no memory"} if status == "failed" else {})))
    write_steps(folder, {s: {"epoch": s / 5, "train/loss": -float(s), "forget/prob": 1 / s} for s in (10, 20)})
    if alphas:
        shown = {"settings": {"references": f"world {pair_seed} {people}"}, "complete": True, "forget_quality": None}
        named = {a: v if isinstance(v, dict) else dict(zip(METRICS, v, strict=False)) for a, v in alphas.items()}
        entries = {str(alpha): metrics | shown for alpha, metrics in named.items()}
        references = {k: v | shown for k, v in more.get("references", MADE_UP_REFERENCES).items()}
        (folder / "eval.json").write_text(json.dumps({"alphas": entries, "references": references}))
    return folder


@pytest.fixture
def made_up(tmp_path) -> Path:
    """Made-up study: GA and NPO at two training alphas, one failed run and one that is still running."""
    study = tmp_path / "runs" / "made-up"
    write_made_up_run(study, {0.5: (0.20, 0.50, 0.30, 0.60)}, algo="ga", alpha=0.5)
    write_made_up_run(study, {1.0: (0.03, 0.14, 0.13, 0.24)}, algo="ga", alpha=1.0)
    write_made_up_run(study, {0.5: (0.30, 0.90, 0.40, 0.95)}, algo="npo", alpha=0.5)
    write_made_up_run(study, {1.0: (0.01, 0.89, 0.14, 0.89)}, algo="npo", alpha=1.0)
    write_made_up_run(study, {}, status="failed", algo="kl")
    write_made_up_run(study, {}, status="running", algo="gd")
    return study


def two_worlds(study: Path) -> Path:
    """A study of two data sets, whose references have 0.9 and 0.5, and 0.18 and 0.1, of everything."""
    for people, target in ((1, 0.9), (2, 0.5)):
        references = {"target": dict.fromkeys(METRICS, target), "retrained": dict.fromkeys(METRICS, target / 5)}
        write_made_up_run(study, {1.0: (0.1, 0.4)}, people=people, references=references)
    return study


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def probs(*values: float) -> dict[str, float]:
    """Probabilities on the splits, forget first."""
    return {f"{s}/prob": v for s, v in zip(("forget", "retain", "real_authors", "world_facts"), values, strict=False)}


def write_run(study: Path, values: dict[float, dict], references: dict | None = None, **settings) -> Path:
    """A made-up run with these metrics by evaluated alpha, and references with more than their probabilities."""
    known = {"target": probs(0.99, 0.97, 0.96, 0.95), "retrained": probs(0.15, 0.94, 0.93, 0.92)}
    told = {name: metrics | (references or {}).get(name, {}) for name, metrics in known.items()}
    return write_made_up_run(study, values, references=told, **settings)


def write_steps(folder: Path, steps: dict[int, dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, **v}) + "\n" for s, v in steps.items()))


def lines(ax) -> list[tuple]:
    """The points of every line that a panel holds, in the order of drawing."""
    return [tuple(zip(*(np.asarray(d, float).tolist() for d in line.get_data()), strict=True)) for line in ax.lines]


def band(ax) -> set[tuple[float, float]]:
    """The corners of a panel's first band."""
    return {(round(x, 9), round(y, 9)) for x, y in ax.collections[0].get_paths()[0].vertices.tolist()}


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
    from matplotlib.text import Text

    fig.draw_without_rendering()
    texts = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text() and t.get_window_extent().width]
    page, boxes = fig.bbox.padded(1), [t.get_window_extent() for t in texts]
    ends = [(t.get_text(), end) for t, box in zip(texts, boxes, strict=True) for end in (box.min, box.max)]
    out = [text for text, end in ends if not page.contains(*end)]
    labels = [label for ax in fig.axes for label in (ax.xaxis.label, ax.yaxis.label) if label.get_text()]
    boxes = [(label.get_text(), label.get_window_extent()) for label in labels]
    return out + [a for i, (a, box) in enumerate(boxes) for _, other in boxes[i + 1 :] if box.overlaps(other)]
