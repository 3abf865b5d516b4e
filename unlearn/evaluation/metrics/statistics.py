"""Statistics of metrics: how much one would move with other questions, and how far it is from the retrained model's.

Intervals are percentiles of the item bootstrap. Items of one split are drawn together: probability, ROUGE and truth
ratio of a question stay beside each other. It says nothing about other seeds or other models, which are another,
usually larger, source of noise.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from unlearn.evaluation.metrics.arrays import finite

LEVEL = 0.95
BLOCK = 250  # resamples at a time: nine arrays of 400 items are 7 MB


class Interval(NamedTuple):
    low: float
    high: float


def mean_interval(values: ArrayLike, resamples: int = 2000, seed: int = 0) -> Interval:
    """Interval of the mean of one value per item, [n]."""
    return interval({"values": values}, lambda drawn: drawn["values"].mean(axis=-1), resamples, seed)


def interval(
    values: Mapping[str, ArrayLike],
    aggregate: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """95 % interval of any aggregate of several per-item arrays, by percentiles of its resamples.

    ``values``: per-item arrays [n] by name, ``<split>/<metric>`` as in eval.json. What stands before the first "/" is
    the split: its arrays have one length and share their draws, and other splits do not change them. ``aggregate``
    gets the arrays drawn, [R, n] by name, and returns [R]: reduce over the *last* axis.
    """
    arrays = {name: finite(name, array) for name, array in values.items()}
    split_of = {name: name.split("/", 1)[0] for name in arrays}
    sizes = {split_of[name]: len(array) for name, array in arrays.items()}
    # a generator per split, keyed by its name: neither order nor company of the splits matters
    random = {split: np.random.default_rng([seed, zlib.crc32(split.encode())]) for split in sizes}
    drawn = []
    for start in range(0, resamples, BLOCK):
        rows = min(BLOCK, resamples - start)
        items = {split: random[split].integers(0, n, (rows, n)) for split, n in sizes.items()}
        drawn.append(aggregate({name: array[items[split_of[name]]] for name, array in arrays.items()}))
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def distances(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> dict[str, float]:
    """Unlearned − retrained of what both have, by name, each in the metric's own unit.

    A low forget probability is not the goal; the retrained model's is, and it still guesses.
    """
    return {name: value - retrained[name] for name, value in unlearned.items() if name in retrained}
