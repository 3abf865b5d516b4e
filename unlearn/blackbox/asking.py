"""Many questions at once: those never answered are sent, some at a time, and each answer is kept as it comes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import cached_property

from tqdm import tqdm

from unlearn.blackbox import selftest
from unlearn.blackbox.client import Client, Halted
from unlearn.blackbox.forms import Texts, Way
from unlearn.blackbox.memo import Memo
from unlearn.blackbox.questions import NEXT, Answer, BlackBoxError, Question
from unlearn.blackbox.selftest import Tested
from unlearn.config.pair import HttpConfig
from unlearn.store.identity import digest

log = logging.getLogger(__name__)
MANY = 20  # questions that are worth a line and a bar
_tested: dict[str, Tested] = {}  # servers that this process has tested


class Asking:
    """The server of one target, and what it has answered. Nothing is sent before something is not known."""

    def __init__(self, http: HttpConfig, memo: Memo, texts: Texts, progress: bool):
        self.http, self.memo, self.texts, self.progress = http, memo, texts, progress
        self._client: Client | None = None

    def answers(self, questions: Sequence[Question], k: int, what: str) -> Iterator[Answer]:
        """All answers, in order, after what is not known has been asked for. ``what`` names it to the user.

        ``BlackBoxError`` where an answer is gone again.
        """
        if self._missing(questions, k):
            with self.memo.turn():  # what another job asked for in the meantime is known now
                missing = self._missing(questions, k)
                if missing:
                    self._ask(missing, k, what, len(questions))
        for question in questions:
            found = self._known(question, k)
            if found is None:
                raise BlackBoxError(
                    f"{self.memo.path}: an answer that was kept there is missing or damaged; call again"
                )
            yield found

    def tested(self) -> Tested | None:
        """What the start showed; None where nothing had to be asked."""
        return _tested.get(self._name)

    @cached_property
    def _name(self) -> str:
        http, vocabulary = self.http, digest(self.texts.tokenizer.get_vocab())
        kept = str(self.memo.path.resolve())
        return digest([http.url, http.model, http.revision, http.k, http.form, vocabulary, kept])

    def _known(self, question: Question, k: int) -> Answer | None:
        found = self.memo.get(question, k)
        return self.memo.along(question, k) if found is None and question.kind == NEXT else found

    def _missing(self, questions: Sequence[Question], k: int) -> list[Question]:
        return [q for q in dict.fromkeys(questions) if self._known(q, k) is None]

    def _ask(self, missing: Sequence[Question], k: int, what: str, asked: int) -> None:
        if self._client is None or self._client.halt.is_set():  # else its connections are open
            self._client = Client(self.http, self.memo, self.texts)
        client, name, tokens = self._client, self._name, sum(q.tokens for q in missing)
        if name not in _tested:
            _tested[name] = selftest.run(client)
        self.memo.afford(len(missing), tokens, self.http)
        many, spent = len(missing) >= MANY, ", ".join(f"{n:,} {unit}" for unit, n in self.memo.spent().items())
        log.log(
            logging.INFO if many else logging.DEBUG,
            "%s: asking %s %d of %d questions, up to %d tokens%s; spent before: %s",
            what, self.http.model, len(missing), asked, tokens, self._cost(tokens), spent,
        )  # fmt: skip
        hidden = None if self.progress and many else True
        bar = tqdm(total=len(missing), desc=f"asking for {what}", unit="request", leave=False, disable=hidden)
        with bar, ThreadPoolExecutor(self.http.concurrency, "black box") as pool:
            sent = [pool.submit(self._one, client, _tested[name].way, q, k) for q in missing]
            used = 0
            try:
                for done in as_completed(sent):
                    with suppress(Halted):  # the failure that halted it comes, too
                        used += done.result()
                    bar.set_postfix_str(f"{used:,} tokens{self._cost(used)}", refresh=False)
                    bar.update()
            except BaseException:  # what is on its way is still kept: it is paid for
                client.halt.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, client: Client, way: Way, question: Question, k: int) -> int:
        """Ask and keep; how many tokens that took."""
        try:
            answer, used = client.ask(question, k, way)
            self.memo.put(question, k, answer)
        except BaseException:
            client.halt.set()
            raise
        return used

    def _cost(self, tokens: int) -> str:
        return "" if self.http.price is None else f", about {tokens * self.http.price / 1e6:.4g} at the price given"
