"""What clients may ask, in the terms of OpenAI's completions and chat completions, and of vLLM's additions to them.

Fields that would change the answer and are not known here are refused; those that would change nothing are ignored.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn.decoding.choosing import Draw, key
from unlearn.deploy.serving.answers import Ask
from unlearn.deploy.serving.chat import Chat, text_ids
from unlearn.deploy.serving.engine import Engine
from unlearn.deploy.serving.offsets import Mix, Switches
from unlearn.deploy.serving.settings import Settings

IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "request_id", "priority", "parallel_tool_calls",
)  # fmt: skip
# Fields of what is not done here, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "length_penalty": (1,),
    "logit_bias": ({},), "suffix": ("",), "best_of": (1,), "top_k": (-1, 0), "min_p": (0,), "min_tokens": (0,),
    "use_beam_search": (False,), "ignore_eos": (False,), "skip_special_tokens": (True,), "stop_token_ids": ([],),
    "spaces_between_special_tokens": (True,), "include_stop_str_in_output": (False,), "return_token_ids": (False,),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "add_generation_prompt": (True,),
    "continue_final_message": (False,), "chat_template_kwargs": ({},), "documents": ([],),
}  # fmt: skip
SHARED = ("model", "n", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "logprobs")
OWN = ("alpha", "offsets")
COMPLETION = (
    *SHARED, "prompt", "echo", "prompt_logprobs", "return_tokens_as_token_ids", "add_special_tokens", *OWN,
)  # fmt: skip
CHAT = (*SHARED, "messages", "max_completion_tokens", "top_logprobs", "return_tokens_as_token_ids", *OWN)
MOST_STOPS = 16
ENTRIES = 4_000_000  # log-probabilities of one reply: some 300 MB
DEFAULT_TOKENS = 16  # of a completion, as OpenAI's


class BadRequest(ValueError):
    """A request that cannot be answered: what was given, the rule, and the choices."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True)
class Asked:
    """A request, read: its answers in the order of their indices, n for each prompt."""

    asks: tuple[Ask, ...]
    texts: tuple[str | None, ...]  # of the prompts, where they came as texts
    n: int
    mix: Mix
    stream: bool
    usage: bool  # whether a stream ends with how many tokens there were
    echo: bool
    as_ids: bool  # whether tokens are called token_id:17
    logprobs: int | None  # likeliest tokens that the reply shows of each place, where it has one (−1: all)
    prompt_logprobs: int | None


class Protocol:
    """From bodies to ``Asked``; raises ``BadRequest``."""

    def __init__(self, engine: Engine, settings: Settings, switches: Switches, name: str):
        self._engine, self._settings, self._switches, self.name = engine, settings, switches, name
        self._chat, self._tokenizer = Chat(engine.encoder), engine.encoder.tokenizer

    def completion(self, body: Any) -> Asked:
        fields = _known(body, COMPLETION)
        texts, prompts = self._prompts(fields)
        scored, most = self._count(fields, "prompt_logprobs"), self._count(fields, "logprobs")
        if scored is not None and flag(fields, "stream"):
            raise BadRequest("prompt_logprobs: there are none in a stream; leave stream out", "prompt_logprobs")
        return self._asked(fields, prompts, texts, "max_tokens", most, scored, flag(fields, "echo"))

    def chat(self, body: Any) -> Asked:
        fields = _known(body, CHAT)
        try:
            prompt = self._chat.ids(fields.get("messages"))
        except ValueError as error:
            raise BadRequest(f"messages: {error}", "messages") from None
        asked, most = flag(fields, "logprobs"), self._count(fields, "top_logprobs")
        if most is not None and not asked:
            raise BadRequest(f"top_logprobs={most}: only with logprobs=true", "top_logprobs")
        if "max_tokens" in fields and "max_completion_tokens" in fields:
            raise BadRequest("max_tokens and max_completion_tokens: give one of them", "max_tokens")
        limit = "max_tokens" if "max_tokens" in fields else "max_completion_tokens"
        found = (most or 0) if asked else None
        return self._asked(fields, [prompt], [None], limit, found, None, False)

    # --- one request ----------------------------------------------------------------------------------------------

    def _asked(
        self,
        fields: Mapping[str, Any],
        prompts: Sequence[tuple[int, ...]],
        texts: Sequence[str | None],
        limit: str,
        logprobs: int | None,
        prompt_logprobs: int | None,
        echo: bool,
    ) -> Asked:
        self._model(fields.get("model"))
        n = whole(fields, "n", 1, 1, self._settings.max_choices)
        if n * len(prompts) > self._settings.max_choices:
            raise BadRequest(
                f"n={n} for {len(prompts)} prompts: at most {self._settings.max_choices} answers of one request", "n"
            )
        temperature, top_p = number(fields, "temperature", 1.0, 0.0, 100.0), number(fields, "top_p", 1.0, 0.0, 1.0)
        if top_p == 0:
            temperature, top_p = 0.0, 1.0  # the likeliest token alone
        seed = whole(fields, "seed", None, -(2**63), 2**64 - 1)
        seed = secrets.randbits(64) if seed is None else seed
        mix, stop, asks = self._mix(fields), _stop(fields.get("stop")), []
        chat = "messages" in fields
        strip, default = chat and not self._chat.templated, None if chat else DEFAULT_TOKENS
        read = more(prompt_logprobs, logprobs) if echo else prompt_logprobs  # an echo has its log-probabilities, too
        for prompt in prompts:
            most = self._limit(fields, limit, default, len(prompt))
            for i in range(n):
                draw = Draw(temperature, top_p, key(seed, prompt, i) if temperature > 0 else 0)
                asks.append(Ask(prompt, mix, most, draw, stop, strip, logprobs, read))
        self._entries(asks)
        options = fields.get("stream_options") or {}
        if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
            raise BadRequest("stream_options: may hold include_usage, true or false", "stream_options")
        stream, usage = flag(fields, "stream"), flag(options, "include_usage")
        as_ids = flag(fields, "return_tokens_as_token_ids")
        return Asked(tuple(asks), tuple(texts), n, mix, stream, usage, echo, as_ids, logprobs, prompt_logprobs)

    def _model(self, given: Any) -> None:
        if given is not None and given != self.name:
            raise BadRequest(f"model={given!r:.80}: there is {self.name!r}", "model", 404, "model_not_found")

    def _prompts(self, fields: Mapping[str, Any]) -> tuple[list[str | None], list[tuple[int, ...]]]:
        given = fields.get("prompt")
        special = flag(fields, "add_special_tokens", True)
        prompts = [given] if isinstance(given, str) or _is_ids(given) else given
        if not isinstance(prompts, list) or not prompts:
            raise BadRequest("prompt: must be a text, a list of token ids, or a list of either", "prompt")
        if len(prompts) > self._settings.max_choices:
            raise BadRequest(f"prompt: {len(prompts)} prompts; at most {self._settings.max_choices} at once", "prompt")
        return [p if isinstance(p, str) else None for p in prompts], [self._ids(p, special) for p in prompts]

    def _ids(self, prompt: Any, special: bool) -> tuple[int, ...]:
        if isinstance(prompt, str):
            prompt = text_ids(self._tokenizer, prompt, special)
        elif not _is_ids(prompt):
            raise BadRequest("prompt: must be a text, a list of token ids, or a list of either", "prompt")
        if not prompt:
            raise BadRequest("prompt: has no tokens; at least one is needed", "prompt")
        wrong = next((i for i in prompt if not 0 <= i < self._engine.width), None)
        if wrong is not None:
            raise BadRequest(f"prompt: token id {wrong}: must be from 0 to {self._engine.width - 1}", "prompt")
        return tuple(prompt)

    def _limit(self, fields: Mapping[str, Any], name: str, default: int | None, length: int) -> int:
        """Tokens of an answer: what is asked for, which must fit, or as many as fit."""
        room, most = self._engine.encoder.max_length - length, self._settings.max_tokens
        asked = whole(fields, name, None, 0, most)
        if room < (1 if asked is None else asked):
            given = "not given" if asked is None else asked
            raise BadRequest(
                f"the prompt has {length} tokens and {name} is {given}: together at most "
                f"{self._engine.encoder.max_length}, and at least one for the answer unless {name}=0",
                "prompt" if room < 1 else name, code="context_length_exceeded",
            )  # fmt: skip
        return asked if asked is not None else min(room, most, default or most)

    def _count(self, fields: Mapping[str, Any], name: str) -> int | None:
        """How many of the likeliest tokens; −1: all."""
        most = self._settings.max_logprobs
        return whole(fields, name, None, min(0, most), self._engine.width if most < 0 else most)

    def _entries(self, asks: Sequence[Ask]) -> None:
        def size(k: int | None, positions: int) -> int:
            return 0 if k is None else positions * (1 + (self._engine.width if k < 0 else k))

        total = sum(size(a.prompt_logprobs, len(a.prompt)) + size(a.logprobs, a.limit) for a in asks)
        if total > ENTRIES:
            raise BadRequest(
                f"this would be {total:,} log-probabilities, and at most {ENTRIES:,} are given at once: ask for fewer "
                "likeliest tokens, or in several requests",
                "prompt_logprobs" if any(a.prompt_logprobs is not None for a in asks) else "logprobs",
            )

    def _mix(self, fields: Mapping[str, Any]) -> Mix:
        given = [name for name in OWN if name in fields]
        if given and not self._settings.per_request:
            raise BadRequest(
                f"{given[0]}: this server lets no request choose it; it was started without per_request=true", given[0]
            )
        alpha, names, known = fields.get("alpha"), fields.get("offsets"), [o["name"] for o in self._switches.listed()]
        if alpha is not None:
            alpha = number(fields, "alpha", None, -1e6, 1e6)
        sound = names is None or (isinstance(names, list) and all(isinstance(x, str) for x in names))
        wrong = next((x for x in names or [] if x not in known), None) if sound else names
        if not sound or wrong is not None:
            raise BadRequest(f"offsets={wrong!r:.80}: must be a list of names; there are {', '.join(known)}", "offsets")
        try:
            return self._switches.mix(names, alpha)
        except ValueError as error:
            raise BadRequest(f"offsets: {error}", "offsets") from None


# --- fields -----------------------------------------------------------------------------------------------------------


def _known(body: Any, known: Sequence[str]) -> dict[str, Any]:
    """The fields that were given, null being none."""
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    found = {}
    for name, value in body.items():
        if value is None or name in IGNORED:
            continue
        if name in NEUTRAL and not any(_same(value, neutral) for neutral in NEUTRAL[name]):
            allowed = " or ".join(repr(v) for v in NEUTRAL[name])
            raise BadRequest(f"{name}={value!r:.80}: is not done here; leave it out, or give {allowed}", name)
        if name not in NEUTRAL and name not in known:
            raise BadRequest(f"{name!r:.80}: no such field; there are {', '.join(known)}", name[:80])
        found[name] = value
    return found


def _same(value: Any, neutral: Any) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _is_ids(value: Any) -> bool:
    whole = isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
    return whole and bool(value)


def more(a: int | None, b: int | None) -> int | None:
    """The larger of two counts, of which −1 is all."""
    counts = [k for k in (a, b) if k is not None]
    return -1 if -1 in counts else max(counts, default=None)


def flag(fields: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{name}={value!r:.80}: must be true or false", name)
    return value


def whole(fields: Mapping[str, Any], name: str, default: int | None, least: int, most: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(f"{name}={value!r:.80}: must be a whole number from {least} to {most}", name)
    return value


def number(fields: Mapping[str, Any], name: str, default: float | None, least: float, most: float) -> float | None:
    value = fields.get(name)
    if value is None:
        return default
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not sound or not least <= value <= most:
        raise BadRequest(f"{name}={value!r:.80}: must be a number from {least:g} to {most:g}", name)
    return float(value)


def _stop(given: Any) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(texts, list) or len(texts) > MOST_STOPS or not all(isinstance(s, str) for s in texts):
        raise BadRequest(f"stop: must be a text, or a list of at most {MOST_STOPS} texts", "stop")
    if any(not s for s in texts):
        raise BadRequest("stop: an empty text ends nothing; leave it out", "stop")
    return tuple(texts)
