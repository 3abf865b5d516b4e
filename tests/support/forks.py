"""``python -m MODULE …`` in a fork of a process that has imported the program, so that a call costs no imports.

The child has the folder, environment, arguments and output of a true call, and nothing that another call left: every
child is a fork of the same parent, which has imported and done nothing else.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
IMPORTED = ("pyarrow.parquet", "unlearn.runs.job", "unlearn.grid.overview", "unlearn.grid.rerun", "unlearn.sequence")


class Forks:
    """The parent of calls; it ends with the process that made it."""

    def __init__(self, environment: Mapping[str, str]):
        fixed = {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**environment, **fixed},
        )  # fmt: skip
        self._one = threading.Lock()
        atexit.register(self.close)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(
        self, module: str, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        with self._one, tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            call = {"module": module, "arguments": arguments, "cwd": str(cwd), "environment": dict(environment),
                    "limit": timeout, "out": str(out), "err": str(err)}  # fmt: skip
            self.process.stdin.write(json.dumps(call) + "\n")
            self.process.stdin.flush()
            code = json.loads(self.process.stdout.readline())["status"]
            said = out.read_text(), err.read_text()
        given = [sys.executable, "-m", module, *arguments]
        if code is None:
            raise subprocess.TimeoutExpired(given, timeout, *said)
        return subprocess.CompletedProcess(given, code, *said)


# --- inside ---------------------------------------------------------------------------------------------------------


def as_main(module: str, arguments: Sequence[str], cwd: Path, out: Path, err: Path | None = None) -> None:
    """Turn this process into ``python -m module arguments`` in a folder, and end as it does. ``err``: with ``out``."""
    os.chdir(cwd)
    new = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    said = os.open(out, new)
    streams = os.open(os.devnull, os.O_RDONLY), said, said if err is None else os.open(err, new)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.path[0], sys.argv[:] = str(cwd), [module, *arguments]
    sys.modules.pop(module, None)  # it is run, as a true call runs it, and not found imported
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
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


def _ended(pid: int, deadline: float | None) -> int | None:
    """The exit status of a child (negative: the signal that ended it); None if it was killed at the deadline."""
    late = False
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            deadline, late = None, True
        time.sleep(0.005)
    return None if late else os.waitstatus_to_exitcode(found[1])


def serve(child: Callable[[dict], None]) -> None:
    """Import the program; for every call on stdin fork, let the child make it within its ``limit`` in seconds, and say
    its ``status`` (null: it was killed at the limit) and the seconds it took."""
    for name in IMPORTED:
        __import__(name)
    replies = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        call, start = json.loads(line), time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(call)
        status = _ended(pid, None if call["limit"] is None else start + call["limit"])
        reply = {"status": status, "seconds": time.monotonic() - start}
        os.write(replies, (json.dumps(reply) + "\n").encode())


def _child(call: dict) -> None:
    os.environ.clear()
    os.environ.update(call["environment"])
    as_main(call["module"], call["arguments"], *(Path(call[name]) for name in ("cwd", "out", "err")))


if __name__ == "__main__":
    serve(_child)
