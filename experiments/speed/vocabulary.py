"""Head, ensemble and loss of 1,024 answer rows over a long vocabulary: in pieces against full rows.

    python experiments/speed/vocabulary.py [VOCABULARY …]

Memory: each form in a process of its own, the peak of its resident size in one step over what it was before that step,
gradients included. The frozen members' rows are there before in both.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench import Result, alternate, compared, publish
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn.data.encoding import Example, Examples
from unlearn.ensemble.chunks import LongRows
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.ensemble.frozen import FrozenRows
from unlearn.learning.answers import Answers
from unlearn.learning.losses import FORGET, RETAIN
from unlearn.models.llama import head

ROWS, HIDDEN, ANSWER, ALPHA = 1024, 256, 32, 0.7
TERMS = {"nll": (RETAIN["nll"], {}), "kl": (RETAIN["kl"], {}), "npo": (FORGET["npo"], {"beta": 0.1})}
FORMS, ROUNDS = ("full", "pieces"), 3


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


def extra_mb(width: int, term: str, form: str) -> float:
    """Peak memory of one step above what was there before, in a fresh process."""
    command = [sys.executable, __file__, "--memory", str(width), term, form]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory(width: int, term: str, form: str) -> None:
    for small in TERMS:  # libraries are loaded by a first step
        Case(50, ANSWER).step(form, small)
    case = Case(width)
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not at hand for the step
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is there now
    before = _mb("VmRSS")
    case.step(form, term)
    print(_mb("VmHWM") - before)


def _mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def measure(widths: list[int]) -> list[Result]:
    results = []
    for width in widths:
        for term in TERMS:
            full, ours = (extra_mb(width, term, form) for form in FORMS)
            name = f"V {width:,}, {term}"
            ratio, times = full / ours, f"full {full:,.0f} MB, pieces {ours:,.0f} MB"
            results.append(Result(f"{name}: extra memory, full ÷ pieces", ratio, ratio, ratio, "≥ 7", times))
        case = Case(width)
        for term in TERMS:
            seconds = alternate({form: partial(case.step, form, term) for form in FORMS}, ROUNDS)
            results.append(compared(f"V {width:,}, {term}: time, pieces ÷ full", seconds, "pieces", "full", "≤ 1.05"))
        del case
    return results


NOTES = [
    f"{ROWS:,} rows, D {HIDDEN}, target and anchor from stored rows; forward and backward pass, CPU seconds. The goal",
    "for the time is to be no longer; 1.05 is how far two measurements of one form may differ here.",
]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--memory"]:
        memory(int(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        publish("vocabulary", measure([int(v) for v in sys.argv[1:]] or [32_000, 128_256]), NOTES)
