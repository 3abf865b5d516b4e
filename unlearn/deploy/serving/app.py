"""The routes: OpenAI's, ``/health`` and ``/v1/offsets``. Nothing that a client writes is logged."""

import asyncio
import hmac
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from unlearn.deploy.serving.answers import Answer, Event, Failed
from unlearn.deploy.serving.bodies import BadRequest
from unlearn.deploy.serving.engine import Busy, Engine
from unlearn.deploy.serving.protocol import Asked, Protocol
from unlearn.deploy.serving.replies import Names, Reply, error
from unlearn.deploy.serving.settings import LOOPBACK, Settings

log = logging.getLogger(__name__)
LONGEST = 8 * 2**20  # bytes of a body
ATTESTED = "x-unlearned"
Found = AsyncIterator[tuple[int, Event]]
READERS = 4  # bodies that are read at once: of long ones each takes some 100 MB


def create(engine: Engine, settings: Settings) -> FastAPI:
    """The application; ``engine`` is started and closed by the caller."""
    app = FastAPI(title="unlearn.serve", docs_url=None, redoc_url=None, openapi_url=None)
    server = _Server(engine, settings)
    for method, path, route in (
        ("GET", "/health", server.health), ("GET", "/v1/models", server.models),
        ("GET", "/v1/models/{name:path}", server.model),
        ("POST", "/v1/completions", server.completions), ("POST", "/v1/chat/completions", server.chat),
        ("GET", "/v1/offsets", server.offsets), ("POST", "/v1/offsets", server.switch),
    ):  # fmt: skip
        app.add_api_route(path, route, methods=[method], response_model=None)
    for kind in (BadRequest, HTTPException, Exception):
        app.add_exception_handler(kind, _failed)
    app.add_middleware(Hosts, names=settings.hosts or (LOOPBACK if settings.host in LOOPBACK else ()))
    return app


class Hosts:
    """Answers requests to the server's own names alone, if any: web pages could rebind theirs, and ask by a browser."""

    def __init__(self, app: ASGIApp, names: Sequence[str]):
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and self._names:
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
            name = re.sub(r":\d*$", "", host).strip("[]")
            if name not in self._names:
                said = f"this server is not {name!r:.80}; hosts=[NAME,…] says by which names it may be called"
                app = JSONResponse(error(said, "invalid_request_error", code="forbidden"), 403)
        await app(scope, receive, send)


class _Server:
    def __init__(self, engine: Engine, settings: Settings):
        self.engine, self.settings = engine, settings
        self.protocol = Protocol(engine, settings)
        self.names, self.started = Names(engine.encoder.tokenizer), int(time.time())
        self._readers = CapacityLimiter(READERS)
        self._key, self._admin = (os.environ[k] if k else None for k in (settings.key_env, settings.admin_key_env))

    async def health(self) -> Response:
        stalled = self.engine.busy > self.settings.patience
        status = "stopped" if not self.engine.alive else "stalled" if stalled else "ok"
        found = {"status": status, "running": self.engine.running, "waiting": self.engine.waiting}
        return JSONResponse(found, 200 if status == "ok" else 503)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [await self._model(request)]})

    async def model(self, request: Request, name: str) -> Response:
        found = await self._model(request)
        if name != found["id"]:
            raise BadRequest(f"model={name!r:.80}: there is {found['id']!r}", "model", 404, "model_not_found")
        return JSONResponse(found)

    async def _model(self, request: Request) -> dict[str, Any]:
        _check_key(request, self._key)
        found = {"id": self.protocol.name, "object": "model", "created": self.started, "owned_by": "unlearn"}
        return found | {"max_model_len": self.engine.encoder.max_length}

    async def offsets(self, request: Request) -> Response:
        _check_key(request, self._admin or self._key)
        return JSONResponse({"object": "list", "data": self.engine.blend.switches()})

    async def switch(self, request: Request) -> Response:
        if self._admin is None:
            said = "offsets are switched with the key of admin_key_env, which the server was started without"
            raise BadRequest(said, status=403, code="forbidden")
        _check_key(request, self._admin)
        self.protocol.switch(_parsed(await self._body(request)))
        found = self.engine.blend.switches()
        log.info("offsets: %s", "; ".join(f"{o['name']} {o['alpha']:g}" for o in found if o["on"]))
        return JSONResponse({"object": "list", "data": found})

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, self.protocol.completion)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, self.protocol.chat)

    async def _answer(self, request: Request, read: Callable[[Any], Asked]) -> Response:
        _check_key(request, self._key)
        started, body = time.monotonic(), await self._body(request)
        asked = await to_thread.run_sync(lambda: read(_parsed(body)), limiter=self._readers)
        attested = self.engine.blend.attested(asked.mix)
        reply = Reply(asked, self.protocol.name, attested, self.names)
        headers = {ATTESTED: json.dumps(attested, separators=(",", ":"))}
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        tell = partial(asyncio.get_running_loop().call_soon_threadsafe, events.put_nowait)
        try:
            asks = [(ask, lambda event, index=i: tell((index, event))) for i, ask in enumerate(asked.asks)]
            answers = self.engine.submit(asks)
        except Busy as busy:
            return JSONResponse(error(str(busy), "server_error", code="busy"), 503, {"retry-after": "1"})
        found, done = _until_gone(request, events, len(answers)), partial(_log_answered, request, reply, started)
        if asked.body.stream:
            lines, headers["cache-control"] = self._stream(reply, found, answers, done), "no-cache"
            return StreamingResponse(lines, media_type="text/event-stream", headers=headers)
        try:
            async for index, event in found:
                if isinstance(event, Failed):
                    return JSONResponse(error(event.message, "server_error"), 500, headers)
                reply.add(index, event)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        finally:
            self.engine.cancel(answers)
        content = await run_in_threadpool(lambda: json.dumps(reply.whole(), allow_nan=False))
        done()
        return Response(content, headers=headers, media_type="application/json")

    async def _stream(self, reply: Reply, found: Found, answers: list[Answer], done: Callable) -> AsyncIterator[str]:
        try:
            for index in range(len(answers)):
                if (piece := reply.first(index)) is not None:
                    yield _line(piece)
            async for index, event in found:
                if isinstance(event, Failed):
                    yield _line(error(event.message, "server_error"))
                    return
                if (piece := reply.piece(index, event)) is not None:
                    yield _line(piece)
            if (piece := reply.last()) is not None:
                yield _line(piece)
            yield "data: [DONE]\n\n"
            done()
        except ClientDisconnect:
            return
        finally:
            self.engine.cancel(answers)

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise BadRequest("content-type: must be application/json", status=415)
        data = bytearray()
        try:
            async with asyncio.timeout(self.settings.patience):
                async for part in request.stream():
                    data += part
                    if len(data) > LONGEST:
                        raise BadRequest(f"the body is longer than {LONGEST:,} bytes", status=413)
        except TimeoutError:
            raise BadRequest(f"the body did not come within {self.settings.patience:g} s", status=408) from None
        return bytes(data)


def _check_key(request: Request, key: str | None) -> None:
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        raise BadRequest("this needs the header Authorization: Bearer KEY", status=401, code="invalid_api_key")


def _parsed(data: bytes) -> Any:
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode()  # halves of a character are JSON, but no text
    except (ValueError, RecursionError) as problem:
        raise BadRequest(f"the body is not JSON: {type(problem).__name__}") from None
    return found


async def _until_gone(request: Request, events: asyncio.Queue, count: int) -> Found:
    """The events of ``count`` answers to their ends or a failure; ``ClientDisconnect`` when nobody listens any more."""
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        while count:
            event = asyncio.ensure_future(events.get())
            try:
                await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not event.done():
                    event.cancel()
            if gone.done():
                raise ClientDisconnect
            index, found = event.result()
            yield index, found
            count -= isinstance(found, Failed) or found.finish is not None
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, allow_nan=False)}\n\n"


def _log_answered(request: Request, reply: Reply, started: float) -> None:
    used, seconds = reply.usage(), time.monotonic() - started
    read, said = used["prompt_tokens"], used["completion_tokens"]
    log.info("%s: %d tokens read, %d said, %.2f s", request.url.path, read, said, seconds)


async def _failed(request: Request, problem: Exception) -> Response:
    """What a client is told: of a refusal, of a route or method that is not there, of a fault of the server."""
    kind = "invalid_request_error"
    if isinstance(problem, BadRequest):
        return JSONResponse(error(str(problem), kind, problem.param, problem.code), problem.status)
    if isinstance(problem, HTTPException):
        return JSONResponse(error(str(problem.detail), kind), problem.status_code, problem.headers)
    return JSONResponse(error("internal server error; see the server log", "server_error"), 500)
