"""What clients are told, in the shapes of OpenAI's completions and chat completions, and of vLLM's additions."""

import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from unlearn.deploy.serving.answers import BROKEN, Event, Said, Scored
from unlearn.deploy.serving.bodies import Dialogue
from unlearn.deploy.serving.protocol import Asked
from unlearn.store.identity import digest

OF_BYTE = re.compile("<0x[0-9A-F]{2}>")  # what vocabularies of SentencePiece call a byte
LETTERS = {letter: byte for byte, letter in bytes_to_unicode().items()}  # what byte-level ones write for each
LEAST = -9999.0  # instead of a logarithm of 0, which JSON does not have


class Names:
    """What tokens are called."""

    def __init__(self, tokenizer):
        decode = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        self._piece, self.text = tokenizer.convert_ids_to_tokens, cache(lambda token: decode([token]))

    def bytes(self, token: int) -> list[int]:
        """Those that a token stands for, which may be a part of a character."""
        text = self.text(token)
        piece = self._piece(token) if BROKEN in text else ""
        if OF_BYTE.fullmatch(piece):
            return [int(piece[3:5], 16)]
        whole = piece and all(letter in LETTERS for letter in piece)
        return [LETTERS[letter] for letter in piece] if whole else list(text.encode())


class Reply:
    """The reply to one request, made of the events of its answers: in pieces as they come, or whole."""

    def __init__(self, asked: Asked, model: str, attested: Mapping[str, Any], names: Names):
        self._asked, self._names, self.attested = asked, names, attested
        chat = self._chat = isinstance(asked.body, Dialogue)
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if chat and asked.body.stream else kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"fp_{digest(attested, 10)}",
        }
        self._events: list[list[Event]] = [[] for _ in asked.asks]
        self._lengths = [0] * len(asked.asks)  # characters so far
        self._tokens = 0

    def add(self, index: int, event: Event) -> None:
        self._events[index].append(event)

    def whole(self) -> dict[str, Any]:
        choices = []
        for i, events in enumerate(self._events):
            said, scored = zip(*(self._part(i, event) for event in events), strict=True)
            text = "".join(said)
            content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            choice = {"index": i, "finish_reason": events[-1].finish, **content}
            choice["logprobs"] = self._logprobs(i, chain(*scored))
            if self._asked.body.prompt_logprobs is not None:
                choice["prompt_logprobs"] = [None, *(self._by_id(s) for s in events[0].scored or ())]
            choices.append(choice)
        return self._head | {"choices": choices, "usage": self.usage(), "unlearned": self.attested}

    def first(self, index: int) -> dict[str, Any] | None:
        """The piece before all others of an answer."""
        delta = {"role": "assistant", "content": ""}
        return self._piece(index, {"delta": delta, "logprobs": None}, None) if self._chat else None

    def piece(self, index: int, event: Event) -> dict[str, Any] | None:
        """What an event adds; None where that is nothing."""
        text, scored = self._part(index, event)
        if not text and not scored and event.finish is None:
            return None
        content = {"delta": {"content": text}} if self._chat else {"text": text}
        return self._piece(index, content | {"logprobs": self._logprobs(index, scored)}, event.finish)

    def _piece(self, index: int, content: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {"index": index, **content, "finish_reason": finish}
        own = {"unlearned": self.attested} if finish is not None else {}
        return self._head | {"choices": [choice]} | own

    def last(self) -> dict[str, Any] | None:
        """How many tokens there were, after all answers."""
        wanted = self._asked.body.stream_options.include_usage
        return self._head | {"choices": [], "usage": self.usage()} if wanted else None

    def usage(self) -> dict[str, int]:
        read = sum(len(ask.prompt) for ask in self._asked.asks[:: self._asked.body.n])
        return {"prompt_tokens": read, "completion_tokens": self._tokens, "total_tokens": read + self._tokens}

    def _part(self, index: int, event: Event) -> tuple[str, list[Scored | int]]:
        """Text and scored tokens of an event; an int is the first token of a prompt, which nothing comes before."""
        asked = self._asked
        if isinstance(event, Said):
            self._tokens += 1
            return event.text, [] if event.scored is None else [event.scored]
        if not asked.body.echo:
            return "", []
        prompt, text = asked.asks[index].prompt, asked.texts[index // asked.body.n]
        text = "".join(map(self._names.text, prompt)) if text is None else text
        return text, [] if asked.body.shown is None else [prompt[0], *(event.scored or ())]

    def _logprobs(self, index: int, scored: Iterable[Scored | int]) -> dict[str, Any] | None:
        if self._asked.body.shown is None:
            return None
        if self._chat:
            return {"content": [self._spoken(s) for s in scored]}
        tokens, values, tops, offsets = [], [], [], []
        for s in scored:
            first = isinstance(s, int)
            token = s if first else s.token
            tokens.append(self._name(token))
            values.append(None if first else _finite(s.logprob))
            tops.append(None if first else self._by_text(s))
            offsets.append(self._lengths[index])
            self._lengths[index] += len(self._names.text(token))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self._asked.body.return_tokens_as_token_ids else self._names.text(token)

    def _top(self, s: Scored, most: int | None) -> Sequence[tuple[int, float]]:
        return s.top if most is None or most < 0 else s.top[:most]

    def _by_text(self, s: Scored) -> dict[str, float]:
        """The likeliest and the token itself. Of tokens with the same text the likeliest alone is there."""
        found: dict[str, float] = {}
        for token, logprob in (*self._top(s, self._asked.body.shown), (s.token, s.logprob)):
            found.setdefault(self._name(token), _finite(logprob))
        return found

    def _by_id(self, s: Scored) -> dict[str, dict[str, Any]]:
        """The token itself first, as vLLM has it, then the likeliest."""
        top = enumerate(self._top(s, self._asked.body.prompt_logprobs), 1)
        found = {}
        for token, logprob, rank in ((s.token, s.logprob, s.rank), *((t, p, rank) for rank, (t, p) in top)):
            one = {"logprob": _finite(logprob), "rank": rank, "decoded_token": self._names.text(token)}
            found.setdefault(str(token), one)
        return found

    def _spoken(self, s: Scored) -> dict[str, Any]:
        def one(token: int, logprob: float) -> dict[str, Any]:
            return {"token": self._name(token), "logprob": _finite(logprob), "bytes": self._names.bytes(token)}

        top = [one(t, p) for t, p in self._top(s, self._asked.body.shown)]
        return one(s.token, s.logprob) | {"top_logprobs": top}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
