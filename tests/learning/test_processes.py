"""A step split over micro-batches and processes is the same step: parts of one loss, whoever computes them."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from support.crews import crew
from support.helpers import offset_ensemble, random_examples, tiny_llama

from unlearn.config.schema import DualConfig
from unlearn.data.encoding import Example, Examples
from unlearn.data.sampling import Draw, Sampler
from unlearn.ensemble.frozen import LiveRows
from unlearn.learning.binding import bind
from unlearn.learning.loop import LAUNCHED, Loop, Optimisation, accelerator
from unlearn.learning.objective import Dual, Group, Objective
from unlearn.store import processes

FORGET, RETAIN, REFUSALS = 5, 11, 3


def objective(terms, dual: Dual | None = None) -> Objective:
    """A real objective over an ensemble of random tiny models; their frozen rows are computed when asked for."""
    ensemble = offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=8))
    for m in ensemble.members:
        m.model.requires_grad_(m.trained)
    forget, retain = random_examples(FORGET, seed=1), random_examples(RETAIN, seed=2)
    answers = [e.answer for e in random_examples(REFUSALS, seed=3)]
    pairs = {
        name: {(i, k): i * REFUSALS + k for i in range(len(of)) for k in range(REFUSALS)}
        for name, of in (("refusal", forget), ("retain_refusal", retain))
    }

    def paired(of: Examples) -> Examples:
        return Examples(Example(f"{e.id}/{k}", e.prompt, answers[k]) for e in of for k in range(REFUSALS))

    examples = {"forget": forget, "retain": retain, "refusal": paired(forget), "retain_refusal": paired(retain)}
    frozen = [m for m in ensemble.members if not m.trained]
    rows = {name: {m.name: LiveRows(m, x, 0) for m in frozen} for name, x in examples.items()}
    groups = {name: Group(x, rows[name], places=pairs.get(name)) for name, x in examples.items()}
    return Objective(ensemble, terms, groups, 1.0, frozen[0], 0, dual=dual)


TERMS = {
    "ga": bind("ga", "none", 1, 1, {}),
    "npo_kl": bind("npo", "kl", 1, 5, {"beta": 0.1}),
    "dpo_ap": bind("dpo", "ap", 1, 0.5, {"beta": 0.2}),
    "idk_nll": bind("idk", "nll", 1, 2, {}),
    "margin_nll": bind("margin", "nll", 0.01, 1, {}),
}
DRAWS = [
    Sampler(FORGET, RETAIN, REFUSALS, 4, 7, seed=0).draw(0),
    Sampler(FORGET, RETAIN, REFUSALS, 1, 2, seed=1).draw(3),  # fewer examples than some splits have parts
]


def summed(obj: Objective, draw: Draw, processes: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Logged parts and gradients of a step, added up over the micro-batches of all processes."""
    model, total = obj.ensemble.trained.model, {"loss": 0.0}
    model.zero_grad()
    for process in range(processes):
        for micro_batch in obj.micro_batches(draw, process, processes):
            loss, log = micro_batch()
            loss.backward()
            for name, value in ({"loss": loss.item()} | log).items():
                total[name] = total.get(name, 0.0) + value
    return total, {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("draw", DRAWS, ids=["many", "few"])
def test_micro_batches_of_any_number_of_processes_sum_to_one_loss_and_one_gradient(name, draw):
    dual = Dual(DualConfig(bound=0.1), 2.5, 1) if name == "margin_nll" else None
    obj = objective(TERMS[name], dual)
    log, gradient = summed(obj, draw, 1)
    largest = max(g.abs().max().item() for g in gradient.values())
    assert largest > 0
    for count, accumulate in ((1, 3), (2, 2), (5, 4)):
        parts, found = summed(dataclasses.replace(obj, accumulate=accumulate), draw, count)
        assert parts == pytest.approx(log, rel=1e-5, abs=1e-6)
        for n, g in gradient.items():
            torch.testing.assert_close(found[n], g, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("accumulate, parts", [(1, 3), (2, 6), (None, 5)])
def test_every_example_of_a_draw_is_computed_by_exactly_one_process(accumulate, parts, monkeypatch):
    obj, draw = objective(TERMS["idk_nll"]), DRAWS[0]
    monkeypatch.setattr("unlearn.learning.objective.in_parts", lambda model, tokens: 5 if tokens > 1 else 0)
    seen, count = [], 0
    for process in range(3):
        for micro_batch in dataclasses.replace(obj, accumulate=accumulate).micro_batches(draw, process, 3):
            chunk, count = micro_batch.args[0], count + 1
            seen += [(name, i) for name, ids in chunk.items() for i in ids]
    assert count == min(parts, max(len(draw.retain), len(draw.named("refusal"))))
    wanted = [("refusal", obj.groups["refusal"].places[pair]) for pair in draw.named("refusal")]
    assert sorted(seen) == sorted([*wanted, *(("retain", i) for i in draw.retain)])


def test_the_dual_weight_is_the_retain_terms_weight_and_follows_the_logged_term():
    dual = Dual(DualConfig(bound=0.5, lr=2.0, warmup=1), 3.0, steps_per_epoch=2)
    obj = objective(TERMS["margin_nll"], dual)
    log, _ = summed(obj, DRAWS[0], 1)
    assert log["loss"] == pytest.approx(0.01 * log["train/margin"] + 3.0 * log["train/nll"], rel=1e-5)
    values = []
    for step, term in enumerate([9.0, 9.0, 1.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0], 1):
        after = {"train/nll": term}
        obj.after(step, after)
        values.append(after["train/dual"])  # the weight that this step had, not the next one's
    # warm-up of one epoch, two steps; then + 2 (1 − ½), + 2 (¼ − ½), and − 1 a step down to 0
    assert values == [3.0, 3.0, 3.0, 4.0, 3.5, 2.5, 1.5, 0.5, 0.0] and dual.value == 0.0


# --- true processes -----------------------------------------------------------------------------------------------

SETTINGS = Optimisation(3e-3, 4, 0.1, 0.1, "linear", 0.01, (0.9, 0.99), 1.0)


def train(folder, name: str, forget_batch: int, retain_batch: int) -> None:
    """Weights and logs of a few steps in this process, whatever number there is of them."""
    obj = objective(TERMS["npo_kl"])
    loop = Loop(obj.ensemble.trained.model, SETTINGS, "cpu", together=True)
    sampler, logs = Sampler(FORGET, RETAIN, REFUSALS, forget_batch, retain_batch, seed=0), []
    loop.run(lambda step: obj.micro_batches(sampler.draw(step), *loop.share), lambda step, log: logs.append(log))
    found = {n: p.detach().clone() for n, p in loop.model.named_parameters()}
    # AdamW does not notice a gradient that is too large by a factor: the norms do
    found |= {name: torch.tensor([log[name] for log in logs]) for name in ("train/loss", "train/grad_norm", "train/kl")}
    save_file(found, folder / f"{name}-{loop.share[0]}.safetensors")


SIZES = {"many": (3, 5), "few": (1, 1)}  # the second leaves the second process without anything to do


def part(folder: Path) -> None:
    processes.ready()
    with processes.group("cpu"):
        for name, sizes in SIZES.items():
            train(folder, name, *sizes)


def test_two_processes_train_to_the_weights_of_one(tmp_path):
    def lead() -> int:
        with processes.task("part", tmp_path):
            part(tmp_path)
        return 0

    assert crew(2, lead, {"part": part}.get) == [0, 0]
    (tmp_path / "alone").mkdir()
    for name, sizes in SIZES.items():
        train(tmp_path / "alone", name, *sizes)
        one = load_file(tmp_path / "alone" / f"{name}-0.safetensors")
        start = dict(tiny_llama(1, hidden=8).named_parameters())
        assert any(not torch.equal(one[n], p) for n, p in start.items())
        for rank in (0, 1):
            two = load_file(tmp_path / f"{name}-{rank}.safetensors")
            assert two.keys() == one.keys()
            for n, value in one.items():
                torch.testing.assert_close(two[n], value, rtol=1e-5 if n.startswith("train/") else 0, atol=1e-6)


@pytest.mark.parametrize("name", LAUNCHED)
def test_variables_of_a_launcher_alone_make_nobody_wait_for_others(monkeypatch, name):
    monkeypatch.setenv(name, "2")  # as srun with PMI, mpirun or a shell within them leave it, without the others
    AcceleratorState._reset_state(reset_partial_state=True)
    assert accelerator("cpu").num_processes == 1 and name not in os.environ
