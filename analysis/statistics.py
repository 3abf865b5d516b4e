"""Means, intervals and paired differences over seeds: how sure the numbers of a study are.

The unit is the pair seed: another world and other models. Several unlearning seeds of one trained target are not
several samples, so values are averaged over them within a pair seed first. Whatever is returned says its ``n``.

Easy to get wrong: resampling n differences can give nothing outside their range, so with few seeds a bootstrap interval
is too narrow however often one resamples. The percentiles here are moved outwards as Student's t asks (Hesterberg 2015,
"What Teachers Should Know About the Bootstrap", expanded percentile interval), and the interval is never narrower than
Student's own. A difference is ``separated`` where its interval leaves out zero: what is said is what is shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy.stats import norm, t

UNIT = "pair_seed"
LEVEL = 0.95
RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; without two units there is none, and the ends are NaN."""

    mean: float
    low: float
    high: float
    n: int  # units
    items: int = 0  # examples, where they were resampled, too
    separated: bool = False  # of a difference: its interval over units leaves out zero

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


def mean(values: Sequence[float] | pd.Series) -> Interval:
    """Mean over units with Student's t interval; NaN and infinity are left out and not in ``n``."""
    kept = _finite(values)
    n = len(kept)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    middle = float(kept.mean())
    half = _half(kept)
    return Interval(middle, middle - half, middle + half, n)


def bootstrap(values: Sequence[float] | pd.Series, seed: int = 0) -> Interval:
    """Mean over units with an expanded percentile interval over resampled units, or Student's where that is wider."""
    kept = _finite(values)
    n = len(kept)
    if n < 2:
        return mean(kept)
    drawn = kept[np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))].mean(axis=1)
    return _interval(kept, drawn)


def hierarchical(values: Sequence[float], units: Sequence, seed: int = 0) -> Interval:
    """Mean over units of the means over their examples; units are resampled, then examples within each drawn unit.

    With one unit the interval is over its examples only: it says nothing about other worlds and is never
    ``separated``.
    """
    frame = pd.DataFrame({"value": np.asarray(values, dtype=float), "unit": np.asarray(units)})
    frame = frame[np.isfinite(frame["value"])]
    groups = [g.to_numpy() for _, g in frame.groupby("unit", sort=True)["value"]]
    n, items = len(groups), len(frame)
    if items < 2:
        return Interval(frame["value"].mean(), math.nan, math.nan, n, items)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(n, size=(RESAMPLES, n))
    drawn = np.empty((RESAMPLES, n))
    for unit, group in enumerate(groups):
        here = chosen == unit
        drawn[here] = _resampled_means(group, int(here.sum()), rng)
    means = np.array([g.mean() for g in groups])
    return _interval(means, drawn.mean(axis=1), items)


def per_unit(runs: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """One row per value of ``by`` and pair seed: means over whatever else there is, such as unlearning seeds."""
    means = runs.groupby(list(dict.fromkeys([*by, UNIT])), dropna=False, sort=False)[list(metrics)].mean()
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
    """Mean of ``one`` − ``other`` in the pair seeds that both have, with a bootstrap interval over them."""
    sides = [runs.groupby(UNIT)[metric].mean() for runs in (one, other)]
    return bootstrap((sides[0] - sides[1]).dropna())


def paired_examples(one: pd.DataFrame, other: pd.DataFrame, column: str) -> Interval:
    """As ``paired``, from examples: paired by pair seed, split and id, and questions are resampled within worlds.

    In a single world, where the data say whom the questions are about, the interval is over people: Student's.
    """
    keys = [UNIT, "split", "id"]
    sides = [examples.groupby(keys)[column].mean() for examples in (one, other)]
    both = (sides[0] - sides[1]).dropna()
    worlds = both.index.get_level_values(UNIT)
    people = one.groupby(keys)["person"].first()[both.index] if "person" in one else pd.Series(dtype=object)
    if worlds.nunique() == 1 and people.astype(bool).all() and people.nunique() > 1:
        half = _half(both.groupby(people.to_numpy()).mean().to_numpy())
        return Interval(both.mean(), both.mean() - half, both.mean() + half, 1, len(both))
    return hierarchical(both.to_numpy(), worlds)


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
    return _quantile(n) * float(values.std(ddof=1)) / math.sqrt(n)


def half(sd, n):
    """Half width of Student's t interval from a standard deviation of n units; numbers or Series, NaN below two."""
    return t.ppf((1 + LEVEL) / 2, n - 1) * sd / n**0.5


@cache
def _quantile(n: int) -> float:
    """Student's t of n units."""
    return float(t.ppf((1 + LEVEL) / 2, n - 1))


def _tails(n: int) -> tuple[float, float]:
    """The percentiles of n resampled units that Student's t asks for; the plain ones for a single unit's examples."""
    outer = (1 - LEVEL) / 2
    tail = outer if n < 2 else float(norm.cdf(math.sqrt(n / (n - 1)) * t.ppf(outer, n - 1)))
    return tail, 1 - tail


def _interval(values: np.ndarray, drawn: np.ndarray, items: int = 0) -> Interval:
    """Mean of units with the percentiles of means that were drawn, and no narrower than Student's interval."""
    n, middle = len(values), float(values.mean())
    low, high = np.quantile(drawn, _tails(n)).tolist()
    if n > 1:
        low, high = min(low, middle - _half(values)), max(high, middle + _half(values))
    return Interval(middle, low, high, n, items, separated=n > 1 and (low > 0 or high < 0))


def _resampled_means(group: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Means of ``count`` resamples of the examples of one unit, in pieces that fit into memory."""
    size = max(1, 2_000_000 // len(group))
    pieces = [min(size, count - start) for start in range(0, count, size)]
    drawn = [group[rng.integers(len(group), size=(piece, len(group)))].mean(axis=1) for piece in pieces]
    return np.concatenate(drawn) if drawn else np.empty(0)
