"""What a long stage of work says while it lasts: a bar on a terminal, and lines in the log.

A line comes every ``EVERY`` seconds of work, from a thread, so that a stage whose units take minutes is not silent
either; work that is over before says nothing. It names all stages that are under way, each within the one before it:

    simnpo offset α=1: 12 of 40 steps, 16.2 s each, 7 min 33 s left
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

from tqdm import tqdm

log = logging.getLogger(__name__)
EVERY = 30.0  # seconds between two lines: with what may delay one, less than a minute of silence
TICK = 1.0  # seconds between two looks at the clock
_bars = True


def show_bars(wanted: bool) -> None:
    """Whether bars are drawn on a terminal, in this process (``trainer.progress``); lines are logged in any case."""
    global _bars
    _bars = wanted


def progress(total: int | None, name: str, unit: str = "step", done: int = 0) -> "Stage":
    """A stage of ``total`` units (None: not known), of which ``done`` were done before, as a context manager: ``with
    progress(40, "npo", "step") as bar: … bar.update()``. ``name`` may change, ``more`` adds units, ``note`` tells."""
    return Stage(total, name, unit, done, _running)


class Stage(AbstractContextManager):
    bar: tqdm  # from its beginning on

    def __init__(self, total: int | None, name: str, unit: str, done: int, among: "Running"):
        self.total, self.name, self.unit, self.done, self.noted = total, name, unit, done, ""
        self._among, self._first, self._start = among, done, 0.0

    def __enter__(self) -> "Stage":
        self._start = self._among.clock()
        hidden = None if _bars and self.total is not None else True
        self.bar = tqdm(
            total=self.total, initial=self.done, desc=self.name, unit=self.unit, disable=hidden, leave=False, delay=1
        )
        self._among.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._among.leave(self)
        self.bar.close()

    def update(self, n: int = 1) -> None:
        self.done += n
        self.bar.update(n)

    def more(self, n: int) -> None:
        self.total += n
        self.bar.total = self.total

    def note(self, text: str) -> None:
        self.noted = text
        self.bar.set_postfix_str(text, refresh=False)

    def line(self) -> str:
        """Stage, done of total, seconds per unit, time left."""
        spent, new = self._among.clock() - self._start, self.done - self._first
        if self.total is None:
            said = f"{self.name}: {duration(spent)} so far"
        else:
            said = f"{self.name}: {self.done:,} of {self.total:,} {self.unit}s"
            each, left = spent / max(new, 1), spent / max(new, 1) * (self.total - self.done)
            each = f"{each:.3g} s" if each < 100 else duration(each)
            said += f", {each} each, {duration(left)} left" if new else f", {duration(spent)} so far"
        return said + (f" ({self.noted})" if self.noted else "")


class Running:
    """The stages of a process that are under way, and when they last said something. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.stages, self.ended = clock, [], threading.Event()
        self._lock, self._said = threading.Lock(), None

    def enter(self, stage: Stage) -> None:
        with self._lock:
            self._said = self.clock() if self._said is None else self._said
            self.stages.append(stage)
            if len(self.stages) == 1:
                self.ended = threading.Event()
                threading.Thread(target=self._watch, args=(self.ended,), name="progress", daemon=True).start()

    def leave(self, stage: Stage) -> None:
        with self._lock:
            self.stages.remove(stage)
            if not self.stages:
                self.ended.set()

    def look(self) -> None:
        """Log a line if one is due."""
        with self._lock:
            if not self.stages or self.clock() - self._said < EVERY:
                return
            self._said = self.clock()
            inner = self.stages[-1]
            told = [stage for stage in self.stages if stage is inner or stage.total is not None]
            drawn = any(not stage.bar.disable for stage in told)
            text = "; ".join(stage.line() for stage in told)
        _say(text, drawn)

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(TICK):
            with suppress(Exception):  # no line is worth the work
                self.look()


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 2 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _say(text: str, drawn: bool) -> None:
    """Log it wherever a bar does not say it already."""
    if not (drawn or log.hasHandlers()):  # before a command has set up its log
        print(text, file=sys.stderr, flush=True)
    if not log.isEnabledFor(logging.INFO):
        return
    record = log.makeRecord(log.name, logging.INFO, __file__, 0, text, (), None)
    for handler in logging.getLogger().handlers:
        stream = getattr(handler, "stream", None)
        if not (drawn and stream is not None and stream.isatty()) and record.levelno >= handler.level:
            handler.handle(record)


_running = Running()
