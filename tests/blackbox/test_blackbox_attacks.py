"""A server that means harm, or is broken in a way of its own: refused as ours, in bounded time and room."""

import gzip
import json
import socketserver
import time
import tracemalloc
from contextlib import contextmanager, suppress

import pytest
from support.beside import serving
from support.black_boxes import EXAMPLES, TOKENIZER, box

from unlearn.blackbox import client
from unlearn.blackbox.client import Client
from unlearn.blackbox.forms import Texts, Way
from unlearn.blackbox.questions import BlackBoxError, Memo, rows_of
from unlearn.config.pair import HttpConfig

QUESTION = rows_of((5, 6), (7, 1))
LONG = 300 * 2**20  # bytes, more than any answer needs


@contextmanager
def answering(say):
    """A server that says what ``say`` does with a function that sends bytes, whatever it is asked; its address."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            length = 0
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                length = int(line.split(b":")[1]) if line.lower().startswith(b"content-length") else length
            self.rfile.read(length)
            with suppress(OSError):
                say(self.connection.sendall)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

        def handle_error(self, *_):
            """A client that has gone away."""

    server = Server(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"


def whole(body=b"{}", status="200 OK", **headers):
    headers = {"Content-Type": "application/json", "Content-Length": len(body)} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("utf-8", "surrogateescape") + body


def once(*arguments, **headers):
    return lambda send: send(whole(*arguments, **headers))


def raw(data):
    return lambda send: send(data)


def endless(begin, part, pause=0.0):
    """Until the client goes, or much longer than it may wait."""

    def say(send):
        send(begin)
        end, sent = time.monotonic() + 8, 0
        while time.monotonic() < end and sent < 2 * LONG:
            send(part)
            sent += len(part)
            time.sleep(pause)

    return say


def with_row(text):
    """Two rows of the right form, with this for a log-probability."""
    row = b'{"7": {"logprob": -0.5}, "1": {"logprob": -1.5}, "2": {"logprob": ' + text.encode() + b"}}"
    return b'{"choices": [{"prompt_logprobs": [null, {}, ' + row + b", " + row + b"]}]}"


def later(when):
    return once(b"slow", "429 Too Many", Retry_After=when)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ATTACKS = {
    "broken gzip": once(b"\x1f\x8b no gzip", Content_Encoding="gzip"),
    "a gzip bomb": once(gzip.compress(b" " * LONG, 1), Content_Encoding="gzip"),
    "gzip in gzip": once(gzip.compress(gzip.compress(b" " * 2**20)), Content_Encoding="gzip, gzip"),
    "an unknown packing": once(Content_Encoding="x" * 3000),
    "a charset that is none of text": once(b"no", "500 Oh", Content_Type="text/plain; charset=base64"),
    "an unknown charset": once(b"\xff\xfe\x00", "500 Oh", Content_Type="text/plain; charset=k\udcff\udcfe"),
    "half a character of UTF-16": once(b"\xff\xfe{\x00}", Content_Type="application/json; charset=utf-16"),
    "bytes that are no UTF-8": once(b'{"a": "\xff\xff"}'),
    "Retry-After of 400 digits": later("9" * 400),
    "Retry-After below 0": later("-5"),
    "Retry-After that is no number": later("nan"),
    "Retry-After in digits of another script": later("٣"),
    "Retry-After in the last year": later("Fri, 31 Dec 9999 23:59:59 GMT"),
    "Retry-After in the first year": later("Mon, 01 Jan 0001 00:00:00 +2359"),
    "Retry-After with a zone of its own": later("Mon, 01 Jan 2029 00:00:00 +99999999999999"),
    "an endless body": endless(CHUNKED, b"10000\r\n" + b" " * 2**16 + b"\r\n"),
    "an endless body, byte by byte": endless(CHUNKED, b"1\r\n \r\n", 0.05),
    "an endless body of an error": endless(CHUNKED.replace(b"200", b"400"), b"10000\r\n" + b"x" * 2**16 + b"\r\n"),
    "an endless head, byte by byte": endless(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05),
    "an endless head": endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 9000),
    "to be continued for ever": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
    "a body that was promised 9 EB": once(b"{}", Content_Length=9 * 10**18),
    "nothing": raw(b""),
    "half a status line": raw(b"HTTP/1."),
    "no HTTP": raw(b"220 smtp.example.org ESMTP\r\n"),
    "a status that is none": raw(b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"),
    "no status": raw(b"HTTP/1.1 OK\r\n\r\n"),
    "two lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    "a length below 0": once(Content_Length=-1),
    "a length of letters": once(Content_Length="two"),
    "a chunk of a false size": raw(CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
    "a chunk of a size without end": raw(CHUNKED + b"f" * 5000),
    "a redirect to itself": once(b"", "307 Here", Location="/v1/completions"),
    "no content": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "a part": once(b"{", "206 Partial"),
    "deep JSON": once(b"[" * 10**6),
    "deep JSON of an error": once(b'{"error":' * 10**5, "400 No"),
    "a number of 10,000 digits": once(with_row("1" * 10**4)),
    "NaN": once(with_row("NaN")),
    "minus infinity": once(with_row("-Infinity")),
    "a number beyond all": once(with_row("1e999")),
    "a text for a number": once(with_row('"-1"')),
    "the token −1": once(with_row("-1").replace(b'"2"', b'"-1"')),
    "a token in digits of another script": once(with_row("-1").replace(b'"2"', '"٣"'.encode())),
    "a token with a name of 100,000 letters": once(with_row("-1").replace(b'"2"', b'"' + b"x" * 10**5 + b'"')),
    "JSON, and then more": once(b"{} {}"),
    "half a surrogate": once(b'{"choices": ["\\ud83d"]}'),
    "an error with half a surrogate": once(b'{"error": {"message": "\\ud83d\\u0000"}}', "400 No"),
    "an error that would obey": once(json.dumps({"message": "\x1b[2J\x1b]0;owned\x07 no"}).encode(), "400 No"),
    "an error that is no object": once(b'["x", 1]', "400 No"),
    "an error without words": once(b"", "400 "),
    "an odd cookie": once(Set_Cookie="a=\udcff; expires=Thu, 99 Foo 0000 99:99:99 GMT; domain=..; path=;;;="),
}  # fmt: skip
SLOW = {"an endless body", "an endless body of an error", "an endless head"}


@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_is_tried_again_or_refused_in_bounded_time_and_room(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(client, "PATIENT", 0.05)
    http = HttpConfig(model="tiny", k=2, retries=1, timeout_s=3 if kind in SLOW else 0.4)
    with answering(ATTACKS[kind]) as http.url:
        asker = Client(http, Memo(tmp_path, "m"), Texts(TOKENIZER, 40))
        begin = time.monotonic()
        tracemalloc.start()
        try:
            with pytest.raises(BlackBoxError) as error:
                asker.ask(QUESTION, 2, Way("prompt_logprobs", 1))
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert time.monotonic() - begin < 2 * http.timeout_s + 1 and most < 64 * 2**20
    said = str(error.value)
    assert len(said) < 1000 and said.isprintable() and said.encode()
    assert asker.memo.spent()["requests"] <= 2


ADDRESSES = ("http://[::1", "http://\udcff", "http://a:b/v1", "http://xn--", "http://a..b", "http://ß%")


@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_that_is_none_is_refused_at_once(tmp_path, url):
    with pytest.raises(BlackBoxError, match="pair.target.http.url=.*: is not an address"):
        next(box(url, tmp_path, retries=0).answers(EXAMPLES[:1]))
