"""Head, ensemble and loss of 1,024 answer rows over a long vocabulary: in pieces against full rows.

    python experiments/speed/vocabulary.py [VOCABULARY …]

Time: both forms in turn (A B A B) in one process, medians of wall and CPU seconds of forward and backward pass. Memory:
each form in a process of its own, the peak of its resident size over what it was before the step, gradients included.
The frozen members' rows are there before in both. Writes vocabulary.csv and vocabulary.md beside this file.
"""

from __future__ import annotations

import csv
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from platform import machine, python_version

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn.answers import Answers
from unlearn.chunks import LongRows
from unlearn.data.encoding import Example, Examples
from unlearn.ensemble import Ensemble, Member
from unlearn.frozen import FrozenRows
from unlearn.losses import FORGET, RETAIN
from unlearn.models.llama import head

HERE = Path(__file__).parent
ROWS, HIDDEN, ANSWER, ALPHA = 1024, 256, 32, 0.7
TERMS = {"nll": (RETAIN["nll"], {}), "kl": (RETAIN["kl"], {}), "npo": (FORGET["npo"], {"beta": 0.1})}
FORMS, REPEATS = ("full", "pieces"), 3
COLUMNS = ("vocabulary", "term", "form", "wall_s", "cpu_s", "extra_mb", "time_ratio", "memory_ratio")


class Case:
    """Random weights, rows and labels for one vocabulary; a step takes one form or the other."""

    def __init__(self, width: int, rows: int = ROWS):
        torch.manual_seed(0)
        shape = LlamaConfig(vocab_size=width, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2,
                            intermediate_size=8, tie_word_embeddings=True)  # fmt: skip
        self.model, count = LlamaForCausalLM(shape), rows // ANSWER
        self.ensemble = Ensemble(
            (
                Member("target", self.model, "", 1.0, 0.0, False),
                Member("offset", self.model, "", 0.0, 1.0, True),
                Member("anchor", self.model, "", 0.0, -1.0, False),
            )
        )
        self.states = torch.randn(rows, HIDDEN, requires_grad=True)
        self.labels, self.owner = torch.randint(0, width, (rows,)), torch.arange(count).repeat_interleave(ANSWER)
        examples, rng = Examples(Example(str(i), (0,), (0,) * ANSWER) for i in range(count)), np.random.default_rng(0)
        self.ids = list(rng.permutation(count))
        self.frozen = {
            m.name: FrozenRows(rng.random((rows, width), dtype=np.float32), examples)
            for m in self.ensemble.frozen(ALPHA)
        }

    def answers(self, form: str) -> Answers:
        if form == "pieces":
            readers = {name: rows.reader(self.ids) for name, rows in self.frozen.items()}

            def join(offset: torch.Tensor, here: slice) -> torch.Tensor:
                return self.ensemble.logits({k: read(here) for k, read in readers.items()} | {"offset": offset}, ALPHA)

            return Answers(LongRows(self.model, self.states, join), self.labels, self.owner, readers["target"])
        rows = {name: rows.take(self.ids) for name, rows in self.frozen.items()}
        logits = self.ensemble.logits(rows | {"offset": head(self.model, self.states)}, ALPHA)
        return Answers(logits, self.labels, self.owner, rows["target"])

    def step(self, form: str, term: str) -> float:
        self.model.zero_grad()
        self.states.grad = None
        function, numbers = TERMS[term]
        loss = function(self.answers(form), **numbers).mean()
        loss.backward()
        return loss.item()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def extra_mb(width: int, term: str, form: str) -> float:
    """Peak memory of one step above what was there before, in a fresh process."""
    command = [sys.executable, __file__, "--memory", str(width), term, form]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory(width: int, term: str, form: str) -> None:
    for small in TERMS:  # libraries are loaded by a first step
        Case(50, ANSWER).step(form, small)
    case = Case(width)
    before = peak_mb()
    case.step(form, term)
    print(peak_mb() - before)


def seconds(case: Case, term: str) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each form, taken in turn."""
    found: dict[str, list[tuple[float, float]]] = {form: [] for form in FORMS}
    for _ in range(REPEATS):
        for form in FORMS:
            wall, cpu = time.perf_counter(), time.process_time()
            case.step(form, term)
            found[form].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {form: tuple(statistics.median(x) for x in zip(*times, strict=True)) for form, times in found.items()}


def measure(widths: list[int]) -> None:
    # memory first: a process's peak counts what its parent had when it was started
    memories = {(w, term): {form: extra_mb(w, term, form) for form in FORMS} for w in widths for term in TERMS}
    print(memories, flush=True)
    table: list[dict] = []
    for width in widths:
        case = Case(width)
        for term in TERMS:
            by_form, extra = seconds(case, term), memories[width, term]
            for form in FORMS:
                (wall, cpu), full = by_form[form], by_form["full"]
                values = (width, term, form, wall, cpu, extra[form], cpu / full[1], extra[form] / extra["full"])
                table.append(dict(zip(COLUMNS, (v if isinstance(v, (int, str)) else round(v, 3) for v in values),
                                      strict=True)))  # fmt: skip
                print(table[-1], flush=True)
            write(table)
        del case


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), machine())


def write(table: list[dict]) -> None:
    with (HERE / "vocabulary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    lines = ["| V | term | form | wall s | CPU s | extra MB | CPU time ÷ full | memory: full ÷ |", "|---|" + "--:|" * 7]
    for r in table:
        lines.append(
            f"| {r['vocabulary']:,} | {r['term']} | {r['form']} | {r['wall_s']:.2f} | {r['cpu_s']:.2f} | "
            f"{r['extra_mb']:,.0f} | {r['time_ratio']:.2f} | {1 / r['memory_ratio']:.1f} |"
        )
    place = f"{processor()}, {torch.get_num_threads()} thread, torch {torch.__version__}, Python {python_version()}"
    head_lines = [f"{ROWS:,} rows, D {HIDDEN}, target and anchor from stored rows; {place}. Medians of {REPEATS}.", ""]
    (HERE / "vocabulary.md").write_text("\n".join([*head_lines, *lines]) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--memory"]:
        memory(int(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        measure([int(v) for v in sys.argv[1:]] or [32_000, 128_256])
