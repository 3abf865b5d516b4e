"""What a value must be: each yields nothing, or one line with the value and the rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unlearn.config.schema import is_number


def need(ok: bool, key: str, value: object, rule: str) -> Iterator[str]:
    if not ok:
        yield f"{key}={value!r}: {rule}"


def positive(key: str, value: object) -> Iterator[str]:
    yield from need(is_number(value) and value > 0, key, value, "must be a finite number above 0")


def at_least(key: str, value: object, low: float) -> Iterator[str]:
    yield from need(is_number(value) and value >= low, key, value, f"must be a finite number of at least {low:g}")


def share(key: str, value: object) -> Iterator[str]:
    yield from need(is_number(value) and 0 <= value <= 1, key, value, "must lie between 0 and 1")


def below_one(key: str, value: object) -> Iterator[str]:
    yield from need(is_number(value) and 0 <= value < 1, key, value, "must be at least 0 and below 1")


def one_of(key: str, value: object, choices: tuple[str, ...]) -> Iterator[str]:
    yield from need(value in choices, key, value, f"must be one of {', '.join(choices)}")


def a_file(key: str, path: str) -> Iterator[str]:
    yield from need(Path(path).is_file(), key, path, f"no such file in {Path.cwd()}")
