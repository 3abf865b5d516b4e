"""Groups of metrics beside the core, asked for by name (``eval.groups``): a file each, imported when it is asked for.

Groups run in the order given; each sees the metrics of those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


def group(name: str) -> Callable:
    """The function of a group, from a ``context.Context`` to a ``context.Found``."""
    return import_module(f"unlearn.evaluation.groups.{name}").measure
