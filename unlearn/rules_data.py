"""What the settings of real data sets may be; whether their files are usable is the readers' to say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unlearn.config_data import DataConfig, JsonlConfig, MuseConfig, TofuConfig, WordsConfig
from unlearn.need import at_least, need, one_of

TOFU_SETS = ("forget01", "forget05", "forget10")
OWN_FILES = ("forget", "retain", "real_authors", "world_facts", "holdout", "refusals")
CORPORA = ("news", "books")
MUSE_RETAIN = ("raw/retain1", "raw/retain2", "knowmem/retain_qa")
MUSE_FORGET = {"books": ("raw/forget", "knowmem/forget_qa")}
MUSE_FORGET["news"] = (*MUSE_FORGET["books"], *(f"{kind}/forget_{n}" for kind in ("scal", "sust") for n in range(1, 5)))


def real_data(data: DataConfig) -> Iterator[str]:
    """A data set that is read, not made."""
    if isinstance(data, TofuConfig):
        yield from one_of("data.forget", data.forget, TOFU_SETS)
        if data.retain_rows is not None:
            yield from at_least("data.retain_rows", data.retain_rows, 1)
    if isinstance(data, JsonlConfig):
        for key in OWN_FILES:
            value = getattr(data, key)
            yield from need(_files(value), f"data.{key}", value, "must be a file, a list of files [A,B], or null")
        yield from _words(data.words)
    if isinstance(data, MuseConfig):
        yield from one_of("data.corpus", data.corpus, CORPORA)
        if data.corpus in CORPORA:
            yield from one_of("data.forget", data.forget, MUSE_FORGET[data.corpus])
        yield from one_of("data.retain", data.retain, MUSE_RETAIN)
        if data.shots is not None:
            yield from at_least("data.shots", data.shots, 0)
        yield from _words(data.words)


def _files(value: Any) -> bool:
    return value is None or all(isinstance(v, str) and v for v in (value if isinstance(value, list) else [value]))


def _words(words: WordsConfig) -> Iterator[str]:
    for key in ("prompt", "answer"):
        yield from at_least(f"data.words.{key}", getattr(words, key), 1)
