"""One thread that owns the models and answers everybody: answers join the batch and leave it between any two tokens.

What is said does not depend on what is beside it. A batch decides what no last digit can change; where the likeliest
tokens nearly tie, the answer is gone through again by itself, as ``generation.greedy`` does with one prompt, and stays
alone from then on (``exact``).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch

from unlearn.data.encoding import Encoder
from unlearn.decoding.generation import Rows, ends_of
from unlearn.deploy.serving.asks import Answer, Ask, Event, Failed, Read, Said
from unlearn.deploy.serving.lane import Lane, Scored, scored, scored_prompt
from unlearn.deploy.serving.offsets import Blend
from unlearn.deploy.serving.sampling import decide
from unlearn.deploy.serving.text import Text
from unlearn.ensemble.ensemble import Ensemble
from unlearn.models.llama import vocabulary

log = logging.getLogger(__name__)
AT_ONCE = 8192  # tokens of prompts that are read in one pass, padding included


class Busy(RuntimeError):
    """There is no place left among those that wait, or the server is stopping."""


class Engine:
    """Answers to ``Ask``s. ``start`` it, or use it as a context."""

    def __init__(self, blend: Blend, encoder: Encoder, max_batch: int = 16, max_waiting: int = 256, exact: bool = True):
        self.blend, self.encoder, self.exact = blend, encoder, exact
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.width = min(vocabulary(m.model) for p in blend.parts.values() for m in p.ensemble.members)
        self._ends = ends_of(Ensemble((blend.target,)), encoder.tokenizer.eos_token_id)
        self._pad = encoder.tokenizer.pad_token_id
        self._lanes: dict[tuple[str, ...], Lane] = {}  # by the names of the members that they read
        self._solos: list[Lane] = []
        self._waiting: deque[Answer] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.running = 0  # answers that have a place
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    # --- for other threads --------------------------------------------------------------------------------------------

    def start(self) -> Engine:
        for part in self.blend.parts.values():
            for m in part.ensemble.members:
                m.model.eval()
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop after the token that is being computed; answers on their way fail."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    __enter__ = start

    def __exit__(self, *_) -> None:
        self.close()

    def submit(self, asks: Sequence[tuple[Ask, Callable[[Event], None]]]) -> list[Answer]:
        """Queue the answers of one request, all or none of them; raises ``Busy``."""
        tokenizer = self.encoder.tokenizer
        found = [Answer(a, emit, Text(tokenizer, a.prompt, a.stop, a.strip)) for a, emit in asks]
        with self._changed:
            if self._closed:
                raise Busy("the server is stopping")
            free = self.max_batch + self.max_waiting - self.running - len(self._waiting)
            if len(found) > free:
                raise Busy(f"{len(self._waiting)} answers wait already; at most {self.max_waiting} may")
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

    # --- the engine's own thread --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # each thread has its own setting
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self.running or self._closed)
                if self._closed:
                    break
                new = self._admit()
            self._forget_cancelled()
            for lane in (lane for lane in self._all() if lane.rows):
                self._safely(lane.rows, lambda lane=lane: self._say(lane, lane.next()))
            for group in self._groups(new):
                self._safely(group, lambda group=group: self._begin(group))
            self._lanes = {key: lane for key, lane in self._lanes.items() if lane.rows}
            self._solos = [lane for lane in self._solos if lane.rows]
            self.running = sum(len(lane.rows) for lane in self._all())
        for answer in [*(a for lane in self._all() for a in lane.rows), *self._waiting]:
            self._emit(answer, Failed("the server is stopping"))
        self._lanes, self._solos = {}, []
        self._waiting.clear()

    def _all(self) -> list[Lane]:
        return [*self._lanes.values(), *self._solos]

    def _admit(self) -> list[Answer]:
        """Those that get a place now."""
        found = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_batch - self.running))]
        self.running += len(found)
        return found

    def _forget_cancelled(self) -> None:
        for lane in self._all():
            keep = [i for i, answer in enumerate(lane.rows) if not answer.cancelled]
            if len(keep) < len(lane.rows):
                lane.leave(keep)

    def _safely(self, answers: Sequence[Answer], work: Callable[[], None]) -> None:
        """A fault ends the answers that it concerns, and those of a batch that it may have left half changed."""
        concerned = set(answers)
        try:
            work()
        except Exception as error:  # whatever a model or a device may raise: others are still to be answered
            for lane in self._all():
                if concerned & set(lane.rows):
                    concerned |= set(lane.rows)
                    lane.rows = []
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
        """Those whose prompts are read in one pass: of one lane, of similar length. What is scored is read alone, so
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
        lane = Lane(self.blend.members(answers[0].ask.mix), prompts, prompts, self._pad)
        scored_too = answers[0].ask.prompt_logprobs is not None  # then it is alone
        places = lane.whole() if scored_too else {}
        rows = {name: of(slice(-1, None)) for name, of in places.items()} if scored_too else lane.next()
        for answer in answers:
            ask, found = answer.ask, None
            answer.alone = len(prompts) == 1
            if scored_too:
                found = scored_prompt(lane, places, ask.prompt, ask.prompt_logprobs, self.blend, ask.mix)
            self._emit(answer, Read(found, None if ask.limit else "length"))
        going = [a for a in answers if a.ask.limit]
        if not going:
            return
        which = [prompts.index(a.ask.prompt) for a in going]
        if which != list(range(len(prompts))):
            lane.leave(which)
            rows = {name: r[which] for name, r in rows.items()}
        lane.rows = list(going)
        self._say(lane, rows)
        if not lane.rows:
            return
        key = self._key(lane.rows[0])
        there = self._lanes.get(key)
        if there is None or not there.rows:
            self._lanes[key] = lane
        else:
            there.join(lane)

    def _say(self, lane: Lane, rows: Rows) -> None:
        """One token of each answer, from the members' rows [B, V]."""
        answers = list(lane.rows)
        for answer in answers:
            answer.alone = answer.alone and len(answers) == 1
        tokens, sure, scores, sound = self._choose(answers, rows)
        keep, again = [], []
        for i, answer in enumerate(answers):
            if not sound[i]:
                self._emit(answer, Failed("the model gave no numbers for this answer"))
            elif not sure[i] and self.exact and not answer.alone:
                again.append(answer)
            elif self._take(answer, tokens[i], scores[i]):
                keep.append(i)
        lane.go_on(tokens, keep)
        for answer in again:
            self._safely([answer], lambda answer=answer: self._apart(answer))

    def _choose(self, answers: Sequence[Answer], rows: Rows) -> tuple[list[int], list[bool], list, list[bool]]:
        """The token of each, whether it is beyond doubt, its log-probability where it was asked for, and whether the
        logits are numbers at all. Each mix of offsets is joined for its own answers."""
        tokens, sure, scores, sound = ([None] * len(answers) for _ in range(4))
        for mix in dict.fromkeys(a.ask.mix for a in answers):
            which = [i for i, a in enumerate(answers) if a.ask.mix == mix]
            some = dict(rows) if len(which) == len(answers) else {n: r[which] for n, r in rows.items()}
            logits, draws = self.blend.logits(some, mix), [answers[i].ask.draw for i in which]
            variants, steps = self.blend.variants(some, mix), [len(answers[i].said) for i in which]
            chosen, known = decide(logits, variants, draws, steps, self.blend.error(mix))
            found = logits.gather(-1, chosen[:, None])[:, 0].isfinite().tolist()
            chosen, known = chosen.tolist(), known.tolist()
            counts = [answers[i].ask.logprobs for i in which]
            wanted = [j for j, k in enumerate(counts) if k is not None]
            if wanted:
                of = scored(logits[wanted], [chosen[j] for j in wanted], [counts[j] for j in wanted])
                for j, one in zip(wanted, of, strict=True):
                    scores[which[j]] = one
            for j, i in enumerate(which):
                tokens[i], sure[i], sound[i] = chosen[j], known[j], found[j]
        return tokens, sure, scores, sound

    def _take(self, answer: Answer, token: int, score: Scored | None) -> bool:
        """Add a token to an answer; whether it goes on."""
        answer.said.append(token)
        ended, full = token in self._ends, len(answer.said) >= answer.ask.limit
        text = answer.text.add(None if ended else token, last=ended or full)
        finish = "stop" if ended or answer.text.stopped else "length" if full else None
        self._emit(answer, Said(token, text, score, finish))
        answer.cancelled |= finish is not None  # nothing is emitted after its end
        return finish is None

    def _apart(self, answer: Answer) -> None:
        """Go through an answer again by itself, token by token, and from here on never beside others."""
        lane = Lane(self.blend.members(answer.ask.mix), [answer.ask.prompt], [answer], self._pad)
        for token in answer.said:
            lane.take()
            lane.go_on([token], [0])
        answer.alone = True
        self._solos.append(lane)
        self._say(lane, lane.next())
