"""The harmonic mean of several metrics: a single 0 makes it 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def harmonic_mean(values: Sequence[ArrayLike]) -> np.ndarray:
    """Over the first axis, [parts, …] → […]: one number per bootstrap resample where each part is [R].

    Values below 0 and NaN are refused.
    """
    parts = np.asarray(values, dtype=np.float64)
    if len(parts) == 0 or not (parts >= 0).all():
        raise ValueError(f"harmonic mean of {values!r}: must be at least one value, none of them negative or NaN")
    some_zero = (parts == 0).any(axis=0)
    # a part that is 0 is replaced before it is inverted; the result there is set to 0
    inverse = 1 / np.where(parts == 0, 1.0, parts)
    return np.where(some_zero, 0.0, len(parts) / inverse.sum(axis=0))
