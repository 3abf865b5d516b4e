"""The target behind a server as a member: rows, next tokens and whole answers, from what it was asked.

It is an ``nn.Module`` without parameters, so it is frozen, evaluated and passed about as any other. Questions that
were never answered are sent, some at a time, and each answer is kept as it comes.
"""

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unlearn.blackbox import selftest
from unlearn.blackbox.client import Client, Halted
from unlearn.blackbox.forms import Texts, Way
from unlearn.blackbox.questions import NEXT, ROWS, SAY, Answer, BlackBoxError, Memo, Question, Top, cut, rows_of
from unlearn.config.pair import HttpConfig
from unlearn.config.schema import ConfigError
from unlearn.data.encoding import Example, Examples
from unlearn.ensemble.kinds import Kind, Part, Prompts
from unlearn.ensemble.rows import FILE, IDS, RESIDUAL, Budget, Shape, gib
from unlearn.models.llama import NARROW, device_of
from unlearn.models.states import Reader, State
from unlearn.store.identity import digest, remote_identity
from unlearn.store.progress import progress

log = logging.getLogger(__name__)
MANY = 20  # questions that are worth a line, the first time
NOTHING = {"requests": 0, "tokens": 0}
_tested: dict[tuple, selftest.Tested] = {}  # servers that this process has tested


@dataclass(frozen=True)
class Place:
    """What a black box needs of its surroundings."""

    store: Path
    tokenizer: Any
    width: int  # tokens that all members are read for
    device: torch.device


def fingerprint(http: HttpConfig, width: int) -> str:
    """What identifies its rows, as the fingerprint of its weights does for a local model."""
    return digest([remote_identity(http), width, None])  # the last: what stored rows were found by before


class RemoteModel(nn.Module, Kind):
    """``k`` likeliest tokens are known of each row, all if 0. Nothing is opened or sent before a row is missing."""

    dtype = torch.float32  # what its numbers are exact to
    as_given = whole_answers = True

    def __init__(self, http: HttpConfig, where: Place):
        super().__init__()
        self.http, self.where, self.k = http, where, http.k
        self.config = SimpleNamespace(**{NARROW: where.width})
        self.register_buffer("here", torch.empty(0, device=where.device), persistent=False)  # where rows are wanted
        self._client: Client | None = None
        self.begin()

    @property
    def width(self) -> int:
        return getattr(self.config, NARROW)

    def __deepcopy__(self, memo: dict) -> "RemoteModel":
        return self  # nothing in it ever learns

    # --- what a member gives ------------------------------------------------------------------------------------------

    def rows(self, examples: Sequence[Example], pad_id: int) -> Tensor:
        return torch.cat([rows.rows(self.width, device_of(self)) for rows in self.answers(examples)])

    def kept(self, name: str, rows: int, budget: Budget) -> dict[str, Any]:
        kind = "topk" if self.k else "fp32"
        size = gib(kind, rows, Shape(self.width, 0, 0), self.k)
        if size > budget.most_gib:
            raise ConfigError(
                f"{rows:,} answer rows of the black box {name} are {size:.3g} GiB as {kind}, over "
                f"trainer.stored_rows_gib={budget.most_gib:g}\nGive trainer.stored_rows_gib="
                f"{math.ceil(100 * size) / 100:g}, since it is not asked again at each step"
                + ("" if self.k else ", or pair.target.http.k=20, the likeliest tokens alone")
            )
        return {"kind": kind, "k": self.k}

    def parts(self, name: str, kind: str, k: int, examples: Examples, pad_id: int, batch_size: int) -> Iterator[Part]:
        """One question for each example, unless its answer is known."""
        for start, rows in zip(examples.starts[:-1], self.answers(examples), strict=True):
            found = {FILE: rows.logp} | ({} if rows.ids is None else {IDS: rows.ids, RESIDUAL: rows.residual})
            yield slice(start, start + len(rows.logp)), found

    def state(self, whole: bool = False) -> State:
        return Asked(self)

    def answers(self, examples: Sequence[Example]) -> Iterator[Top]:
        """Rows of the answers, example by example, each with its answer token; what is not known is asked for."""
        questions = [rows_of(e.prompt, e.answer) for e in examples]
        for e, answer in zip(examples, self.ask(questions, self.k, "answer rows"), strict=True):
            yield cut(answer, e.answer, self.k, self.width)

    def following(self, texts: Sequence[Sequence[int]], count: int = 1) -> Top:
        """Rows after each of the last ``count`` tokens of every text, [texts · count], text by text."""
        if count == 1 and self.k:
            questions = [Question(NEXT, tuple(text)) for text in texts]
        else:  # a row is what predicts a token: here one that nobody said
            behind = self.where.tokenizer.eos_token_id
            questions = [Question(ROWS, (*text, behind), first=len(text) + 1 - count) for text in texts]
        answers = self.ask(questions, self.k, "next tokens")
        rows = [self._unsaid(question, answer) for question, answer in zip(questions, answers, strict=True)]
        ids, logp, residual = zip(*((r.ids, r.logp, r.residual) for r in rows), strict=True)
        if not self.k:
            return Top(None, np.concatenate(logp), None)
        return Top(np.concatenate(ids), np.concatenate(logp), np.concatenate(residual))

    def _unsaid(self, question: Question, answer: Answer) -> Top:
        """The last token of the question was not said: its row keeps the likeliest alone."""
        own = list(question.ids[question.first :])
        if question.kind == ROWS and answer.ids is not None:
            answer = answer.unsaid()
        elif question.kind == ROWS:
            own[-1] = int(answer.logp[-1, : self.width].argmax())
        return cut(answer, own, self.k, self.width)

    def say(self, prompts: Sequence[Sequence[int]], most: int, ends: Collection[int]) -> list[list[int]]:
        k = self.k or 1  # whole vocabularies come by the rows of texts
        questions = [Question(SAY, tuple(prompt), most=most) for prompt in prompts]
        return [self._ended(answer.said, most, ends) for answer in self.ask(questions, k, "greedy answers")]

    def _ended(self, said: Sequence[int], most: int, ends: Collection[int]) -> list[int]:
        """Up to and with its end, which some servers omit; behind what is not a token here no draft continues."""
        for place, token in enumerate(said):
            if token in ends:
                return list(said[: place + 1])
            if token >= self.width:
                return [*said[:place], self.where.tokenizer.eos_token_id]
        return list(said) if len(said) == most else [*said, self.where.tokenizer.eos_token_id]

    # --- its cost -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._noted: dict[str, dict[str, int]] = {}  # what was said, and its cost
        self._told: set[str] = set()  # what was logged
        self._before = dict(self._sent)

    @property
    def _sent(self) -> dict[str, int]:
        return self.memo.own if self._opened else NOTHING

    @property
    def _opened(self) -> bool:
        return "memo" in self.__dict__

    def announce(self, examples: Sequence[Example], prompts: Prompts, drawn: Prompts, most: int) -> None:
        rows = self._missing([rows_of(e.prompt, e.answer) for e in examples], self.k)
        said = self._missing([Question(SAY, tuple(p), most=most) for p in prompts], self.k or 1)
        tokens, more = sum(q.tokens for q in (*rows, *said)), sum(most * (len(p) + most // 2 + 1) for p in drawn)
        one_by_one = (
            f"; and where α changes an answer, or one is drawn, token by token up to {len(drawn) * most:,} times, "
            f"{self._priced(more)} more"
        )
        log.info(
            "%s may be asked for %d texts and %d answers, up to %s%s",
            self.http.model, len(rows), len(said), self._priced(tokens), one_by_one if drawn else "",
        )  # fmt: skip

    def spent(self) -> dict[str, int]:
        return {what: count - self._before[what] for what, count in self._sent.items()}

    def note(self, what: str, said: int, before: Mapping[str, int]) -> None:
        entry = self._noted.setdefault(what, {"said": 0} | NOTHING)
        for name, more in {"said": said, **{n: count - before[n] for n, count in self.spent().items()}}.items():
            entry[name] += more

    def facts(self) -> dict[str, Any]:
        """Its identity; what was asked of it, and how far its rows have moved since it was first asked."""
        found = remote_identity(self.http) | self.spent()
        if self._opened:
            tested = _tested.get(self._name)
            found |= {} if tested is None else {"form": tested.way.form, "drift": tested.drift}
            found |= {"in_all_calls": self.memo.spent(), "decoding": self._noted}
        return found

    # --- asking -------------------------------------------------------------------------------------------------------

    @cached_property
    def memo(self) -> Memo:
        # what is asked are token ids: those of another tokenizer are other questions, whatever the model is called
        vocabulary = digest(self.where.tokenizer.get_vocab())
        model = {"model": self.http.model, "revision": self.http.revision, "tokenizer": vocabulary}
        return Memo(self.where.store, digest(model, 20))

    @property
    def _name(self) -> tuple:
        return self.http.url, self.k, self.http.form, self.memo.path.resolve()

    def ask(self, questions: Sequence[Question], k: int, what: str) -> Iterator[Answer]:
        """All answers, in order; what is not known is asked for, ``what`` in messages. Raises ``BlackBoxError``."""
        if self._missing(questions, k):
            with self.memo.turn():  # what another job asked for in the meantime is known now
                if missing := self._missing(questions, k):
                    self._send(missing, k, what, len(questions))
        for question in questions:
            found = self.memo.get(question, k)
            if found is None:
                raise BlackBoxError(f"{self.memo.path}: a kept answer is missing or damaged; call again")
            yield found

    def _missing(self, questions: Sequence[Question], k: int) -> list[Question]:
        return [q for q in dict.fromkeys(questions) if self.memo.get(q, k) is None]

    def _send(self, missing: Sequence[Question], k: int, what: str, asked: int) -> None:
        if self._client is None or self._client.halt.is_set():  # else its connections are open
            self._client = Client(self.http, self.memo, Texts(self.where.tokenizer, self.width))
        client, name, tokens = self._client, self._name, sum(q.tokens for q in missing)
        if name not in _tested:
            _tested[name] = selftest.run(client)
        self.memo.afford(len(missing), tokens, self.http)
        spent = ", ".join(f"{n:,} {unit}" for unit, n in self.memo.spent().items())
        log.log(
            logging.INFO if len(missing) >= MANY and what not in self._told else logging.DEBUG,
            "%s: asking %s %d of %d questions, up to %s; spent before: %s",
            what, self.http.model, len(missing), asked, self._priced(tokens), spent,
        )  # fmt: skip
        self._told |= {what} if len(missing) >= MANY else set()
        bar = progress(len(missing), f"{what}: asking {self.http.model}", "request")
        with bar, ThreadPoolExecutor(self.http.concurrency, "black box") as pool:
            sent = [pool.submit(self._one, client, _tested[name].way, q, k) for q in missing]
            try:
                for done in as_completed(sent):
                    with suppress(Halted):  # the failure that halted it comes, too
                        done.result()
                    bar.note(self._priced(self.spent()["tokens"]))
                    bar.update()
            except BaseException:  # what is on its way is still kept: it is paid for
                client.halt.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, client: Client, way: Way, question: Question, k: int) -> None:
        try:
            self.memo.put(question, k, client.ask(question, k, way)[0])
        except BaseException:
            client.halt.set()
            raise

    def _priced(self, tokens: int) -> str:
        price = self.http.price
        about = "" if price is None else f", about {tokens * price / 1e6:.4g} at the price given"
        return f"{tokens:,} tokens{about}"


class Asked(State):
    """A black box is given the texts again, longer, each time it is asked: nothing is kept of them."""

    def __init__(self, model: RemoteModel):
        self.model = model

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor, since: int) -> Reader:
        texts = [text[seen].tolist() for text, seen in zip(ids.cpu(), mask.bool().cpu(), strict=True)]
        n = ids.shape[1] - since
        kept = torch.empty(len(texts), 0)  # the last rows, as many as were asked for

        def rows(part: int | slice) -> Tensor:
            nonlocal kept
            where = torch.arange(n)[part]
            count = n - int(where.min())
            if count > kept.shape[1]:
                found = self.model.following(texts, count).rows(self.model.width, device_of(self.model))
                kept = found.view(len(texts), count, -1)
            return kept[:, where - (n - kept.shape[1])]

        return rows
