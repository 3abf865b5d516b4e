"""Connections with bounds: how many there are, and how long each may take to ask and to read what it is told."""

import asyncio
import logging
import resource
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from unlearn.deploy.serving.settings import Settings

log = logging.getLogger(__name__)
QUEUE = 1024  # connections that the system holds until they are accepted
AT_ONCE = 16  # that asyncio accepts in one turn of its loop; it closes one some ten turns later
FOR_THE_REST = 16 * AT_ONCE  # open files of the process that are not connections, or not yet closed


class Server(uvicorn.Server):
    """uvicorn's, with a longer queue at the door than what asyncio accepts in one turn."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for place in sockets or ():
            place.listen(QUEUE)


def bounded(settings: Settings) -> type[H11Protocol]:
    """The protocol of a server: uvicorn's, which bounds the size of a head and the time between two requests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = settings.max_connections + FOR_THE_REST
    if soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = max(1, min(settings.max_connections, soft - FOR_THE_REST))

    logged: dict[str, float] = {}

    def tell(loop: asyncio.AbstractEventLoop, trouble: dict[str, Any]) -> None:
        """Log a line a minute of each kind: a traceback of each socket that cannot be opened would fill a disk."""
        kind = type(trouble.get("exception")).__name__
        if loop.time() >= logged.get(kind, 0):
            logged[kind] = loop.time() + 60
            log.warning("%s: %s", trouble.get("message"), trouble.get("exception"))

    class Bounded(H11Protocol):
        _asking: asyncio.TimerHandle | None = None  # until the head of a request is there
        _reading: asyncio.TimerHandle | None = None  # until the client reads on

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.loop.set_exception_handler(tell)
            self._since, self._asking = self.loop.time(), self._end()
            if len(self.connections) > most:  # who has not asked for the longest goes
                longest = min((one for one in self.connections if not one.busy), key=lambda one: one._since)
                self.connections.discard(longest)
                self.loop.call_soon(longest.transport.abort)  # asyncio has not begun to read a new one

        @property
        def busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.busy:
                self._asking = _stop(self._asking)
            elif self._asking is None and not self.transport.is_closing():
                self._asking = self._end()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading = self._end()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._reading = _stop(self._reading)

        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            self._asking, self._reading = _stop(self._asking), _stop(self._reading)

        def _end(self) -> asyncio.TimerHandle:
            return self.loop.call_later(settings.patience, self.transport.abort)

    return Bounded


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
