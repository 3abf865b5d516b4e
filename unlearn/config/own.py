"""A user's own functions, from a Python file beside the user's configs: terms of an objective, rules of a method."""

import inspect
import runpy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from unlearn.config.schema import ConfigError

JUDGE = ("eval.judge", "judge", "question, gold, answer")  # setting, function, its arguments


def functions(file: str | None, setting: str) -> dict[str, Callable[..., Any]]:
    """The public functions that the file of ``setting`` defines itself; none without a file."""
    if file is None:
        return {}
    if Path(file).suffix != ".py":
        raise ConfigError(f"{setting}={file!r}: not a Python file, its name must end in .py")
    own = f"unlearn_user_{Path(file).stem}"
    try:
        found = runpy.run_path(file, run_name=own)  # the text, never a compiled file of the same second and size
    except Exception as error:
        raise ConfigError(f"{setting}={file!r} cannot be imported: {type(error).__name__}: {error}") from error
    ours = (name for name, f in found.items() if inspect.isfunction(f) and f.__module__ == own)
    return {name: found[name] for name in sorted(ours) if not name.startswith("_")}


def named(file: str, setting: str, name: str, takes: str) -> Callable[..., Any]:
    """The function of that name; refused where the file has none."""
    found = functions(file, setting)
    if name not in found:
        raise ConfigError(f"{setting}={file!r}: must define {name}({takes}); defines {', '.join(found) or 'nothing'}")
    return found[name]


def signature(function: Callable[..., Any], what: str) -> inspect.Signature:
    """The function's signature with its annotations as types, not as text."""
    try:
        return inspect.signature(function, eval_str=True)
    except Exception as error:
        raise ConfigError(f"{what}: its annotations cannot be read: {error}") from error


def required(found: inspect.Signature, among: Iterable[str]) -> list[str]:
    return [name for name in among if found.parameters[name].default is inspect.Parameter.empty]
