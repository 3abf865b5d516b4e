"""Several processes that do one run: ``accelerate launch --num_processes N -m unlearn.run …``, or torchrun.

The first process is the program as it is otherwise: it alone decides, writes and prints. The others follow: they wait
for tasks, find what these need in the run's folder and in the store, and do their part of a training step or of an
evaluation. Gradients are summed by torch.distributed, whose group lasts as long as one training; all else goes over
connections of ours (``crew.py``).
"""

import os
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty
from typing import Any

from unlearn.store.crew import (
    END,
    FAILED,
    GRACE,
    LEAVE,
    OVER,
    PART,
    READY,
    STOPPED,
    TASK,
    VALUE,
    Broken,
    Crew,
    Failed,
    Hear,
    Left,
    meet,
)

Task = Callable[..., None]
_crew: Crew | None = None


def join(hear: Hear) -> Crew:
    """Meet the other processes that the launcher started; ``hear`` is told of signals that others got."""
    global _crew
    _crew = meet(hear)
    return _crew


# --- what the program asks ------------------------------------------------------------------------------------------


def started() -> bool:
    """Whether a launcher started this process as one of several; no longer once they have come together."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def together() -> bool:
    """Whether this call has several processes, which have come together."""
    return _crew is not None


def size() -> int:
    """How many processes this call has."""
    return 1 if _crew is None else _crew.count


def first() -> bool:
    """Whether this process writes."""
    return _crew is None or _crew.index == 0


def count() -> int:
    """How many processes share what is done here: 1 outside of tasks."""
    return _crew.count if _crew is not None and _crew.sharing else 1


def index() -> int:
    """Which of them this is."""
    return _crew.index if count() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """Share nothing within the block: what only one process does, or all by themselves."""
    before = _crew is not None and _crew.sharing
    if before:
        _crew.sharing = False
    try:
        yield
    finally:
        if before:
            _crew.sharing = True


def mine(keys: Sequence[Hashable]) -> list[int]:
    """Indices of this process's part of what ``keys`` stand for; those of one key are never parted."""
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [i for i, key in enumerate(keys) if number[key] % count() == index()]


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in their order, to each of them. Only its own outside of tasks."""
    if count() == 1:
        return [value]
    if _crew.index:
        _crew.say(PART, value)
        return _crew.value()
    parts = {0: value} | _crew.collect(PART)
    return told([parts[i] for i in range(_crew.count)])


def told(value: Any) -> Any:
    """The first process's value, to all."""
    if count() == 1:
        return value
    if _crew.index:
        return _crew.value()
    _crew.say(VALUE, value)
    return value


def spread(keys: Sequence[Hashable], work: Callable[[list[int]], list[Any]]) -> list[Any]:
    """``work``'s results for all indices, each done by one process; it is given the indices of its part."""
    own = mine(keys)
    with alone():
        found = work(own) if own or count() == 1 else []
    everybody: list[Any] = [None] * len(keys)
    for where, results in gathered((own, found)):
        for i, result in zip(where, results, strict=True):
            everybody[i] = result
    return everybody


def pause() -> None:
    """Wait a moment for what the first process makes. ``Left`` where it has left the task."""
    time.sleep(0.05)
    if any(message[1] != VALUE for message in list(_crew.inbox.queue)):
        raise Left


# --- tasks ----------------------------------------------------------------------------------------------------------


@contextmanager
def task(name: str, *content: Any) -> Iterator[None]:
    """In the first process: have the others do a task while the block does the same; nothing where it is the only one.

    ``Broken`` with what one of them says, if it fails; a block that fails ends the task for all.
    """
    crew = _crew
    if crew is None:
        yield
        return
    if crew.lost:
        raise Failed(f"process {crew.lost[0]} of {crew.count}: it is gone")
    crew.number += 1
    crew.say(TASK, (name, content))
    try:
        crew.collect(READY)
        crew.sharing = True
        yield
        crew.sharing = False
        crew.collect(OVER)
    except BaseException as error:
        try:
            if isinstance(error, Broken) and not isinstance(error, Failed):
                _why(crew, error)  # before they are told to leave: then they would say nothing
        finally:
            crew.say(LEAVE)
        raise
    finally:
        crew.sharing = False


def _why(crew: Crew, error: Broken) -> None:
    """``Failed`` with what another process says was wrong, where one says so soon."""
    deadline = time.monotonic() + GRACE / 2
    while (left := deadline - time.monotonic()) > 0:
        with suppress(Empty):
            try:
                crew.failed(*crew.inbox.get(timeout=left))
            except Failed as found:
                raise found from error


def ready() -> None:
    """In the others: all that the task needs is here; from now on it is shared."""
    if _crew is not None and _crew.index:
        _crew.say(READY)
        _crew.sharing = True


@contextmanager
def group(device: str) -> Iterator[None]:
    """A group of torch.distributed for the length of a block that all processes of a task enter."""
    if count() == 1:
        yield
        return
    import torch.distributed as dist

    store = dist.PrefixStore(str(_crew.number), _crew.rendezvous)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=_crew.index, world_size=_crew.count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def follow(crew: Crew, find: Callable[[str], Task]) -> int:
    """Do the tasks that the first process names until it says that the call has ended; the exit status."""
    while True:
        try:
            _, kind, number, content = crew.inbox.get()
            if kind == END:
                return content
            if kind == TASK:
                crew.number = number
                _do(crew, find, *content)
        except KeyboardInterrupt as stop:  # a signal: the first process ends the call
            crew.say(STOPPED, getattr(stop, "status", 130) - 128)


def _do(crew: Crew, find: Callable[[str], Task], name: str, about: Sequence[Any]) -> None:
    crew.busy = True
    try:
        find(name)(*about)
        crew.say(OVER)
    except Left:
        pass
    except Exception as error:
        deadline = time.monotonic() + GRACE / 2
        while crew.inbox.empty() and isinstance(error, Broken) and time.monotonic() < deadline:
            time.sleep(0.05)  # of a broken group somebody else says why
        if crew.inbox.empty() or not isinstance(error, Broken):
            crew.say(FAILED, f"{type(error).__name__}: {error}")
    finally:
        crew.sharing = crew.busy = False
