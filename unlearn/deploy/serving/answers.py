"""One answer: what is asked for, the events that answer it, its text as tokens come, and their log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from unlearn.decoding.choosing import Draw
from unlearn.deploy.serving.offsets import Mix
from unlearn.ensemble.chunks import block
from unlearn.ensemble.ensemble import Ensemble
from unlearn.models.llama import device_of, vocabulary
from unlearn.models.states import Reader

BEFORE = 5  # tokens of the prompt that are decoded with the first ones: some tokenizers drop a text's first space
BROKEN = "\ufffd"  # what the bytes of half a character are decoded as


@dataclass(frozen=True)
class Ask:
    """One answer that is asked for."""

    prompt: tuple[int, ...]
    mix: Mix
    limit: int  # tokens; 0: none, only the prompt is read
    draw: Draw
    stop: tuple[str, ...] = ()
    strip: bool = False  # white space at the beginning of the answer
    logprobs: int | None = None  # likeliest tokens beside each of the answer; −1: all; None: no log-probabilities
    prompt_logprobs: int | None = None  # the same for the tokens of the prompt


@dataclass(frozen=True)
class Scored:
    """A token that is there, and the likeliest at its place, best first."""

    token: int
    logprob: float
    rank: int  # 1: none is likelier
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Said:
    """A token of an answer, with the text that it adds."""

    token: int
    text: str
    scored: Scored | None
    finish: str | None  # "stop", "length"; None: more tokens follow


@dataclass(frozen=True)
class Read:
    """The prompt's tokens but its first, where they were asked for. ``finish``: no tokens follow."""

    scored: list[Scored] | None
    finish: str | None


@dataclass(frozen=True)
class Failed:
    message: str


Event = Said | Read | Failed


class Text:
    """Of one answer. ``strip``: white space at its beginning is no part of it."""

    def __init__(self, tokenizer, prompt: Sequence[int], stop: Sequence[str] = (), strip: bool = False):
        self._decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._stop, self._strip = stop, strip
        self._ids = list(prompt[-BEFORE:])
        self._from, self._read = 0, len(self._ids)  # tokens that are decoded for their neighbours; that are in `whole`
        self.whole = ""
        self.stopped = False
        self._given = 0  # characters that `add` has returned

    def add(self, token: int | None, last: bool = False) -> str:
        """Take a token, None for an end; returns what can be said now that could not before.

        Text that a stop string may begin with is held back until more is known, or this was the ``last`` token.
        """
        if token is not None:
            self._ids.append(token)
        seen, before = len(self.whole), self._decode(self._ids[self._from : self._read])
        now = self._decode(self._ids[self._from :])
        if len(now) > len(before) and (last or not now.endswith(BROKEN)):
            self._from, self._read = self._read, len(self._ids)
            self.whole += now[len(before) :]
        if self._strip and not seen:
            self.whole = self.whole.lstrip()
        longest = max(map(len, self._stop), default=0)  # a stop string can begin before what is new
        ends = [at for s in self._stop if (at := self.whole.find(s, max(0, seen - longest + 1))) >= 0]
        if ends:
            self.whole, self.stopped = self.whole[: min(ends)], True
        begun = (n for s in self._stop for n in range(len(s) - 1, 0, -1) if self.whole.endswith(s[:n]))
        end = len(self.whole) - (0 if last or self.stopped else max(begun, default=0))
        new = self.whole[self._given : end]
        self._given = max(self._given, end)
        return new


@dataclass(eq=False)
class Answer:
    """An answer on its way. ``emit`` is called by the engine's thread."""

    ask: Ask
    emit: Callable[[Event], None]
    text: Text
    said: list[int] = field(default_factory=list)
    alone: bool = True  # whether nothing was ever computed beside it
    cancelled: bool = False


# --- log-probabilities ------------------------------------------------------------------------------------------------


def scored(logits: Tensor, tokens: Sequence[int], k: int) -> list[Scored]:
    """Of each row of logits [N, V] its token, and the k likeliest (−1: all)."""
    logp = logits.log_softmax(-1)
    own = logp.gather(-1, torch.tensor(tokens, device=logp.device)[:, None])
    rank = (logp > own).sum(-1) + 1
    width = logits.shape[-1]
    values, ids = logp.topk(width if k < 0 else min(k, width), dim=-1)
    rows = zip(tokens, own[:, 0].tolist(), rank.tolist(), ids.tolist(), values.tolist(), strict=True)
    return [Scored(t, p, r, tuple(zip(i, v, strict=True))) for t, p, r, i, v in rows]


def scored_prompt(
    readers: Mapping[str, Reader], prompt: Sequence[int], k: int, ensemble: Ensemble, alpha: float
) -> list[Scored]:
    """Each token of a prompt but the first, a block of rows at a time; ``readers`` of the prompt alone, by member."""
    found: list[Scored] = []
    model = ensemble.members[0].model
    at_once = block(vocabulary(model), device_of(model))
    for start in range(0, len(prompt) - 1, at_once):
        part = slice(start, min(start + at_once, len(prompt) - 1))
        logits = ensemble.logits({name: rows(part)[0] for name, rows in readers.items()}, alpha)
        found += scored(logits, prompt[part.start + 1 : part.stop + 1], k)
    return found
