"""Scoring the right, the paraphrased and the wrong answers of questions against whole texts at all positions.

Plain: every member reads every text whole, its head is applied at every position, logits are joined and normalised
there. Ours: rows of the frozen members from the store, the head on answer rows alone, and each prompt read once where
that pays. Random models; vocabulary and lengths of prompts (P) and answers (A) in tokens are in the table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bench import Result, alternate, compared, publish
from torch.nn import functional as F

from unlearn.config.pair import ModelConfig
from unlearn.data.encoding import Example, Examples, by_length, collate
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.ensemble.frozen import stored
from unlearn.evaluation.scoring import score
from unlearn.models import llama, prompts
from unlearn.store.entries import Store

ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0]
BATCH = 128


@dataclass(frozen=True)
class Case:
    name: str
    vocabulary: int
    prompt: int  # tokens, on average; likewise
    answer: int
    answers: int  # per question
    questions: int
    target: tuple[int, int, int]  # width, layers, inner width
    small: tuple[int, int, int]


TINY, TARGET, LARGE = (64, 2, 160), (128, 2, 320), (256, 4, 640)
CASES = (
    Case("embedded world", 724, 8, 9, 6, 100, TARGET, TINY),
    Case("TOFU, plain template", 2000, 20, 45, 7, 10, TARGET, TINY),
    Case("TOFU, plain template, small model of 3.2 M", 2000, 20, 45, 7, 4, LARGE, LARGE),
    Case("TOFU, chat template", 8000, 70, 60, 7, 6, LARGE, TARGET),
    Case("short answers, chat template", 8000, 70, 8, 4, 12, LARGE, TARGET),
)


def examples(case: Case) -> Examples:
    generator = torch.Generator().manual_seed(0)

    def tokens(mean: int) -> tuple[int, ...]:
        n = int(torch.randint(round(0.7 * mean), round(1.3 * mean) + 1, (1,), generator=generator))
        return tuple(torch.randint(2, case.vocabulary, (n,), generator=generator).tolist())

    asked = [tokens(case.prompt) for _ in range(case.questions)]
    return Examples(
        Example(f"{q}/{k}", prompt, (*tokens(case.answer - 1), 1))
        for q, prompt in enumerate(asked)
        for k in range(case.answers)
    )


def gold(case: Case) -> range:
    """The right answer of each question: only these are also compared with the argmax, as in an evaluation."""
    return range(0, case.questions * case.answers, case.answers)


def member(name: str, shape: tuple[int, int, int], seed: int, case: Case) -> Member:
    width, layers, inner = shape
    settings = ModelConfig(
        hidden_size=width, layers=layers, heads=4, intermediate_size=inner, initializer_range=0.08, max_length=512
    )
    model = llama.freeze(llama.fresh(settings, case.vocabulary, 0, 1, seed))
    constant, slope = {"target": (1.0, 0.0), "offset": (0.0, 1.0), "anchor": (0.0, -1.0)}[name]
    return Member(name, model, f"{case.name} {name}", constant, slope, name == "offset")


@torch.no_grad()
def plain(ensemble: Ensemble, texts: Examples, alpha: float) -> np.ndarray:
    """NLL of each answer, [E]: whole texts, all positions, full head."""
    found = np.zeros(len(texts))
    for indices in by_length(texts, BATCH):
        batch = collate([texts[i] for i in indices], 0)
        rows = {
            m.name: m.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
            for m in ensemble.needed([alpha])
        }
        logits = ensemble.logits(rows, alpha)[:, :-1].flatten(0, 1)
        nll = F.cross_entropy(logits, batch.ids[:, 1:].flatten(), reduction="none").view(len(indices), -1)
        for k, i in enumerate(indices):
            start = len(texts[i].prompt) - 1
            found[i] = nll[k, start : start + len(texts[i].answer)].double().sum()
    return found


def whole(form: Callable[[], object]) -> Callable[[], object]:
    """The same without sharing prompts."""

    def run() -> object:
        real, prompts.pays = prompts.pays, lambda examples: False
        try:
            return form()
        finally:
            prompts.pays = real

    return run


def measure(case: Case, store: Store) -> list[Result]:
    texts = examples(case)
    target, offset, anchor = (
        member(*a, case) for a in (("target", case.target, 0), ("offset", case.small, 1), ("anchor", case.small, 2))
    )
    ensemble, alone = Ensemble((target, offset, anchor)), Ensemble((target,))
    rows = {m.name: stored(store, m, texts, 0) for m in (target, anchor)}

    def ours(alphas: Sequence[float]) -> dict[float, np.ndarray]:
        found = score(ensemble, texts, alphas, rows, 0, BATCH, argmax_of=gold(case))
        return {a: s.nll for a, s in found.items()}

    def live() -> np.ndarray:
        return score(alone, texts, [1.0], {}, 0, BATCH)[1.0].nll

    for one, other in ((ours([1.0])[1.0], plain(ensemble, texts, 1.0)), (live(), whole(live)())):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    seconds = alternate({
        "plain": lambda: plain(ensemble, texts, 1.0), "ours": lambda: ours([1.0]), "nine α's": lambda: ours(ALPHAS),
        "target, plain": lambda: plain(alone, texts, 1.0), "target, shared": live, "target, whole texts": whole(live),
    }, rounds=3)  # fmt: skip
    name = f"{case.name} (V {case.vocabulary:,}, P {case.prompt}, A {case.answer}, {case.answers} answers)"
    shared = "prompts shared" if prompts.pays(texts) else "prompts not shared: too short"
    return [
        compared(f"{name}: plain ÷ ours, stored rows", seconds, "plain", "ours", "≥ 2.5"),
        compared(f"{name}: nine α's ÷ one", seconds, "nine α's", "ours", "≤ 1.5"),
        compared(f"{name}: target alone, no store, plain ÷ ours; {shared}", seconds, "target, plain", "target, shared"),
        compared(f"{name}: of that, sharing prompts", seconds, "target, whole texts", "target, shared"),
    ]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = [r for case in CASES for r in measure(case, Store(folder))]
    publish("scoring", results, ["CPU seconds. NLLs of all answers are equal within 1e-5, relative (checked)."])


if __name__ == "__main__":
    main()
