"""Signals that end a call: SIGTERM and SIGUSR2 (preemption), SIGUSR1, SIGHUP (a closed terminal), SIGINT (Ctrl-C).

The first one ends the call where it is, or after the step under way where a block is left ``patiently``, which saves
what a resumed run needs. The same one again ends the process at once: nothing is lost then but what was not yet saved.
Within ``ECHO`` of the first it is no other in a job of Slurm: that sends SIGTERM itself, and once more by srun.
"""

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ECHO = 1.0  # seconds


class Stopped(KeyboardInterrupt):
    """The call was told to end. Like Ctrl-C itself it passes every handler of errors."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum  # as a shell reports a process that a signal ended


# told: the signals so far, each with the time at which it came (∞: only another process of the run got it, so far);
# heard: one that must hear so
_state: dict[str, Any] = {"listening": False, "patient": False, "told": {}, "heard": 0}


@contextmanager
def listening() -> Iterator[None]:
    """Inside, these signals raise ``Stopped`` in the main thread; within another such block nothing changes.

    Who listened before is told at the end: submitit requeues a preempted job. Ignored signals (nohup) stay ignored.
    """
    if _state["listening"] or threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    _state.update(listening=True, told={}, heard=0)
    for number in before:
        signal.signal(number, _told)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        told = _state["told"]
        _state.update(listening=False, told={})
        for number in told:  # Slurm may send SIGTERM before the signal that submitit asked for
            handler = before.get(number)
            if callable(handler) and handler is not signal.default_int_handler:
                handler(number, None)


def asked() -> int:
    """The number of the signal that waits for the end of the step; 0 if there is none."""
    return next(iter(_state["told"]), 0)


def hear(signum: int) -> None:
    """Do as if this process was told what another of its run was; from any thread, and no first of two signals."""
    if _state["listening"] and not asked():
        _state["heard"] = signum
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGUSR1)
        else:
            os.kill(os.getpid(), signal.SIGUSR1)


@contextmanager
def patiently() -> Iterator[None]:
    """Inside, a signal waits: the block looks at ``asked`` where it may stop, and ``Stopped`` is raised at its end."""
    _state["patient"] = True
    try:
        yield
    finally:
        _state["patient"] = False
        if asked():
            raise Stopped(next(iter(_state["told"])))


def _told(signum: int, frame: Any) -> None:
    told, now = _state["told"], time.monotonic()
    heard, new = signum == signal.SIGUSR1 and _state["heard"], not told
    if heard:
        signum, _state["heard"] = heard, 0
    before = told.get(signum, math.inf)
    told[signum] = before if heard else min(before, now)
    if not heard and before < now and (now - before > ECHO or "SLURM_JOB_ID" not in os.environ):
        os._exit(128 + signum)
    if not _state["patient"] and new:
        raise Stopped(signum)


def end_with_parent() -> None:
    """Have a worker end when the process that started it is gone (SIGKILL): nobody else would end it."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid == os.getppid() and not _state.get("watching"):
        _state["watching"] = True
        threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(128 + signal.SIGKILL)
