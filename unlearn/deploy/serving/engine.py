"""One thread that owns the models and answers everybody: answers join the batch and leave it between any two tokens.

In full precision, what is said does not depend on what is beside it. A batch decides what no last digit can change;
where the likeliest tokens nearly tie, the answer is gone through again by itself, as ``generation.greedy`` does with
one prompt, and stays alone from then on (``exact``). In half precision most answers tie somewhere, and hardly a batch
would be left: there it is left out, unless it is asked for, and then fewer answers depend on what is beside them, not
none.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence

import torch

from unlearn.data.encoding import Encoder
from unlearn.decoding.choosing import decide, full_precision
from unlearn.decoding.generation import Batch, Rows, ends_of
from unlearn.deploy.parts import Blend
from unlearn.deploy.serving.answers import Answer, Ask, Event, Failed, Read, Said, Scored, Text, scored, scored_prompt
from unlearn.ensemble.ensemble import Ensemble
from unlearn.models.llama import vocabulary

log = logging.getLogger(__name__)
AT_ONCE = 8192  # tokens of prompts that are read in one pass, padding included


class Busy(RuntimeError):
    """There is no place left among those that wait, or the server is stopping."""


class Engine:
    """Answers to ``Ask``s. ``start`` it, or use it as a context."""

    def __init__(
        self, blend: Blend, encoder: Encoder, max_batch: int = 16, max_waiting: int = 256, exact: bool | None = None
    ):
        self.blend, self.encoder = blend, encoder
        members = [m for p in blend.parts.values() for m in p.ensemble.members]
        self.exact = full_precision(members) if exact is None else exact
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.width = min(vocabulary(m.model) for m in members)
        self._ends = ends_of(Ensemble((blend.target,)), encoder.tokenizer.eos_token_id)
        self._pad = encoder.tokenizer.pad_token_id
        self._batches: dict[Hashable, Batch] = {}  # by the names of the members that they read, or an answer gone apart
        self._waiting: deque[Answer] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.running = 0  # answers that have a place
        self._step = time.monotonic()  # when the last one began
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    # --- for other threads --------------------------------------------------------------------------------------------

    def start(self) -> "Engine":
        self._thread.start()
        return self

    def close(self, patience: float | None = None) -> bool:
        """Stop after the token that is being computed; answers on their way fail. Whether it ended in these seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(patience)
        return not self._thread.is_alive()

    __enter__ = start

    def __exit__(self, *_) -> None:
        self.close()

    def submit(self, asks: Sequence[tuple[Ask, Callable[[Event], None]]]) -> list[Answer]:
        """Queue the answers of one request, all or none of them; raises ``Busy``."""
        found = [Answer(a, emit, Text(self.encoder.tokenizer, a.prompt, a.stop, a.strip)) for a, emit in asks]
        with self._changed:
            if self._closed:
                raise Busy("the server is stopping")
            free = self.max_batch + self.max_waiting - self.running - len(self._waiting)
            if len(found) > free:
                raise Busy(f"{len(self._waiting)} answers wait already; at most {self.max_waiting} may")
            if not (self.running or self._waiting):
                self._step = time.monotonic()
            self._waiting += found
            self._changed.notify()
        return found

    def cancel(self, answers: Sequence[Answer]) -> None:
        """They get no more events, and free their places before the next token."""
        for answer in answers:
            answer.cancelled = True
        with self._changed:
            self._waiting = deque(a for a in self._waiting if not a.cancelled)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy(self) -> float:
        """Seconds that its present step has taken; 0: nobody waits for it."""
        return time.monotonic() - self._step if self.running or self._waiting else 0.0

    # --- the engine's own thread --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # each thread has its own setting
        while True:
            self._step = time.monotonic()
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self.running or self._closed)
                if self._closed:
                    break
                new = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_batch - self.running))]
                self.running += len(new)
            for batch in self._batches.values():
                batch.keep([i for i, answer in enumerate(batch.rows) if not answer.cancelled])
            for batch in (batch for batch in list(self._batches.values()) if batch.rows):
                self._safely(batch.rows, lambda batch=batch: self._say(batch, batch.next()))
            for group in self._groups(new):
                self._safely(group, lambda group=group: self._begin(group))
            self._batches = {key: batch for key, batch in self._batches.items() if batch.rows}
            self.running = sum(len(batch.rows) for batch in self._batches.values())
        for answer in [*(a for batch in self._batches.values() for a in batch.rows), *self._waiting]:
            self._emit(answer, Failed("the server is stopping"))
        self._batches = {}
        self._waiting.clear()

    def _safely(self, answers: Sequence[Answer], work: Callable[[], None]) -> None:
        """A fault ends the answers that it concerns, and those of a batch that it may have left half changed."""
        concerned = set(answers)
        try:
            work()
        except Exception as error:  # whatever a model or a device may raise: others are still to be answered
            for batch in self._batches.values():
                if concerned & set(batch.rows):
                    concerned |= set(batch.rows)
                    batch.rows = []
            log.error("%d answers failed: %s", len(concerned), type(error).__name__, exc_info=True)
            for answer in concerned:
                self._emit(answer, Failed("the model failed while it computed this answer"))

    @staticmethod
    def _emit(answer: Answer, event: Event) -> None:
        if answer.cancelled:
            return
        try:
            answer.emit(event)
        except RuntimeError:  # the one who asked is no longer there: its event loop is closed
            answer.cancelled = True

    def _groups(self, new: Sequence[Answer]) -> list[list[Answer]]:
        """Those whose prompts are read in one pass: of one batch, of similar length. What is scored is read alone, so
        that its numbers are the same to the last digit, whatever else is asked."""
        groups: list[list[Answer]] = [[a] for a in new if a.ask.prompt_logprobs is not None]
        others = [a for a in new if a.ask.prompt_logprobs is None]
        others.sort(key=lambda a: (self._key(a), -len(a.ask.prompt), a.ask.prompt))
        longest = 0
        for before, answer in zip([None, *others], others, strict=False):
            fits = before is not None and longest * (len(groups[-1]) + 1) <= AT_ONCE
            if not fits or self._key(before) != self._key(answer):
                groups.append([])
                longest = len(answer.ask.prompt)
            groups[-1].append(answer)
        return groups

    def _key(self, answer: Answer) -> tuple[str, ...]:
        return tuple(m.name for m in self.blend.members(answer.ask.mix))

    def _begin(self, answers: list[Answer]) -> None:
        """Read their prompts, each once, and say their first tokens."""
        prompts = list(dict.fromkeys(a.ask.prompt for a in answers))
        batch = Batch(self.blend.members(answers[0].ask.mix), prompts, self._pad, prompts, whole=True)
        readers = batch.read()
        for answer in answers:
            ask, found = answer.ask, None
            answer.alone = len(prompts) == 1
            if ask.prompt_logprobs is not None:  # then it is alone
                found = scored_prompt(readers, ask.prompt, ask.prompt_logprobs, *self.blend.joined(ask.mix))
            self._emit(answer, Read(found, None if ask.limit else "length"))
        open_ = [a for a in answers if a.ask.limit]
        if not open_:
            return
        which = [prompts.index(a.ask.prompt) for a in open_]
        rows = {name: of(-1)[which] for name, of in readers.items()}
        batch.keep(which)
        batch.rows = open_
        self._say(batch, rows)
        key = self._key(answers[0])
        there = self._batches.get(key)
        if there is None or not there.rows:
            self._batches[key] = batch
        elif batch.rows:
            there.join(batch)

    def _say(self, batch: Batch, rows: Rows) -> None:
        """One token of each answer, from the members' rows [B, V]. Each mix of offsets is joined for its own."""
        answers, found = list(batch.rows), {}
        for mix in dict.fromkeys(a.ask.mix for a in answers):
            which = [i for i, a in enumerate(answers) if a.ask.mix == mix]
            some = rows if len(which) == len(answers) else {n: r[which] for n, r in rows.items()}
            ensemble, alpha = self.blend.joined(mix)
            logits = ensemble.logits(some, alpha)
            draws, steps = [answers[i].ask.draw for i in which], [len(answers[i].said) for i in which]
            tokens, sure = decide(ensemble, some, alpha, draws, steps, logits)
            numbers = logits.gather(-1, tokens[:, None])[:, 0].isfinite()
            for j, (i, *choice) in enumerate(zip(which, tokens.tolist(), sure.tolist(), numbers.tolist(), strict=True)):
                k = answers[i].ask.logprobs
                found[i] = (*choice, None if k is None else scored(logits[j : j + 1], choice[:1], k)[0])
        keep, again = {}, []
        for i, answer in enumerate(answers):
            token, sure, number, score = found[i]
            answer.alone = answer.alone and len(answers) == 1
            if not number:
                self._emit(answer, Failed("the model gave no numbers for this answer"))
            elif not sure and self.exact and not answer.alone:
                again.append(answer)
            elif self._take(answer, token, score):
                keep[i] = token
        batch.rewind(list(keep))
        batch.append(torch.tensor(list(keep.values()), device=batch.device))
        for answer in again:
            self._safely([answer], lambda answer=answer: self._apart(answer))

    def _take(self, answer: Answer, token: int, score: Scored | None) -> bool:
        """Add a token to an answer; whether more follow."""
        answer.said.append(token)
        ended, full = token in self._ends, len(answer.said) >= answer.ask.limit
        text = answer.text.add(None if ended else token, last=ended or full)
        finish = "stop" if ended or answer.text.stopped else "length" if full else None
        self._emit(answer, Said(token, text, score, finish))
        answer.cancelled |= finish is not None  # nothing is emitted after its end
        return finish is None

    def _apart(self, answer: Answer) -> None:
        """Go through an answer again by itself, token by token, and from here on never beside others."""
        batch = Batch(self.blend.members(answer.ask.mix), [answer.ask.prompt], self._pad, [answer], whole=True)
        for token in answer.said:
            batch.read()
            batch.append(torch.tensor([token], device=batch.device))
        answer.alone = True
        self._batches[answer] = batch
        self._say(batch, batch.next())
