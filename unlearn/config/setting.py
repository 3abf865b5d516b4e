"""Settings with their bounds: said where a setting is declared, checked by one walk over the composed config."""

import math
import os
import re
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from unlearn.config.redaction import secret_in

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,79}"
NAME_RULE = "names a folder: letters, digits, '_', '.', '+' and '-', not starting with '.', '+' or '-', at most 80"
LONGEST_NAME = 255  # bytes of a file, on every common file system
LARGEST = 10**9  # of whole numbers but seeds: more is beyond every run


@dataclass(frozen=True)
class Bound:
    """What a value must be, and the words that say so. Of a list or mapping: each value in it, or the ``whole``."""

    holds: Callable[[Any], bool]
    words: str | Callable[[], str]
    whole: bool = False


def setting(default: Any = MISSING, *bounds: Bound, **marks: Any) -> Any:
    """Declare a field of a schema class: ``lr: float | None = setting(None, above(0))``. Null is within all bounds.

    ``marks`` are kept in the field's metadata, beside its bounds: ``hashed=False`` for what no run's hash has.
    """
    metadata = {"bounds": bounds, **marks}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def each(values: list[Any] | None, count: int) -> list[Any]:
    """One value for each of so many things; of a single one as many; null is theirs to decide."""
    given = [None] if values is None else list(values)
    return given * count if len(given) == 1 else given


def unhashed(kind: Any) -> tuple[str, ...]:
    """The settings of a schema class that are not part of a run's hash."""
    return tuple(f.name for f in fields(kind) if not f.metadata.get("hashed", True))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def above(low: float) -> Bound:
    return Bound(lambda v: is_number(v) and v > low, f"must be a finite number above {low:g}")


def at_least(low: float, words: str | None = None) -> Bound:
    return Bound(lambda v: is_number(v) and v >= low, words or f"must be a finite number of at least {low:g}")


def at_most(high: float, words: str | None = None) -> Bound:
    return Bound(lambda v: v <= high, words or f"must be at most {high:g}")


def between(low: float, high: float) -> Bound:
    return Bound(lambda v: is_number(v) and low <= v <= high, f"must lie between {low:g} and {high:g}")


def one_of(*choices: str) -> Bound:
    return Bound(lambda v: v in choices, f"must be one of {', '.join(choices)}")


def matches(pattern: str, words: str) -> Bound:
    return Bound(lambda v: re.fullmatch(pattern, v) is not None, words)


def finite(words: str = "must be a finite number") -> Bound:
    return Bound(is_number, words)


def some(words: str) -> Bound:
    """At least one value in a list."""
    return Bound(lambda v: len(v) > 0, words, whole=True)


FINITE = finite()
A_NAME = matches(NAME, NAME_RULE)
SHARE = between(0, 1)
BELOW_ONE = Bound(lambda v: is_number(v) and 0 <= v < 1, "must be at least 0 and below 1")
SEED = Bound(lambda v: 0 <= v < 2**62, "must lie between 0 and 2^62")
A_FILE = Bound(lambda v: Path(v).is_file(), lambda: f"no such file in {Path.cwd()}")


def out_of_bounds(node: Any, key: str = "") -> Iterator[str]:
    """Yield key, value and rule of each value out of its bounds, or with a secret: W&B and run folders show configs."""
    for f in fields(node):
        yield from _of_value(getattr(node, f.name), f"{key}{f.name}", f.metadata.get("bounds", ()))


def _of_value(value: Any, key: str, bounds: tuple[Bound, ...]) -> Iterator[str]:
    if is_dataclass(value):
        yield from out_of_bounds(value, f"{key}.")
    elif isinstance(value, list | dict):
        yield from _first([b for b in bounds if b.whole], key, value)
        each = tuple(b for b in bounds if not b.whole)
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            inside = f"{key}.{name}" if isinstance(value, dict) else f"{key}[{name}]" if is_dataclass(part) else key
            yield from _of_value(part, inside, each)
    elif isinstance(value, str) and (secret := secret_in(value)) is not None:
        yield f"{key}: holds {secret}; configs are written to run folders, so it must not"
    elif value is not None:
        yield from _first(bounds, key, value)
        if isinstance(value, int) and SEED not in bounds:
            yield from need(value <= LARGEST, key, value, f"must be at most {LARGEST:,}")


def _first(bounds: list[Bound] | tuple[Bound, ...], key: str, value: Any) -> Iterator[str]:
    """The first bound that a value breaks."""
    broken = next((b for b in bounds if not b.holds(value)), None)
    if broken is not None:
        yield from need(False, key, value, broken.words if isinstance(broken.words, str) else broken.words())


def need(ok: bool, key: str, value: object, rule: str) -> Iterator[str]:
    """Yield nothing, or the line that says which rule a value breaks."""
    if not ok:
        yield f"{key}={value!r}: {rule}"


def unusable(key: str, folder: str, write: bool = True) -> Iterator[str]:
    """Nothing, or why ``folder`` (that of the setting ``key``) can neither be used nor made."""
    if not folder.strip() or "\0" in folder:
        yield f"{key}={folder!r}: must name a folder"
        return
    path = Path(folder)
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        yield f"{key}={folder[:60]!r}…: a folder's name has at most {LONGEST_NAME} bytes"
        return
    there = next((p for p in (path, *path.absolute().parents) if os.path.lexists(p)), Path("/"))
    if not there.is_dir():
        what = "leads nowhere" if there.is_symlink() else "is a file"
        yield f"{key}={folder!r}: must be a folder, and {str(there)!r} {what}"
    elif write and not os.access(there, os.W_OK | os.X_OK):
        yield f"{key}={folder!r}: must be a folder that can be written, and {str(there)!r} cannot: give another one"
