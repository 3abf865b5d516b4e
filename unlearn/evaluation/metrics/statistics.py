"""Statistics of metrics: how much one would move with other people and questions; how far it is from the retrained's.

What is resampled are people: questions about one person depend on each other. It says nothing about other seeds or
other models, which are another, usually larger, source of noise.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta, norm, t

TAIL = 0.025
Weights = Mapping[str, np.ndarray]  # by split: how often each of its items counts, [R, n], or [1, n] where it is as is
Interval = tuple[float, float]
UNBOUNDED = ("fluency", "mlm_loss", "target_logp")  # bits and nats; all other metrics are shares
SIGNED = ("gain", "leak_gap", "leak_gap_guess")  # differences of two shares


def numbers(name: str, values: ArrayLike, ndim: int = 1, infinite: bool = True) -> np.ndarray:
    """``values`` as float64 of ``ndim`` axes; refused where empty or NaN. Infinite values pass: they have a rank."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}; must have {ndim} axes and at least one value")
    bad = np.flatnonzero(np.isnan(array) if infinite else ~np.isfinite(array))
    if bad.size:
        first = f"the first ({array.flat[bad[0]]}) at {bad[0]}"
        raise ValueError(f"{name}: {bad.size} of {array.size} values are NaN or infinite, {first}")
    return array


finite = partial(numbers, infinite=False)


def ends(metric: str) -> Interval:
    """The least and the largest value that a metric can have."""
    last = metric.rsplit("/", 1)[-1].split("@")[0]
    return (-np.inf, np.inf) if last in UNBOUNDED else (-1.0, 1.0) if last in SIGNED else (0.0, 1.0)


def mean_interval(
    values: ArrayLike, resamples: int, people: Sequence[str] | None = None, within: Interval = (0.0, 1.0)
) -> Interval | None:
    """``interval`` of the mean of one value per item, [n]; ``people``: whom each is about, "" or None for nobody."""
    array = finite("values", values)
    return interval(lambda w: w[""] @ array / w[""].sum(-1), {"": people or [""] * len(array)}, resamples, within)


def interval(
    aggregate: Callable[[Weights], np.ndarray],
    people: Mapping[str, Sequence[str]],
    resamples: int,
    within: Interval = (0.0, 1.0),
) -> Interval | None:
    """95 % interval of an aggregate of one or several splits; None where there are no two people, or items, to compare.
    ``aggregate``: from weights by split to values [R]; ``people``: by split, whom each item is about. The variance is
    that over resampled people, one split at a time, with people less one degrees of freedom (Welch-Satterthwaite)."""
    whole = {split: np.ones((1, len(who))) for split, who in people.items()}
    variances, freedom = [], []
    for split, who in people.items():
        weights, units = drawn(tuple(who), resamples)
        if units > 1:
            values = aggregate(whole | {split: weights})
            variances.append(float(np.var(values, ddof=1)) * units / (units - 1))
            freedom.append(units - 1)
    if not variances:
        return None
    parts = np.array(variances)
    total = float(parts.sum())
    degrees = total**2 / float((parts**2 / freedom).sum()) if total > 0 else min(freedom)
    return limits(float(aggregate(whole)[0]), total, degrees, min(map(len, people.values())), within)


@lru_cache(maxsize=16)  # all metrics of a split are weighted alike
def drawn(people: tuple[str, ...], resamples: int, seed: int = 0) -> tuple[np.ndarray, int]:
    """How often each item is in each resample of people, [R, n], and how many people, or items about nobody, there are.
    Where all are about one person, items are drawn: then nothing can be said about other people."""
    who = [person or (i,) for i, person in enumerate(people)]
    who = who if len(set(who)) > 1 else [(i,) for i in range(len(who))]
    places = {person: unit for unit, person in enumerate(dict.fromkeys(who))}
    counts = np.random.default_rng(seed).multinomial(len(places), np.full(len(places), 1 / len(places)), resamples)
    return counts[:, [places[person] for person in who]].astype(np.int16), len(places)


def limits(mean: float, variance: float, degrees: float, items: int, within: Interval) -> Interval:
    """95 % limits of a mean whose variance was estimated with some degrees of freedom.

    Of values without ends Student's t. Of values in [0, 1] those of a share with as many questions as would give it
    this variance, fewer by what Student's t asks beyond the normal (Korn & Graubard 1998, Clopper & Pearson 1934): they
    end within [0, 1], and are not empty where all values are 0. Skewed values near an end often lack their few large
    ones, so the variance is at least what one more answer would add that is 0 or 1; the interval is never wider for it
    than if all values were 0 or 1.
    """
    low, high = within
    student = float(t.ppf(1 - TAIL, degrees))
    if not np.isfinite(high):
        half = student * variance**0.5
        return mean - half, mean + half
    share, variance = min(1.0, max(0.0, (mean - low) / (high - low))), variance / (high - low) ** 2
    most, shrunk = share * (1 - share), (share * items + 1) / (items + 2)
    counted = most / (variance + shrunk * (1 - shrunk) / items**2)
    size = max(counted, min(items, most / variance) if variance > 0 and most > 0 else items)
    size *= (norm.ppf(1 - TAIL) / student) ** 2
    hits = share * size
    found = (
        float(beta.ppf(TAIL, hits, size - hits + 1)) if hits > 0 else 0.0,
        float(beta.ppf(1 - TAIL, hits + 1, size - hits)) if hits < size else 1.0,
    )
    return low + (high - low) * found[0], low + (high - low) * found[1]


def distances(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> dict[str, float]:
    """Unlearned − retrained of what both have, by name, each in the metric's own unit: not a low forget probability is
    the goal, but the retrained model's, which still guesses."""
    return {name: value - retrained[name] for name, value in unlearned.items() if name in retrained}
