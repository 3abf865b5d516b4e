"""What metrics on arrays share: their result, and the refusal of empty, misshapen and NaN values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike


def averaged(name: str, values: np.ndarray) -> dict:
    """A metric that is the mean of its values per example: the mean under ``name``, the values under ``values``."""
    return {name: float(values.mean()), "values": values}


def numbers(name: str, values: ArrayLike, ndim: int = 1, infinite: bool = True) -> np.ndarray:
    """``values`` as float64 of ``ndim`` axes; refused where empty or NaN. Infinite values pass: they have a rank."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}; must have {ndim} axes and at least one value")
    for what, wrong in (("NaN", np.isnan(array)), ("infinite", np.isinf(array) & (not infinite))):
        bad = np.flatnonzero(wrong)
        if bad.size:
            raise ValueError(
                f"{name}: {bad.size} of {array.size} values are {what}, the first at {bad[0]}; none may be"
            )
    return array


finite = partial(numbers, infinite=False)


def share(name: str, value: float) -> float:
    """``value`` where it is a number between 0 and 1."""
    if not 0 <= value <= 1:  # NaN fails too
        raise ValueError(f"{name}={value!r}: must lie between 0 and 1")
    return float(value)


def same_length(**named: Sequence | np.ndarray) -> None:
    """Refuse sequences over the same items that differ in length."""
    if len({len(values) for values in named.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in named.items())
        raise ValueError(f"one entry per item in each; lengths are: {lengths}")
