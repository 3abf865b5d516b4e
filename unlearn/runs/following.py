"""What the processes of a run do that are not the first: the tasks that it gives them.

They read what it has put into the store and into the run's folder, as a later call would, and write nothing.
"""

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from unlearn.config.schema import Config, ConfigError
from unlearn.ensemble.ensemble import Ensemble
from unlearn.learning.loop import Diverged
from unlearn.runs import baselines, stopping
from unlearn.runs.learner import initialise, members, take_over
from unlearn.runs.training import Interrupted, Training
from unlearn.runs.workbench import Workbench, workbench
from unlearn.store import processes, runlog

SEEN = 60.0  # seconds in which a folder that the first process has made is seen by the others


def train(cfg: Config, folder: Path, step: int | None, place: str) -> None:
    """This process's part of every step, from the checkpoint of a step if there is one."""
    bench, ensemble = _begin(cfg, folder)
    learner = ensemble.trained
    if cfg.begin.runs:
        take_over(learner.model, cfg.begin, learner.fingerprint)
    made = Training(cfg, bench, ensemble)
    if made.place != place:
        rule = f"the first process has a {place} and this one, on {socket.gethostname()}, a {made.place}"
        raise ConfigError(f"trainer.device={cfg.trainer.device!r}: {rule}; start one process for each GPU, or use cpu")
    if step is not None:
        made.resume(folder / runlog.CHECKPOINT, step)
    processes.ready()

    def after(step: int, values: dict[str, float]) -> None:
        made.objective.after(step, values)
        made.point(step)
        if made.told_to_end():
            raise Interrupted

    with processes.group(place):
        if step is None and made.points is not None:
            made.points(), made.points(0.0)
        with suppress(Diverged), made.learning(), stopping.patiently():  # it diverges in all of them at the same step
            made.loop.run(lambda step: made.objective.micro_batches(made.draw(step), *made.loop.share), after)


def evaluate(cfg: Config, folder: Path, alphas: Sequence[float]) -> None:
    """The same evaluation, of which each process scores and decodes a part of the examples."""
    bench, ensemble = _begin(cfg, folder, trained=True)
    suite = baselines.suite_of(cfg, bench)
    processes.ready()
    baselines.evaluate(cfg, bench, ensemble, suite, alphas)


def _begin(cfg: Config, folder: Path, trained: bool = False) -> tuple[Workbench, Ensemble]:
    quiet = replace(cfg, trainer=replace(cfg.trainer, progress=False))
    deadline = time.monotonic() + SEEN
    while not (folder / runlog.MANIFEST).is_file():
        if time.monotonic() > deadline:
            rule = f"the processes of a run share their folders, and on {socket.gethostname()} there is no {folder}"
            raise ConfigError(f"paths.runs={cfg.paths.runs!r}: {rule}")
        processes.pause()
    initialise(quiet)
    bench = workbench(quiet)
    return bench, members(quiet, bench, folder if trained else None)
