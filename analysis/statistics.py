"""Means, intervals and paired differences over seeds: how sure the numbers of a study are.

The unit is the pair seed: another world and other models. Several unlearning seeds of one trained target are not
several samples, so values are averaged over them within a pair seed first. Whatever is returned says its ``n``.

Easy to get wrong: resampling n differences can give nothing outside their range, so with few seeds a bootstrap interval
is too narrow however often one resamples (three worlds: 76 % of normal samples are covered instead of 95 %). All
intervals here are Student's, and the spread of the questions within a world is in that of the worlds' means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import t

UNIT = "pair_seed"
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; without two units there is none, and the ends are NaN."""

    mean: float
    low: float
    high: float
    n: int  # units
    items: int = 0  # examples, where the units are means of them
    separated: bool = False  # from zero, over units

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


def mean(values: Sequence[float] | pd.Series) -> Interval:
    """Mean over units with Student's t interval; values that are no numbers are left out and not in ``n``."""
    kept = _finite(values)
    n = len(kept)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    middle = float(kept.mean())
    half = _half(kept)
    return Interval(middle, middle - half, middle + half, n, separated=abs(middle) > half)


def per_unit(runs: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """One row per value of ``by`` and pair seed: means over whatever else there is, such as unlearning seeds."""
    means = runs.groupby([*by, UNIT], dropna=False, sort=False)[list(metrics)].mean()
    return pd.concat([means.index.to_frame(index=False), means.reset_index(drop=True)], axis=1)


def summary(runs: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Columns ``by``, ``metric``, ``mean``, ``low``, ``high``, ``n``: Student's t over pair seeds."""
    rows = []
    units = per_unit(runs, by, metrics)
    for key, group in units.groupby(list(by), dropna=False, sort=False) if by else [((), units)]:
        for metric in metrics:
            found = mean(group[metric])
            numbers = {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
            rows.append(dict(zip(by, key, strict=True)) | {"metric": metric} | numbers)
    return pd.DataFrame(rows, columns=[*by, "metric", "mean", "low", "high", "n"])


def paired(one: pd.DataFrame, other: pd.DataFrame, metric: str) -> Interval:
    """Mean of ``one`` − ``other`` in the pair seeds that both have, with Student's t interval over them."""
    sides = [runs.groupby(UNIT)[metric].mean() for runs in (one, other)]
    return mean(sides[0] - sides[1])


def paired_examples(one: pd.DataFrame, other: pd.DataFrame, column: str) -> Interval:
    """As ``paired``, from the examples that both have, by pair seed, split and id.

    With one pair seed the interval is over its examples only: it says nothing about other worlds and is never
    ``separated``.
    """
    keys = [UNIT, "split", "id"]
    sides = [examples.groupby(keys)[column].mean() for examples in (one, other)]
    both = (sides[0] - sides[1]).dropna()
    worlds = both.groupby(UNIT).mean()
    found = mean(both if len(worlds) == 1 else worlds)
    return replace(found, n=len(worlds), items=len(both), separated=found.separated and len(worlds) > 1)


def _finite(values) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    return numbers[np.isfinite(numbers)]


def _half(values: np.ndarray) -> float:
    """Half width of Student's t interval."""
    n = len(values)
    if n < 2:
        return math.nan
    if np.ptp(values) <= 1e-12 * np.abs(values).max():  # equal but for rounding
        return 0.0
    return float(t.ppf((1 + LEVEL) / 2, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
