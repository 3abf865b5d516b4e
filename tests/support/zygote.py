"""A process that has imported the program and forks a child for every call, so that a call costs no imports.

The child (tests/forks.py) runs the true command line. Around everything that commits work to the disk (a file or folder
that gets its final name, a line that is appended to a log, a folder that is removed) it counts, and may kill itself as
the system would: before it, in the middle of the line, or after it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.forks import as_main, serve

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Ended:
    """What became of a call."""

    status: int  # exit status; negative: the signal that ended it
    seconds: float
    commits: list[str] = field(default_factory=list)  # "kind path", in their order
    printed: str = ""


class Zygote:
    """The parent of calls. Close it at the end, or use it as a context."""

    def __init__(self):
        environment = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{HERE.parent}", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def start(
        self, *arguments: str, cwd: Path, kill: str = "", by: Sequence[str] = ("SIGKILL",), after: float | None = None
    ) -> None:
        """Begin ``python -m unlearn.run`` with the arguments.

        ``kill``: "before", "torn" or "after" and a commit, e.g. "before replace runs/…/eval.json"; at its first
        appearance the child gets the signals ``by``. ``after``: seconds from the start after which it is killed.
        """
        call = {"arguments": arguments, "cwd": str(cwd), "kill": kill, "by": by, "limit": after}
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()

    def end(self, cwd: Path) -> Ended:
        """Wait for the call that ``start`` began."""
        found = json.loads(self.process.stdout.readline())
        commits = (cwd / "commits.txt").read_text().splitlines()
        status = -signal.SIGKILL if found["status"] is None else found["status"]
        return Ended(status, found["seconds"], commits, (cwd / "printed.txt").read_text())

    def call(self, *arguments: str, cwd: Path, **how: Any) -> Ended:
        self.start(*arguments, cwd=cwd, **how)
        return self.end(cwd)


# --- inside ---------------------------------------------------------------------------------------------------------


class Commits:
    """Writes down every commit of this process, and kills it at one of them."""

    def __init__(self, cwd: Path, kill: str, by: Sequence[str]):
        self.cwd, self.kill, self.by = str(cwd), kill, by
        self.log = os.open(cwd / "commits.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for module, name, kind, place in (
            (os, "replace", "replace", 1), (os, "rename", "rename", 1), (shutil, "rmtree", "remove", 0),
            (os, "unlink", "unlink", 0),
        ):  # fmt: skip
            setattr(module, name, self._around(getattr(module, name), kind, place))
        io.open = self._opening(io.open)

    def name(self, kind: str, path: object) -> str | None:
        """A commit's name, which is the same in every call that comes so far; None for what commits nothing."""
        text = os.path.relpath(os.fspath(path), self.cwd)
        if text.startswith("..") or "/.grid/" in text or text.endswith((".tmp", ".lock")):
            return None
        if text.endswith("manifest.json") and kind == "replace":
            text += f" {self.stage}"
        return f"{kind} {text}"

    def _around(self, real, kind: str, place: int):
        def wrapped(*arguments, **named):
            path = arguments[place]
            if isinstance(path, int) or named.get("dir_fd") is not None or named.get("src_dir_fd") is not None:
                return real(*arguments, **named)
            self.stage = _stage(arguments[0]) if kind == "replace" else ""
            name = self.name(kind, path)
            if name is None or (kind in ("remove", "unlink") and not os.path.lexists(path)):
                return real(*arguments, **named)
            self.at("before", name)
            found = real(*arguments, **named)
            os.write(self.log, f"{name}\n".encode())
            self.at("after", name)
            return found

        return wrapped

    def _opening(self, real):
        def opened(file, mode="r", *arguments, **named):
            stream = real(file, mode, *arguments, **named)
            name = self.name("append", file) if mode == "a" and not isinstance(file, int) else None
            if name is None or not name.endswith(".jsonl"):
                return stream

            def write(text, write=stream.write):
                line = f"{name} {json.loads(text)['step']}"
                self.at("before", line)
                if self.kill == f"torn {line}":
                    write(text[: len(text) // 2])
                    stream.flush()
                self.at("torn", line)
                write(text)
                stream.flush()
                os.write(self.log, f"{line}\n".encode())
                self.at("after", line)

            stream.write = write
            return stream

        return opened

    def at(self, phase: str, name: str) -> None:
        if self.kill == f"{phase} {name}":
            self.kill = ""
            for name in self.by:
                os.kill(os.getpid(), signal.Signals[name])


def _stage(path: object) -> str:
    """How far a run is, from the manifest that is about to be written."""
    try:
        found = json.loads(Path(os.fspath(path)).read_text())
        return "+".join([found["status"], *found["seconds"], *(k for k in ("models", "trained") if k in found)])
    except (ValueError, OSError, KeyError, TypeError):
        return ""


def _child(call: dict) -> None:
    cwd = Path(call["cwd"])
    Commits(cwd, call["kill"], call["by"])
    as_main("unlearn.run", call["arguments"], cwd, cwd / "printed.txt")


if __name__ == "__main__":
    serve(_child)
