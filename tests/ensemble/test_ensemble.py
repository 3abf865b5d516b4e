"""What must always hold for the weighted sum of logits."""

import copy

import pytest
import torch
from support.helpers import direct, offset_ensemble, random_examples, tiny_llama

from unlearn.config.schema import MemberConfig
from unlearn.data.encoding import collate
from unlearn.ensemble.combination import SUM, bind_rule
from unlearn.ensemble.ensemble import Ensemble, Member, PairError, build
from unlearn.models.llama import answer_rows

ALPHAS = [-1.0, 0.0, 0.3, 0.7, 1.0, 2.0, 7.5]


@pytest.fixture
def batch():
    return collate(random_examples(), pad_id=0)


def rows(ensemble, batch):
    return {m.name: answer_rows(m.model, batch) for m in ensemble.members}


@pytest.mark.parametrize("alpha", ALPHAS)
def test_offset_equal_to_anchor_gives_the_target_bit_for_bit(batch, alpha):
    small = tiny_llama(1, hidden=8)
    ensemble = offset_ensemble(tiny_llama(0), copy.deepcopy(small), small)
    found = rows(ensemble, batch)
    assert torch.equal(ensemble.logits(found, alpha), found["target"])


def test_the_sum_is_target_plus_alpha_times_offset_minus_anchor(batch):
    ensemble = offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=8))
    r = rows(ensemble, batch)
    for alpha in ALPHAS:
        expected = r["target"] + alpha * (r["offset"] - r["anchor"])
        torch.testing.assert_close(ensemble.logits(r, alpha), expected)


def test_alpha_zero_is_the_target_with_zero_gradient(batch):
    ensemble = offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=8))
    r = rows(ensemble, batch)
    logits = ensemble.logits(r, 0.0)
    assert torch.equal(logits, r["target"])
    logits.log_softmax(-1)[:, 3].sum().backward()
    offset = ensemble.trained.model
    assert all(p.grad is not None and not p.grad.any() for p in offset.parameters())


def test_only_the_trained_member_gets_gradients(batch):
    ensemble = offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=8))
    for m in ensemble.members:
        m.model.requires_grad_(m.trained)
    ensemble.logits(rows(ensemble, batch), 1.0).logsumexp(-1).sum().backward()
    for m in ensemble.members:
        assert all((p.grad is not None) == m.trained for p in m.model.parameters())


def test_the_gradient_of_the_offset_is_alpha_times_that_of_the_ensemble(batch):
    target, offset, anchor = (torch.randn(9, 5, dtype=torch.float64) for _ in range(3))
    offset.requires_grad_(True)
    ensemble = offset_ensemble(None, None, None)
    logits = ensemble.logits({"target": target, "offset": offset, "anchor": anchor}, 0.7)
    logits.log_softmax(-1)[:, 0].sum().backward()
    free = logits.detach().requires_grad_(True)
    free.log_softmax(-1)[:, 0].sum().backward()
    torch.testing.assert_close(offset.grad, 0.7 * free.grad)


def test_direct_at_alpha_one_is_the_tuned_model_itself_and_needs_no_target(batch):
    ensemble = direct(tiny_llama(0), tiny_llama(1))
    r = {"tuned": answer_rows(ensemble.trained.model, batch)}
    assert torch.equal(ensemble.logits(r, 1.0), r["tuned"])
    assert ensemble.frozen(1.0) == []


def test_direct_at_another_alpha_scales_the_change_of_logits(batch):
    ensemble = direct(tiny_llama(0), tiny_llama(1))
    r = rows(ensemble, batch)
    expected = r["target"] + 0.5 * (r["tuned"] - r["target"])
    torch.testing.assert_close(ensemble.logits(r, 0.5), expected)
    assert torch.equal(ensemble.logits(r, 0.0), r["target"])


def test_members_of_different_vocabulary_are_refused_with_names_and_sizes():
    members = [MemberConfig("target", "target", 1.0), MemberConfig("offset", "small", 0, 1.0, True)]
    models = {"target": tiny_llama(0), "offset": tiny_llama(1, vocabulary=41)}
    with pytest.raises(PairError, match="target 40, offset 41"):
        build(members, models, {"target": "", "offset": ""}, {"target": 40, "offset": 41})


def test_a_sweep_over_alphas_gives_the_logits_of_each(batch):
    small = tiny_llama(1, hidden=8)
    models = {"target": tiny_llama(0), "offset": tiny_llama(2, hidden=8), "anchor": small}
    members = {  # weight = constant + slope · α
        "offset": [("target", 1.0, 0.0), ("offset", 0.0, 1.0), ("anchor", 0.0, -1.0)],
        "both": [("target", 1.0, -0.5), ("offset", 0.25, 1.0)],
        "constant": [("target", 0.5, 0.0), ("anchor", 0.5, 0.0)],
        "slope": [("offset", 0.0, 1.0), ("anchor", 0.0, 2.0)],
    }
    for name, weights in members.items():
        for rule in (SUM, bind_rule("plausible", {"rate": 0.1, "top": 0.1}, None)):
            if rule is not SUM and name in ("constant", "slope"):
                continue  # rules join a base and a change
            ensemble = Ensemble(tuple(Member(n, models[n], n, c, s, False) for n, c, s in weights), rule)
            found, alphas = rows(ensemble, batch), [a for a in ALPHAS if name != "slope" or a]
            for alpha, logits in ensemble.sweep(found, alphas):
                torch.testing.assert_close(logits, ensemble.logits(found, alpha), rtol=1e-6, atol=1e-6)
    same = offset_ensemble(models["target"], copy.deepcopy(small), small)
    found = rows(same, batch)
    assert all(torch.equal(logits, found["target"]) for _, logits in same.sweep(found, ALPHAS))
