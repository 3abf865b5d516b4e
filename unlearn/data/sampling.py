"""Which examples a step sees: pure functions of seed and step, so a resumed run draws what it would have drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch in random order, in batches of similar length: padding is what training from scratch wastes most on."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    pool = 8 * batch_size  # sorted within pools only, so batches stay random
    batches = []
    for start in range(0, len(order), pool):
        chunk = sorted(order[start : start + pool].tolist(), key=lambda i: lengths[i])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


@dataclass(frozen=True)
class Draw:
    """What a step reads, on all processes together; one of the sets may have no turn. ``refusal[k]`` and
    ``alternates[k]`` are answers drawn for ``forget[k]``, ``retain_refusal[k]`` for ``retain[k]``."""

    forget: list[int]
    retain: list[int]
    refusal: list[int]
    retain_refusal: list[int]
    alternates: list[int]

    def named(self, name: str) -> list[int] | list[tuple[int, int]]:
        """What is drawn of a group: questions of "forget", "retain", "forget_text"; else (question, answer) pairs."""
        if name in ("forget", "forget_text", "retain"):
            return self.retain if name == "retain" else self.forget
        questions = self.retain if name == "retain_refusal" else self.forget
        return list(zip(questions, getattr(self, name), strict=True))


def held_out(rows: int, share: float) -> tuple[int, ...]:
    """Rows of the retain set that no step sees: the same for every run on the set, spread over it at random."""
    count = min(round(share * rows), rows - 1)
    return tuple(sorted(np.random.default_rng(rows).permutation(rows)[:count].tolist()))


@dataclass(frozen=True)
class Sampler:
    """Forget examples in epochs; for each step a fresh draw of retain examples, without repetition in the step.
    ``interleave``: an epoch of the retain set alone, then one of the forget set alone, and so on; both count as one.
    The draw knows of no process, so any number of them share it."""

    forget: int  # sizes of the sets
    retain: int
    refusals: int
    forget_batch: int
    retain_batch: int
    seed: int
    held_out: tuple[int, ...] = ()  # retain examples that are never drawn
    alternates: tuple[int, ...] = ()  # number of alternates of each forget question; empty: none are drawn
    interleave: bool = False

    @cached_property
    def trainable(self) -> np.ndarray:
        """Retain examples that can be drawn."""
        return np.setdiff1d(np.arange(self.retain), self.held_out)

    @cached_property
    def _retain_steps(self) -> int:
        """Steps at the start of an epoch that read the retain set alone."""
        return -(-len(self.trainable) // self.retain_batch) if self.interleave else 0

    @property
    def steps_per_epoch(self) -> int:
        return self._retain_steps - (-self.forget // self.forget_batch)

    def draw(self, step: int) -> Draw:
        """The draw of step 0, 1, 2 …"""
        epoch, at = divmod(step, self.steps_per_epoch)
        rng, there = np.random.default_rng([self.seed, 1, step]), self.trainable
        forget, retain = [], []
        if at >= self._retain_steps:
            start = (at - self._retain_steps) * self.forget_batch
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.forget)
            forget = order[start : start + self.forget_batch].tolist()
        else:  # the retain set's turn
            order = np.random.default_rng([self.seed, 2, epoch]).permutation(there)
            retain = order[at * self.retain_batch : (at + 1) * self.retain_batch].tolist()
        if not self.interleave:
            retain = there[rng.choice(len(there), min(self.retain_batch, len(there)), replace=False)].tolist()
        refusal, retain_refusal = (
            rng.integers(self.refusals, size=len(found)).tolist() if self.refusals else [] for found in (forget, retain)
        )
        alternates = [int(rng.integers(self.alternates[i])) for i in forget] if self.alternates else []
        return Draw(forget, retain, refusal, retain_refusal, alternates)
