"""The target behind a server as a member: rows, next tokens and whole answers, from what it was asked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unlearn.blackbox.asking import Asking
from unlearn.blackbox.forms import Texts
from unlearn.blackbox.memo import Memo
from unlearn.blackbox.questions import NEXT, ROWS, SAY, Answer, Question, cut, rows_of
from unlearn.config.pair import HttpConfig
from unlearn.data.encoding import Example
from unlearn.ensemble.opaque import Opaque, Top
from unlearn.store.identity import digest, remote_identity

NOTHING = {"requests": 0, "tokens": 0}


@dataclass(frozen=True)
class Place:
    """What a black box needs of its surroundings."""

    store: Path
    tokenizer: Any
    width: int  # tokens that all members are read for
    device: torch.device
    progress: bool = False


def fingerprint(http: HttpConfig, width: int) -> str:
    """What identifies its rows, as the fingerprint of its weights does for a local model."""
    return digest([remote_identity(http), width, None])  # the last: what stored rows were found by before


class RemoteModel(Opaque):
    """Nothing is opened or sent before a row is wanted that the store does not have."""

    def __init__(self, http: HttpConfig, where: Place):
        super().__init__(where.width, http.k, where.device)
        self.http, self.where = http, where
        self._before = dict(NOTHING)
        self._noted: dict[str, dict[str, int]] = {}  # what was said, and what it took

    @cached_property
    def asking(self) -> Asking:
        # what is asked are token ids: those of another tokenizer are other questions, whatever the model is called
        vocabulary = digest(self.where.tokenizer.get_vocab())
        name = digest({"model": self.http.model, "revision": self.http.revision, "tokenizer": vocabulary}, 20)
        texts = Texts(self.where.tokenizer, self.width)
        return Asking(self.http, Memo(self.where.store, name), texts, self.where.progress)

    def answers(self, examples: Sequence[Example]) -> Iterator[Top]:
        questions = [rows_of(e.prompt, e.answer) for e in examples]
        for e, answer in zip(examples, self.asking.answers(questions, self.k, "answer rows"), strict=True):
            yield cut(answer, e.answer, self.k, self.width)

    def following(self, texts: Sequence[Sequence[int]], count: int = 1) -> Top:
        if count == 1 and self.k:
            questions = [Question(NEXT, tuple(text)) for text in texts]
        else:  # a row is what predicts a token: here one that nobody said
            behind = self.where.tokenizer.eos_token_id
            questions = [Question(ROWS, (*text, behind), first=len(text) + 1 - count) for text in texts]
        answers = self.asking.answers(questions, self.k, "next tokens")
        rows = [self._cut(question, answer) for question, answer in zip(questions, answers, strict=True)]
        return Top(*(None if values[0] is None else np.concatenate(values) for values in zip(*rows, strict=True)))

    def _cut(self, question: Question, answer: Answer) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
        """The last token of the question was not said: its row keeps the likeliest alone."""
        own = list(question.ids[question.first :])
        if question.kind == ROWS and answer.ids is not None:
            answer = answer.unsaid()
        elif question.kind == ROWS:
            own[-1] = int(answer.logp[-1, : self.width].argmax())
        rows = cut(answer, own, self.k, self.width)
        return rows.ids, rows.logp, rows.residual

    def say(self, prompts: Sequence[Sequence[int]], most: int, ends: Collection[int]) -> list[list[int]]:
        k = self.k or 1  # whole vocabularies come by the rows of texts
        questions = [Question(SAY, tuple(prompt), most=most) for prompt in prompts]
        return [self._ended(a.said, most, ends) for a in self.asking.answers(questions, k, "greedy answers")]

    def _ended(self, said: Sequence[int], most: int, ends: Collection[int]) -> list[int]:
        """Up to and with its end. Some servers end without saying by which token; and where one says what is no token
        of the pair, no draft goes on."""
        for place, token in enumerate(said):
            if token in ends:
                return list(said[: place + 1])
            if token >= self.width:
                return [*said[:place], self.where.tokenizer.eos_token_id]
        return list(said) if len(said) == most else [*said, self.where.tokenizer.eos_token_id]

    def begin(self) -> None:
        self._noted, self._before = {}, self._sent()

    def spent(self) -> dict[str, int]:
        now = self._sent()
        return {what: now[what] - self._before[what] for what in now}

    def _sent(self) -> dict[str, int]:
        return dict(self.asking.memo.own if "asking" in self.__dict__ else NOTHING)

    def note(self, what: str, said: int, before: Mapping[str, int]) -> None:
        entry = self._noted.setdefault(what, {"said": 0} | NOTHING)
        now = self.spent()
        for name, more in (("said", said), *((name, now[name] - before[name]) for name in before)):
            entry[name] += more

    def facts(self) -> dict[str, Any]:
        """Its identity; what was asked of it, and how far its rows have moved since it was first asked."""
        found = remote_identity(self.http) | self.spent()
        if "asking" in self.__dict__:
            tested = self.asking.tested()
            found |= {} if tested is None else {"form": tested.way.form, "drift": tested.drift}
            found |= {"in_all_calls": self.asking.memo.spent(), "decoding": self._noted}
        return found
