"""Objectives against arithmetic written out by hand, against autograd in float64, and their invariants."""

import math

import pytest
import torch

from unlearn.losses import FORGET, RETAIN, Answers, ObjectiveError, PerToken, bind

LABELS = torch.tensor([0, 1, 1, 0, 2])
OWNER = torch.tensor([0, 0, 1, 1, 1])  # two answers, of two and three tokens


def rows(probabilities) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


@pytest.fixture
def answers() -> Answers:
    """P and P_target of the labels: .5 .25 | .125 .5 .25 and .25 .25 | .5 .5 .5."""
    p = rows([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.75, 0.125, 0.125], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    target = rows([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    return Answers(p + 3.0, LABELS, OWNER, target - 1.0)  # row constants must not matter


LN2 = math.log(2)


def test_gradient_ascent_is_the_log_probability_of_each_token(answers):
    assert FORGET["ga"](answers).tolist() == pytest.approx([-LN2, -2 * LN2, -3 * LN2, -LN2, -2 * LN2])


def test_refusals_and_retain_nll_are_the_negative_log_probability(answers):
    expected = [LN2, 2 * LN2, 3 * LN2, LN2, 2 * LN2]
    assert FORGET["idk"](answers).tolist() == pytest.approx(expected)
    assert RETAIN["nll"](answers).tolist() == pytest.approx(expected)


def test_npo_compares_whole_answers_with_the_target(answers):
    # answer 0: log-ratio ln(.5·.25 / .25·.25) = ln 2; answer 1: ln(.125·.5·.25 / .5·.5·.5) = −3 ln 2
    # −(2/β) ln σ(−β·ratio) with β = 2: ln(1 + 2²) and ln(1 + 2⁻⁶)
    assert FORGET["npo"](answers, beta=2.0).tolist() == pytest.approx([math.log(5), math.log(1 + 2**-6)])


def test_simnpo_uses_the_mean_over_the_tokens_and_a_margin(answers):
    # mean log P: −1.5 ln 2 and −2 ln 2; −(2/β) ln σ(−β·mean − γ) with β = 2, γ = ln 3: ln(1 + 3·2⁻³), ln(1 + 3·2⁻⁴)
    values = FORGET["simnpo"](answers, beta=2.0, gamma=math.log(3))
    assert values.tolist() == pytest.approx([math.log(1 + 3 / 8), math.log(1 + 3 / 16)])


def test_kl_runs_from_the_target_to_the_ensemble_and_sums_over_the_vocabulary(answers):
    # row 0: .25 ln(.25/.5) + .5 ln(.5/.25) + .25 ln(.25/.25) = .25 ln 2; row 1: equal; row 2:
    # .25 ln(.25/.75) + .5 ln(.5/.125) + .25 ln(.25/.125) = −.25 ln 3 + ln 2 + .25 ln 2; row 4: .25 ln .5 + .5 ln 2
    expected = [0.25 * LN2, 0, 1.25 * LN2 - 0.25 * math.log(3), 0, 0.25 * LN2]
    assert RETAIN["kl"](answers).tolist() == pytest.approx(expected)


def test_kl_is_exactly_zero_where_the_ensemble_is_the_target():
    logits = torch.randn(50, 30)
    answers = Answers(logits, torch.zeros(50, dtype=torch.long), torch.arange(50), logits.clone())
    assert answers.kl.eq(0).all()


def random_answers(logits: torch.Tensor, seed: int = 0) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, logits.shape[1], (len(logits),), generator=generator)
    owner = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    target = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
    return Answers(logits, labels, owner, target)


NUMBERS = {"npo": {"beta": 0.3}, "simnpo": {"beta": 2.5, "gamma": 0.4}}


def naive(name: str, logits: torch.Tensor, a: Answers) -> torch.Tensor:
    """Each term written from its definition, token by token, in float64."""
    p, q = logits.softmax(-1), a.target_logits.softmax(-1)
    count = int(a.owner.max()) + 1
    mine = [[t for t in range(len(a.owner)) if a.owner[t] == b] for b in range(count)]
    label = lambda dist, t: dist[t, a.labels[t]].log()  # noqa: E731
    if name in ("ga", "idk", "nll"):
        return torch.stack([label(p, t) * (1 if name == "ga" else -1) for t in range(len(a.owner))])
    if name == "kl":
        return torch.stack([(q[t] * (q[t] / p[t]).log()).sum() for t in range(len(a.owner))])
    if name == "npo":
        ratios = [torch.stack([label(p, t) - label(q, t) for t in ts]).sum() for ts in mine]
        return torch.stack([-2 / 0.3 * torch.sigmoid(-0.3 * r).log() for r in ratios])
    means = [torch.stack([label(p, t) for t in ts]).mean() for ts in mine]
    return torch.stack([-2 / 2.5 * torch.sigmoid(-2.5 * m - 0.4).log() for m in means])


@pytest.mark.parametrize("name", [*FORGET, *(r for r in RETAIN if r != "none")])
def test_value_and_gradient_equal_a_naive_float64_implementation(name):
    term = (FORGET | RETAIN)[name]
    logits = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    values = term(random_answers(logits), **NUMBERS.get(name, {}))
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    expected = naive(name, logits, random_answers(logits.detach()))
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-12)


def test_npo_becomes_gradient_ascent_as_beta_vanishes():
    logits = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    answers = random_answers(logits)
    beta = 1e-6
    npo = FORGET["npo"](answers, beta=beta) - 2 * math.log(2) / beta  # its constant
    reference = answers.per_answer(answers.target_logp)
    ascent = answers.per_answer(FORGET["ga"](answers)) - reference
    torch.testing.assert_close(npo, ascent, rtol=1e-4, atol=1e-4)
    (of_npo,) = torch.autograd.grad(npo.sum(), logits, retain_graph=True)
    (of_ascent,) = torch.autograd.grad(ascent.sum(), logits)
    torch.testing.assert_close(of_npo, of_ascent, rtol=1e-5, atol=1e-6)


def test_the_loss_pulls_at_the_ensembles_residual():
    """∂ − log P(y) / ∂ logits = P − onehot(y), the identity that δ-Unlearning trains the offset with."""
    logits = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    answers = random_answers(logits)
    (gradient,) = torch.autograd.grad(RETAIN["nll"](answers).sum(), logits)
    onehot = torch.nn.functional.one_hot(answers.labels, 6)
    torch.testing.assert_close(gradient, logits.softmax(-1) - onehot)


def test_binding_checks_the_numbers_of_a_term():
    terms = bind("npo", "kl", 1.0, 5.0, {"beta": 0.1, "gamma": None})
    assert [(t.name, t.reads, t.per_token, t.weight) for t in terms] == [
        ("npo", "forget", False, 1.0),
        ("kl", "retain", True, 5.0),
    ]
    with pytest.raises(ObjectiveError, match="needs algo.beta"):
        bind("npo", "none", 1.0, 1.0, {"beta": None})
    with pytest.raises(ObjectiveError, match="neither 'ga' nor 'nll' has a beta"):
        bind("ga", "nll", 1.0, 1.0, {"beta": 0.1})
    with pytest.raises(ObjectiveError, match="no such forget term; there are ga"):
        bind("gaa", "nll", 1.0, 1.0, {})


def test_a_term_with_another_signature_is_refused(monkeypatch):
    def nameless(rows: Answers) -> PerToken:
        return rows.logp

    def scalar(forget: Answers) -> float:
        return 0.0

    for function in (nameless, scalar):
        monkeypatch.setitem(FORGET, "mine", function)
        with pytest.raises(ObjectiveError, match="must take exactly one of forget, retain, refusal"):
            bind("mine", "none", 1.0, 1.0, {})


def test_a_term_that_compares_with_the_target_says_so_when_it_has_none():
    answers = Answers(torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    with pytest.raises(ObjectiveError, match="compares with the target"):
        FORGET["npo"](answers, beta=0.1)
