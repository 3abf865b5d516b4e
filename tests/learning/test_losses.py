"""Objectives against arithmetic written out by hand, and how they are bound; test_gradients.py has their gradients."""

import dataclasses
import math

import pytest
import torch

from unlearn.learning.answers import Answers, PerToken
from unlearn.learning.binding import bind
from unlearn.learning.losses import FORGET, RETAIN

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


KL = [0.25 * LN2, 0, 1.25 * LN2 - 0.25 * math.log(3), 0, 0.25 * LN2]  # by row, worked out at "kl"
MEAN_KL = [sum(KL[:2]) / 2, sum(KL[2:]) / 3]
PUSHED, UNSAID = [math.log(1 + math.exp(-2 * k)) for k in KL], [math.log(1 + r**2) for r in (2, 1, 0.25, 1, 0.5)]
HAND = [
    ("ga", {}, [-LN2, -2 * LN2, -3 * LN2, -LN2, -2 * LN2]),
    ("idk", {}, [LN2, 2 * LN2, 3 * LN2, LN2, 2 * LN2]),
    ("nll", {}, [LN2, 2 * LN2, 3 * LN2, LN2, 2 * LN2]),
    # answer 0: log-ratio ln(.5·.25 / .25·.25) = ln 2; answer 1: ln(.125·.5·.25 / .5·.5·.5) = −3 ln 2
    # −(2/β) ln σ(−β·ratio) with β = 2: ln(1 + 2²) and ln(1 + 2⁻⁶)
    ("npo", {"beta": 2.0}, [math.log(5), math.log(1 + 2**-6)]),
    # mean log P: −1.5 ln 2 and −2 ln 2; −(2/β) ln σ(−β·mean − γ) with β = 2, γ = ln 3: ln(1 + 3·2⁻³), ln(1 + 3·2⁻⁴)
    ("simnpo", {"beta": 2.0, "gamma": math.log(3)}, [math.log(1 + 3 / 8), math.log(1 + 3 / 16)]),
    # row 0: .25 ln(.25/.5) + .5 ln(.5/.25) + .25 ln(.25/.25) = .25 ln 2; row 1: equal; row 2:
    # .25 ln(.25/.75) + .5 ln(.5/.125) + .25 ln(.25/.125) = −.25 ln 3 + ln 2 + .25 ln 2; row 4: .25 ln .5 + .5 ln 2
    ("kl", {}, KL),
    # row 0: P_target = (.25, .5, .25), label 0 lowered by ln 2: (.125, .5, .25) / .875; P = (.5, .25, .25)
    ("undial", {"beta": LN2}, [(0.125 * LN2 + 0.5 * 2 * LN2 + 0.25 * 2 * LN2) / 0.875]),
    # the KL, and the text's log P: −ln 2 (1, 2 | 3, 1, 2). Means of each answer
    ("eul", {"forget_kl": 1.0, "gamma": 0.2}, [-MEAN_KL[0] - 0.2 * 1.5 * LN2, -MEAN_KL[1] - 0.2 * 2 * LN2]),
    ("eul_retain", {"retain_kl": 0.8, "task": 1.0}, [0.8 * MEAN_KL[0] + 1.5 * LN2, 0.8 * MEAN_KL[1] + 2 * LN2]),
    # NPO's form of either part, β = 2: ln(1 + e^{−2 KL}); ln(1 + (P/P_target)²) of the text, ratios 2, 1 | ¼, 1, ½
    ("eul_bounded", {"forget_kl": 1.0, "gamma": 0.2, "beta": 2.0},
     [sum(PUSHED[:2]) / 2 + 0.2 * sum(UNSAID[:2]) / 2, sum(PUSHED[2:]) / 3 + 0.2 * sum(UNSAID[2:]) / 3]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "numbers", "expected"), HAND, ids=[name for name, *_ in HAND])
def test_a_term_has_the_values_worked_out_by_hand(answers, name, numbers, expected):
    reads = 2 if name in ("eul", "eul_bounded") else 1
    values = (FORGET | RETAIN)[name](*[answers] * reads, **numbers)
    assert values.tolist()[: len(expected)] == pytest.approx(expected)


def test_kl_is_exactly_zero_at_the_target_and_maximal_entropy_is_reached_at_the_uniform_distribution():
    logits = torch.randn(50, 30)
    answers = Answers(logits, torch.zeros(50, dtype=torch.long), torch.arange(50), logits.clone())
    assert answers.kl.eq(0).all()
    flat = Answers(torch.zeros(3, 5, dtype=torch.float64), torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    assert FORGET["me"](flat).tolist() == pytest.approx([0, 0, 0], abs=1e-12)


def test_weighted_ascent_becomes_plain_ascent_as_its_exponents_vanish(answers):
    ascent = FORGET["ga"](answers)
    torch.testing.assert_close(FORGET["wga"](answers, beta=0.0), ascent)
    torch.testing.assert_close(FORGET["satimp"](answers, beta1=0.0, beta2=0.0), ascent)


def test_the_margin_is_how_far_the_largest_logit_is_above_the_mean_one():
    # row 0: max 4, mean 1; a constant on a row changes neither; row 1: all equal, nothing left to flatten
    logits = torch.tensor([[4.0, -1.0, 0.0], [7.0, 7.0, 7.0]])
    answers = Answers(logits + torch.tensor([[10.0], [-3.0]]), torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert FORGET["margin"](answers).tolist() == [9.0, 0.0]


def test_altpo_is_dpo_with_another_answer_in_the_place_of_the_refusal(answers):
    other = dataclasses.replace(answers, rows=answers.logits.flip(-1))
    # log-ratios of the answers: ln 2 and −3 ln 2. Of the flipped rows: P(labels) = .25 .25 | .125 .25 .25, so
    # ln(.25·.25 / .25·.25) = 0 and ln(.125·.25·.25 / .5·.5·.5) = −4 ln 2. −(2/β) ln σ(β(other − own)), β = 2:
    values = FORGET["altpo"](answers, other, beta=2.0)
    assert values.tolist() == pytest.approx([math.log(1 + 2**2), math.log(1 + 2**2)])
    torch.testing.assert_close(values, FORGET["dpo"](answers, other, beta=2.0), rtol=0, atol=0)


def test_distillation_of_the_target_is_kl_and_a_temperature_softens_both_sides_but_not_its_gradient(answers):
    taught = dataclasses.replace(answers, teacher_logits=lambda _: answers.reference - 5.0)
    for term in (FORGET["distill"], RETAIN["distill_retain"]):
        torch.testing.assert_close(term(taught, temperature=1.0), RETAIN["kl"](answers))
    # T = 2 on ln 4 and ln 9 : 1 gives 2 : 1 and 3 : 1; T² KL = 4 (⅔ ln(⅔ / ¾) + ⅓ ln(⅓ / ¼))
    teacher, logits = rows([[0.8, 0.2]]), rows([[0.9, 0.1]])
    answers = Answers(logits, torch.tensor([1]), torch.tensor([0]), teacher_logits=lambda _: teacher)
    expected = 4 * (2 / 3 * math.log(8 / 9) + 1 / 3 * math.log(4 / 3))
    assert FORGET["distill"](answers, temperature=2.0).tolist() == pytest.approx([expected])


def test_memorising_is_gradient_ascent_reversed_and_uniform_is_least_where_nothing_is_known(answers):
    torch.testing.assert_close(FORGET["memorize"](answers), -FORGET["ga"](answers))
    # row 0: −(ln ½ + 2 ln ¼) / 3 = 5/3 ln 2; the flat row: ln 3, and no row has less
    flat = dataclasses.replace(answers, rows=torch.zeros(5, 3, dtype=torch.float64))
    assert RETAIN["uniform"](answers)[0].item() == pytest.approx(5 / 3 * LN2)
    assert RETAIN["uniform"](flat).tolist() == pytest.approx([math.log(3)] * 5)
    assert (RETAIN["uniform"](answers) > math.log(3)).all()


def with_hidden(hidden: torch.Tensor, target: torch.Tensor | None = None) -> Answers:
    n = len(hidden)
    return Answers(torch.zeros(n, 3), torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long),
                   hidden=hidden, reference_hidden=target)  # fmt: skip


def test_rmu_steers_every_token_to_one_direction_of_the_asked_length():
    # from h = 0 the value is |scale · u|² / D = scale² / D; and it is 0 at one point only, the same for all tokens
    assert FORGET["rmu"](with_hidden(torch.zeros(2, 8)), layer=0, scale=6.0).tolist() == pytest.approx([36 / 8] * 2)
    hidden = torch.randn(3, 8, requires_grad=True)
    FORGET["rmu"](with_hidden(hidden), layer=0, scale=6.0).sum().backward()
    there = (hidden - hidden.grad * 8 / 2).detach()  # of a square, half the gradient leads to the minimum
    torch.testing.assert_close(there[0], there[2])
    torch.manual_seed(99)  # the direction does not hang on the global stream of random numbers
    assert FORGET["rmu"](with_hidden(there), layer=0, scale=6.0).tolist() == pytest.approx([0] * 3, abs=1e-9)
    # and staying is the mean square of what hidden states moved
    hidden, target = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0], [0.0, 8.0]])
    assert RETAIN["stay"](with_hidden(hidden, target), layer=0).tolist() == [0.0, 12.5]


def test_binding_checks_the_numbers_of_a_term():
    terms = bind("npo", "kl", 1.0, 5.0, {"beta": 0.1, "gamma": None})
    assert [(t.name, t.reads, t.per_token, t.weight) for t in terms] == [
        ("npo", ("forget",), False, 1.0),
        ("kl", ("retain",), True, 5.0),
    ]
    assert bind("dpo", "ap", 1, 1, {"beta": 0.1})[1].reads == ("retain", "retain_refusal")
    assert [t.reads for t in bind("idk", "nll", 1, 1, {})] == [("refusal",), ("retain",)]
    with pytest.raises(ValueError, match="needs algo.beta"):
        bind("npo", "none", 1.0, 1.0, {"beta": None})
    with pytest.raises(ValueError, match="neither 'ga' nor 'nll' has it"):
        bind("ga", "nll", 1.0, 1.0, {"beta": 0.1})
    with pytest.raises(ValueError, match="no such forget term; there are ga"):
        bind("gaa", "nll", 1.0, 1.0, {})
    # a layer is of a term that reads hidden states; a text belongs with forget questions alone
    assert [t.layer for t in bind("rmu", "stay", 1, 1, {"layer": 1.0, "scale": 5.0})] == [1, 1]
    assert [t.layer for t in bind("ga", "nll", 1, 1, {})] == [None, None]
    more = {"gamma": 0.2, "forget_kl": 1, "retain_kl": 1, "task": 1}
    assert bind("eul", "eul_retain", 1, 1, more)[0].reads == ("forget", "forget_text")
    for given, lacking in (({"layer": 0.0}, "scale"), ({"gamma": 0.2}, "forget_kl")):
        with pytest.raises(ValueError, match=f"needs algo.numbers.{lacking}"):
            bind("rmu" if lacking == "scale" else "eul", "none", 1, 1, given)


def test_a_term_with_another_signature_is_refused(monkeypatch):
    def nameless(rows: Answers) -> PerToken:
        return rows.logp

    def scalar(forget: Answers) -> float:
        return 0.0

    for function in (nameless, scalar):
        monkeypatch.setitem(FORGET, "mine", function)
        with pytest.raises(ValueError, match="must take one or more of forget, refusal, alternates, forget_text, "):
            bind("mine", "none", 1.0, 1.0, {})


def test_a_term_that_compares_with_the_target_or_a_teacher_says_so_when_there_is_none():
    answers = Answers(torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="compares with the reference model"):
        FORGET["npo"](answers, beta=0.1)
    with pytest.raises(ValueError, match="learns from a teacher, and algo.teacher names none"):
        FORGET["distill"](answers, temperature=1.0)


# --- EUL ----------------------------------------------------------------------------------------------------------


def test_the_bounded_eul_has_a_floor_and_the_papers_has_none():
    """A label that loses all its probability: the one falls without end, the other's push ends."""
    target, labels, owner = rows([[0.9, 0.1]]), torch.tensor([0]), torch.tensor([0])
    found = {"eul": [], "eul_bounded": []}
    for depth in (0.0, 20.0, 2000.0):
        logits = (target - depth * torch.tensor([[1.0, 0.0]])).requires_grad_()
        forget = Answers(logits, labels, owner, target)
        for name, more in (("eul", {}), ("eul_bounded", {"beta": 1.0})):
            value = FORGET[name](forget, forget, forget_kl=1.0, gamma=0.2, **more)
            found[name].append(
                (value.item(), torch.autograd.grad(value, logits, retain_graph=True)[0].abs().sum().item())
            )
    assert found["eul"][2][0] < -2000 and found["eul"][2][1] > 1
    assert 0 <= found["eul_bounded"][2][0] < 1e-6 and found["eul_bounded"][2][1] < 1e-6
    assert found["eul_bounded"][1][1] < 1e-3 < found["eul_bounded"][0][1]
