"""One request to a server: counted before it is sent, tried again where that may help, refused where it cannot.

Tried again, with growing pauses or the one that Retry-After asks for: no connection, a timeout, a broken answer, 408,
425, 429, 5xx, and an answer that is not what was asked for, or larger than that can be. Any other 4xx is final, with
the server's own words. A request with its answer ends in ``timeout_s``, however slowly its bytes come.
"""

import itertools
import json
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache, partial
from http.cookiejar import CookieJar
from typing import Any

import httpcore
import httpx

from unlearn.blackbox import forms
from unlearn.blackbox.forms import Lacks, Texts, Way, Wrong
from unlearn.blackbox.questions import Answer, BlackBoxError, Memo, Question
from unlearn.config.pair import HttpConfig
from unlearn.config.redaction import HIDDEN

Read = Callable[[Any], tuple[Any, int]]  # from an answer's JSON: what it is, and how many tokens were used
log = logging.getLogger(__name__)
COMPLETIONS = "/v1/completions"
PASSING, UNKNOWN = (408, 425, 429), 501  # what may pass of the 4xx, and what will not of the 5xx
FIRST, LONGEST, PATIENT = 0.5, 30.0, 600.0  # seconds: a first pause, a pause of ours, one that Retry-After asks for
WORDS = 500  # characters of what a server said
SMALL = 2**20  # bytes of an answer that holds no rows
certificates = cache(httpx.create_ssl_context)  # reading the system's takes 50 ms


class Refused(BlackBoxError):
    """A 4xx that will not change."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Halted(Exception):
    """Another request of the same call failed, or the call was told to end."""


class Again(Exception):
    """What may go away by itself. ``after``: seconds that the server asks for; ``answered``: it was the answer."""

    def __init__(self, why: str, after: float | None = None, answered: bool = False):
        super().__init__(why)
        self.after, self.answered = after, answered


class _NoCookies(CookieJar):
    def extract_cookies(self, response: Any, request: Any) -> None:
        """None is kept; the library prints tracebacks of odd ones."""


class Client:
    """May be used by several threads. ``halt``, once set, ends what waits."""

    def __init__(self, http: HttpConfig, memo: Memo, texts: Texts):
        self.http, self.memo, self.texts, self.halt = http, memo, texts, threading.Event()
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every request
        self._key = None if http.key_env is None else os.environ.get(http.key_env, "").strip()
        if self._key == "":
            raise BlackBoxError(f"pair.target.http.key_env={http.key_env!r}: this environment variable is not set")
        self._one = threading.local()  # ``until``: when the request of this thread must have ended
        self._client = client = httpx.Client(
            timeout=http.timeout_s,
            verify=certificates(),
            cookies=_NoCookies(),
            # what is packed may become a thousand times as large
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            limits=httpx.Limits(max_connections=http.concurrency),
        )
        weakref.finalize(self, client.close)

    def ask(
        self, question: Question, k: int, way: Way, wrong: int | None = None, seen: Callable[[Any], None] | None = None
    ) -> tuple[Answer, int]:
        """The answer, with ``k`` tokens of each row, and tokens used. ``seen`` gets its JSON; raises as ``post``."""
        body = forms.body(question, self.http.model, way, k, self.texts.width)

        def read(data: Any) -> tuple[Answer, int]:
            answer = forms.read(question, way.form, k, data, self.texts)
            if seen is not None:
                seen(data)
            return answer, len(question.ids) + (len(answer.said) or body["max_tokens"])

        most = SMALL + forms.most_bytes(question, k, self.texts.width)
        return self.post(COMPLETIONS, body, question.tokens, read, wrong, most=most)

    def post(  # type: ignore[return]
        self, path: str, body: dict[str, Any], tokens: int, read: Read, wrong: int | None = None,
        retries: int | None = None, most: int = SMALL,
    ) -> tuple[Any, int]:  # fmt: skip
        """What ``read`` makes of the answer to ``path`` (/v1/…), and how many tokens were used.

        ``retries``: if not as many as the settings say; ``wrong``: of an answer that is wrong, likewise; ``most``: its
        bytes. Raises ``Refused``, ``Lacks`` as ``read`` does, ``BlackBoxError`` where a limit or all tries are spent.
        """
        often = self.http.retries if retries is None else min(retries, self.http.retries)
        for tries in itertools.count(1):
            try:
                return self._once(path, body, tokens, read, most)
            except Again as error:
                why, pause = self._hidden(str(error)), error.after
                limit = often if wrong is None or not error.answered else min(wrong, often)
            if tries > limit:
                resume = "what was fetched stays: rerun the same command to resume"
                raise BlackBoxError(f"{self.http.url}: {why}; so it was after {tries} tries; {resume}")
            log.debug("try %d: %s", tries, why)
            own = min(LONGEST, FIRST * 2 ** (tries - 1)) * random.uniform(0.75, 1.25)
            self.halt.wait(own if pause is None else min(pause, PATIENT))

    def _once(self, path: str, body: dict[str, Any], tokens: int, read: Read, most: int) -> tuple[Any, int]:
        if self.halt.is_set():
            raise Halted
        self.memo.reserve(tokens, self.http)
        self._one.until = time.monotonic() + self.http.timeout_s
        url = self.http.url.rstrip("/").removesuffix("/v1") + path  # it is given with or without /v1
        try:
            with self._client.stream("POST", url, json=body, extensions={"trace": self._timed}) as answer:
                content = _content(answer, most)
        except httpx.RequestError as error:
            raise Again(f"{type(error).__name__}: {error}") from None
        except (httpx.InvalidURL, UnicodeError) as error:
            raise BlackBoxError(f"pair.target.http.url={self.http.url!r}: is not an address ({error})") from None
        if answer.status_code in PASSING or (answer.status_code >= 500 and answer.status_code != UNKNOWN):
            raise Again(f"{answer.status_code}: {_words(answer, content)}", _asked_pause(answer))
        if answer.status_code != 200:
            said = self._hidden(_words(answer, content))
            raise Refused(f"{self.http.url}: {path}: {answer.status_code}: {said}", answer.status_code)
        try:
            found, used = read(json.loads(content))
        except Lacks:
            raise
        except Wrong as error:
            raise Again(str(error), answered=True) from None
        except (ValueError, RecursionError) as error:
            raise Again(f"no JSON: {error}", answered=True) from None
        self.memo.settle(tokens, used)
        return found, used

    def _timed(self, event: str, info: dict[str, Any]) -> None:
        """Have each read of a new connection end with its request's time: the library bounds single reads alone."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            stream = info["return_value"]
            stream.read = partial(_read_until, self._one, stream.read)

    def _hidden(self, text: str) -> str:
        """Some servers quote the key that they do not like."""
        return text.replace(self._key, HIDDEN) if self._key else text


def _read_until(one: threading.local, read: Callable[..., bytes], size: int, timeout: float | None = None) -> bytes:
    left = one.until - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("no whole answer in pair.target.http.timeout_s")
    return read(size, left if timeout is None else min(timeout, left))


def _asked_pause(answer: httpx.Response) -> float | None:
    """Of Retry-After: seconds, or a date."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    with suppress(ValueError, OverflowError):
        until = parsedate_to_datetime(text)
        return max(0.0, (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp() - time.time())
    return None


def _content(answer: httpx.Response, most: int) -> bytes:
    packing = answer.headers.get("content-encoding", "identity")
    if packing.lower() != "identity":
        raise Again(f"its answer is packed as {packing[:WORDS]!r}, which was not asked for", answered=True)
    parts, size = [], 0
    for part in answer.iter_raw():
        parts.append(part)
        size += len(part)
        if size > most:
            raise Again(f"its answer has more than {most:,} bytes", answered=True)
    return b"".join(parts)


def _words(answer: httpx.Response, content: bytes) -> str:
    """What a server says of an error: the message of its JSON, or its text; what cannot be printed is left out."""
    text = content.decode(errors="replace")
    with suppress(ValueError, AttributeError, RecursionError):
        found = json.loads(content)
        found = found.get("error", found)
        text = str(found["message"] if isinstance(found, dict) and "message" in found else found)
    text = "".join(c if c.isprintable() else " " for c in text[: 10 * WORDS])
    return " ".join(text.split())[:WORDS] or answer.reason_phrase
