"""A grid that is killed at any moment and called again ends, byte for byte, as one that never was.

Calls are the true command line, in children of a process that has imported the program (tests/zygote.py). A chain of
calls in one folder, each killed further on than the one before it, ends with a call that nothing kills.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import TINY
from zygote import Ended, Zygote

from unlearn.store.inventory import main as inventory

GRID = (
    "-m", *TINY, "paths.store=store", "trainer.steps=5", "trainer.save_every=2", "trainer.eval_every=3",
    "eval.groups=[]", "algo=ga,npo",
)  # fmt: skip
SAME = ("metrics.jsonl", "eval.json", "examples.parquet", "references.parquet", "offset/model.safetensors")
STAGES = ("building", "filling", "training", "saving", "evaluating")


@pytest.fixture(scope="module")
def zygote():
    with Zygote() as found:
        yield found


@dataclass(frozen=True)
class Whole:
    """A grid that nothing interrupted, in a folder of its own with a store of its own."""

    cwd: Path
    ended: Ended

    @property
    def commits(self) -> list[str]:
        return list(dict.fromkeys(name for name in self.ended.commits if not name.endswith("summary.csv")))


@pytest.fixture(scope="module")
def whole(zygote, tmp_path_factory) -> Whole:
    cwd = tmp_path_factory.mktemp("whole")
    ended = zygote.call(*GRID, cwd=cwd)
    assert ended.status == 0, ended.printed
    return Whole(cwd, ended)


def results(cwd: Path) -> dict[str, bytes]:
    runs = sorted(p.parent for p in (cwd / "runs" / "default").glob("*/manifest.json"))
    return {f"{run.name}/{name}": (run / name).read_bytes() for run in runs for name in SAME}


def stage(commit: str) -> str:
    """What the program was doing at a commit."""
    if " store/" in commit:
        filled = ("store/rows", "store/draft", ".building/rows", ".building/draft")
        return "filling" if any(name in commit for name in filled) else "building"
    file = commit.split("/", 3)[-1]
    if file.startswith("checkpoint") or file == "offset":
        return "saving"
    return "evaluating" if any(name in file for name in ("examples", "references", "eval.", "+trained")) else "training"


def phase(commit: str, turn: int) -> str:
    choices = ("before", "torn", "after") if commit.startswith("append") else ("before", "after")
    return choices[turn % len(choices)]


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


def chain(moments: list[str], whole: Whole, zygote: Zygote, folder: Path) -> int:
    """Kill the grid at each of the moments, in their order, and let it end; how many calls were killed.

    A moment that a resumed call has behind it is taken in a folder of its own.
    """
    part, killed, fresh = 0, 0, True
    cwd = folder / "0"
    cwd.mkdir()
    for moment in moments:
        while (ended := zygote.call(*GRID, cwd=cwd, kill=moment)).status != -9:
            assert ended.status == 0 and not fresh, f"{moment} was never reached:\n{ended.printed}"
            ends_as(whole, cwd, zygote)
            part, fresh = part + 1, True
            cwd = folder / str(part)
            cwd.mkdir()
        nothing_half_written(cwd)
        killed, fresh = killed + 1, False
    ends_as(whole, cwd, zygote)
    return killed


def at_times(count: int, seed: int, whole: Whole, zygote: Zygote, folder: Path) -> int:
    """Kill the grid at random times, each call a little later than nothing; start afresh where it came to its end."""
    rng, killed, part, cwd = random.Random(seed), 0, 0, folder / "0"
    cwd.mkdir()
    idle = zygote.call(*GRID, cwd=whole.cwd).seconds  # of a call that finds nothing to do
    work = max(0.2, whole.ended.seconds - idle)
    while killed < count:
        ended = zygote.call(*GRID, cwd=cwd, after=0.7 * idle + rng.uniform(0, min(0.25 * work, 2.0)))
        if ended.status == -9:
            nothing_half_written(cwd)
            killed += 1
        else:
            ends_as(whole, cwd, zygote)
            part += 1
            cwd = folder / str(part)
            cwd.mkdir()
    ends_as(whole, cwd, zygote)
    return killed


def some(commits: list[str]) -> list[str]:
    """A moment or two of every stage."""
    first, last = commits[0].split("/")[2], commits[-1].split("/")[2]  # the grid's two runs
    wanted = (
        ("after", "replace store/model/"), ("before", "replace store/rows/"), ("torn", f"{first}/metrics.jsonl 2"),
        ("before", f"{first}/checkpoint/state.pt"), ("after", f"rename runs/default/{first}/offset"),
        ("after", f"{first}/examples.parquet"), ("before", f"{last}/metrics.jsonl 5"), ("after", f"{last}/eval.json"),
    )  # fmt: skip
    return [f"{how} {next(name for name in commits if part in name)}" for how, part in wanted]


def test_killed_in_every_stage_and_called_again_a_grid_ends_as_if_nothing_had_been(zygote, whole, tmp_path):
    moments = some(whole.commits)
    assert {stage(m) for m in moments} == set(STAGES)
    assert chain(moments, whole, zygote, tmp_path) == 8


@pytest.mark.slow
def test_killed_at_every_commit_point(zygote, whole, tmp_path):
    moments = [f"{phase(name, turn)} {name}" for turn, name in enumerate(whole.commits)]
    assert chain(moments, whole, zygote, tmp_path) == len(moments) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_times(zygote, whole, tmp_path, seed):
    assert at_times(12, seed, whole, zygote, tmp_path) == 12
