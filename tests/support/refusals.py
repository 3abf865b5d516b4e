"""A command called in this process as its true command line calls it, and what a refusal must look like."""

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from support.helpers import composed

from unlearn import run
from unlearn.grid import call as grid


@dataclass(frozen=True)
class Called:
    """What a call ended with."""

    status: object
    out: str
    err: str
    seconds: float
    left: tuple[str, ...]  # files that it left


def call(module: str, *arguments: str, cwd: Path) -> Called:
    """The command's ``main``; should it begin to work, its status is "worked"."""
    return _called(lambda: import_module(module).main(), module, *arguments, cwd=cwd)


def check(*overrides: str, cwd: Path) -> Called:
    """What Hydra calls at the start of every run, with a config that it composed; None if nothing is refused."""
    config = composed(*overrides)
    return _called(lambda: grid.Grid().on_run_start(config), "unlearn.run", cwd=cwd)


def _called(begin: Callable[[], object], module: str, *arguments: str, cwd: Path) -> Called:
    before, handler, argv, perform = files(cwd), signal.getsignal(signal.SIGTERM), sys.argv, run.perform
    out, err, start = io.StringIO(), io.StringIO(), time.monotonic()
    grid.Grid.call, sys.argv, run.perform = grid.Call(), [module, *arguments], _worked
    GlobalHydra.instance().clear()
    try:
        with chdir(cwd), redirect_stdout(out), redirect_stderr(err):
            status = begin()
    except SystemExit as stop:
        status = stop.code
    finally:
        sys.argv, run.perform = argv, perform
        signal.signal(signal.SIGTERM, handler)
        os.environ.pop("UNLEARN_COMMAND", None)
    left = tuple(sorted(files(cwd) - before))
    return Called(status, out.getvalue(), err.getvalue(), time.monotonic() - start, left)


def _worked(*_) -> None:
    raise SystemExit("worked")


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def assert_refused(found: Called, *said: str) -> None:
    """Exit status 2, one message with all of ``said`` in it, no traceback, no file left, all within seconds."""
    assert found.status == 2, (found.status, found.out, found.err)
    text = found.err or found.out  # without any argument a command shows its help
    assert not [part for part in said if part not in text], text
    assert "Traceback" not in found.err + found.out and "HYDRA_FULL_ERROR" not in found.err
    assert found.err.count("Refused before any work:") + found.err.count("error: ") <= 1
    assert found.left == ()
    assert found.seconds < 20
