"""Objectives against arithmetic written out by hand, against autograd in float64, and their invariants."""

import inspect
import math

import pytest
import torch

from unlearn.answers import Answers, ObjectiveError, PerToken
from unlearn.binding import READS, bind
from unlearn.losses import FORGET, RETAIN

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


NUMBERS = {
    "npo": {"beta": 0.3}, "simnpo": {"beta": 2.5, "gamma": 0.4}, "dpo": {"beta": 0.2}, "undial": {"beta": 3.0},
    "wga": {"beta": 0.5}, "satimp": {"beta1": 2.0, "beta2": 0.5}, "ap": {"beta": 0.7},
}  # fmt: skip


def naive(name: str, groups: list[tuple[torch.Tensor, Answers]]) -> torch.Tensor:
    """Each term written from its definition, token by token, in float64; ``groups`` in the order it reads them."""
    (logits, a), n = groups[0], NUMBERS.get(name, {})
    b = n.get("beta")
    tokens, answers = range(len(a.owner)), range(int(a.owner.max()) + 1)

    def p(t, group=0):
        x, given = groups[group]
        return x.softmax(-1)[t, given.labels[t]]

    def q(t, group=0):
        given = groups[group][1]
        return given.target_logits.softmax(-1)[t, given.labels[t]]

    def over(answer, value, group=0):
        return torch.stack([value(t) for t in tokens if groups[group][1].owner[t] == answer])

    def log_p(answer, group=0):
        return over(answer, lambda t: p(t, group).log(), group).sum()

    def ratio(answer, group=0):
        return over(answer, lambda t: (p(t, group) / q(t, group)).log(), group).sum()

    def mean_p(answer, group=0):
        return over(answer, lambda t: p(t, group), group).mean()

    def kl(t):
        reference, mine = a.target_logits.softmax(-1)[t], logits.softmax(-1)[t]
        return (reference * (reference / mine).log()).sum()

    def soft_ce(t, soft):
        return -(soft.detach() * logits[t].log_softmax(-1)).sum()

    def without_label(t):
        kept = [v for v in range(logits.shape[1]) if v != a.labels[t]]
        soft = logits[t].detach()[kept].softmax(-1)
        return -(soft * logits[t].log_softmax(-1)[kept]).sum()

    def later(answer):
        mine = [t for t in tokens if a.owner[t] == answer][1:]
        return torch.stack([without_label(t) for t in mine]).mean()

    def undial(t):
        lowered = a.target_logits[t].clone()
        lowered[a.labels[t]] -= b
        return soft_ce(t, lowered.softmax(-1))

    per_token = {
        "ga": lambda t: p(t).log(),
        "idk": lambda t: -p(t).log(),
        "nll": lambda t: -p(t).log(),
        "kl": kl,
        "nll_kl": lambda t: kl(t) - p(t).log(),
        "undial": undial,
        "wga": lambda t: p(t).detach() ** b * p(t).log(),
        "satimp": lambda t: p(t).detach() ** n["beta1"] * (1 - p(t).detach()) ** n["beta2"] * p(t).log(),
        "me": lambda t: sum(1 / 6 * ((1 / 6) / pv).log() for pv in logits[t].softmax(-1)),
    }
    per_answer = {
        "npo": lambda i: -2 / b * torch.sigmoid(-b * ratio(i)).log(),
        "simnpo": lambda i: -2 / b * torch.sigmoid(-b * over(i, lambda t: p(t).log()).mean() - n["gamma"]).log(),
        "dpo": lambda i: -2 / b * torch.sigmoid(b * (ratio(i, 1) - ratio(i, 0))).log(),
        "ceu": later,
        "flat_tv": lambda i: -torch.tanh(mean_p(i, 1)) / 2 + torch.tanh(mean_p(i)) / 2,
        "flat_kl": lambda i: -mean_p(i, 1) + (mean_p(i) - 1).exp(),
        "flat_pearson": lambda i: -mean_p(i, 1) + mean_p(i) ** 2 / 4 + mean_p(i),
        "ap": lambda i: -1 / b * torch.sigmoid(b * (log_p(i, 0) - log_p(i, 1))).log(),
    }
    if name in per_token:
        return torch.stack([per_token[name](t) for t in tokens])
    return torch.stack([per_answer[name](i) for i in answers])


@pytest.mark.parametrize("name", [*FORGET, *(r for r in RETAIN if r != "none")])
def test_value_and_gradient_equal_a_naive_float64_implementation(name):
    term = (FORGET | RETAIN)[name]
    reads = [r for r in inspect.signature(term).parameters if r in READS]
    logits = [torch.randn(10, 6, dtype=torch.float64, requires_grad=True) for _ in reads]
    values = term(*(random_answers(x, seed) for seed, x in enumerate(logits)), **NUMBERS.get(name, {}))
    expected = naive(name, [(x, random_answers(x.detach(), seed)) for seed, x in enumerate(logits)])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    for gradient, right in zip(
        torch.autograd.grad(values.sum(), logits), torch.autograd.grad(expected.sum(), logits), strict=True
    ):
        torch.testing.assert_close(gradient, right, rtol=1e-11, atol=1e-12)


def test_undial_wants_the_targets_distribution_without_the_answer(answers):
    # row 0: P_target = (.25, .5, .25), label 0 lowered by ln 2: (.125, .5, .25) / .875; P = (.5, .25, .25)
    value = FORGET["undial"](answers, beta=LN2)[0].item()
    assert value == pytest.approx((0.125 * LN2 + 0.5 * 2 * LN2 + 0.25 * 2 * LN2) / 0.875)


def test_maximal_entropy_is_reached_at_the_uniform_distribution():
    flat = Answers(torch.zeros(3, 5, dtype=torch.float64), torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    assert FORGET["me"](flat).tolist() == pytest.approx([0, 0, 0], abs=1e-12)


def test_weighted_ascent_becomes_plain_ascent_as_its_exponents_vanish(answers):
    ascent = FORGET["ga"](answers)
    torch.testing.assert_close(FORGET["wga"](answers, beta=0.0), ascent)
    torch.testing.assert_close(FORGET["satimp"](answers, beta1=0.0, beta2=0.0), ascent)


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
        ("npo", ("forget",), False, 1.0),
        ("kl", ("retain",), True, 5.0),
    ]
    assert bind("dpo", "ap", 1, 1, {"beta": 0.1})[1].reads == ("retain", "retain_refusal")
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
        with pytest.raises(ObjectiveError, match="must take one or more of forget, refusal, retain"):
            bind("mine", "none", 1.0, 1.0, {})


def test_a_term_that_compares_with_the_target_says_so_when_it_has_none():
    answers = Answers(torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    with pytest.raises(ObjectiveError, match="compares with the target"):
        FORGET["npo"](answers, beta=0.1)
