"""Signals that end a call: SIGTERM (preemption) and SIGINT (Ctrl-C).

The first one ends the call where it is, or after the step under way where a block is left ``patiently``, which saves
what a resumed run needs. A second one ends the process at once: nothing is lost then but what was not yet saved.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(KeyboardInterrupt):
    """The call was told to end. Like Ctrl-C itself it passes every handler of errors."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum  # as a shell reports a process that a signal ended


_state: dict[str, Any] = {"patient": False, "asked": None}  # asked: the signal, once there was one


def listen() -> None:
    """From here on SIGTERM and SIGINT raise ``Stopped`` in the main thread."""
    signal.signal(signal.SIGTERM, _told)
    signal.signal(signal.SIGINT, _told)


def asked() -> bool:
    """Whether a signal waits for the end of the step."""
    return _state["asked"] is not None


@contextmanager
def patiently() -> Iterator[None]:
    """Inside, a signal waits: the block looks at ``asked`` where it may stop, and ``Stopped`` is raised at its end."""
    _state["patient"] = True
    try:
        yield
    finally:
        _state["patient"] = False
        if asked():
            raise Stopped(_state["asked"])


def _told(signum: int, frame: Any) -> None:
    if asked():
        os._exit(128 + signum)
    _state["asked"] = signum
    if not _state["patient"]:
        raise Stopped(signum)
