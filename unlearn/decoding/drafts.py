"""Greedy decoding by draft and verification: somebody proposes tokens, and the ensemble checks them in one pass. The
target's own stored answers (``greedy_from_drafts``) are mostly checked by the offset alone; or a small member drafts γ
tokens at a time (``greedy_drafted``; arXiv 2211.17192). Both give what ``generation.greedy`` gives, token for token:
where the likeliest tokens nearly tie, the whole answer is left to ``greedy``; of members in half precision, in which
plain decoding itself differs from batch to batch there, what follows the tie is decoded token by token."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unlearn.data.encoding import Example, Examples
from unlearn.decoding.choosing import decide, full_precision
from unlearn.decoding.generation import Batch, Decoding, batches, decode, ended, ends_of, greedy, without_ends
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.ensemble.frozen import FrozenRows, LiveRows, read, rows_of
from unlearn.models.seen import keeping_answers, seen
from unlearn.store import processes
from unlearn.store.entries import Store
from unlearn.store.files import read_json, write_json
from unlearn.store.identity import digest

FILE, FILE_READ = "draft.json", "read.npy"
Prompts = Sequence[Sequence[int]]
# The tokens that agree with a draft and, where the ensemble prefers another, that one; and whether it is too near a tie
# to say which token is next.
Begun = tuple[list[int], bool]


@torch.no_grad()
def greedy_from_drafts(
    ensemble: Ensemble, prompts: Prompts, alpha: float, how: Decoding, store: Store, most_gib: float
) -> list[list[int]]:
    """As ``greedy``, with drafts from the store. Rows along them that take more than ``most_gib`` are computed when
    needed, as those of answers are. Without a frozen member to draft, or where one has an encoder, which a draft would
    have to go around, this is ``greedy``; a frozen member alone is its own draft.
    """
    ensemble = ensemble.once
    base = next((m for m in ensemble.members if m.constant and not m.trained), None)
    if base is None or not prompts or ensemble.encodes:
        return greedy(ensemble, prompts, alpha, how)
    drafts = drafts_of(store, base, prompts, how)
    if len(ensemble.members) == 1 and base.weight(alpha) == 1 and not base.kind.whole_answers:
        if seen(base.model) is not None:
            _along(store, base, drafts, how, most_gib)  # while its prompts are at hand: ensembles will ask for them
        return without_ends([list(d.answer) for d in drafts], ensemble, how)
    rows = {m.name: _along(store, m, drafts, how, most_gib) for m in ensemble.frozen(alpha)}
    return processes.spread(
        list(map(tuple, prompts)), lambda own: _from_drafts(ensemble, drafts, alpha, how, rows, own)
    )


def _from_drafts(
    ensemble: Ensemble, drafts: Examples, alpha: float, how: Decoding, rows: Mapping[str, FrozenRows | LiveRows],
    own: list[int],
) -> list[list[int]]:  # fmt: skip
    """Answers to some of the prompts."""
    ends, most = ends_of(ensemble, how.eos_id), how.max_new_tokens
    # where half precision leaves a doubt, plain decoding differs from batch to batch: what follows is as good
    exact = full_precision(ensemble.needed([alpha]))
    answers: dict[int, list[int]] = {}
    doubtful: set[int] = set()
    undone: set[int] = set()
    with keeping_answers():
        for indices, _, found in read(ensemble, drafts, [alpha], rows, how.pad_id, how.batch_size, among=own):
            token, sure = (iter(t.tolist()) for t in decide(ensemble, found, alpha))
            for i in indices:
                draft = drafts[i].answer
                agreed, unsure = _compare(draft, list(islice(token, len(draft))), list(islice(sure, len(draft))))
                answers[i] = _closed(agreed, ends)
                if not ended(answers[i], ends, most):
                    (doubtful if unsure and exact else undone).add(i)
    open_ = sorted(undone)

    def choose(found: Mapping[str, Tensor], which: Sequence[int], step: int) -> Tensor:
        token, sure = decide(ensemble, found, alpha)
        doubtful.update(open_[i] for i, known in zip(which, sure.tolist(), strict=True) if exact and not known)
        return token

    texts, limits = [(*drafts[i].prompt, *answers[i]) for i in open_], [most - len(answers[i]) for i in open_]
    for i, rest in zip(open_, decode(ensemble, texts, alpha, how, choose, limits), strict=True):
        answers[i] += rest
    place = {i: k for k, i in enumerate(own)}
    asked = [place[i] for i in doubtful], ensemble, [drafts[i].prompt for i in own], alpha, how
    return _with_greedy([answers[i] for i in own], *asked)


@torch.no_grad()
def greedy_drafted(
    ensemble: Ensemble, prompts: Prompts, alpha: float, how: Decoding, drafter: Member, gamma: int
) -> list[list[int]]:
    """As ``greedy``, with γ tokens at a time drafted by one member; all of it where a member has an encoder."""
    if ensemble.encodes:
        return greedy(ensemble, prompts, alpha, how)
    if gamma < 1:
        raise ValueError(f"gamma={gamma}: must be at least 1 drafted token")
    ends, most = ends_of(ensemble, how.eos_id), how.max_new_tokens
    others = [m for m in ensemble.needed([alpha]) if m.name != drafter.name]
    answers: list[list[int]] = [[] for _ in prompts]
    doubtful: set[int] = set()
    for indices in batches(prompts, how.batch_size, [most] * len(prompts)):
        some = [prompts[i] for i in indices]
        # Positions after the longest answer's are read for nothing, and some models have none there.
        last = max(map(len, some)) + most - 1
        batch = Batch([*others, drafter], some, how.pad_id, indices, whole=True, last=last)
        while batch.rows:
            begun = _round(ensemble, batch, alpha, drafter, gamma)
            keep = []
            for place, (i, (agreed, unsure)) in enumerate(zip(batch.rows, begun, strict=True)):
                answers[i] = _closed(answers[i] + agreed, ends)[:most]
                if ended(answers[i], ends, most):
                    continue
                if unsure:
                    doubtful.add(i)
                else:
                    keep.append(place)
            read_on = [begun[place][0] for place in keep]
            batch.rewind(keep, [gamma + 1 - len(tokens) for tokens in read_on])
            batch.append(torch.tensor([tokens[-1] for tokens in read_on], device=batch.device))
    return _with_greedy(answers, doubtful, ensemble, prompts, alpha, how)


def drafts_of(store: Store, base: Member, prompts: Prompts, how: Decoding) -> Examples:
    """Each prompt with the member's own greedy answer, its end included where there is one; from the store."""
    alone = Ensemble((replace(base, constant=1.0, slope=0.0),))
    ends, most = sorted(ends_of(alone, how.eos_id)), how.max_new_tokens
    recipe = {"model": base.fingerprint, "prompts": digest(prompts), "ends": ends, "max_new_tokens": most}

    def build(folder: Path) -> None:
        found = base.kind.say(prompts, most, ends)
        if found is None:
            found = decode(alone, prompts, 0.0, how)
        write_json(folder / FILE, found)

    pairs = enumerate(zip(prompts, read_json(store.get("draft", recipe, build) / FILE), strict=True))
    return Examples(Example(f"draft/{i}", tuple(prompt), tuple(answer)) for i, (prompt, answer) in pairs)


def _along(store: Store, member: Member, drafts: Examples, how: Decoding, most_gib: float) -> FrozenRows | LiveRows:
    """A frozen member's rows along drafts, and what it has read of them, where that is worth its room."""
    with keeping_answers():
        rows = rows_of(store, member, drafts, how.pad_id, most_gib)
        if (memory := seen(member.model)) is not None:
            texts = [(*d.prompt, *d.answer[:-1]) for d in drafts]
            recipe = {"model": member.fingerprint, "examples": drafts.fingerprint}

            def build(folder: Path) -> None:
                np.save(folder / FILE_READ, memory.array(member.model, texts))

            if memory.fits(member.model, texts) and memory.size(member.model, texts) <= most_gib * 2**30:
                there = store.folder("read", recipe).is_dir()
                folder = store.get("read", recipe, build)
                if there:
                    memory.put(member.model, texts, np.load(folder / FILE_READ, mmap_mode="c"))
    return rows


def _round(ensemble: Ensemble, batch: Batch, alpha: float, drafter: Member, gamma: int) -> list[Begun]:
    """Draft γ tokens after each text, and hold them against the ensemble, which reads them at once: 1 to γ + 1 stay."""
    own = []
    for k in range(gamma + 1):
        own.append(batch.read([drafter])[drafter.name](-1))
        if k < gamma:
            batch.append(own[k].argmax(-1))
    others = batch.read([m for m in batch.members if m.name != drafter.name])
    rows = {drafter.name: torch.stack(own, dim=1)} | {name: of(slice(-gamma - 1, None)) for name, of in others.items()}
    token, sure = decide(ensemble, {m.name: rows[m.name].flatten(0, 1) for m in ensemble.needed([alpha])}, alpha)
    drafted, shape = batch.ids[:, -gamma:].tolist(), (-1, gamma + 1)
    checked = zip(drafted, token.view(shape).tolist(), sure.view(shape).tolist(), strict=True)
    return [_compare([*draft, None], t, s) for draft, t, s in checked]


def _compare(draft: Sequence[int | None], token: Sequence[int], sure: Sequence[bool]) -> Begun:
    for k in range(len(draft)):
        if not sure[k]:
            return list(draft[:k]), True
        if token[k] != draft[k]:
            return [*draft[:k], token[k]], False
    return list(draft), False


def _with_greedy(
    answers: list[list[int]], doubtful: Collection[int], ensemble: Ensemble, prompts: Prompts, alpha: float, how
) -> list[list[int]]:
    """Without their ends; those in doubt as ``greedy`` has them."""
    answers, again = without_ends(answers, ensemble, how), sorted(doubtful)
    for i, answer in zip(again, greedy(ensemble, [prompts[i] for i in again], alpha, how), strict=True):
        answers[i] = answer
    return answers


def _closed(answer: list[int], ends: set[int]) -> list[int]:
    """Up to and with the first end: a draft may run on where the ensemble's own first member knows more ends."""
    return answer[: next((k + 1 for k, t in enumerate(answer) if t in ends), len(answer))]
