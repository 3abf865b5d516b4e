"""The package ``analysis``, wherever it is: never what a user or another package calls so."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import unlearn

NAME = "unlearn.analysis"


def folder() -> Path:
    """Inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "analysis"
    return inside if inside.is_dir() else package.parent / "analysis"


def package() -> ModuleType:
    """The package, under the name that it has where it is installed."""
    beside = str(folder().parent)
    if beside not in unlearn.__path__:  # a checkout
        unlearn.__path__.append(beside)
    return import_module(NAME)


def module(name: str) -> ModuleType:
    """One of its modules, e.g. ``runs``."""
    package()
    return import_module(f"{NAME}.{name}")
