"""The processes of a call, from when they meet: what they say to each other, and how the end of one is seen.

Each has a connection to the first one, and a thread that reads from it.
"""

import json
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener
from queue import Empty, Queue
from typing import Any

log = logging.getLogger(__name__)
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what every launcher tells a process
PATIENCE = 600.0  # seconds until all processes of a call have come
GRACE = 10.0  # and those that a process has to end by itself, when the first one has ended
TASK, VALUE, LEAVE, END = "task", "value", "leave", "end"  # what the first says to the others
HERE, READY, PART, OVER, FAILED, STOPPED, GONE = "here", "ready", "part", "over", "failed", "stopped", "gone"
Hear = Callable[[int], None]  # is told the number of a signal that another process got, from any thread


class Broken(RuntimeError):
    """What the processes of this run do together cannot continue."""


class Failed(Broken):
    """Another process said why it failed, or is gone."""


class Left(Exception):
    """The first process has left the task under way."""


@dataclass
class Crew:
    """The processes of a call, seen from one of them."""

    index: int
    count: int
    rendezvous: Any  # torch's store, where the groups of trainings meet
    hear: Hear
    peers: dict[int, Connection] = field(default_factory=dict)  # the first one's: all others; theirs: the first
    inbox: Queue = field(default_factory=Queue)  # (from whom, kind, number of the task, content)
    sharing: bool = False  # within a task
    number: int = 0  # of the latest task
    busy: bool = False  # in one of the others: with a task
    ended: bool = False
    lost: list[int] = field(default_factory=list)

    def end(self, status: int) -> None:
        """The first process's last word: with this status the call ends."""
        self.ended = True
        self.say(END, status)

    def say(self, kind: str, content: Any = None) -> None:
        for peer in self.peers.values():
            with suppress(OSError):  # who is gone is seen by its reader
                peer.send((kind, self.number, content))

    def read(self, whom: int) -> None:
        """A thread: put what a peer says into the inbox, until it is gone."""
        while True:
            try:
                kind, number, content = self.peers[whom].recv()
            except (EOFError, OSError):
                kind, number, content = (END, 0, 1) if self.index else (GONE, self.number, "it is gone")
            if kind == GONE and not self.ended:
                self.lost.append(whom)
                log.error("process %d of %d is gone (killed, or out of memory): this call ends", whom, self.count)
                self.hear(signal.SIGTERM)
            if kind == STOPPED:
                self.hear(content)
            self.inbox.put((whom, kind, number, content))
            if kind == END:
                if self.busy:
                    self.hear(signal.SIGTERM)
                time.sleep(GRACE)  # its own end is not waited for in vain
                os._exit(content)
            if kind == GONE:
                return

    def collect(self, kind: str) -> dict[int, Any]:
        """What each of the others says of one kind in this task. ``Failed`` if one fails or is gone first."""
        found: dict[int, Any] = {}
        while len(found) < len(self.peers):
            whom, said, number, content = self.inbox.get()
            if said == kind and number == self.number:
                found[whom] = content
            else:
                self.failed(whom, said, number, content)
        return found

    def failed(self, whom: int, kind: str, number: int, content: Any) -> None:
        """``Failed`` if that is what a message says of this task."""
        if kind == GONE or (kind == FAILED and number == self.number):
            raise Failed(f"process {whom} of {self.count}: {content}")

    def value(self) -> Any:
        """What the first one says next, to one of the others. ``Left`` if it is something else than a value."""
        message = self.inbox.get()
        if message[1] != VALUE:
            self.inbox.put(message)
            raise Left
        return message[3]


# --- coming together ------------------------------------------------------------------------------------------------


def meet(hear: Hear) -> Crew:
    """Meet the other processes that the launcher started. From here on the environment names none of them, so that
    each is one process to every library; and it names one GPU to each, its own."""
    from torch.distributed import rendezvous

    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    host = os.environ["MASTER_ADDR"]
    store, rank, count = next(rendezvous("env://", timeout=timedelta(seconds=PATIENCE)))
    for name in PLACE:
        os.environ.pop(name, None)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    own = str(local) if gpus is None else ",".join(gpus.split(",")[local : local + 1])
    os.environ["CUDA_VISIBLE_DEVICES"] = own
    crew = Crew(rank, count, store, hear)
    (_call if rank == 0 else _come)(crew, store, host)
    for whom in crew.peers:
        threading.Thread(target=crew.read, args=(whom,), name=f"process {whom}", daemon=True).start()
    return crew


def _call(crew: Crew, store: Any, host: str) -> None:
    """The first process: take a connection of each other. ``TimeoutError`` where some do not come."""
    key = secrets.token_bytes(32)
    listener, come = Listener(("", 0), backlog=crew.count, authkey=key), Queue()

    def accept() -> None:
        left = crew.count - 1
        while left:
            with suppress(Exception):  # who does not know the key is nobody of ours
                peer = listener.accept()
                come.put((peer.recv()[2], peer))
                left -= 1
        listener.close()

    threading.Thread(target=accept, name="processes", daemon=True).start()
    store.set("unlearn", json.dumps([listener.address[1], key.hex()]))
    while len(crew.peers) < crew.count - 1:
        try:
            whom, peer = come.get(timeout=PATIENCE)
        except Empty:
            raise TimeoutError(f"{len(crew.peers) + 1} of {crew.count} processes have come") from None
        crew.peers[whom] = peer


def _come(crew: Crew, store: Any, host: str) -> None:
    port, key = json.loads(store.get("unlearn"))
    crew.peers[0] = Client((host, port), authkey=bytes.fromhex(key))
    crew.say(HERE, crew.index)
