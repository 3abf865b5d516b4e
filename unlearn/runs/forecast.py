"""What is left of a run, said once from its first steps: time, memory and disk."""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from unlearn.config.derived import tuning
from unlearn.config.schema import Config
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.suite import Suite
from unlearn.models.llama import parameters
from unlearn.store.progress import duration
from unlearn.store.runlog import peak_memory_mb

log = logging.getLogger(__name__)
LONG = 60.0  # seconds: what is over sooner needs no forecast
ADAM = 3  # a checkpoint holds what learns and two moments of it


@dataclass(frozen=True)
class Evaluation:
    """What the evaluation at the end will take, told from that of the target alone."""

    questions: int
    alphas: int
    each: float | None  # seconds of an α; None where the target's were not timed

    def __str__(self) -> str:
        at = f"{self.alphas} α's" if self.alphas > 1 else "1 α"
        of = f"evaluation of {self.questions:,} questions at {at}"
        return f"{of} × {duration(self.each)}" if self.each else f"{of} (not timed yet)"


def after_training(ensemble: Ensemble, suite: Suite, alphas: Sequence[float], alone: float | None) -> Evaluation:
    """What evaluating the suite at some α's will take. ``alone``: seconds that the target took by itself over the same
    questions; a pass takes as long as there are parameters, of an ensemble those of its different models."""
    sizes = {
        (m.fingerprint, m.trained): parameters(m.model) for m in ensemble.needed(alphas)
    }  # of its start, if trained
    target = next((m for m in ensemble.members if m.constant), ensemble.members[0])
    weight = sum(sizes.values()) / max(1, parameters(target.model))
    each = None if alone is None else alone * (max(1.0, weight) if parameters(target.model) else 1.0)
    return Evaluation(sum(len(split.rows) for split in suite.splits), len(alphas), each)


class Forecast:
    """Times the second step of a training (the first is not a measure), and says what is left then."""

    def __init__(self, cfg: Config, folder: Path, then: Evaluation):
        self.cfg, self.folder, self.then = cfg, folder, then
        self.steps, self.at, self.point, self.last = 0, 0, 0.0, time.perf_counter()

    def begin(self, done: int, steps: int, points: int) -> None:
        """``points`` of the trajectory were measured since this was made."""
        self.steps, self.at = steps, min(done + 2, steps)
        self.point = self.lap() / points if points else 0.0

    def after(self, step: int, model: nn.Module) -> None:
        """To be called when a step is done, before anything else, and ``lap`` after everything else."""
        seconds = self.lap()
        if step == self.at:
            every = self.cfg.trainer.eval_every
            points = (-(-(self.steps - step) // every) if every else 0, self.point)
            say(self.cfg, model, self.folder, (self.steps - step, seconds), points, self.then)

    def lap(self) -> float:
        before, self.last = self.last, time.perf_counter()
        return self.last - before


def say(
    cfg: Config, model: nn.Module, folder: Path, steps: tuple[int, float], points: tuple[int, float], then: Evaluation
) -> float:
    """Log the forecast of a run that has more than a minute to go; the seconds of it. ``steps`` and ``points`` of the
    trajectory: how many there are to come, and the seconds of one."""
    total = sum(n * each for n, each in (steps, points)) + then.alphas * (then.each or 0.0)
    if total < LONG:
        return total
    timed = (*steps, "step"), (*points, "point")
    parts = [f"{n:,} {what}{'s' if n > 1 else ''} × {each:.3g} s" for n, each, what in timed if n and each]
    learning = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    kept = learning if tuning(cfg) != "full" else sum(p.nbytes for p in model.parameters())
    during = ADAM * learning if cfg.trainer.save_every else 0
    used = f"{peak_memory_mb() / 1e3:.2g} GB"
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        used += f" and {torch.cuda.max_memory_allocated() / 1e9:.2g} GB of the GPU"
    log.info(
        "forecast: %s: about %s; memory %s so far; disk %s for the run's folder%s, %s are free",
        ", ".join([*parts, *([str(then)] if then.alphas else [])]), duration(total), used, _size(kept),
        f" ({_size(kept + during)} until it ends)" if during else "", _size(shutil.disk_usage(folder).free),
    )  # fmt: skip
    return total


def _size(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e9 else f"{count / 1e6:.2g} MB"
