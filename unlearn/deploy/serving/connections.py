"""Connections with bounds: how many there are, and how long each may take to ask and to read what it is told."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from unlearn.deploy.serving.settings import Settings


def bounded(settings: Settings) -> type[H11Protocol]:
    """The protocol of a server: uvicorn's, which bounds the size of a head and the time between two requests."""

    class Bounded(H11Protocol):
        _asking: asyncio.TimerHandle | None = None  # until the head of a request is there
        _reading: asyncio.TimerHandle | None = None  # until the client reads on

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                transport.abort()
            else:
                self._asking = self._end()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
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
