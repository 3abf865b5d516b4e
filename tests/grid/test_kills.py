"""A grid that is killed at any moment and called again ends, byte for byte, as one that never was.

Calls are the true command line, in forks of a process that has imported the program. A chain of
calls in one folder, each killed further on than the one before it, ends with a call that nothing kills. SIGTERM and
SIGINT are sent from inside, right after a commit.
"""

import json
import random
import re
import shutil
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.helpers import TINY, forked
from support.processes import Ended

from unlearn.store import __main__ as inventory

STAGES = ("building", "filling", "training", "saving", "evaluating")


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

    @property
    def runs(self) -> list[str]:
        """Folders of the grid's two runs, in their order."""
        return list(dict.fromkeys(re.findall(r"runs/default/[a-z]+-[^/ ]+", "\n".join(self.commits))))


def results(cwd: Path) -> dict[str, bytes]:
    runs = sorted(p.parent for p in (cwd / "runs" / "default").glob("*/manifest.json"))
    return {f"{run.name}/{name}": (run / name).read_bytes() for run in runs for name in SAME}


def nothing_half_written(cwd: Path) -> None:
    """What a kill leaves under final names is whole."""
    if (cwd / "store").is_dir():
        assert inventory.main(["verify", f"store={cwd / 'store'}"]) == 0
    for path in (cwd / "runs").rglob("*.json"):
        json.loads(path.read_text())


def ends_as(whole: Whole, cwd: Path) -> None:
    """Called again until its end, the grid has the results of the uninterrupted one, and leaves nothing behind."""
    ended = call(*GRID, cwd=cwd)
    assert ended.returncode == 0, ended.printed
    assert results(cwd) == results(whole.cwd)
    nothing_half_written(cwd)
    runs = [run for run in (cwd / "runs" / "default").iterdir() if not run.name.startswith(".") and run.is_dir()]
    assert len(runs) == 2
    for run in runs:
        assert json.loads((run / "manifest.json").read_text())["status"] == "done"
        left = [p.name for p in run.iterdir() if p.name.startswith(".") or p.name == "checkpoint"]
        assert not left, left
    assert not list((cwd / "store" / ".building").iterdir())


def call(*arguments: str, cwd: Path, kill: str = "", **how) -> Ended:
    return forked("unlearn.run", *arguments, cwd=cwd, kill=kill, **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    cwd = tmp_path_factory.mktemp("whole")
    ended = call(*GRID, cwd=cwd)
    assert ended.returncode == 0, ended.printed
    return Whole(cwd, ended)


def stage(commit: str) -> str:
    """What the program was doing at a commit."""
    if " store/" in commit:
        filled = ("store/rows", "store/draft", ".building/rows", ".building/draft")
        return "filling" if any(name in commit for name in filled) else "building"
    file = commit.split("/", 3)[-1]
    if file.startswith("checkpoint") or file == "offset":
        return "saving"
    return (
        "evaluating"
        if any(name in file for name in ("parts/", "examples", "references", "eval.", "+trained"))
        else "training"
    )


def kinds(commits: list[str]) -> list[str]:
    """The first commit of every kind: of each file of a run, whichever it is; of each sort of entry in the store."""
    found: dict[str, str] = {}
    for name in commits:
        found.setdefault(re.sub(r"[a-z]+-offset-a1-s0-[0-9a-f]{10}|[0-9a-f]{20}|[0-9]+(?=$|\.)", "#", name), name)
    return list(found.values())


def phases(commit: str) -> tuple[str, ...]:
    return ("before", "torn", "after") if commit.startswith("append") else ("before", "after")


def chain(moments: list[str], whole: Whole, folder: Path) -> int:
    """Kill the grid at each of the moments, in their order, and let it end; how many calls were killed.

    A moment that a resumed call has behind it is taken in a folder of its own.
    """
    part, killed, fresh = 0, 0, True
    cwd = folder / "0"
    cwd.mkdir()
    for moment in moments:
        while (ended := call(*GRID, cwd=cwd, kill=moment)).returncode != -9:
            assert ended.returncode == 0 and not fresh, f"{moment} was never reached:\n{ended.printed}"
            ends_as(whole, cwd)
            part, fresh = part + 1, True
            cwd = folder / str(part)
            cwd.mkdir()
        nothing_half_written(cwd)
        killed, fresh = killed + 1, False
    ends_as(whole, cwd)
    return killed


def at_times(count: int, seed: int, whole: Whole, folder: Path) -> int:
    """Kill the grid at random times, each call a little later than nothing; start afresh where it came to its end."""
    rng, killed, part, cwd = random.Random(seed), 0, 0, folder / "0"
    cwd.mkdir()
    idle = call(*GRID, cwd=whole.cwd).seconds  # of a call that finds nothing to do
    work = max(0.2, whole.ended.seconds - idle)
    while killed < count:
        ended = call(*GRID, cwd=cwd, limit=0.7 * idle + rng.uniform(0, min(0.25 * work, 2.0)))
        if ended.returncode == -9:
            nothing_half_written(cwd)
            killed += 1
        else:
            ends_as(whole, cwd)
            part += 1
            cwd = folder / str(part)
            cwd.mkdir()
    ends_as(whole, cwd)
    return killed


def some(whole: Whole, stages: Collection[str] = STAGES) -> list[str]:
    """A moment of every stage."""
    first, last = whole.runs
    wanted = (
        ("after", "replace store/model/"), ("before", "replace store/rows/"), ("torn", f"{first}/metrics.jsonl 2"),
        ("before", f"{first}/checkpoint/sealed.json"), ("after", f"{last}/eval.json"),
    )  # fmt: skip
    moments = [f"{how} {next(name for name in whole.commits if part in name)}" for how, part in wanted]
    assert {stage(m) for m in moments} == set(STAGES)
    return [m for m in moments if stage(m) in stages]


@pytest.mark.parametrize(
    "stages", [("training", "evaluating"), pytest.param(STAGES, marks=pytest.mark.nightly)], ids=len
)
def test_killed_in_several_stages_and_called_again_a_grid_ends_as_if_nothing_had_been(whole, tmp_path, stages):
    assert chain(some(whole, stages), whole, tmp_path) == len(stages)


@pytest.mark.nightly
def test_killed_before_in_and_after_every_kind_of_commit(whole, tmp_path):
    moments = [f"{phase} {name}" for name in kinds(whole.commits) for phase in phases(name)]
    assert chain(moments, whole, tmp_path) == len(moments) >= 60


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_times(whole, tmp_path, seed):
    assert at_times(12, seed, whole, tmp_path) == 12


@pytest.mark.nightly
def test_a_kill_in_the_evaluation_loses_at_most_one_split(whole, tmp_path):
    """The parts that were kept are not measured again, and none is left at the end."""
    first = [name for name in whole.commits if f"{whole.runs[0]}/parts/" in name]
    for n in (1, len(first) - 1):
        cwd = tmp_path / str(n)
        cwd.mkdir()
        assert call(*GRID, cwd=cwd, kill=f"after {first[n]}").returncode == -9
        again = call(*GRID, cwd=cwd)
        assert [name for name in again.commits if f"{whole.runs[0]}/parts/" in name] == first[n + 1 :]
        assert results(cwd) == results(whole.cwd) and not list(cwd.glob("runs/default/*/parts"))


# --- signals that ask ---------------------------------------------------------------------------------------------


def status(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["status"]


@pytest.fixture
def prepared(whole, tmp_path) -> Path:
    """A folder with a store that lacks nothing."""
    shutil.copytree(whole.cwd / "store", tmp_path / "store")
    return tmp_path


TOLD = ((1, ["SIGTERM"]), (2, ["SIGHUP"]), (3, ["SIGUSR1"]), (5, ["SIGUSR2", "SIGTERM"]))  # after a step


@pytest.mark.nightly
def test_told_to_end_again_and_again_a_grid_saves_and_ends_as_if_nothing_had_been(whole, prepared):
    """A signal finishes the step and saves, whatever else follows; the same one again ends the call at once."""
    first, second = whole.runs

    def told(moment: str, *signals: str) -> tuple[Ended, dict[str, str]]:
        ended = call(*GRID, cwd=prepared, kill=moment, by=signals)
        rows = [line.split() for line in ended.printed.splitlines() if " offset " in line and line[0] != "["]
        return ended, {row[0]: row[-1] for row in rows}

    def saved() -> int:
        return json.loads((prepared / first / "checkpoint" / "sealed.json").read_text())["step"]

    for step, names in TOLD:
        ended, rows = told(f"after append {first}/metrics.jsonl {step}", *names)
        assert ended.returncode == 128 + signal.Signals[names[0]] and saved() == step, ended.printed
        assert f"append {first}/metrics.jsonl {step + 1}" not in ended.commits and not (prepared / second).exists()
        assert status(prepared / first) == "interrupted"
        assert "saved" in ended.printed and "rerun the same command to resume" in ended.printed
        assert rows == {"ga": "interrupted", "npo": "started"}  # not started
        if step == 3:
            ended, rows = told(f"before append {first}/metrics.jsonl 5", "SIGTERM", "SIGTERM")
            assert ended.returncode == 143 and not rows and saved() == 4
            assert status(prepared / first) == "running"  # it had no time to say more
    ended, rows = told(f"after replace {second}/examples.parquet", "SIGINT")
    assert ended.returncode == 130, ended.printed
    assert (status(prepared / first), status(prepared / second)) == ("done", "interrupted")
    assert rows == {"ga": "done", "npo": "interrupted"}
    ends_as(whole, prepared)


def test_a_signal_while_the_world_is_built_leaves_no_half_entry(whole, tmp_path):
    building = next(name for name in whole.commits if ".building/model" in name)
    ended = call(*GRID, cwd=tmp_path, kill=f"before {building}", by=["SIGTERM"])
    assert ended.returncode == 143 and "Traceback" not in ended.printed
    assert not list((tmp_path / "store" / ".building").iterdir())
    nothing_half_written(tmp_path)


def test_one_run_alone_is_the_run_of_the_grid(whole, prepared):
    alone = [option for option in GRID[1:] if not option.startswith("algo=")]
    assert call(*alone, "algo=npo", cwd=prepared).returncode == 0
    found, expected = results(prepared), results(whole.cwd)
    assert len(found) == len(SAME) and found == {name: expected[name] for name in found}
