"""A user's own functions, from a Python file beside the user's configs: terms of an objective, rules of a method."""

import inspect
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from unlearn.config.schema import ConfigError

JUDGE = ("eval.judge", "judge", "question, gold, answer")  # setting, function, its arguments


class OwnFileError(ConfigError):
    """A file that cannot be used: the message names the setting and the file."""


class _AsText(SourceFileLoader):
    """Reads no compiled file: it would be taken for that of any other text of the same second and size."""

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError(path)


def functions(file: str | None, setting: str) -> dict[str, Callable[..., Any]]:
    """The public functions that the file of ``setting`` defines itself; none without a file."""
    if file is None:
        return {}
    if Path(file).suffix != ".py":
        raise OwnFileError(f"{setting}={file!r}: not a Python file, its name must end in .py")
    loader = _AsText(f"unlearn_user_{Path(file).stem}", file)
    module = module_from_spec(spec_from_loader(loader.name, loader))
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        loader.exec_module(module)
    except Exception as error:
        raise OwnFileError(f"{setting}={file!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = inspect.getmembers(module, inspect.isfunction)
    return {name: f for name, f in found if f.__module__ == module.__name__ and not name.startswith("_")}


def named(file: str, setting: str, name: str, takes: str) -> Callable[..., Any]:
    """The function of that name; refused where the file has none."""
    found = functions(file, setting)
    if name not in found:
        raise OwnFileError(f"{setting}={file!r}: must define {name}({takes}); defines {', '.join(found) or 'nothing'}")
    return found[name]


def signature(function: Callable[..., Any], what: str) -> inspect.Signature:
    """The function's signature with its annotations as types, not as text."""
    try:
        return inspect.signature(function, eval_str=True)
    except Exception as error:
        raise OwnFileError(f"{what}: its annotations cannot be read: {error}") from error


def required(found: inspect.Signature, among: Iterable[str]) -> list[str]:
    """Those parameters that have no default."""
    return [name for name in among if found.parameters[name].default is inspect.Parameter.empty]
