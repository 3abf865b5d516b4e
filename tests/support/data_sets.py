"""Data sets read from settings alone, without a config around them."""

from __future__ import annotations

from types import ModuleType

from unlearn.data.rows import DataSet
from unlearn.data.sets import tofu


def build(reader: ModuleType, seed: int = 0, **settings) -> DataSet:
    """A made-up world of a seed."""
    return reader.read(reader.Settings(**settings), seed)


def read_tofu(path: str | None, forget: str, retain_rows: int | None, refusals: str | None = None) -> DataSet:
    return tofu.read(tofu.Settings(path=path, forget=forget, retain_rows=retain_rows, refusals=refusals))
