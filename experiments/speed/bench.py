"""Run the benchmarks beside this file and put their tables into README.md:  python experiments/speed/bench.py [NAME …]

A benchmark is a script that writes NAME.csv and NAME.md beside itself and runs in under a minute (launchers: four);
each gets a process of its own. What they share is here: forms of one computation measured in turn (A B A B), medians,
and the machine.
"""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- tables: written by bench.py -->", "<!-- end of tables -->"


@dataclass(frozen=True)
class Result:
    """One ratio and what it should be."""

    what: str
    ratio: float  # the median over the rounds
    low: float  # quartiles of the ratio over the rounds
    high: float
    goal: str  # "≤ 1.25", "≥ 2"; empty: for information
    times: str  # both medians, with their unit

    @property
    def holds(self) -> str:
        if not self.goal:
            return ""
        sign, number = self.goal.split()[:2]
        return "yes" if (self.ratio <= float(number) if sign in "≤<" else self.ratio >= float(number)) else "no"


def alternate(
    forms: Mapping[str, Callable[[], object]], rounds: int = 9, clock: Callable[[], float] = time.process_time
) -> dict[str, np.ndarray]:
    """Seconds of each form in each round, [rounds]: one form after the other, after one round that is not counted.

    The clock counts CPU seconds of this process: other jobs of a busy machine disturb it least. Take
    ``time.perf_counter`` for what waits or works elsewhere.
    """
    found: dict[str, list[float]] = {name: [] for name in forms}
    for round in range(rounds + 1):
        for name, form in forms.items():
            start = clock()
            form()
            if round:
                found[name].append(clock() - start)
    return {name: np.array(seconds) for name, seconds in found.items()}


def compared(what: str, seconds: Mapping[str, np.ndarray], above: str, below: str, goal: str = "") -> Result:
    """The median over rounds of two forms' ratio in a round, ``above`` ÷ ``below``, with the quartiles of the same."""
    a, b = seconds[above], seconds[below]
    low, ratio, high = np.quantile(a / b, (0.25, 0.5, 0.75)).tolist()
    times = f"{above} {_unit(np.median(a))}, {below} {_unit(np.median(b))}"
    return Result(what, ratio, low, high, goal, times)


def _unit(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def machine() -> str:
    """The machine's name for a table: processor, threads, and versions of what does the work."""
    import torch
    import transformers

    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), {versions}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def publish(name: str, results: Sequence[Result], notes: Sequence[str] = (), folder: Path = HERE) -> None:
    """Print the table of a benchmark and write it as NAME.csv and NAME.md."""
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*asdict(results[0]), "holds"], lineterminator="\n")
        writer.writeheader()
        for r in results:
            numbers = {key: f"{getattr(r, key):.3f}" for key in ("ratio", "low", "high")}
            writer.writerow(asdict(r) | numbers | {"holds": r.holds})
    lines = ["| what | ratio | quartiles | goal | holds | medians |", "|---|---|---|---|---|---|"]
    for r in results:
        spread = f"{r.low:.2f}–{r.high:.2f}"
        lines.append(f"| {r.what} | {r.ratio:.2f} | {spread} | {r.goal} | {r.holds} | {r.times} |")
    text = "\n".join([*lines, "", f"{machine()}.", *notes]) + "\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    by_hand = ("bench", "gpu", "loading", "processes", "real")  # a GPU, 300 W&B runs, minutes, pretrained models
    there = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in by_hand)
    asked = sys.argv[1:] or there
    unknown = [name for name in asked if not (HERE / f"{name}.py").is_file()]
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(there)}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent)])}
    failed = []
    for name in asked:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"{name}.py")], env=environment).returncode:
            failed.append(name)
    _tables()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _tables() -> None:
    """Put every NAME.md into README.md, between its two marks."""
    readme = HERE / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    tables = [f"## {p.stem}\n\n{p.read_text(encoding='utf-8')}" for p in sorted(HERE.glob("*.md")) if p != readme]
    readme.write_text(before + "\n\n".join([BEGIN, *tables]) + "\n" + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
