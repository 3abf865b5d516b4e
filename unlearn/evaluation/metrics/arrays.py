"""What metrics on arrays share: the refusal of empty, misshapen and NaN values."""

from functools import partial

import numpy as np
from numpy.typing import ArrayLike


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
