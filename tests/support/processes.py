"""``python -m MODULE …`` in a fork of the process that tests, so that a call costs no imports.

The child has the folder, environment, arguments and output of a true call, and nothing that another call left. Where it
is asked to, it counts what commits work to the disk (a file or folder that gets its final name, a line appended to a
log, a folder removed), and kills itself as the system would: before a commit, in the middle of its line, or after it.
"""

import atexit
import io
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """What became of a call: its exit status (negative: the signal that ended it), and its commits, "kind path"."""

    returncode: int
    seconds: float
    stdout: str
    stderr: str
    commits: list[str]

    @property
    def printed(self) -> str:
        return self.stdout + self.stderr


class Forks:
    """The parent of calls: a fork of this process, which has imported the program and done nothing yet.

    It ends with the process that made it.
    """

    def __init__(self):
        (asked, ask), (replied, reply) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ask)
            _serve(os.fdopen(asked), os.fdopen(reply, "w"))
        os.close(asked)
        self.ask, self.replied = os.fdopen(ask, "w"), os.fdopen(replied)
        self._one = threading.Lock()
        atexit.register(self._end)

    def _end(self) -> None:
        self.ask.close()
        os.waitpid(self.pid, 0)

    def call(
        self, module: str, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str],
        limit: float = 300, kill: str | None = None, by: Sequence[str] = ("SIGKILL",),
    ) -> Ended:  # fmt: skip
        """Make one call, killed after ``limit`` seconds.

        ``kill``: "before", "torn" or "after" and a commit, e.g. "before replace runs/…/eval.json"; at its first
        appearance the child gets the signals ``by``. Empty: commits are counted alone; None: they are not.
        """
        call = {"module": module, "arguments": arguments, "cwd": str(cwd), "environment": dict(environment),
                "limit": limit, "kill": kill, "by": by}  # fmt: skip
        return self.calls([call])[0]

    def calls(self, calls: Sequence[Mapping[str, Any]]) -> list[Ended]:
        """Make several at once, as ``call`` has them; with ``late`` one begins so many seconds after the others."""
        with self._one, tempfile.TemporaryDirectory() as root:
            folders = [Path(root, str(n)) for n in range(len(calls))]
            for folder in folders:
                folder.mkdir()
            asked = [{**call, "folder": str(folder)} for call, folder in zip(calls, folders, strict=True)]
            print(json.dumps(asked), file=self.ask, flush=True)
            found = []
            for folder, (status, seconds) in zip(folders, json.loads(self.replied.readline()), strict=True):
                commits = (folder / "commits").read_text().splitlines() if (folder / "commits").exists() else []
                out, err = ((folder / name).read_text() for name in ("out", "err"))
                found.append(Ended(status, seconds, out, err, commits))
            return found


# --- inside ---------------------------------------------------------------------------------------------------------


class Commits:
    """Writes down every commit of this process, and kills it at one of them."""

    def __init__(self, cwd: str, log: Path, kill: str, by: Sequence[str]):
        self.cwd, self.kill, self.by = os.path.realpath(cwd), kill, by
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT)
        for module, name, kind, place in (
            (os, "replace", "replace", 1), (os, "rename", "rename", 1), (shutil, "rmtree", "remove", 0),
            (os, "unlink", "unlink", 0),
        ):  # fmt: skip
            setattr(module, name, self._around(getattr(module, name), kind, place))
        io.open = self._opening(io.open)

    def name(self, kind: str, path: object, stage: str = "") -> str | None:
        """A commit's name, which is the same in every call that comes so far; None for what commits nothing."""
        text = os.path.relpath(os.fspath(path), self.cwd)
        if text.startswith("..") or "/.grid/" in text or text.endswith((".tmp", ".lock")):
            return None
        return f"{kind} {text}" + (f" {stage}" if text.endswith("manifest.json") and kind == "replace" else "")

    def _around(self, real, kind: str, place: int):
        def wrapped(*arguments, **named):
            path = arguments[place]
            if isinstance(path, int) or named.get("dir_fd") is not None or named.get("src_dir_fd") is not None:
                return real(*arguments, **named)
            name = self.name(kind, path, _stage(arguments[0]) if kind == "replace" else "")
            if name is None or (kind in ("remove", "unlink") and not os.path.lexists(path)):
                return real(*arguments, **named)
            self.at("before", name)
            found = real(*arguments, **named)
            self.done(name)
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
                self.done(line)

            stream.write = write
            return stream

        return opened

    def done(self, name: str) -> None:
        os.write(self.log, f"{name}\n".encode())
        self.at("after", name)

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
    """Turn this process into ``python -m module arguments`` in a folder, and end as it does."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup, as is SIGINT in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(call["environment"])
    if call["kill"] is not None:
        Commits(call["cwd"], Path(call["folder"], "commits"), call["kill"], call["by"])
    os.chdir(call["cwd"])
    said = [os.open(Path(call["folder"], name), os.O_WRONLY | os.O_CREAT) for name in ("out", "err")]
    for number, stream in enumerate((os.open(os.devnull, os.O_RDONLY), *said)):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = os.fdopen(1, "w"), os.fdopen(2, "w", 1)
    sys.path[:] = [call["cwd"], str(ROOT), *(p for p in sys.path if p not in ("", str(ROOT), str(ROOT / "tests")))]
    sys.stdin = sys.__stdin__ = os.fdopen(0)
    sys.argv[:] = [call["module"], *call["arguments"]]
    sys.modules.pop(call["module"], None)  # it is run, as a true call runs it, and not found imported
    status = 0
    try:
        runpy.run_module(call["module"], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve(asked: TextIO, reply: TextIO) -> None:
    """For every call that is asked for fork, and say the child's exit status and seconds."""
    atexit._clear()  # what others want done at the end is the parent's
    sys.excepthook, sys.unraisablehook, threading.excepthook = (
        sys.__excepthook__, sys.__unraisablehook__, threading.__excepthook__
    )  # fmt: skip
    for line in asked:
        calls, begun, ended = json.loads(line), {}, {}
        start = time.monotonic()
        while len(ended) < len(calls):
            for n, call in enumerate(calls):
                spent = time.monotonic() - start - call.get("late", 0)
                if n not in begun and spent >= 0:
                    begun[n] = os.fork()
                    if begun[n] == 0:
                        _child(call)
                elif n in begun and n not in ended:
                    pid, status = os.waitpid(begun[n], os.WNOHANG)
                    if pid:
                        ended[n] = os.waitstatus_to_exitcode(status), spent
                    elif spent >= call["limit"]:
                        os.kill(begun[n], signal.SIGKILL)
            time.sleep(0.005)
        print(json.dumps([ended[n] for n in range(len(calls))]), file=reply, flush=True)
    os._exit(0)
