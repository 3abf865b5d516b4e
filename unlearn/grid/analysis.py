"""The package ``analysis``, wherever it is: never what a user or another package calls so."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

NAME = "unlearn.analysis"


def folder() -> Path:
    """Inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "analysis"
    return inside if inside.is_dir() else package.parent / "analysis"


def package() -> ModuleType:
    """The package, under the name that it has where it is installed."""
    if find_spec(NAME) is None:
        place = folder()
        spec = spec_from_file_location(NAME, place / "__init__.py", submodule_search_locations=[str(place)])
        made = sys.modules[NAME] = module_from_spec(spec)
        spec.loader.exec_module(made)
    return import_module(NAME)


def module(name: str) -> ModuleType:
    """One of its modules, e.g. ``runs``."""
    package()
    return import_module(f"{NAME}.{name}")
