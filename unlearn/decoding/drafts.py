"""Greedy decoding that begins with what the target would say: draft and verify, with drafts from the store.

The target never changes, so its own greedy answer to each prompt is stored with its rows along it. An ensemble checks
a whole draft in one pass of the members that the store does not have, mostly the offset alone, and runs the target
only from the first token on which it disagrees. Where it never does, the target is not run at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unlearn.data.encoding import Example, Examples
from unlearn.decoding.generation import Rows, decode, ends_of, greedy, instead, likeliest, without_end
from unlearn.decoding.ties import decide
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.ensemble.frozen import FrozenRows, LiveRows, rows_of
from unlearn.ensemble.reading import read
from unlearn.store.entries import Store
from unlearn.store.files import read_json, write_json
from unlearn.store.identity import digest

FILE = "draft.json"


@torch.no_grad()
def greedy_from_drafts(
    ensemble: Ensemble,
    prompts: Sequence[Sequence[int]],
    alpha: float,
    pad_id: int,
    eos_id: int,
    max_new_tokens: int,
    batch_size: int,
    store: Store,
    most_gib: float,
) -> list[list[int]]:
    """As ``generation.greedy``, token for token. Rows along the drafts that take more than ``most_gib`` are computed
    when needed, as those of answers are. Without a frozen member to draft, with no other, or where one has an encoder,
    which a draft would have to go around, this is ``greedy``; but a black box alone drafts: it says a whole answer at
    once.

    Where the likeliest tokens nearly tie, the whole answer is left to ``greedy``: at once and one by one, last digits
    differ.
    """
    base = next((m for m in ensemble.needed([alpha]) if not m.trained and m.constant), None)
    alone = len(ensemble.members) == 1 and not ensemble.members[0].kind.whole_answers
    if base is None or alone or not prompts or ensemble.encodes:
        return greedy(ensemble, prompts, alpha, pad_id, eos_id, max_new_tokens, batch_size)
    drafts = drafts_of(store, base, prompts, pad_id, eos_id, max_new_tokens, batch_size)
    frozen = [m for m in ensemble.needed([alpha]) if not m.trained]
    rows = {m.name: rows_of(store, m, drafts, pad_id, most_gib) for m in frozen}
    begun = _check(ensemble, drafts, rows, alpha, pad_id, batch_size)

    ends = ends_of(ensemble, eos_id)
    answers = [_closed(b.tokens, ends) for b in begun]
    going = [i for i, a in enumerate(answers) if not (a and a[-1] in ends) and len(a) < max_new_tokens]
    doubtful = {i for i in going if begun[i].doubtful}
    open_ = [i for i in going if i not in doubtful]

    def choose(found: Rows, which: Sequence[int]) -> Tensor:
        token, sure = decide(ensemble, found, alpha)
        doubtful.update(open_[i] for i, known in zip(which, sure.tolist(), strict=True) if not known)
        return token

    said, limits = [(*prompts[i], *answers[i]) for i in open_], [max_new_tokens - len(answers[i]) for i in open_]
    for i, rest in zip(open_, decode(ensemble, said, alpha, pad_id, ends, limits, batch_size, choose), strict=True):
        answers[i] += rest
    found = [without_end(a, ends) for a in answers]
    return instead(found, sorted(doubtful), ensemble, prompts, alpha, pad_id, eos_id, max_new_tokens, batch_size)


def drafts_of(
    store: Store,
    base: Member,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    eos_id: int,
    max_new_tokens: int,
    batch_size: int,
) -> Examples:
    """Each prompt with the member's own greedy answer, its end included where there is one; from the store."""
    alone = Ensemble((replace(base, constant=1.0, slope=0.0),))
    ends = sorted(ends_of(alone, eos_id))
    recipe = {"model": base.fingerprint, "prompts": digest(prompts), "ends": ends, "max_new_tokens": max_new_tokens}

    def build(folder: Path) -> None:
        limits = [max_new_tokens] * len(prompts)
        found = base.kind.say(prompts, max_new_tokens, ends)
        if found is None:
            found = decode(alone, prompts, 0.0, pad_id, ends, limits, batch_size, likeliest(alone, 0.0))
        write_json(folder / FILE, found)

    answers = read_json(store.get("draft", recipe, build) / FILE)
    return Examples(
        Example(f"draft/{i}", tuple(p), tuple(a)) for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
    )


@dataclass(frozen=True)
class _Begun:
    """What is known of an answer from its draft."""

    tokens: list[int]  # those that agree and, where the ensemble prefers another token, that one
    doubtful: bool  # the next token was too near a tie to say


def _check(
    ensemble: Ensemble,
    drafts: Examples,
    rows: dict[str, FrozenRows | LiveRows],
    alpha: float,
    pad_id: int,
    batch_size: int,
) -> list[_Begun]:
    """Hold every draft against the ensemble, all its positions in one pass."""
    begun = {}
    for indices, _, found in read(ensemble, drafts, [alpha], rows, pad_id, batch_size):
        token, sure = (t.tolist() for t in decide(ensemble, found, alpha))
        at = 0
        for i in indices:
            n = len(drafts[i].answer)
            begun[i] = _compare(drafts[i].answer, token[at : at + n], sure[at : at + n])
            at += n
    return [begun[i] for i in range(len(drafts))]


def _compare(draft: Sequence[int], token: Sequence[int], sure: Sequence[bool]) -> _Begun:
    for k in range(len(draft)):
        if not sure[k]:
            return _Begun(list(draft[:k]), True)
        if token[k] != draft[k]:
            return _Begun([*draft[:k], token[k]], False)
    return _Begun(list(draft), False)


def _closed(answer: list[int], ends: set[int]) -> list[int]:
    """Up to and with the first end: a draft may run on where the ensemble's own first member knows more ends."""
    return answer[: next((k + 1 for k, t in enumerate(answer) if t in ends), len(answer))]
