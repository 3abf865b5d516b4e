"""One grid of twelve runs from an empty store: started once, and on several "machines" at a time (processes here).

What counts is the busiest machine: its CPU seconds are what the grid takes where each machine has a core of its own,
but for the time that it waits. Wall clock, from the first start to the last end, is told beside it. The last of four
machines joins late, and a fifth is killed in its second run. Evaluations are equal byte for byte, and each model and
run was made once (both checked).
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench import Result, publish
from launchers import ROOT, WORLD, evaluations

GRID = ("-m", *WORLD, "trainer.steps=20", "trainer.save_every=5", "eval.max_examples=10", "algo=ga,kl,npo",
        "alpha=0.5,1,1.5,2")  # fmt: skip
CROWDS = {"one": (0,), "two": (0, 0), "four": (0, 0, 0, 15)}  # seconds after which each machine joins
BEGUN = re.compile(r"\] \[\d+/12\] ")  # a line of a log: a run begins
MADE = re.compile(r"\] (?:(training the .*): [\d,]+ parameters, |(\S+) done in )")


def crowd(folder: Path, late: tuple[int, ...], killed: bool) -> tuple[float, float]:
    """Wall-clock seconds until all machines have ended, and CPU seconds of the busiest; ``killed``: one more takes part
    and is killed."""
    folder.mkdir()
    start, left = time.perf_counter(), sorted([*late, *([0] if killed else [])])
    logs = [folder / f"log{n}.txt" for n in range(len(left))]
    calls: list[subprocess.Popen] = []
    used: dict[int, float] = {}
    while len(used) < len(left):
        if len(calls) < len(left) and time.perf_counter() - start >= left[len(calls)]:
            with logs[len(calls)].open("w") as log:
                more = {"cwd": folder, "stdout": log, "stderr": log, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
                calls.append(subprocess.Popen([sys.executable, "-m", "unlearn.run", *GRID], **more))
        for n, call in enumerate(calls):
            pid, status, usage = os.wait4(call.pid, os.WNOHANG) if n not in used else (0, 0, None)
            if pid:
                used[n] = usage.ru_utime + usage.ru_stime
                if status and not (killed and n == 0):
                    raise SystemExit(f"{logs[n]}: ended with {os.waitstatus_to_exitcode(status)}")
        if killed and 0 not in used and len(BEGUN.findall(logs[0].read_text())) > 1:
            os.kill(calls[0].pid, signal.SIGKILL)
        time.sleep(0.1)
    return time.perf_counter() - start, max(used.values())


def made(folder: Path) -> Counter[str]:
    """How often each log says that a model was trained, or a run ended."""
    return Counter(a or b for log in folder.glob("log*.txt") for a, b in MADE.findall(log.read_text()))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        found = {c: crowd(Path(name, c), late, c == "four") for c, late in CROWDS.items()}
        results = {c: evaluations(Path(name, c, "runs", "default")) for c in CROWDS}
        if len(results["one"]) != 12 or any(entries != results["one"] for entries in results.values()):
            raise SystemExit("evaluations differ")
        counts = {c: made(Path(name, c)) for c in CROWDS}
        if any(set(each.values()) != {1} or each.keys() != counts["one"].keys() for each in counts.values()):
            raise SystemExit(f"something was made twice, or not: {counts}")
    rows = []
    (wall, alone), what = (
        found["one"],
        "twelve runs from an empty store, CPU seconds of one machine ÷ of the busiest of",
    )
    for c, more in (("two", ""), ("four", " (one late, and a fifth killed)")):
        ratio = alone / found[c][1]
        times = f"one {alone:.1f} s (wall {wall:.0f}), {c} {found[c][1]:.1f} s (wall {found[c][0]:.0f})"
        rows.append(Result(f"{what} {c}{more}", ratio, ratio, ratio, "≥ 1.5", times))
    notes = ["One call each on the same two cores, so that wall clock says little of four. Evaluations are",
             "equal byte for byte; each model and run was made once (both checked)."]  # fmt: skip
    publish("machines", rows, notes)


if __name__ == "__main__":
    main()
