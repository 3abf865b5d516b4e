"""Long vocabularies: rows that are made in pieces have the values and gradients of full rows, which are never there."""

import copy
import gc
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from support.helpers import ALGOS, COMBINED, FEW, TRAINED, execute, fits, offset_ensemble, random_examples, tiny_llama
from torch.utils._python_dispatch import TorchDispatchMode

from unlearn.data.encoding import collate
from unlearn.data.sampling import Draw
from unlearn.ensemble import chunks
from unlearn.ensemble.chunks import LongRows
from unlearn.ensemble.ensemble import Member
from unlearn.ensemble.frozen import LiveRows
from unlearn.learning import objective
from unlearn.learning.answers import Answers
from unlearn.learning.binding import BoundTerm
from unlearn.learning.losses import FORGET, RETAIN
from unlearn.learning.objective import Group, Objective
from unlearn.models.llama import answer_states, narrow
from unlearn.runs import learner
from unlearn.runs.inputs import Inputs

CASES = [
    *((a, {"uld": "uld", "rmu": "direct"}.get(a, "offset"), ()) for a in ALGOS if a not in COMBINED),
    *(("npo_kl", m, ()) for m in TRAINED if fits("npo_kl", m) and m != "offset"),
    ("npo", "offset", ("trainer.accumulate=3",)),
    ("kl", "offset", ("pair.tuning=lora",)),
    ("npo_kl", "offset", ("++method.rule=plausible", "++method.numbers={rate: 0.01, top: 0.1}", "alpha=1.5")),
    ("gd", "offset", ("algo.retain=nll_kl",)),
    ("simnpo", "offset", ("alpha=0",)),
]


class Widest(TorchDispatchMode):
    """The most rows of ``width`` logits that any operation made."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            laid = isinstance(t, torch.Tensor) and t.dim() == 2 and t.is_contiguous()  # a head's transpose is not
            if laid and t.shape[1] == self.width:
                self.rows = max(self.rows, len(t))
        return out


def step(made: Objective, draw: Draw) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    """Loss, its logged parts and all gradients of an optimiser step."""
    model = made.ensemble.trained.model
    model.zero_grad()
    total, logs = 0.0, {}
    for micro_batch in made.micro_batches(draw):
        loss, parts = micro_batch()
        if loss.requires_grad:
            loss.backward()
        total += loss.item()
        logs = {k: logs.get(k, 0.0) + v for k, v in parts.items()}
    return total, logs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_in_fp64(made: Objective, draw: Draw, in_pieces, width: int) -> None:
    in_pieces(False)
    loss, parts, gradients = step(made, draw)
    in_pieces(True)
    with Widest(width) as widest:
        found, found_parts, found_gradients = step(made, draw)
    assert found == pytest.approx(loss, rel=1e-12, abs=1e-12)
    assert found_parts == pytest.approx(parts, rel=1e-12, abs=1e-12)
    assert found_gradients.keys() == gradients.keys()
    scale = max(g.abs().max() for g in gradients.values())
    assert scale > 0 or made.alpha == 0
    for name, right in gradients.items():
        torch.testing.assert_close(found_gradients[name], right, rtol=1e-12, atol=1e-12 * scale.item(), msg=name)
    assert widest.rows <= 7


@pytest.mark.parametrize(("algo", "method", "more"), CASES)
def test_every_objective_has_the_loss_and_gradients_of_full_rows(config, bench, in_pieces, algo, method, more):
    cfg = config(f"algo={algo}", f"method={method}", *more)
    ensemble = learner.members(cfg, bench)
    learning = copy.deepcopy(ensemble.trained.model).double()  # with LoRA its weights are those of the frozen twin
    members = (replace(m, model=learning) if m.trained else m for m in ensemble.members)
    ensemble = replace(ensemble, members=tuple(members))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in learning.parameters():  # away from the start, where much is zero
            p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    inputs = Inputs(cfg, bench, steps=1)
    made = inputs.objective(ensemble)
    for group in made.groups.values():
        for rows in (*group.rows.values(), *group.teacher().values()):
            rows.array = rows.array.astype(np.float64)
    assert_equal_in_fp64(made, inputs.sampler.draw(0), in_pieces, len(bench.encoder.tokenizer))


def made_by_hand(offset: torch.nn.Module, forget: str, retain: str) -> Objective:
    """An objective over live rows, all in float64."""
    target, anchor = tiny_llama(0).double(), tiny_llama(2, hidden=8).double()
    for model in (target, anchor, offset):
        narrow(model, 33)
    ensemble, groups = offset_ensemble(target, offset.double(), anchor), {}
    for seed, name in enumerate(("forget", "retain")):
        examples = random_examples(7, seed, vocabulary=33)
        groups[name] = Group(examples, {m.name: LiveRows(m, examples, 0) for m in ensemble.frozen(0.7)})
    terms = [BoundTerm(t.__name__, partial(t), (r,), True, True, 0.6) for t, r in ((FORGET[forget], "forget"),
                                                                             (RETAIN[retain], "retain"))]  # fmt: skip
    return Objective(ensemble, terms, groups, 0.7, ensemble.members[0], 0, 2)


DRAW = Draw(forget=[3, 0, 5], retain=[6, 1, 2, 4], refusal=[], retain_refusal=[], alternates=[])


def test_frozen_members_that_are_run_when_needed_are_read_in_pieces_and_an_untied_head_learns(
    in_pieces,
):
    """With heads that are wider than what is read of them."""
    for terms in (("ga", "kl"), ("me", "nll_kl")):
        assert_equal_in_fp64(made_by_hand(tiny_llama(1, hidden=8), *terms), DRAW, in_pieces, 33)
    offset = tiny_llama(1, hidden=8)
    offset.lm_head = torch.nn.Linear(8, 40, bias=True)
    assert_equal_in_fp64(made_by_hand(offset, "ga", "kl"), DRAW, in_pieces, 33)
    assert offset.lm_head.bias.grad[:33].all() and not offset.lm_head.bias.grad[33:].any()
    assert offset.lm_head.weight.grad[:33].any() and not offset.lm_head.weight.grad[33:].any()


def test_a_live_member_is_run_once_and_its_rows_are_those_of_take(in_pieces, monkeypatch):
    member, examples = Member("target", tiny_llama(0), "print", 1.0, 0.0, False), random_examples(9)
    in_pieces(True)
    live, indices, runs = LiveRows(member, examples, 0), [8, 2, 5], []
    whole = live.take(indices)
    member.model.base_model.register_forward_hook(lambda *_: runs.append(1))
    read = live.reader(indices)
    assert not runs
    for here in (slice(0, 3), slice(3, 5), slice(5, 7), slice(7, 9), slice(2, 4), slice(None), slice(5, 9)):
        torch.testing.assert_close(read(here), whole[here])
    assert len(runs) == 1


def long_rows(model: torch.nn.Module, batch, shift: torch.Tensor) -> LongRows:
    return LongRows(model, answer_states(model, batch), lambda logits, here: logits + shift[here])


def test_a_users_term_may_still_read_all_logits_and_its_gradient_is_right(in_pieces):
    in_pieces(True)
    model, batch = tiny_llama(0).double(), collate(random_examples(), 0)
    shift = torch.randn(len(batch.labels), 40, dtype=torch.float64)
    answers = Answers(long_rows(model, batch, shift), batch.labels, batch.owner, shift)
    whole = answers.logits.log_softmax(-1).gather(-1, batch.labels[:, None])[:, 0]
    torch.testing.assert_close(answers.logp, whole, rtol=1e-12, atol=1e-12)
    weights = list(model.parameters())
    of_whole = torch.autograd.grad((whole**2).sum(), weights, retain_graph=True)  # both are of one forward pass
    of_pieces = torch.autograd.grad((answers.logp**2).sum(), weights)
    for right, found in zip(of_whole, of_pieces, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(answers.reference_logp, shift.log_softmax(-1).gather(-1, batch.labels[:, None])[:, 0])


def test_nothing_of_a_step_stays_in_memory(in_pieces):
    in_pieces(True)
    model, batch = tiny_llama(0), collate(random_examples(), 0)
    rows = long_rows(model, batch, torch.zeros(len(batch.labels), 40))
    answers, states = Answers(rows, batch.labels, batch.owner, torch.zeros(len(batch.labels), 40)), rows.hidden
    (answers.logp + answers.kl + FORGET["me"](answers)).sum().backward()
    left = weakref.ref(states)
    gc.disable()  # reference counts alone must do: a step's tensors are not the garbage collector's to find
    try:
        del rows, answers, states
        assert left() is None
    finally:
        gc.enable()


def test_short_vocabularies_and_other_heads_keep_full_rows(config, monkeypatch):
    model = tiny_llama(0)
    assert not chunks.long(100, model) and chunks.long(2**19, model)
    model.lm_head = torch.nn.Sequential(model.lm_head)
    monkeypatch.setattr(chunks, "vocabulary", lambda _: 40)
    assert not chunks.long(2**19, model)
    monkeypatch.setattr(objective, "LongRows", partial(pytest.fail, "a tiny run was split"))
    execute(config("algo=npo_kl", *FEW))
