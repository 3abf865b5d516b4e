"""Which examples a step sees: pure functions of seed and step, so a resumed run draws what it would have drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """What one optimiser step reads. ``refusal[k]`` is the refusal drawn for ``forget[k]``, and so for retain."""

    forget: list[int]
    retain: list[int]
    refusal: list[int]
    retain_refusal: list[int]

    def pairs(self, name: str) -> list[tuple[int, int]]:
        """(question, refusal) pairs of "refusal" or "retain_refusal"."""
        questions = self.forget if name == "refusal" else self.retain
        return list(zip(questions, getattr(self, name), strict=True))


@dataclass(frozen=True)
class Sampler:
    """Forget examples in epochs; for each step a fresh draw of retain examples, without repetition in the step."""

    forget: int  # sizes of the sets
    retain: int
    refusals: int
    forget_batch: int
    retain_batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.forget // self.forget_batch)

    def draw(self, step: int) -> Draw:
        """The draw of step 0, 1, 2 …"""
        epoch, at = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.forget)
        forget = order[at * self.forget_batch : (at + 1) * self.forget_batch].tolist()
        rng = np.random.default_rng([self.seed, 1, step])
        retain = rng.choice(self.retain, min(self.retain_batch, self.retain), replace=False).tolist()
        refusal = rng.integers(self.refusals, size=len(forget)).tolist() if self.refusals else []
        retain_refusal = rng.integers(self.refusals, size=len(retain)).tolist() if self.refusals else []
        return Draw(forget, retain, refusal, retain_refusal)
