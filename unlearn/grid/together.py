"""A call of several processes (``store/processes.py``): the first one leads, the others follow; and what is refused."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from unlearn.config.schema import Config
from unlearn.grid.refusal import STATUS, refuse
from unlearn.runs import stopping
from unlearn.store import processes
from unlearn.store.crew import PATIENCE

LATE = 10.0  # seconds after which a process says that it waits
ONE = (
    "this command is one process: start it itself, not through accelerate or torchrun; only `run` and `evaluate run=…` "
    "share their work among several"
)
SETTLED = {  # what a launcher's own settings would change, and the setting of a run that says it
    "ACCELERATE_USE_DEEPSPEED": ("false", "the offset is trained by plain data parallelism; choose no DeepSpeed"),
    "ACCELERATE_USE_FSDP": ("false", "the offset is trained by plain data parallelism; choose no FSDP"),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "the offset is trained by plain data parallelism; choose no Megatron-LM"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", "the offset is trained by plain data parallelism; choose no other"),
    "ACCELERATE_MIXED_PRECISION": ("no", "use trainer.precision=bf16 and --mixed_precision no"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "use trainer.compile=true and --dynamo_backend no"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "use trainer.accumulate and --gradient_accumulation_steps 1"),
}


def together(lead: Callable[[], int]) -> int:
    """The exit status of a command that ``lead`` does, also where a launcher started it as several processes."""
    if not processes.started():
        return lead()
    leads = os.environ.get("RANK", "0") == "0"
    if {"--help", "-h", "--version"} & set(sys.argv):
        return lead() if leads else 0
    if problems := list(unusable(os.environ)):
        return refuse("\n".join(problems)) if leads else STATUS
    try:
        with _waiting():
            crew = processes.join(stopping.hear)
    except (RuntimeError, OSError) as error:  # a port that is taken, processes that do not come
        return refuse(f"MASTER_ADDR, MASTER_PORT: the processes of this call did not meet: {error}")
    if crew.index:
        return _follow(crew)
    status = 1
    try:
        status = lead()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        raise
    finally:
        crew.end(status)
    return status


@contextmanager
def _waiting() -> Iterator[None]:
    """Say that the others have not come, where that takes long; and let Ctrl-C end it, which torch's wait does not."""
    place = "process {RANK} of {WORLD_SIZE} waits for the others, at {MASTER_ADDR}:{MASTER_PORT}".format_map(os.environ)
    patience = f"{PATIENCE / 60:g} minutes at most"
    late = threading.Timer(LATE, print, (f"{place}, {patience}",), {"file": sys.stderr, "flush": True})
    late.daemon = True
    late.start()
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        late.cancel()


def _follow(crew: processes.Crew) -> int:
    """In silence: what is to be said is said by the first process."""

    def find(name: str) -> processes.Task:
        from unlearn.runs import following  # torch and its friends: only now is there work for them

        return getattr(following, name)

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with stopping.listening():
        return processes.follow(crew, find)


def one_process() -> int | None:
    """Refuse a command of one process that a launcher started as several; None where it did not."""
    if not processes.started():
        return None
    return refuse(ONE) if os.environ.get("RANK", "0") == "0" else STATUS


def unusable(environment: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the variables by which a launcher says how many processes there are, and how they work."""
    numbers = {name: environment.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_PORT")}
    for name, value in numbers.items():
        if not value.isdigit():
            rule = "must be a number, as accelerate launch and torchrun set it; unset WORLD_SIZE for one process"
            yield f"{name}={value}: {rule}"
    rank, count = numbers["RANK"], numbers["WORLD_SIZE"]
    if rank.isdigit() and count.isdigit() and int(rank) >= int(count):
        yield f"RANK={rank}: must be below WORLD_SIZE={count}; unset WORLD_SIZE for one process"
    if not environment.get("MASTER_ADDR"):
        yield "MASTER_ADDR=: must name the host of the first process; unset WORLD_SIZE for one process"
    for name, (usual, way) in SETTLED.items():
        if environment.get(name, usual).lower() not in (usual, ""):
            yield f"{name}={environment[name]}: would change the results of a run; {way}"


def problems(jobs: Sequence[Config], launcher: str) -> Iterator[str]:
    """Why jobs cannot be done by the several processes of this call."""
    if not processes.together():
        return
    if launcher != "basic":
        rule = "the processes of this call do one job after another"
        yield f"hydra/launcher={launcher}: {rule}; leave it out, or start this command without accelerate or torchrun"
    if any(cfg.pair.target.device_map not in (None, "cpu") for cfg in jobs):
        found = next(cfg.pair.target.device_map for cfg in jobs if cfg.pair.target.device_map not in (None, "cpu"))
        rule = "each process has one GPU of its own; leave it null, or serve the target (pair.target.kind=http)"
        yield f"pair.target.device_map={found!r}: {rule}"
