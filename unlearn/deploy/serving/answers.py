"""One answer: what is asked for, the events that answer it, its text as tokens come, and their log-probabilities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from unlearn.decoding.choosing import Draw
from unlearn.deploy.parts import Mix
from unlearn.ensemble.chunks import block
from unlearn.ensemble.ensemble import Ensemble
from unlearn.models.llama import device_of, vocabulary
from unlearn.models.states import Reader

BEFORE = 5  # tokens of the prompt that are decoded with the first ones: some tokenizers drop a text's first space
AFTER = 8  # tokens that are waited for until a character is whole: none has more bytes
BROKEN = "\ufffd"  # what the bytes of half a character are decoded as


@dataclass(frozen=True)
class Ask:
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


class Stop:
    """A stop string, and how many of its characters the text so far ends with (Knuth, Morris and Pratt, 1977)."""

    def __init__(self, text: str):
        self.text, self.begun = text, 0
        self._shorter = [0]  # of each beginning the longest shorter one that it ends with
        for i in range(1, len(text)):
            self._shorter.append(self._after(self._shorter[i - 1], text[i]))

    def ends(self, character: str) -> bool:
        """Read a character; whether the string is whole with it."""
        self.begun = self._after(self.begun, character)
        return self.begun == len(self.text)

    def _after(self, begun: int, character: str) -> int:
        while begun and (begun == len(self.text) or self.text[begun] != character):
            begun = self._shorter[begun - 1]
        return begun + (self.text[begun] == character)


class Text:
    """Of one answer. ``strip``: white space at its beginning is not part of it."""

    def __init__(self, tokenizer, prompt: Sequence[int], stop: Sequence[str] = (), strip: bool = False):
        self._decode = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._stops, self._strip = [Stop(text) for text in stop], strip
        self._ids = list(prompt[-BEFORE:])  # tokens that are decoded for their neighbours, and those after them
        self._read = len(self._ids)  # those whose text is known
        self._held = ""  # what a stop string may begin with
        self.stopped = False

    def add(self, token: int | None, last: bool = False) -> str:
        """Take a token, None for an end; what can now be said. What may begin a stop string waits, unless ``last``."""
        if token is not None:
            self._ids.append(token)
        before, now = self._decode(self._ids[: self._read]), self._decode(self._ids)
        waits = now.endswith(BROKEN) and len(self._ids) - self._read < AFTER
        if len(now) > len(before) and (last or not waits):
            self._ids, self._read = self._ids[self._read :], len(self._ids) - self._read
            new = now[len(before) :]
            new = new.lstrip() if self._strip else new
            self._strip = self._strip and not new
            read = enumerate(new, len(self._held) + 1)
            begins = [at - len(stop.text) for at, letter in read for stop in self._stops if stop.ends(letter)]
            self._held, self.stopped = (self._held + new)[: min(begins, default=None)], bool(begins)
        end = len(self._held) - (0 if last or self.stopped else max((s.begun for s in self._stops), default=0))
        new, self._held = self._held[:end], self._held[end:]
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
