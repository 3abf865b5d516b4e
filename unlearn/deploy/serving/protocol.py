"""From the body of a request to what the engine is asked for."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearn.data.encoding import Encoder
from unlearn.decoding.choosing import Draw, key
from unlearn.deploy.parts import Mix
from unlearn.deploy.serving.answers import Ask
from unlearn.deploy.serving.bodies import BadRequest, Completion, Dialogue, Switch, Turn, read
from unlearn.deploy.serving.engine import Engine
from unlearn.deploy.serving.settings import Settings

Given = Completion | Dialogue
ENTRIES = 4_000_000  # log-probabilities of one reply: some 300 MB
PER_TOKEN = 16  # characters that a text may have for each token that fits: more are refused before they are read
NEAR_ZERO = 1e-6


@dataclass(frozen=True)
class Asked:
    """A request, read: its answers in the order of their indices, n for each prompt."""

    body: Given
    asks: tuple[Ask, ...]
    texts: tuple[str | None, ...]  # of the prompts, where they came as texts
    mix: Mix


class Protocol:
    """From bodies to ``Asked``; raises ``BadRequest``."""

    def __init__(self, engine: Engine, settings: Settings):
        self._engine, self._settings = engine, settings
        most, names = settings.max_logprobs, list(engine.blend.parts)
        self.name = settings.name or names[0]
        self._limits = {
            "choices": settings.max_choices, "tokens": settings.max_tokens, "fewest": min(0, most),
            "likeliest": engine.width if most < 0 else most, "names": names, "listed": ", ".join(names),
        }  # fmt: skip

    def completion(self, body: Any) -> Asked:
        given = read(Completion, body, self._limits)
        if given.prompt_logprobs is not None and given.stream:
            raise BadRequest("prompt_logprobs: there are none in a stream; leave stream out", "prompt_logprobs")
        several = isinstance(given.prompt, list) and not isinstance(given.prompt[0], int)
        prompts, most = given.prompt if several else [given.prompt], self._settings.max_choices
        if len(prompts) > most:
            raise BadRequest(f"prompt: {len(prompts)} prompts; at most {most} at once", "prompt")
        self._check_length("prompt", [p for p in prompts if isinstance(p, str)])
        ids = [self._ids(p, given.add_special_tokens) for p in prompts]
        return self._asked(given, ids, [p if isinstance(p, str) else None for p in prompts])

    def chat(self, body: Any) -> Asked:
        given = read(Dialogue, body, self._limits)
        self._check_length("messages", ["".join(turn.text for turn in given.messages)])
        if len(given.messages) > self._engine.encoder.max_length:
            raise BadRequest(f"messages: are {len(given.messages)}, and each has a token at least", "messages")
        try:
            prompt = chat_ids(self._engine.encoder, given.messages)
        except ValueError as error:
            raise BadRequest(f"messages: {error}", "messages") from None
        if given.top_logprobs is not None and not given.logprobs:
            raise BadRequest(f"top_logprobs={given.top_logprobs}: only with logprobs=true", "top_logprobs")
        if given.max_tokens is not None and given.max_completion_tokens is not None:
            raise BadRequest("max_tokens and max_completion_tokens: give one of them", "max_tokens")
        return self._asked(given, [prompt], [None])

    def switch(self, body: Any) -> None:
        """Switch an offset on or off, or change its α."""
        given = read(Switch, body, self._limits)
        try:
            self._engine.blend.switch(given.name, given.on, given.alpha)
        except ValueError as problem:
            raise BadRequest(f"on=false: {problem}", "on") from None

    def _check_length(self, name: str, texts: Sequence[str]) -> None:
        most = PER_TOKEN * self._engine.encoder.max_length
        longest = max(map(len, texts), default=0)
        if longest > most:
            rule = f"{name}: a text has {longest:,} characters; at most {most:,}"
            raise BadRequest(rule, name, code="context_length_exceeded")

    # --- one request ----------------------------------------------------------------------------------------------

    def _asked(self, given: Given, prompts: Sequence[tuple[int, ...]], texts: Sequence[str | None]) -> Asked:
        if given.model not in (None, self.name):
            raise BadRequest(f"model={given.model!r:.80}: there is {self.name!r}", "model", 404, "model_not_found")
        n, most = given.n, self._settings.max_choices
        if n * len(prompts) > most:
            raise BadRequest(f"n={n} for {len(prompts)} prompts: at most {most} answers of one request", "n")
        # Near 0 both mean the likeliest token alone: no vocabulary has a million tokens, and no logits differ by less.
        greedy = min(given.temperature, given.top_p) < NEAR_ZERO
        temperature, top_p = (0.0, 1.0) if greedy else (given.temperature, given.top_p)
        seed, mix = secrets.randbits(64) if given.seed is None else given.seed, self._mix(given)
        strip = isinstance(given, Dialogue) and not self._engine.encoder.tokenizer.chat_template
        read = given.prompt_logprobs
        if given.echo and given.shown is not None:  # an echo has its log-probabilities, too
            read = -1 if -1 in (read, given.shown) else max(read or 0, given.shown)
        asks = []
        for prompt in prompts:
            limit = self._limit(given, len(prompt))
            for i in range(n):
                draw = Draw(temperature, top_p, key(seed, prompt, i) if temperature else 0)
                asks.append(Ask(prompt, mix, limit, draw, given.stop, strip, given.shown, read))
        total = sum(self._size(a.prompt_logprobs, len(a.prompt)) + self._size(a.logprobs, a.limit) for a in asks)
        if total > ENTRIES:
            rule = f"and at most {ENTRIES:,} are given at once: ask for fewer tokens, or in several requests"
            field = "logprobs" if read is None else "prompt_logprobs"
            raise BadRequest(f"this would be {total:,} log-probabilities, {rule}", field)
        return Asked(given, tuple(asks), tuple(texts), mix)

    def _size(self, k: int | None, positions: int) -> int:
        """How many log-probabilities so many positions have."""
        return 0 if k is None else positions * (1 + (self._engine.width if k < 0 else k))

    def _ids(self, prompt: str | list[int], special: bool) -> tuple[int, ...]:
        ids = text_ids(self._engine.encoder.tokenizer, prompt, special) if isinstance(prompt, str) else prompt
        if not ids:
            raise BadRequest("prompt: has no tokens; at least one is needed", "prompt")
        wrong = next((i for i in ids if not 0 <= i < self._engine.width), None)
        if wrong is not None:
            raise BadRequest(f"prompt: token id {wrong}: must be from 0 to {self._engine.width - 1}", "prompt")
        return tuple(ids)

    def _limit(self, given: Given, length: int) -> int:
        """Tokens of an answer: what is asked for, which must fit, or as many as fit."""
        longest = self._engine.encoder.max_length
        name, asked = given.limit
        if longest - length < (1 if asked is None else asked):
            raise BadRequest(
                f"the prompt has {length} tokens and {name} is {'not given' if asked is None else asked}: together at "
                f"most {longest}; at least one is for the answer unless {name}=0",
                "prompt" if longest - length < 1 else name, code="context_length_exceeded",
            )  # fmt: skip
        most = min(longest - length, self._settings.max_tokens)
        return min(most, given.default or most) if asked is None else asked

    def _mix(self, given: Given) -> Mix:
        chosen = next((name for name in ("alpha", "offsets") if getattr(given, name) is not None), None)
        if chosen and not self._settings.per_request:
            raise BadRequest(f"per-request {chosen} is disabled; start the server with per_request=true", chosen)
        try:
            return self._engine.blend.mix(given.offsets, given.alpha)
        except ValueError as error:
            raise BadRequest(f"offsets: {error}", "offsets") from None


def text_ids(tokenizer, text: str, special: bool = True) -> list[int]:
    """Of a text that is continued, with a BOS if the tokenizer writes one; special tokens in it are read as text."""
    ids = tokenizer(text, add_special_tokens=special, split_special_tokens=True)["input_ids"]
    return ids[:-1] if special and ids and ids[-1] == tokenizer.eos_token_id else ids


def chat_ids(encoder: Encoder, turns: Sequence[Turn]) -> tuple[int, ...]:
    """Of a dialogue by the chat template; without one, of the one question that it must be. Else ``ValueError``."""
    if turns[-1].role != "user":
        raise ValueError(f"the last one is the {turns[-1].role}'s: must be the user's")
    if encoder.tokenizer.chat_template:
        return encoder.dialogue([{"role": turn.role, "content": turn.text} for turn in turns])
    if len(turns) == 1:
        return encoder.prompt(turns[0].text)
    rule = "the model has no chat template and answers single questions, so there must be one message, the user's"
    raise ValueError(f"are {len(turns)}: {rule}")
