"""One grid of twelve runs from an empty store: started once, and on several "machines" at a time (processes here).

Seconds are wall clock, from the first start to the last end: start-up, the models and rows that are made once, and the
table at the end included. The last of four machines joins late, and one more is killed. Evaluations are equal byte for
byte, and every model, row set and run was made once (both checked).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench import Result, publish
from launchers import ROOT, WORLD, evaluations

GRID = ("-m", *WORLD, "trainer.steps=40", "trainer.save_every=20", "eval.max_examples=20", "algo=ga,kl,npo",
        "alpha=0.5,1,1.5,2")  # fmt: skip
CROWDS = {"one": (0,), "two": (0, 0), "four": (0, 0, 0, 20)}  # seconds after which each machine joins
KILLED = 40  # seconds after which a further machine is killed
GOAL = "≥ 1.5"


def crowd(folder: Path, late: tuple[int, ...], killed: bool) -> float:
    """Seconds until all machines have ended; ``killed``: one more takes part and is killed."""
    folder.mkdir()
    start, left, calls = time.perf_counter(), sorted([*late, *([0] if killed else [])]), []
    while len(calls) < len(left) or any(call.poll() is None for call in calls):
        spent = time.perf_counter() - start
        if len(calls) < len(left) and spent >= left[len(calls)]:
            log = (folder / f"log{len(calls)}.txt").open("w")
            calls.append(subprocess.Popen([sys.executable, "-m", "unlearn.run", *GRID], cwd=folder, stdout=log,
                                          stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)}))  # fmt: skip
        if killed and spent >= KILLED:
            calls[0].kill()
        time.sleep(0.1)
    bad = [call.returncode for call in calls[killed:] if call.returncode]
    if bad:
        raise SystemExit(f"{folder}: machines ended with {bad}")
    return time.perf_counter() - start


def made(folder: Path) -> Counter[str]:
    """What each log says was made: models that were trained, and runs that ended."""
    lines = [line for log in folder.glob("log*.txt") for line in log.read_text().splitlines()]
    found = Counter(line.split("] ", 1)[1].split(":")[0] for line in lines if "] training the " in line)
    return found + Counter(line.split()[1] for line in lines if " done in " in line)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        seconds = {crowd_: crowd(Path(name, crowd_), late, crowd_ == "four") for crowd_, late in CROWDS.items()}
        found = {crowd_: evaluations(Path(name, crowd_, "runs", "default")) for crowd_ in CROWDS}
        if len(found["one"]) != 12 or any(entries != found["one"] for entries in found.values()):
            raise SystemExit("evaluations differ")
        if any(set(made(Path(name, crowd_)).values()) != {1} for crowd_ in CROWDS):
            raise SystemExit("something was made twice")
    results = []
    for crowd_, more in (("two", ""), ("four", ", one late, and a fifth killed")):
        ratio = seconds["one"] / seconds[crowd_]
        times = f"one {seconds['one']:.1f} s, {crowd_} {seconds[crowd_]:.1f} s"
        results.append(
            Result(f"twelve runs from an empty store, one machine ÷ {crowd_}{more}", ratio, ratio, ratio, GOAL, times)
        )
    notes = ["Wall clock on two cores, one call each. Evaluations are equal byte for byte; each model and run was "
             "made once (both checked)."]  # fmt: skip
    publish("machines", results, notes)


if __name__ == "__main__":
    main()
