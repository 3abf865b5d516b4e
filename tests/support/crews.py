"""Several processes of one call, as forks of the process of a test: they cost no imports."""

import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Callable

from unlearn.runs import stopping
from unlearn.store import processes


def places(count: int) -> list[dict[str, str]]:
    """What a launcher tells each of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    return [here | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]


def crew(count: int, lead: Callable[[], int], find: Callable[[str], processes.Task], limit: float = 120) -> list[int]:
    """Exit statuses of a crew whose first process does ``lead`` while the others do the tasks that ``find`` finds."""
    forks = multiprocessing.get_context("fork")
    jobs = [forks.Process(target=_member, args=(place, lead, find)) for place in places(count)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        for job in jobs:
            job.start()
    try:
        for job in jobs:
            job.join(limit)
        return [job.exitcode for job in jobs]
    finally:
        for job in jobs:
            job.kill()


def _member(place: dict[str, str], lead: Callable[[], int], find: Callable[[str], processes.Task]) -> None:
    os.environ |= place
    own = processes.join(stopping.hear)
    with stopping.listening():
        if own.index:
            sys.exit(processes.follow(own, find))
        status = 1
        try:
            status = lead()
        except stopping.Stopped as stop:
            status = stop.status
        finally:
            own.end(status)
    sys.exit(status)
