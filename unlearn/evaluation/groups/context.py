"""What a group of metrics is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.metrics.bootstrap import mean_interval
from unlearn.evaluation.scoring import Scores
from unlearn.evaluation.suite import Suite
from unlearn.store.entries import Store


@dataclass(frozen=True)
class Measured:
    """The retrained model's metrics and examples, and the models themselves where they are at hand."""

    metrics: Mapping[str, Any]
    examples: pd.DataFrame
    models: Mapping[str, Callable[[], Ensemble]] = field(default_factory=dict)  # target, retrained; loaded when asked

    def has(self, split: str, name: str) -> bool:
        """Whether every example of the split has a value."""
        rows = self.examples[self.examples["split"] == split]
        return name in rows and len(rows) > 0 and bool(rows[name].notna().all())

    def column(self, split: str, name: str) -> np.ndarray:
        """Per-example values of one split; a reference without them is refused with what it has."""
        rows = self.examples[self.examples["split"] == split]
        if not self.has(split, name):
            has = ", ".join(c for c in rows if rows[c].notna().any()) or "nothing"
            raise MissingRetrained(f"the retrained reference has no {name} of the {split} split; it has {has}")
        return rows[name].to_numpy()


class MissingRetrained(ValueError):
    """A reference that lacks what a metric compares with."""


def aggregate(
    values: Mapping[str, np.ndarray], resamples: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Means of per-example values by metric, and their 95 % intervals over examples (none with 0 resamples)."""
    means = {name: float(v.mean()) for name, v in values.items()}
    return means, {name: tuple(mean_interval(v, resamples)) for name, v in values.items()} if resamples else {}


@dataclass(frozen=True)
class Context:
    """One model at one α, with what the core metrics have found."""

    ensemble: Ensemble
    alpha: float
    suite: Suite
    store: Store
    scores: Mapping[str, Scores]  # by split
    examples: pd.DataFrame  # at this α
    metrics: Mapping[str, Any]
    retrained: Measured | None  # None: there is none, or this *is* the retrained model
    itself: bool = False  # this is the retrained model


@dataclass(frozen=True)
class Found:
    metrics: dict[str, float]
    columns: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # by split: columns for its examples, in order
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
