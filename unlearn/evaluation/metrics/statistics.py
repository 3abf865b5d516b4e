"""Statistics of metrics: how much one would move with other questions, and how far it is from the retrained model's.

Intervals are percentiles of the item bootstrap. Items of one split are drawn together: probability, ROUGE and truth
ratio of a question stay beside each other. It says nothing about other seeds or other models, which are another,
usually larger, source of noise.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from unlearn.evaluation.metrics.arrays import finite

BLOCK = 250  # resamples at a time: nine arrays of 400 items are 7 MB


class Interval(NamedTuple):
    low: float
    high: float


def mean_interval(values: ArrayLike, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Interval of the mean of one value per item, [n]."""
    return interval({"values": values}, lambda drawn: drawn["values"].mean(axis=-1), resamples, level, seed)


def interval(
    values: Mapping[str, ArrayLike],
    aggregate: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of any aggregate of several per-item arrays, by the percentiles (1 ∓ level)/2 of its resamples.

    ``values``: per-item arrays [n] by name, ``<split>/<metric>`` as in eval.json. What stands before the first "/" is
    the split: its arrays have one length and share their draws, and other splits do not change them. ``aggregate``
    gets the arrays drawn, [R, n] by name, and returns [R]: reduce over the *last* axis.
    """
    arrays = {name: finite(name, array) for name, array in values.items()}
    split_of = {name: name.split("/", 1)[0] for name in arrays}
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        if sizes.setdefault(split_of[name], len(array)) != len(array):
            lengths = ", ".join(f"{k} {len(v)}" for k, v in arrays.items() if split_of[k] == split_of[name])
            raise ValueError(f"arrays of one split are drawn together and must have one length: {lengths}")
    if not sizes:
        raise ValueError("the bootstrap needs at least one array of per-item values; there are none")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples={resamples}, level={level}: must be at least 1, and between 0 and 1")
    # a generator per split, keyed by its name: neither order nor company of the splits matters
    random = {split: np.random.default_rng([seed, zlib.crc32(split.encode())]) for split in sizes}
    drawn = []
    for start in range(0, resamples, BLOCK):
        rows = min(BLOCK, resamples - start)
        items = {split: random[split].integers(0, n, (rows, n)) for split, n in sizes.items()}
        result = np.asarray(aggregate({name: array[items[split_of[name]]] for name, array in arrays.items()}))
        if result.shape != (rows,):
            raise ValueError(f"the aggregate of {rows} resamples has shape {result.shape}: must be ({rows},)")
        drawn.append(result)
    statistics = finite("aggregates of the resamples", np.concatenate(drawn))
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def distances(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> dict[str, float]:
    """Unlearned − retrained by name, each in the metric's own unit.

    A low forget probability is not the goal; the retrained model's is, and it still guesses.
    """
    missing = [name for name in unlearned if name not in retrained]
    if missing:
        raise ValueError(f"the retrained model has no {', '.join(missing)}; it has {', '.join(retrained) or 'nothing'}")
    found = {name: value - retrained[name] for name, value in unlearned.items()}
    for name, distance in found.items():
        if not math.isfinite(distance):
            both = f"{unlearned[name]} (unlearned) and {retrained[name]} (retrained)"
            raise ValueError(f"{name}: {both} must both be finite")
    return found
