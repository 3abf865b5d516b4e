"""What tests of kills and signals share: a tiny grid, its uninterrupted results, and what must hold after a kill."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from support.helpers import TINY
from support.zygote import Ended, Zygote

from unlearn.store.inventory import main as inventory

GRID = (
    "-m", *TINY, "paths.store=store", "trainer.steps=5", "trainer.save_every=2", "trainer.eval_every=3",
    "eval.groups=[]", "algo=ga,npo",
)  # fmt: skip
SAME = ("metrics.jsonl", "eval.json", "examples.parquet", "references.parquet", "offset/model.safetensors")


@dataclass(frozen=True)
class Whole:
    """A grid that nothing interrupted, in a folder of its own with a store of its own."""

    cwd: Path
    ended: Ended

    @property
    def commits(self) -> list[str]:
        return list(dict.fromkeys(name for name in self.ended.commits if not name.endswith("summary.csv")))


def results(cwd: Path) -> dict[str, bytes]:
    runs = sorted(p.parent for p in (cwd / "runs" / "default").glob("*/manifest.json"))
    return {f"{run.name}/{name}": (run / name).read_bytes() for run in runs for name in SAME}


def nothing_half_written(cwd: Path) -> None:
    """What a kill leaves under final names is whole."""
    if (cwd / "store").is_dir():
        assert inventory(["verify", f"--store={cwd / 'store'}"]) == 0
    for path in (cwd / "runs").rglob("*.json"):
        json.loads(path.read_text())


def ends_as(whole: Whole, cwd: Path, zygote: Zygote) -> None:
    """Called again until its end, the grid has the results of the uninterrupted one, and leaves nothing behind."""
    ended = zygote.call(*GRID, cwd=cwd)
    assert ended.status == 0, ended.printed
    assert results(cwd) == results(whole.cwd)
    nothing_half_written(cwd)
    runs = [run for run in (cwd / "runs" / "default").iterdir() if not run.name.startswith(".") and run.is_dir()]
    assert len(runs) == 2
    for run in runs:
        assert json.loads((run / "manifest.json").read_text())["status"] == "done"
        left = [p.name for p in run.iterdir() if p.name.startswith(".") or p.name == "checkpoint"]
        assert not left, left
    assert not list((cwd / "store" / ".building").iterdir())
