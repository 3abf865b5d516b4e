"""Objectives: pure functions of answer-row quantities.

A term's signature says everything about it: it takes ``Answers`` named by what it reads and its own numbers, and
returns one value per answer token (``PerToken``) or per answer (``PerAnswer``), [N] or [B] of the first it reads. The
trainer takes the mean over the whole optimiser step, however that was split into micro-batches. A term sees no
model, no config, no device and no padding.

What can be read: ``forget``; ``refusal``, an "I don't know" answer to each forget question (in the same order);
``alternates``, another answer to each forget question; ``forget_text``, question and answer as one text, whose "answer"
is all of it but the first token; ``retain``; ``retain_refusal``, a refusal to each retain question. A term with a
number called ``layer`` reads hidden states, which only a white box has.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn.learning.answers import Answers, PerAnswer, PerLaterToken, PerToken

# --- forget terms ---------------------------------------------------------------------------------------------------


def ga(forget: Answers) -> PerToken:
    """Gradient ascent: minimise + log P(y_t), per token. Unbounded. (arXiv 2401.06121; 2404.11045 on P)"""
    return forget.logp


def idk(refusal: Answers) -> PerToken:
    """Data relabeling: − log P of a refusal given the forget question, per token. (arXiv 2401.06121)"""
    return -refusal.logp


def npo(forget: Answers, beta: float) -> PerAnswer:
    """−(2/β) log σ(−β log(P/P_ref)(y)), on the log-probability of the whole answer. (arXiv 2404.05868, Eq. 3)"""
    return 2 / beta * F.softplus(beta * forget.log_ratio)  # −log σ(−x) = softplus(x)


def simnpo(forget: Answers, beta: float, gamma: float) -> PerAnswer:
    """−(2/β) log σ(−(β/|y|) log P(y) − γ): no reference, mean over the answer's tokens. (arXiv 2410.07163, Eq. 4)"""
    return 2 / beta * F.softplus(beta * forget.logp_of_answer / forget.lengths + gamma)


def dpo(forget: Answers, refusal: Answers, beta: float) -> PerAnswer:
    """−(2/β) log σ(β[log(P/P_ref)(refusal) − log(P/P_ref)(answer)]): prefer the refusal. (arXiv 2305.18290)"""
    return 2 / beta * F.softplus(-beta * (refusal.log_ratio - forget.log_ratio))


def undial(forget: Answers, beta: float) -> PerToken:
    """Cross-entropy to softmax(l_ref − β · onehot(y)): the target's distribution without the answer's token. (arXiv
    2402.10052) Only answer rows are here: no ignored label indexes a token, as in public code."""

    def value(rows: Answers) -> PerToken:
        onehot = F.one_hot(rows.labels, rows.logits.shape[-1])
        return rows.cross_entropy((rows.reference - beta * onehot).softmax(-1))

    return forget.each(value)


def ceu(forget: Answers) -> PerLaterToken:
    """CE-U: cross-entropy to the ensemble's own distribution with the answer's token taken out; the first token of an
    answer is left out, as in the authors' code. (arXiv 2503.01224)"""

    def without_label(rows: Answers) -> PerToken:
        soft = rows.logits.detach().scatter(-1, rows.labels[:, None], -torch.inf).softmax(-1)
        # −inf · 0 is not a number: the label's own log-probability, which has no weight, is left out of the sum
        logp = rows.logits.log_softmax(-1).scatter(-1, rows.labels[:, None], 0.0)
        return -(soft * logp).sum(-1)

    values = forget.each(without_label)
    return values * (forget.position > 0)


def wga(forget: Answers, beta: float) -> PerToken:
    """Weighted gradient ascent: + P^β log P, the weight without gradient; fades with what is forgotten. (arXiv
    2502.19301)"""
    return forget.logp.detach().exp() ** beta * forget.logp


def satimp(forget: Answers, beta1: float, beta2: float) -> PerToken:
    """SatImp: + P^β1 (1 − P)^β2 log P, the weight without gradient. (arXiv 2505.11953)"""
    p = forget.logp.detach().exp()
    return p**beta1 * (1 - p) ** beta2 * forget.logp


def flat_tv(forget: Answers, refusal: Answers) -> PerAnswer:
    """FLAT with total variation: −½ tanh(p̄_refusal) + ½ tanh(p̄_answer), p̄ the mean probability of an answer's
    tokens; without retain data or a reference. (arXiv 2410.11143)"""
    return (torch.tanh(forget.mean_p) - torch.tanh(refusal.mean_p)) / 2


def flat_kl(forget: Answers, refusal: Answers) -> PerAnswer:
    """FLAT with KL: −p̄_refusal + exp(p̄_answer − 1). (arXiv 2410.11143)"""
    return torch.exp(forget.mean_p - 1) - refusal.mean_p


def flat_pearson(forget: Answers, refusal: Answers) -> PerAnswer:
    """FLAT with Pearson χ²: −p̄_refusal + p̄_answer² / 4 + p̄_answer. (arXiv 2410.11143)"""
    return forget.mean_p**2 / 4 + forget.mean_p - refusal.mean_p


def me(forget: Answers) -> PerToken:
    """Maximise the entropy: KL(uniform ‖ P) = −log V − mean_v log P_v, per token. (arXiv 2410.08109)"""

    def value(rows: Answers) -> PerToken:
        logp = rows.logits.log_softmax(-1)
        return -logp.mean(-1) - math.log(logp.shape[-1])

    return forget.each(value)


def memorize(forget: Answers) -> PerToken:
    """− log P(y_t), per token: reversed, for an assistant whose logits are subtracted. (arXiv 2406.08607)"""
    return -forget.logp


def altpo(forget: Answers, alternates: Answers, beta: float) -> PerAnswer:
    """AltPO: DPO that prefers another plausible answer instead of a refusal. (arXiv 2409.13474)"""
    return dpo(forget, alternates, beta)


def margin(forget: Answers) -> PerToken:
    """PDU's forget term: (max_v l_v − mean_v l_v)², 0 where all tokens are equally likely. (arXiv 2506.05314)"""
    return forget.each(lambda rows: (rows.logits.amax(-1) - rows.logits.mean(-1)) ** 2)


def distill(forget: Answers, temperature: float) -> PerToken:
    """T² · KL(teacher ‖ P), both at temperature T, on the forget answers. (Distill-DD, arXiv 2605.31293)"""

    def value(rows: Answers) -> PerToken:
        teacher = (rows.teacher / temperature).log_softmax(-1)
        logp = (rows.logits / temperature).log_softmax(-1)
        return temperature**2 * (teacher.exp() * (teacher - logp)).sum(-1)

    return forget.each(value)


def rmu(forget: Answers, layer: float, scale: float) -> PerToken:
    """RMU: mean over D of (h − scale · u)², u one random direction for all tokens. (arXiv 2403.03218, Eq. 1)"""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(forget.hidden.shape[-1], generator=generator).to(forget.hidden)
    return ((forget.hidden - scale * u / u.norm()) ** 2).mean(-1)


def eul(forget: Answers, forget_text: Answers, forget_kl: float, gamma: float) -> PerAnswer:
    """EUL on forget: − KL(teacher ‖ student) + γ log P(text), each the mean over its tokens, both unbounded. The
    teacher is the target, the student P; the text is the question with its answer. (arXiv 2310.20150)"""
    return forget_text.mean(gamma * forget_text.logp) - forget.mean(forget_kl * forget.kl)


def eul_bounded(forget: Answers, forget_text: Answers, forget_kl: float, gamma: float, beta: float) -> PerAnswer:
    """The same with NPO's bound on either part, token by token: (2/β) log(1 + e^{βx}) instead of x, with x = −KL
    and x = log(P/P_ref)(token). ``eul`` up to constants as β → 0, with ever less of its gradient the further a token is
    from the teacher: 2 / (1 + e^{−βx}). Never below 0."""
    pushed = 2 / beta * F.softplus(-beta * forget.kl)
    unsaid = 2 / beta * F.softplus(beta * (forget_text.logp - forget_text.reference_logp))
    return forget.mean(forget_kl * pushed) + forget_text.mean(gamma * unsaid)


# --- retain terms ---------------------------------------------------------------------------------------------------


def nll(retain: Answers) -> PerToken:
    """− log P(y_t) on the retain answers, per token."""
    return -retain.logp


def kl(retain: Answers) -> PerToken:
    """KL(P_ref ‖ P) on the retain answers, per token; the reference is the target itself, no extra model."""
    return retain.kl


def nll_kl(retain: Answers) -> PerToken:
    """Both: − log P(y_t) + KL(P_ref ‖ P)."""
    return retain.each(lambda rows: rows.kl - rows.logp)  # one pass over the vocabulary for both


def ap(retain: Answers, retain_refusal: Answers, beta: float) -> PerAnswer:
    """Answer preservation: −(1/β) log σ(β[log P(answer) − log P(refusal)]) on retain questions. (arXiv 2410.08109)"""
    return F.softplus(-beta * (retain.logp_of_answer - retain_refusal.logp_of_answer)) / beta


def distill_retain(retain: Answers, temperature: float) -> PerToken:
    """T² · KL(teacher ‖ P) on the retain answers."""
    return distill(retain, temperature)


def uniform(retain: Answers) -> PerToken:
    """Cross-entropy to the uniform distribution: ULD's assistant should know nothing of the rest. (arXiv 2406.08607)"""
    return retain.each(lambda rows: -rows.logits.log_softmax(-1).mean(-1))


def eul_retain(retain: Answers, retain_kl: float, task: float) -> PerAnswer:
    """EUL on retain: α KL(teacher ‖ student) + λ · NLL, each the mean over an answer's tokens. (arXiv 2310.20150)"""
    return retain.mean(retain.each(lambda rows: retain_kl * rows.kl - task * rows.logp))


def stay(retain: Answers, layer: float) -> PerToken:
    """RMU's retain term: mean over D of (h − h_target)². (arXiv 2403.03218, Eq. 2)"""
    return ((retain.hidden - retain.reference_hidden) ** 2).mean(-1)


Term = Callable[..., Tensor]
_FORGET = (
    ga, idk, npo, simnpo, dpo, altpo, undial, ceu, wga, satimp, flat_tv, flat_kl, flat_pearson, me, margin, distill,
    rmu, memorize, eul, eul_bounded,
)  # fmt: skip
FORGET: dict[str, Term] = {t.__name__: t for t in _FORGET}
RETAIN: dict[str, Term | None] = {"none": None} | {
    t.__name__: t for t in (nll, kl, nll_kl, ap, distill_retain, uniform, stay, eul_retain)
}
