"""A server around a tiny model for tests: /v1/completions as vLLM has it, with faults on demand. It is not vLLM.

What it does is what vLLM 0.32 was seen to do: ``prompt_logprobs`` keyed by token ids with the text's own token among
them, ``echo`` + ``logprobs`` keyed by texts or (``return_tokens_as_token_ids``) by ``token_id:N``, ``logprobs`` of
generated tokens, the end of sequence among these, /tokenize, 400 with a message for more log-probabilities than
``cap``.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from support.beside import serving

COMPLETIONS = "/v1/completions"


class Numbered:
    """A tokenizer whose tokens are w0, w1 …; some may share a text."""

    eos_token_id, all_special_ids = 1, (0, 1)

    def __init__(self, size: int = 40, prefix: str = "w", same: tuple[int, ...] = ()):
        self.size, self.prefix, self.same = size, prefix, same

    def decode(self, ids) -> str:
        return " ".join(f"{self.prefix}{self.same[0] if i in self.same else i}" for i in ids)

    def get_vocab(self) -> dict[str, int]:
        return {f"{self.prefix}{i}": i for i in range(self.size)}

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        words = (w.removeprefix(self.prefix) for w in text.split())
        return {"input_ids": [int(w) for w in words if w.isdigit()]}


@dataclass
class Faults:
    """``at``: what becomes of the n-th question (1, 2, …), or a function of its number and body that says so, one of
    429, 429-date, 500, 503, 400, half (of a JSON), cut (off in the middle), reset, nan, positive, length, own (token is
    missing), few, mass, list, empty, stall."""

    at: Mapping[int, str] | Callable[[int, dict], str | None] = field(default_factory=dict)
    slow: float = 0.0  # seconds of every question
    forms: tuple[str, ...] = ("prompt_logprobs", "echo")  # those that it knows; others are ignored
    strict: bool = False  # others are refused
    shift: bool = False  # an echo gives the probabilities after each token
    texts: bool = False  # tokens are called by their texts, whatever is asked
    named_by: Any = None  # a tokenizer that tokens are called by and texts are read by
    tokenize: bool = True
    cap: int | None = None  # log-probabilities of a token; None: as many as there are tokens
    quiet_cap: bool = False  # it gives fewer without a word
    key: str | None = None
    context: int | None = None  # tokens, prompt and generated


@dataclass
class Server:
    """``url`` and what was asked: questions that reached it, and tokens of those that it answered in any way."""

    model: Any
    tokenizer: Any
    faults: Faults
    url: str = ""
    tokens: int = 0
    asked: list[dict] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def requests(self) -> int:
        return len(self.asked)

    @torch.no_grad()
    def logp(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities after each token, [tokens, V]."""
        return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)

    def name(self, token: int) -> str:
        return (self.faults.named_by or self.tokenizer).decode([token])

    def called(self, token: int, body: dict) -> str:
        by_id = body.get("return_tokens_as_token_ids") and not self.faults.texts
        return f"token_id:{token}" if by_id else self.name(token)

    def top(self, row: torch.Tensor, own: int, count: int) -> dict[int, float]:
        found = row.topk(min(count, len(row)))
        entries = dict(zip(found.indices.tolist(), found.values.tolist(), strict=True))
        return entries | {own: row[own].item()}

    def complete(self, body: dict) -> tuple[int, dict]:
        ids = body["prompt"]
        if isinstance(ids, str):
            ids = self.tokenizer(ids, add_special_tokens=False)["input_ids"]
        told = {}
        for name in ("logprobs", "prompt_logprobs"):
            count = body.get(name)
            if count is None:
                continue
            count = self.model.config.vocab_size if count == -1 else count
            if self.faults.cap is not None and count > self.faults.cap:
                if not self.faults.quiet_cap:
                    said = f"Requested {name} of {count}, which is greater than max allowed: {self.faults.cap}"
                    return 400, {"error": {"message": said}}
                count = self.faults.cap
            told[name] = count
        for form, name in (("prompt_logprobs", "prompt_logprobs"), ("echo", "logprobs")):
            if form not in self.faults.forms and (form in told or body.get("echo") and form == "echo"):
                if self.faults.strict:
                    return 400, {"error": {"message": f"{form} is not known here"}}
                told.pop(name, None)
        if self.faults.context and len(ids) + body["max_tokens"] > self.faults.context:
            return 400, {"error": {"message": f"maximum context length is {self.faults.context} tokens"}}
        rows, said, generated = self.logp(ids), [], []
        while len(said) < body["max_tokens"] and said[-1:] != [self.tokenizer.eos_token_id]:
            generated.append(self.logp(ids + said)[-1])
            said.append(int(generated[-1].argmax()))
        with self.lock:
            self.tokens += len(ids) + len(said)
        choice: dict[str, Any] = {"index": 0, "text": "".join(map(self.name, said)), "finish_reason": "length"}
        if "prompt_logprobs" in told:
            choice["prompt_logprobs"] = [None] + [
                {str(i): {"logprob": p, "rank": 1, "decoded_token": self.name(i)}
                 for i, p in self.top(rows[t - 1], ids[t], told["prompt_logprobs"]).items()}
                for t in range(1, len(ids))
            ]  # fmt: skip
        if "logprobs" in told:
            choice["logprobs"] = self.listed(ids, rows, said, generated, told["logprobs"], body)
        return 200, {"object": "text_completion", "choices": [choice]}

    def listed(self, ids, rows, said, generated, count: int, body: dict) -> dict:
        pairs = list(zip(said, generated, strict=True))
        if body.get("echo"):
            shift = 0 if self.faults.shift else 1
            pairs = [(own, rows[t - shift] if t else None) for t, own in enumerate(ids)] + pairs
        tops = [None if row is None else self.top(row, own, count) for own, row in pairs]
        return {
            "tokens": [self.called(own, body) for own, _ in pairs],
            "token_logprobs": [None if row is None else row[own].item() for own, row in pairs],
            "top_logprobs": [top and {self.called(i, body): p for i, p in top.items()} for top in tops],
        }


def broken(data: dict, kind: str) -> dict | list:
    """An answer that is not what was asked for."""
    if kind in ("list", "empty"):
        return [data] if kind == "list" else {"choices": []}
    choice, values = data["choices"][0], {"nan": float("nan"), "positive": 0.5}
    rows = choice.get("prompt_logprobs")
    if rows is None:
        listed = choice["logprobs"]
        top = listed["top_logprobs"][-1]
        if kind == "length":
            listed["tokens"].pop()
        elif kind in values:
            listed["token_logprobs"][-1] = values[kind]
        elif kind == "few":
            listed["top_logprobs"][-1] = dict(list(top.items())[:1])
        elif kind == "mass":
            listed["top_logprobs"][-1] = dict.fromkeys(top, -0.01)
        return data
    last = rows[-1]
    if kind == "length":
        rows.pop()
    elif kind in values:
        next(iter(last.values()))["logprob"] = values[kind]
    elif kind == "own":
        rows[-1] = {str(10**6 + n): entry for n, entry in enumerate(last.values())}
    elif kind == "few":
        rows[-1] = dict(list(last.items())[-1:])
    elif kind == "mass":
        rows[-1] = {token: entry | {"logprob": -0.01} for token, entry in last.items()}
    return data


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else head and body, two packets, wait 40 ms for each other
    server_version = "a-tiny-model-in-a-test"
    about: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.about.faults.key and self.headers.get("Authorization") != f"Bearer {self.about.faults.key}":
            return self.answer(401, {"error": {"message": f"wrong key: {self.headers.get('Authorization')}"}})
        if self.path == "/tokenize":
            if not self.about.faults.tokenize:
                return self.answer(404, {"detail": "Not Found"})
            reader = self.about.faults.named_by or self.about.tokenizer
            return self.answer(200, {"tokens": reader(body["prompt"], add_special_tokens=False)["input_ids"]})
        if self.path != COMPLETIONS:
            return self.answer(404, {"detail": "Not Found"})
        about = self.about
        with about.lock:
            about.asked.append(body)
            number = about.requests
            about.at_once += 1
            about.most_at_once = max(about.most_at_once, about.at_once)
        try:
            at = about.faults.at
            self.complete(body, at(number, body) if callable(at) else at.get(number))
        finally:
            with about.lock:
                about.at_once -= 1

    def complete(self, body: dict, kind: str | None) -> None:
        time.sleep(self.about.faults.slow)
        if kind == "stall":
            time.sleep(2)
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        if kind in ("429", "429-date"):
            again = "0" if kind == "429" else time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time()))
            return self.answer(429, {"error": {"message": "slow down"}}, {"Retry-After": again})
        if kind in ("400", "500", "503"):
            return self.answer(int(kind), {"error": {"message": f"out of order ({kind})"}})
        status, found = self.about.complete(body)
        if kind in ("half", "cut"):
            data = json.dumps(found).encode()
            return self.send(status, data[: len(data) // 2], len(data) if kind == "cut" else None)
        if kind is not None and kind != "stall":
            found = broken(found, kind)
        self.answer(status, found)

    def answer(self, status: int, found: Any, headers: Mapping[str, str] = {}) -> None:
        self.send(status, json.dumps(found).encode(), None, headers)

    def send(self, status: int, data: bytes, length: int | None = None, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.close_connection = self.close_connection or length is not None
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that has gone away."""


@contextmanager
def serve(model: Any, tokenizer: Any, faults: Faults | None = None, port: int = 0) -> Iterator[Server]:
    """A server for the length of the block."""
    about = Server(model.eval(), tokenizer, faults or Faults())
    server = _Quiet(("127.0.0.1", port), type("Handler", (_Handler,), {"about": about}))
    about.url = f"http://127.0.0.1:{server.server_port}/v1"
    with serving(server):
        yield about
