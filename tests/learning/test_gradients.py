"""Values and gradients of every term against its definition written out in float64, and limits that link terms."""

import inspect
import math

import pytest
import torch

from unlearn.learning.answers import Answers
from unlearn.learning.binding import READS
from unlearn.learning.losses import FORGET, RETAIN


def random_answers(logits: torch.Tensor, seed: int = 0, hidden: torch.Tensor | None = None) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, logits.shape[1], (len(logits),), generator=generator)
    owner = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    target, teacher = (torch.randn(logits.shape, generator=generator, dtype=logits.dtype) for _ in range(2))
    before = torch.randn(len(logits), 4, generator=generator, dtype=logits.dtype)
    return Answers(logits, labels, owner, target, teacher.__getitem__, hidden, before)


NUMBERS = {
    "npo": {"beta": 0.3}, "simnpo": {"beta": 2.5, "gamma": 0.4}, "dpo": {"beta": 0.2}, "undial": {"beta": 3.0},
    "wga": {"beta": 0.5}, "satimp": {"beta1": 2.0, "beta2": 0.5}, "ap": {"beta": 0.7}, "altpo": {"beta": 0.4},
    "distill": {"temperature": 1.7}, "distill_retain": {"temperature": 0.6}, "rmu": {"layer": 0, "scale": 3.0},
    "stay": {"layer": 0}, "eul": {"forget_kl": 1.3, "gamma": 0.2}, "eul_retain": {"retain_kl": 0.8, "task": 1.1},
    "eul_bounded": {"forget_kl": 1.3, "gamma": 0.2, "beta": 0.7},
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
        return given.reference_logits.softmax(-1)[t, given.labels[t]]

    def over(answer, value, group=0):
        return torch.stack([value(t) for t in tokens if groups[group][1].owner[t] == answer])

    def log_p(answer, group=0):
        return over(answer, lambda t: p(t, group).log(), group).sum()

    def ratio(answer, group=0):
        return over(answer, lambda t: (p(t, group) / q(t, group)).log(), group).sum()

    def mean_p(answer, group=0):
        return over(answer, lambda t: p(t, group), group).mean()

    def bounded(x):  # −(2/β) log σ(−βx)
        return -2 / b * torch.sigmoid(-b * x).log()

    def mean_kl(answer, of=lambda x: x):
        return over(answer, lambda t: of(kl(t))).mean()

    def log_of_text(answer, of=lambda x, start: x):
        return over(answer, lambda t: of(p(t, 1).log(), q(t, 1).log()), 1).mean()

    def kl(t):
        reference, mine = a.reference_logits.softmax(-1)[t], logits.softmax(-1)[t]
        return (reference * (reference / mine).log()).sum()

    def soft_ce(t, soft):
        return -(soft.detach() * logits[t].log_softmax(-1)).sum()

    def distilled(t):
        temperature = n["temperature"]
        taught, mine = ((x[t] / temperature).softmax(-1) for x in (a.teacher, logits))
        return temperature**2 * sum(taught[v] * (taught[v] / mine[v]).log() for v in range(logits.shape[1]))

    def margin(t):
        return (max(logits[t]) - sum(logits[t]) / logits.shape[1]) ** 2

    def distance(t, to):
        return sum((a.hidden[t, d] - to[d]) ** 2 for d in range(4)) / 4

    def direction():
        u = torch.rand(4, generator=torch.Generator().manual_seed(0)).double()
        return u / sum(x**2 for x in u) ** 0.5

    def without_label(t):
        kept = [v for v in range(logits.shape[1]) if v != a.labels[t]]
        soft = logits[t].detach()[kept].softmax(-1)
        return -(soft * logits[t].log_softmax(-1)[kept]).sum()

    def later(t):
        return without_label(t) if t > 0 and a.owner[t] == a.owner[t - 1] else torch.zeros((), dtype=torch.float64)

    def undial(t):
        lowered = a.reference_logits[t].clone()
        lowered[a.labels[t]] -= b
        return soft_ce(t, lowered.softmax(-1))

    per_token = {
        "ga": lambda t: p(t).log(),
        "idk": lambda t: -p(t).log(),
        "nll": lambda t: -p(t).log(),
        "kl": kl,
        "nll_kl": lambda t: kl(t) - p(t).log(),
        "undial": undial,
        "memorize": lambda t: -p(t).log(),
        "margin": margin,
        "distill": distilled,
        "distill_retain": distilled,
        "uniform": lambda t: -sum(1 / 6 * pv.log() for pv in logits[t].softmax(-1)),
        "rmu": lambda t: distance(t, n["scale"] * direction()),
        "stay": lambda t: distance(t, a.reference_hidden[t]),
        "wga": lambda t: p(t).detach() ** b * p(t).log(),
        "satimp": lambda t: p(t).detach() ** n["beta1"] * (1 - p(t).detach()) ** n["beta2"] * p(t).log(),
        "ceu": later,
        "me": lambda t: sum(1 / 6 * ((1 / 6) / pv).log() for pv in logits[t].softmax(-1)),
    }
    per_answer = {
        "npo": lambda i: -2 / b * torch.sigmoid(-b * ratio(i)).log(),
        "simnpo": lambda i: -2 / b * torch.sigmoid(-b * over(i, lambda t: p(t).log()).mean() - n["gamma"]).log(),
        "dpo": lambda i: -2 / b * torch.sigmoid(b * (ratio(i, 1) - ratio(i, 0))).log(),
        "altpo": lambda i: -2 / b * torch.sigmoid(b * ratio(i, 1) - b * ratio(i, 0)).log(),
        "flat_tv": lambda i: -torch.tanh(mean_p(i, 1)) / 2 + torch.tanh(mean_p(i)) / 2,
        "flat_kl": lambda i: -mean_p(i, 1) + (mean_p(i) - 1).exp(),
        "flat_pearson": lambda i: -mean_p(i, 1) + mean_p(i) ** 2 / 4 + mean_p(i),
        "eul": lambda i: -n["forget_kl"] * mean_kl(i) + n["gamma"] * log_of_text(i),
        "eul_bounded": lambda i: (
            n["forget_kl"] * mean_kl(i, lambda x: bounded(-x))
            + n["gamma"] * log_of_text(i, lambda x, start: bounded(x - start))
        ),
        "eul_retain": lambda i: n["retain_kl"] * mean_kl(i) - n["task"] * over(i, lambda t: p(t).log()).mean(),
        "ap": lambda i: -1 / b * torch.sigmoid(b * (log_p(i, 0) - log_p(i, 1))).log(),
    }
    if name in per_token:
        return torch.stack([per_token[name](t) for t in tokens])
    return torch.stack([per_answer[name](i) for i in answers])


@pytest.mark.parametrize("name", [*FORGET, *(r for r in RETAIN if r != "none")])
def test_value_and_gradient_equal_a_naive_float64_implementation(name):
    term = (FORGET | RETAIN)[name]
    reads = [r for r in inspect.signature(term).parameters if r in READS]
    logits, hidden = (
        [torch.randn(10, width, dtype=torch.float64, requires_grad=True) for _ in reads] for width in (6, 4)
    )
    given = list(zip(logits, hidden, strict=True))
    values = term(*(random_answers(x, seed, h) for seed, (x, h) in enumerate(given)), **NUMBERS.get(name, {}))
    expected = naive(name, [(x, random_answers(x.detach(), seed, h)) for seed, (x, h) in enumerate(given)])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    found, right = (
        torch.autograd.grad(v.sum(), [*logits, *hidden], allow_unused=True, materialize_grads=True)
        for v in (values, expected)
    )
    for gradient, wanted in zip(found, right, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-12)
    assert any(gradient.any() for gradient in found)


def test_as_beta_vanishes_npo_becomes_gradient_ascent_and_the_bounded_eul_the_papers():
    logits = [torch.randn(10, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    answers, more = [random_answers(x, seed) for seed, x in enumerate(logits)], {"forget_kl": 1.0, "gamma": 0.2}
    npo = FORGET["npo"](answers[0], beta=1e-6) - 2 * math.log(2) / 1e-6  # its constant
    ascent = answers[0].per_answer(FORGET["ga"](answers[0]) - answers[0].reference_logp)
    torch.testing.assert_close(npo, ascent, rtol=1e-4, atol=1e-4)
    pairs = (npo, ascent), (FORGET["eul_bounded"](*answers, beta=1e-7, **more), FORGET["eul"](*answers, **more))
    for near, plain in pairs:
        found, expected = (
            torch.autograd.grad(v.sum(), logits, retain_graph=True, allow_unused=True, materialize_grads=True)
            for v in (near, plain)
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_loss_pulls_at_the_ensembles_residual():
    """∂ − log P(y) / ∂ logits = P − onehot(y), the identity that δ-Unlearning trains the offset with."""
    logits = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    answers = random_answers(logits)
    (gradient,) = torch.autograd.grad(RETAIN["nll"](answers).sum(), logits)
    onehot = torch.nn.functional.one_hot(answers.labels, 6)
    torch.testing.assert_close(gradient, logits.softmax(-1) - onehot)
