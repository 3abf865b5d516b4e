"""The package ``analysis``, wherever it is: never what a user or another package calls so."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import unlearn

NAME = "unlearn.analysis"
PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = next(f for f in (PACKAGE / "analysis", PACKAGE.parent / "analysis") if f.is_dir())  # installed; a checkout


def module(name: str = "") -> ModuleType:
    """One of its modules, e.g. ``runs``, or the package itself; under the name that it has where it is installed."""
    if str(FOLDER.parent) not in unlearn.__path__:  # a checkout
        unlearn.__path__.append(str(FOLDER.parent))
    return import_module(f"{NAME}.{name}".rstrip("."))
