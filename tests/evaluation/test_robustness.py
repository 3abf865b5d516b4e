"""Groups that attack a finished run: prefixes, the target's logits, rounding, relearning, gradients; own judges."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.helpers import TINY, compose, execute
from torch import nn

from unlearn.data.encoding import collate
from unlearn.evaluation.context import Subject, trainable
from unlearn.evaluation.groups.gradnorm import norm
from unlearn.evaluation.groups.quantised import rounded
from unlearn.evaluation.groups.relearn import halves
from unlearn.runs.baselines import suite_of
from unlearn.runs.learner import members
from unlearn.runs.workbench import workbench

GROUPS = "eval.groups=[privacy,gradnorm,prefix,contrast,quantised,relearn]"
SETTINGS = (
    "eval.relearn_steps=3", "eval.relearn_batch=2", "eval.relearn_lr=0.02", "eval.alphas=[0,1]", "trainer.lr=0.02",
    "eval.max_examples=6", "eval.resamples=5",
)  # fmt: skip
FORGET = ("data.people=6", "data.forget_people=2", "data.holdout_people=2")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    place = tmp_path_factory.mktemp("robust")
    paths = f"paths.runs={place}/runs", f"paths.store={place}/store"
    return execute(compose("algo=ga", *TINY, *FORGET, GROUPS, *SETTINGS, *paths))


@pytest.fixture(scope="module")
def entries(job):
    return json.loads((job.folder / "eval.json").read_text())


@pytest.fixture(scope="module")
def bench(job):
    return workbench(job.cfg)


@pytest.fixture(scope="module")
def suite(job, bench):
    return suite_of(job.cfg, bench)


def test_every_metric_is_there_with_its_interval(entries):
    one = entries["alphas"]["1.0"]
    for name in ("forget/prefix_prob@25", "forget/prefix_rougeL_recall@50", "forget/composite_rougeL_recall",
                 "forget/contrast_prob@1", "forget/contrast_rougeL_recall@2", "quantised/int4_pair/forget/prob",
                 "quantised/int8_target/retain/prob", "quantised/int4_all/forget/rougeL_recall", "relearn/before",
                 "relearn/after", "relearn/gain", "relearn/seen", "relearn/rougeL_recall"):  # fmt: skip
        low, high = one["intervals"][name]
        assert low <= one[name] <= high or math.isclose(low, high), name
    assert 0 <= one["forget/detected"] <= 1 and 0 <= one["mia/gradnorm"] <= 1


def test_at_alpha_0_there_is_nothing_to_take_back(entries):
    """l_t + w (l_t − l_u) is the target where the unlearned model is, and no answer's probability fell."""
    zero, target = entries["alphas"]["0.0"], entries["references"]["target"]
    assert zero["forget/contrast_prob@2"] == pytest.approx(target["forget/prob"], abs=1e-5)
    assert not any(name.startswith("relearn/") or name == "mia/gradnorm" for name in zero)  # nothing to train
    for name in ("forget/prefix_prob@50", "forget/composite_rougeL_recall"):
        assert zero[name] == pytest.approx(target[name], abs=1e-5)


def test_a_prefix_probability_is_that_of_the_remaining_tokens(bench, suite, entries):
    """By hand: log-softmax of the target's logits over the prompt and the whole right answer."""
    split = suite.split("forget")
    found = []
    for i in split.right:
        e = split.examples[i]
        batch = collate([e], bench.encoder.tokenizer.pad_token_id)
        with torch.no_grad():
            logp = bench.model("target")(batch.ids).logits[0].double().log_softmax(-1)
        at = len(e.prompt) - 1
        tokens = [logp[at + t, token].item() for t, token in enumerate(e.answer)]
        given = (len(e.answer) - 1) // 2
        found.append(math.exp(np.mean(tokens[given:])))
    assert entries["references"]["target"]["forget/prefix_prob@50"] == pytest.approx(np.mean(found), abs=1e-5)


def test_an_attack_adds_once_more_what_was_taken(job, bench, suite, entries):
    """At α = 1 the sum target + 1 · (target − unlearned) is the run at α = −1: 2 l_t − (l_t + δ) = l_t − δ."""
    own = members(job.cfg, bench, job.folder)
    by_alpha = Subject(suite, own, -1.0).probs(suite.split("forget")).mean()
    assert entries["alphas"]["1.0"]["forget/contrast_prob@1"] == pytest.approx(by_alpha, abs=1e-5)


def test_rounding_keeps_2_to_the_b_minus_1_levels_a_row_and_leaves_the_head(bench):
    model, bits = bench.model("target"), 4
    before = copy.deepcopy(model.state_dict())
    other = rounded(model, bits)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(other.get_output_embeddings().weight, model.get_output_embeddings().weight)
    pairs = zip(model.modules(), other.modules(), strict=True)
    linear = [(a, b) for a, b in pairs if isinstance(a, nn.Linear) and a is not model.get_output_embeddings()]
    assert linear
    for a, b in linear:
        step = a.weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert (a.weight - b.weight).abs().le(step / 2 * 1.0001).all() and not torch.equal(a.weight, b.weight)
        assert torch.allclose((b.weight / step).round(), b.weight / step, atol=1e-4)


def test_relearning_trains_on_one_person_and_asks_about_the_other(job, bench, suite, entries):
    seen, other = halves(suite.split("forget"))
    assert {r.group for r in seen.rows}.isdisjoint({r.group for r in other.rows}) and seen.rows and other.rows
    one = entries["alphas"]["1.0"]
    assert one["relearn/gain"] == pytest.approx(one["relearn/after"] - one["relearn/before"])
    assert one["relearn/after"] != one["relearn/before"]
    own = members(job.cfg, bench, job.folder)  # a copy learns, and no model of the run
    copied = trainable(own, 1.0)
    assert copied.trained.model is not own.trained.model
    assert all(p.requires_grad for p in copied.trained.model.parameters())
    assert not any(p.requires_grad for m in copied.members if not m.trained for p in m.model.parameters())


@pytest.mark.parametrize("dialect", ["default", "ou"])
def test_a_gradients_norm_is_that_of_the_written_out_loss(bench, suite, dialect):
    """The target alone, one row: autograd on transformers' own loss over the answer's tokens.

    OpenUnlearning takes the mean of the parameters' norms, and leaves EOS out.
    """
    split = suite.split("holdout")
    e = split.examples[split.right[0]]
    model = copy.deepcopy(bench.model("target")).requires_grad_(True)
    ids, answer = torch.tensor([e.prompt + e.answer]), [*e.answer[:-1], -100 if dialect == "ou" else e.answer[-1]]
    model(ids, labels=torch.tensor([[-100] * len(e.prompt) + answer])).loss.backward()
    norms = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
    expected = norms.mean() if dialect == "ou" else norms.norm()
    asked = replace(suite, cfg=replace(suite.cfg, semantics=dialect))
    found = norm(Subject(asked, trainable(bench.alone("target"), 1.0), 1.0), e)
    assert found == pytest.approx(expected.item(), rel=1e-4)
