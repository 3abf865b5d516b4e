"""Groups of metrics beside the core, asked for by name (``eval.groups``): a file each, imported when it is asked for.

A file has ``measure(ctx: Context) → Found``, opens with the metrics it gives, and says in ``NEEDS`` and ``SETTINGS``
(``unlearn/config/groups.py``) what it needs; ``check(data, splits)`` refuses rows that it cannot measure. Groups run in
the order given; each sees the metrics of those before it.
"""

from importlib import import_module
from types import ModuleType


def group(name: str) -> ModuleType:
    """The file of a group."""
    return import_module(f"unlearn.evaluation.groups.{name}")
