"""Names of readers → functions from a data config to a checked ``DataSet``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from unlearn.config.data import DataConfig, JsonlConfig, MuseConfig, PeopleConfig, TofuConfig
from unlearn.config.schema import Config
from unlearn.data import bios, dialogues, jsonl, muse, people_files, reviews, tofu
from unlearn.data.requested import Asked
from unlearn.data.rows import DataError, DataSet, check

Reader = Callable[[DataConfig, int], DataSet]
_SHARED = {f.name for f in fields(DataConfig)}


def _made(build: Callable[..., DataSet]) -> Reader:
    """A world that is made here: the settings of its own class are the arguments of ``build``."""

    def read(cfg: DataConfig, seed: int) -> DataSet:
        own = {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.name not in _SHARED}
        return build(**own, seed=seed, asked=Asked.of(cfg))

    return read


def _tofu(cfg: TofuConfig, seed: int) -> DataSet:
    return tofu.read(cfg.path, cfg.forget, cfg.retain_rows, cfg.refusals, Asked.of(cfg))


def _jsonl(cfg: JsonlConfig, seed: int) -> DataSet:
    return jsonl.read(cfg)


def _muse(cfg: MuseConfig, seed: int) -> DataSet:
    return muse.read(cfg)


def _people(cfg: PeopleConfig, seed: int) -> DataSet:
    return people_files.read(cfg)


READERS: dict[str, Reader] = {
    "bios": _made(bios.build), "tofu": _tofu, "jsonl": _jsonl, "muse": _muse, "reviews": _made(reviews.build),
    "dialogues": _made(dialogues.build), "people": _people,
}  # fmt: skip
_read: dict[str, DataSet] = {}


def read(cfg: Config) -> DataSet:
    """The data set of a config, once per process. The embedded world is made from ``pair.seed``; real data are not."""
    if cfg.data.reader not in READERS:
        raise DataError(f"data.reader={cfg.data.reader!r}: must be one of {', '.join(READERS)}")
    key = repr((cfg.data, cfg.pair.seed))
    if key not in _read:
        _read[key] = check(READERS[cfg.data.reader](cfg.data, cfg.pair.seed))
    return _read[key]
