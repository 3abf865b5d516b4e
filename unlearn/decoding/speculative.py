"""Decoding without stored drafts: a small member drafts a few tokens, and the ensemble checks them in one pass.

The draft is mostly the offset's, whose distribution is near the ensemble's where it knows the text. Checked γ tokens at
a time, the target runs once where plain decoding runs it once per token. What is said is the same: greedy answers token
for token, and samples by exact rejection (arXiv 2211.17192, Algorithm 1) from the ensemble's own distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from unlearn.decoding.generation import Rows, draw, ends_of, greedy, instead, padded, positions, sample, streams
from unlearn.decoding.states import state_of
from unlearn.decoding.ties import decide
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.models.llama import device_of

Propose = Callable[[Tensor, Sequence[int]], Tensor]  # the drafter's logits [B, V], which prompt each row is → [B]
# Members' rows [B, γ + 1, V], the drafter's likewise, its tokens [B, γ], which prompt each row is → what each row says,
# 1 to γ + 1 tokens; None gives the row up.
Check = Callable[[Rows, Tensor, Tensor, Sequence[int]], list[list[int] | None]]


@torch.no_grad()
def greedy_drafted(
    ensemble: Ensemble,
    prompts: Sequence[Sequence[int]],
    alpha: float,
    pad_id: int,
    eos_id: int,
    max_new_tokens: int,
    batch_size: int,
    drafter: Member,
    gamma: int,
) -> list[list[int]]:
    """As ``generation.greedy``, token for token: answers that hang on a near tie are left to it, and so are all where a
    member has an encoder."""
    if _encoders(ensemble):
        return greedy(ensemble, prompts, alpha, pad_id, eos_id, max_new_tokens, batch_size)

    def propose(logits: Tensor, which: Sequence[int]) -> Tensor:
        return logits.argmax(-1)

    def check(rows: Rows, own: Tensor, drafted: Tensor, which: Sequence[int]) -> list[list[int] | None]:
        token, sure = decide(ensemble, {name: r.flatten(0, 1) for name, r in rows.items()}, alpha)
        token, sure = token.view(own.shape[:2]), sure.view(own.shape[:2])
        right = _leading(token[:, :-1] == drafted)
        return [
            t[: n + 1] if all(s[: n + 1]) else None
            for t, s, n in zip(token.tolist(), sure.tolist(), right.tolist(), strict=True)
        ]

    ends = ends_of(ensemble, eos_id)
    found = _decode(
        ensemble, prompts, alpha, pad_id, ends, max_new_tokens, batch_size, drafter, gamma, propose, check
    )  # fmt: skip
    again = [i for i, answer in enumerate(found) if answer is None]
    return instead(found, again, ensemble, prompts, alpha, pad_id, eos_id, max_new_tokens, batch_size)


@torch.no_grad()
def sample_drafted(
    ensemble: Ensemble,
    prompts: Sequence[Sequence[int]],
    alpha: float,
    pad_id: int,
    eos_id: int,
    max_new_tokens: int,
    batch_size: int,
    temperature: float,
    seed: int,
    drafter: Member,
    gamma: int,
) -> list[list[int]]:
    """Answers distributed as those of ``generation.sample``, and drawn by streams of the same kind; not the same ones,
    since they use their random numbers otherwise. Where a member has an encoder, these are ``generation.sample``'s."""
    if _encoders(ensemble):
        return sample(ensemble, prompts, alpha, pad_id, eos_id, max_new_tokens, batch_size, temperature, seed)
    own_stream = streams(prompts, seed)

    def propose(logits: Tensor, which: Sequence[int]) -> Tensor:
        return draw(logits / temperature, [own_stream[i] for i in which])

    def check(rows: Rows, own: Tensor, drafted: Tensor, which: Sequence[int]) -> list[list[int] | None]:
        flat = ensemble.logits({name: r.flatten(0, 1) for name, r in rows.items()}, alpha)
        p = (flat.view(own.shape) / temperature).double().softmax(-1)
        q = (own[:, :-1] / temperature).double().softmax(-1)
        mine = [own_stream[i] for i in which]
        u = torch.stack([torch.rand(drafted.shape[1], generator=stream) for stream in mine]).to(p.device)
        right, then = accept(p, q, drafted, u)
        last = draw(then.log(), mine)
        return [[*d[:n], t] for d, n, t in zip(drafted.tolist(), right.tolist(), last.tolist(), strict=True)]

    ends = ends_of(ensemble, eos_id)
    return _decode(
        ensemble, prompts, alpha, pad_id, ends, max_new_tokens, batch_size, drafter, gamma, propose, check
    )  # fmt: skip


def accept(p: Tensor, q: Tensor, drafted: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """How many drafted tokens stand [B], and the distribution of the token after them [B, V].

    ``p`` [B, γ + 1, V] is what should be drawn from, ``q`` [B, γ, V] what ``drafted`` [B, γ] was drawn from, ``u``
    [B, γ] uniform in [0, 1). Token x stands with probability min(1, p(x) / q(x)); the first that does not is drawn
    again from max(p − q, 0), normalised, and after γ that stand comes one more from p.
    """
    at = drafted[..., None]
    stands = u * q.gather(-1, at)[..., 0] < p[:, :-1].gather(-1, at)[..., 0]
    right = _leading(stands)
    row = torch.arange(len(p), device=p.device)
    q = torch.cat([q, torch.zeros_like(q[:, :1])], dim=1)  # of one more nothing was drafted
    rest = (p[row, right] - q[row, right]).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p[row, right])  # p = q up to rounding
    return right, rest / rest.sum(-1, keepdim=True)


def _leading(right: Tensor) -> Tensor:
    """How many are true before the first that is not, [B] of [B, γ]."""
    return right.long().cumprod(-1).sum(-1)


def _decode(
    ensemble: Ensemble,
    prompts: Sequence[Sequence[int]],
    alpha: float,
    pad_id: int,
    ends: Collection[int],
    max_new_tokens: int,
    batch_size: int,
    drafter: Member,
    gamma: int,
    propose: Propose,
    check: Check,
) -> list[list[int] | None]:
    """Answers without their ends; None for those that were given up."""
    if gamma < 1:
        raise ValueError(f"gamma={gamma}: must be at least 1 drafted token")
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: list[list[int] | None] = [[] for _ in prompts]
    for start in range(0, len(order) if max_new_tokens > 0 else 0, batch_size):
        indices = order[start : start + batch_size]
        batch = _Batch(ensemble.needed([alpha]), drafter, [prompts[i] for i in indices], pad_id, max_new_tokens)
        while indices:
            rows, own, drafted = batch.round(gamma, lambda logits, now=indices: propose(logits, now))
            keep, said = [], check(rows, own, drafted, indices)
            for place, (i, tokens) in enumerate(zip(indices, said, strict=True)):
                answers[i], going = _append(answers[i], tokens, ends, max_new_tokens)
                if going:
                    keep.append(place)
            indices = [indices[place] for place in keep]
            batch.go_on(keep, [said[place] for place in keep])
    return answers


def _encoders(ensemble: Ensemble) -> bool:
    """Whether a member reads prompts by an encoder: then nothing can be drafted behind them."""
    return ensemble.encodes


def _append(
    answer: list[int], tokens: list[int] | None, ends: Collection[int], most: int
) -> tuple[list[int] | None, bool]:
    """The longer answer, and whether it goes on."""
    if tokens is None:
        return None, False
    for t in tokens:
        if t in ends:
            return answer, False
        answer.append(t)
        if len(answer) == most:
            return answer, False
    return answer, True


class _Batch:
    """Rows that have read all they said but their last token, which is next; a state per member, padded on the left.

    The states keep every position whatever the models' windows: what was read in vain must be forgotten again.
    """

    def __init__(
        self, members: Sequence[Member], drafter: Member, prompts: Sequence[Sequence[int]], pad_id: int, most: int
    ):
        self.needed = [m.name for m in members]
        self.drafter, self.others = drafter, [m for m in members if m.name != drafter.name]
        self.device = device_of(members[0].model)
        self.states = {m.name: state_of(m.model, whole=True) for m in (drafter, *self.others)}
        self.last = torch.tensor([[p[-1]] for p in prompts], device=self.device)  # [B, 1] what is next to be read
        self.final = torch.tensor([[len(p) + most - 1] for p in prompts], device=self.device)  # the last position
        ids, self.mask = padded([p[:-1] for p in prompts], pad_id, self.device)
        for m in (drafter, *self.others):
            m.model.eval()
            if ids.shape[1]:
                self.states[m.name].take(ids, self.mask, positions(self.mask))

    def round(self, gamma: int, propose: Callable[[Tensor], Tensor]) -> tuple[Rows, Tensor, Tensor]:
        """Draft γ tokens and read them all: rows [B, γ + 1, V] by member, the drafter's own, and the draft [B, γ]."""
        start, ids, own = self.mask.sum(-1, keepdim=True), self.last, []
        mask = torch.cat([self.mask, self.mask.new_ones(len(ids), gamma + 1)], dim=1)
        width = self.mask.shape[1]
        # Positions after the longest answer's are read for nothing, and some models have none there.
        at = torch.minimum(start + torch.arange(gamma + 1, device=self.device), self.final)
        for k in range(gamma + 1):
            seen = mask[:, : width + k + 1]
            own.append(self._logits(self.drafter, ids[:, k:], seen, at[:, k : k + 1]))
            if k < gamma:
                ids = torch.cat([ids, propose(own[k][:, 0])[:, None]], dim=1)
        rows = {m.name: self._logits(m, ids, mask, at) for m in self.others}
        own = torch.cat(own, dim=1)
        self.mask, self.just_read = mask, gamma + 1
        return rows | ({self.drafter.name: own} if self.drafter.name in self.needed else {}), own, ids[:, 1:]

    def go_on(self, keep: list[int], said: list[list[int]]) -> None:
        """Keep these rows, each with what it said in this round; forget what was read beyond that."""
        if not keep:
            return
        self.last = torch.tensor([[tokens[-1]] for tokens in said], device=self.device)
        self.final = self.final[keep]
        # Columns move to the right until all rows end together again; what is padding in all of them is dropped.
        longest = max(map(len, said))
        width = self.mask.shape[1] - self.just_read + longest
        behind = torch.tensor([[longest - len(tokens)] for tokens in said], device=self.device)
        columns = torch.arange(width, device=self.device) - behind  # [B, width] where each comes from
        mask = self.mask[keep].gather(1, columns.clamp(min=0)) * (columns >= 0)
        first = int(mask.any(0).int().argmax())
        self.mask, columns = mask[:, first:], columns.clamp(min=0)[:, first:, None]
        for state in self.states.values():
            state.rewind(keep, columns)

    def _logits(self, m: Member, ids: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        return self.states[m.name].read(ids, mask, at).to(self.device)
