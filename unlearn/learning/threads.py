"""How many threads this process computes with: the last digits of a sum depend on it."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits


def limit(count: int) -> None:
    """Of torch, and of the libraries that numpy and scipy multiply with, whatever the environment says.

    A worker of a parallel launcher inherits or is given other settings than the process that started it.
    """
    torch.set_num_threads(count)
    threadpool_limits(count)
