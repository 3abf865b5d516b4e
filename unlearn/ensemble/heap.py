"""What the C library does with freed memory while long rows are read piece by piece.

Pieces of a megabyte come and go by the hundred. glibc takes them from its heap, where small allocations between them
leave holes that no later piece fits in: twice the memory that is needed (experiments/speed/vocabulary.py). Each with
pages of its own, they go back to the system when freed, in the same time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
PIECES = 2**19  # bytes: smaller than a piece
LARGEST = 2**25  # where glibc's own adjustment ends: what it is at after the first large allocations of a program


@contextmanager
def without_holes() -> Iterator[None]:
    """Within the block freed tensors leave no holes; elsewhere than under glibc nothing changes."""
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, PIECES)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)


@cache
def _mallopt():
    try:
        return ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return None
