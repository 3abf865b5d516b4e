"""Do runs that Slurm takes away end as if nothing had been?  make slurm-check, or as root

    python experiments/slurm/check.py [work=FOLDER]

A Slurm of this machine alone is started (cluster.py), and a grid of six tiny runs is called with
hydra/launcher=submitit_slurm, while each but one of its jobs is taken away in another way. Then a grid of four is
called, whose call is killed, and one of whose jobs is cancelled; then calls that Slurm refuses. Runs are compared, byte
for byte, with those of one process that nothing disturbed. Writes check.csv and check.md beside this file; the exit
status is 0 if all is as promised. A quarter of an hour.
"""

import csv
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster import MEMORY, cluster, constrains_memory, end_by_exception, refusal

HERE = Path(__file__).resolve().parent
STEPS, SAVE_EVERY, DISTURBED = 200, 20, 30  # the step from which on a job may be taken away
MINUTES, NOTICE = 2, 30  # of a job; seconds from the signal to the end
TINY = (
    "data.people=4", "data.forget_people=1", "data.holdout_people=1", "data.known_people=2", "data.countries=2",
    "data.questions=3", "pair.batch_size=8", "pair.target.hidden_size=16", "pair.target.heads=2",
    "pair.target.intermediate_size=32", "pair.target.pretrain.epochs=1", "pair.target.finetune.epochs=2",
    "pair.small.hidden_size=8", "pair.small.heads=2", "pair.small.intermediate_size=16", "pair.small.pretrain.epochs=1",
    "pair.small.finetune.epochs=1", "pair.small.general.epochs=1", "trainer.forget_batch=2", "trainer.retain_batch=4",
    f"trainer.steps={STEPS}", f"trainer.save_every={SAVE_EVERY}", "trainer.log_every=1", "trainer.eval_every=100",
    "trainer.device=cpu", "eval.groups=[]", "eval.max_new_tokens=16", "eval.resamples=20", "wandb=offline",
    "algo=ga", f"algo.file={HERE / 'terms.py'}", "algo.name=own",
)  # fmt: skip
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.mem_gb=2",
         "hydra.launcher.cpus_per_task=1", "hydra.launcher.array_parallelism=1",
         f"hydra.launcher.timeout_min={MINUTES}", f"hydra.launcher.signal_delay_s={NOTICE}")  # fmt: skip
SAME = ("offset/model.safetensors", "metrics.jsonl", "eval.json", "examples.parquet")
SAID = re.compile(r"Slurm: .*?(\d+) jobs submitted \(squeue -j (\d+)")


# --- what happens to the tasks of the first grid ----------------------------------------------------------------------


def preempt(job: str, work: Path, task: int) -> None:
    """A job of a higher partition needs nearly all memory of the node."""
    slurm("sbatch", "--partition=urgent", f"--mem={MEMORY - 100}", "--output=/dev/null", "--wrap=sleep 1")


def tell(job: str, work: Path, task: int) -> None:
    with suppress(subprocess.TimeoutExpired):  # while the job goes back into the queue it tries again and again
        subprocess.run(["scancel", "--signal=USR2", job], timeout=3, capture_output=True, check=False)


def kill(job: str, work: Path, task: int) -> None:
    """SIGKILL to the process that trains."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            mine = f"SLURM_ARRAY_TASK_ID={task}\0".encode() in (process / "environ").read_bytes()
            trains = b"submitit.core._submit" in (process / "cmdline").read_bytes().split(b"\0")
            if mine and trains and (process / "comm").read_text().startswith("python"):
                os.kill(int(process.name), signal.SIGKILL)


def starve(job: str, work: Path, task: int) -> None:
    """It asks for more memory than its job has: the kernel kills it for its control group's limit."""
    (work / f"hungry-{task}").touch()


def wait(job: str, work: Path, task: int) -> None:
    """Its time ends while it trains slowly: it is quick again once it is on its way again."""
    until(lambda: "stopped after step" in text(run_of(work, task) / "log.txt"), 60 * MINUTES + 60)


CASES: tuple[tuple[str, Callable[[str, Path, int], None] | None], ...] = (
    ("preempted by a higher partition", preempt),
    ("scancel --signal=USR2", tell),
    (f"out of time after {MINUTES} min", wait),
    ("kill -9 of its process", kill),
    ("out of memory", starve),
    ("nothing", None),
)
GRID = ("algo.forget=paced", f"seed={','.join(map(str, range(len(CASES))))}")


# --- helpers --------------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """A call of the grid in a process of its own."""

    work: Path
    arguments: tuple[str, ...]
    out: Path = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.out = Path(tempfile.mkstemp(dir=self.work, prefix="call-")[1])
        command = [sys.executable, "-m", "unlearn.run", "-m", *TINY, f"paths.store={self.work.parent / 'store'}"]
        root = {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
        with self.out.open("wb") as out:
            self.process = subprocess.Popen([*command, *self.arguments], cwd=self.work, stdout=out, stderr=out,
                                            env={**os.environ, **root}, start_new_session=True)  # fmt: skip

    def jobs(self) -> list[tuple[int, str]]:
        """How many jobs were submitted, and as what, each time."""
        return [(int(count), id) for count, id in SAID.findall(text(self.out))]

    def ended(self, seconds: float = 1200) -> int:
        try:
            return self.process.wait(seconds)
        finally:
            print(text(self.out))


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def until(ready: Callable[[], object], seconds: float = 240, call: Call | None = None) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end or (call and call.process.poll() is not None):
            raise TimeoutError(f"{inspect.getsource(ready).strip()}: not so, after {seconds:g} s or at the call's end")
        time.sleep(0.1)


def run_of(work: Path, seed: int, term: str = "paced") -> Path:
    """The run folder of a seed; one that is not there yet has no files."""
    for path in (work / "runs" / "default").glob(f"*-s{seed}-*"):
        if f"forget: {term}\n" in text(path / "config.yaml"):
            return path
    return work / "none"


def step(folder: Path) -> int:
    rows = text(folder / "metrics.jsonl").splitlines()
    return json.loads(rows[-1])["step"] if rows and rows[-1].endswith("}") else 0


def status(folder: Path) -> str:
    return json.loads(text(folder / "manifest.json") or "{}").get("status", "not started")


def same(one: Path, other: Path) -> bool:
    return all((one / name).is_file() and (one / name).read_bytes() == (other / name).read_bytes() for name in SAME)


# --- the two grids --------------------------------------------------------------------------------------------------


def disturbed(work: Path, straight: Path) -> list[dict[str, object]]:
    """Six runs, five of which are taken away while they train: a row for each."""
    for task, (_, disturb) in enumerate(CASES):
        if disturb is not None:
            (work / f"slow-{task}").touch()
    call, reached = Call(work, (*SLURM, *GRID)), {}
    until(call.jobs)
    array = call.jobs()[0][1]
    for task, (name, disturb) in enumerate(CASES):
        if disturb is None:
            continue
        until(lambda task=task: step(run_of(work, task)) >= DISTURBED, call=call)
        folder = run_of(work, task)
        print(f"{time.strftime('%H:%M:%S')} task {task}, after step {step(folder)}: {name}", flush=True)
        disturb(f"{array}_{task}", work, task)
        until(lambda folder=folder: status(folder) in ("interrupted", "killed"), call=call)
        reached[task] = step(folder)  # what was logged after the checkpoint stands there until the run is resumed
        (work / f"slow-{task}").unlink()
    ended, rows = call.ended(), []
    for task, (name, _) in enumerate(CASES):
        folder = run_of(work, task)
        resumed = [int(n) for n in re.findall(r"resuming at step (\d+)", text(folder / "log.txt"))]
        row = {
            "what happens to the job": name,
            "the run": status(folder),
            "same bytes": same(folder, run_of(straight, task)),
        }
        row |= {"taken away after step": reached.get(task, ""), "resumed after": " ".join(map(str, resumed))}
        rows.append(row | {"steps repeated": reached[task] - resumed[0] if resumed else 0})
    said = text(call.out)
    about = {"exit status": ended, "tables": said.count(" algorithm "), "lines printed": len(said.splitlines()),
             "jobs submitted": " + ".join(str(count) for count, _ in call.jobs())}  # fmt: skip
    print(about)
    rows.append(
        {"what happens to the job": "all: the call", "the run": ", ".join(f"{k} {v}" for k, v in about.items())}
    )
    return rows


def called(work: Path, straight: Path) -> list[tuple[str, str, bool]]:
    """Four runs, of which two are wrong: what was done, what came of it, and whether that is right."""
    paced = [(work / f"slow-{task}") for task in range(2)]
    for path in paced:
        path.touch()
    grid = (*SLURM, "algo.forget=paced,broken", "seed=0,1")

    def found() -> str:
        return ", ".join(status(run_of(work, seed, term)) for term in ("paced", "broken") for seed in (0, 1))

    first = Call(work, grid)
    until(lambda: step(run_of(work, 0)) >= DISTURBED)
    ((count, array),) = first.jobs()
    os.killpg(first.process.pid, signal.SIGKILL)
    second, third = Call(work, grid), Call(work, grid)
    until(lambda: all(text(call.out).count("waiting for job") == count for call in (second, third)))
    third.process.send_signal(signal.SIGINT)
    rows = [("Ctrl-C of a call while its jobs run", f"status {third.ended()}, they go on: {found()}",
             third.process.returncode == 130 and "to cancel them: scancel" in text(third.out))]  # fmt: skip
    paced[0].unlink()
    until(lambda: step(run_of(work, 1)) >= DISTURBED)
    slurm("scancel", f"{array}_1")
    paced[1].unlink()
    ended = second.ended()
    rows.append((f"kill -9 of the call, the same call again: {count} jobs are still there",
                 f"waits for {count}, submits {sum(n for n, _ in second.jobs())}", not second.jobs()))  # fmt: skip
    rows.append(("scancel of the second job; the objective of two is wrong", f"status {ended}: {found()}",
                 ended == 1 and found() == "done, interrupted, failed, failed"))  # fmt: skip
    fourth = Call(work, grid)
    ended = fourth.ended()
    equal = all(same(run_of(work, seed), run_of(straight, seed)) for seed in (0, 1))
    right = ended == 1 and equal and fourth.jobs()[0][0] == 3 and found() == "done, done, failed, failed"
    count = sum(n for n, _ in fourth.jobs())
    rows.append(("the same call once more", f"status {ended}, submits {count}: {found()}", right))
    return rows


def refused(work: Path) -> list[tuple[str, str, bool]]:
    """Calls that Slurm cannot serve end with one message."""
    rows = []
    for wrong in ("partition=nowhere", "mem_gb=5000"):
        call = Call(work, (*SLURM, f"hydra.launcher.{wrong}", "seed=9"))
        ended = call.ended()
        why = [line.strip() for line in text(call.out).splitlines() if "error" in line or "hydra.launcher" in line]
        rows.append((wrong, f"status {ended}: {' '.join(why)[:120]}", ended == 2 and "Traceback" not in text(call.out)))
    return rows


def main(given: Iterable[str]) -> int:
    options = dict(argument.split("=", 1) for argument in given)
    if why := refusal():
        print(f"slurm-check: {why}", file=sys.stderr)
        return 2
    end_by_exception()
    root = Path(options["work"]).resolve() if "work" in options else Path(tempfile.mkdtemp(prefix="slurm-runs-"))
    straight, start = root / "straight", time.monotonic()
    works = [root / name for name in ("disturbed", "called", "refused")]
    for folder in (straight, *works):
        folder.mkdir(parents=True)
    try:
        if Call(straight, GRID).ended():
            raise SystemExit("the runs that are compared with did not end")
        with cluster():
            version = slurm("sinfo", "--version").strip()
            runs, calls = disturbed(works[0], straight), []
            for part in (lambda: called(works[1], straight), lambda: refused(works[2])):
                write(version, runs, calls, time.monotonic() - start)
                calls += part()
    finally:
        if "work" not in options:
            shutil.rmtree(root, ignore_errors=True)
    write(version, runs, calls, time.monotonic() - start)
    good = all(run.get("same bytes", True) and run["the run"].startswith(("done", "exit status 0")) for run in runs)
    return 0 if good and all(right for *_, right in calls) else 1


def write(version: str, runs: list[dict[str, object]], calls: list[tuple[str, str, bool]], seconds: float) -> None:
    heads = list(runs[0])
    with (HERE / "check.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, heads)
        writer.writeheader()
        writer.writerows(runs)
        csv.writer(stream).writerows([("a call", "what comes of it", "as promised"), *calls])
    memory = "a control group of the kernel" if constrains_memory() else "nothing (no control groups here)"
    lines = [
        f"Written by check.py: {version} on one machine, the memory of jobs limited by {memory}; {len(CASES)} runs of",
        f"{STEPS} steps, saved every {SAVE_EVERY}; {seconds / 60:.0f} minutes.", "",
        *_rows(heads, ([run.get(head, "") for head in heads] for run in runs)), "",
        *_rows(("a call", "what comes of it", "as promised"), calls),
    ]  # fmt: skip
    (HERE / "check.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _rows(heads: Iterable[object], rows: Iterable[Iterable[object]]) -> list[str]:
    words = {True: "yes", False: "NO"}
    cells = [[str(words.get(cell, cell) if isinstance(cell, bool) else cell) for cell in row] for row in (heads, *rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return ["| " + " | ".join(row) + " |" for row in cells]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
